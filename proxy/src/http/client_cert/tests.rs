//! The expected headers are what Envoy 1.40 sent for certificates of the same names.

use std::sync::Arc;
use std::time::Instant;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use tidegate_tls::{Identity, Session};

use super::*;

fn issue(name: &str, uris: &[&str], dns: &[&str]) -> (rcgen::Certificate, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "A, \"B\"");
    params.distinguished_name.push(DnType::CommonName, name);
    let uris = uris.iter().map(|name| SanType::URI((*name).try_into().unwrap()));
    let dns = dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
    params.subject_alt_names = uris.chain(dns).collect();
    (params.self_signed(&key).unwrap(), key.serialize_pem())
}

fn session(peer: &[&rcgen::Certificate], own_uris: &[&str]) -> TlsInfo {
    let (own, key) = issue("server", own_uris, &["server.test"]);
    let local = Identity::load(own.pem().as_bytes(), key.as_bytes(), None, "<inline>").unwrap();
    let session = Session {
        version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
        group: None,
        peer_signature: None,
        alpn: None,
        server_name: None,
        resumed: false,
        peer_chain: peer.iter().map(|certificate| certificate.der().clone()).collect(),
        peer_validated: false,
        doubt: None,
        local: Some(Arc::new(local)),
    };
    TlsInfo::new(session, Instant::now())
}

fn forwarded(mode: ClientCert, tls: Option<&TlsInfo>, claimed: Option<&str>) -> Option<String> {
    let mut headers = HeaderMap::new();
    if let Some(claimed) = claimed {
        headers.insert(X_FORWARDED_CLIENT_CERT, claimed.parse().unwrap());
    }
    forward(mode, tls, &mut headers);
    let mut values = headers.get_all(X_FORWARDED_CLIENT_CERT).iter();
    let value = values.next().map(|value| value.to_str().unwrap().to_owned());
    assert!(values.next().is_none());
    value
}

fn hash(certificate: &rcgen::Certificate) -> String {
    Certificate::parse(certificate.der()).unwrap().sha256
}

const ALL: ClientCertDetails = ClientCertDetails { subject: true, cert: true, chain: true, dns: true, uri: true };
const NONE: ClientCertDetails = ClientCertDetails { subject: false, cert: false, chain: false, dns: false, uri: false };

#[test]
fn each_mode_sends_what_envoy_sends() {
    let (peer, _) = issue("client", &[], &[]);
    let mutual = session(&[&peer], &["spiffe://a.test/server"]);
    let nobody = session(&[], &["spiffe://a.test/server"]);
    let ours = format!("By=spiffe://a.test/server;Hash={}", hash(&peer));
    let claim = "Hash=in;Subject=\"in\"";
    let both = format!("{claim},{ours}");
    let (ours, both) = (Some(ours.as_str()), Some(both.as_str()));
    // Of a client with a certificate that claims nothing, and that claims something; of one without.
    for (mode, silent, claiming, without) in [
        (ClientCert::Sanitize, None, None, None),
        (ClientCert::ForwardOnly, None, Some(claim), None),
        (ClientCert::AppendForward(NONE), ours, both, None),
        (ClientCert::SanitizeSet(NONE), ours, ours, None),
        (ClientCert::AlwaysForwardOnly, None, Some(claim), Some(claim)),
    ] {
        assert_eq!(forwarded(mode, Some(&mutual), None).as_deref(), silent, "{mode:?}");
        assert_eq!(forwarded(mode, Some(&mutual), Some(claim)).as_deref(), claiming, "{mode:?}");
        assert_eq!(forwarded(mode, Some(&nobody), Some(claim)).as_deref(), without, "{mode:?}");
        assert_eq!(forwarded(mode, None, Some(claim)).as_deref(), without, "{mode:?}");
        assert_eq!(forwarded(mode, None, None), None, "{mode:?}");
    }
}

#[test]
fn parts_stand_in_envoys_order_with_every_name() {
    let (peer, _) = issue("client", &["spiffe://a.test/x", "https://b.test/?a=b"], &["client.a.test", "*.b.test"]);
    let (between, _) = issue("between", &[], &[]);
    let tls = session(&[&peer, &between], &["spiffe://a.test/server", "spiffe://a.test/second"]);
    let pem = |certificate: &rcgen::Certificate| url_encoded_pem(certificate.der());
    let expected = format!(
        "By=spiffe://a.test/server;By=spiffe://a.test/second;Hash={};Cert=\"{}\";Chain=\"{}{}\";\
         Subject=\"CN=client,O=A\\, \\\"B\\\"\";URI=spiffe://a.test/x;URI=https://b.test/?a=b;\
         DNS=client.a.test;DNS=*.b.test",
        hash(&peer),
        pem(&peer),
        pem(&peer),
        pem(&between)
    );
    assert_eq!(forwarded(ClientCert::SanitizeSet(ALL), Some(&tls), None), Some(expected));
}

#[test]
fn what_a_certificate_does_not_have_is_left_out_but_for_its_uri() {
    let (peer, _) = issue("client", &[], &[]);
    let tls = session(&[&peer], &[]);
    let details = ClientCertDetails { cert: false, chain: false, ..ALL };
    let expected = format!("Hash={};Subject=\"CN=client,O=A\\, \\\"B\\\"\";URI=", hash(&peer));
    assert_eq!(forwarded(ClientCert::SanitizeSet(details), Some(&tls), None), Some(expected));
}

#[test]
fn a_name_that_no_header_can_carry_is_left_out() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    // Two URIs, the first with a line break in it.
    let names = [&[0x30, 12, 0x86, 5][..], b"a:\r\nb", &[0x86, 3], b"c:d"].concat();
    params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], names));
    let peer = params.self_signed(&key).unwrap();
    let tls = session(&[&peer], &[]);
    let details = ClientCertDetails { uri: true, ..NONE };
    let expected = format!("Hash={};URI=c:d", hash(&peer));
    assert_eq!(forwarded(ClientCert::SanitizeSet(details), Some(&tls), None), Some(expected));
}
