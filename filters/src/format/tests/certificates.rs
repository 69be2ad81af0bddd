//! The operators that tell of certificates. The expected texts are what Envoy 1.40 logged for certificates of the same names.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, OtherNameValue, SanType};
use tidegate_tls::{Certificate, Identity, Session};

use super::*;
use crate::connection::tls::testing::{dns, issue, uri};

const UPN: [u64; 10] = [1, 3, 6, 1, 4, 1, 311, 20, 2, 3];

fn email(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().unwrap())
}

fn address(address: &str) -> SanType {
    SanType::IpAddress(address.parse().unwrap())
}

fn other(oid: &[u64], text: &str) -> SanType {
    SanType::OtherName((oid.to_vec(), OtherNameValue::Utf8String(text.to_owned())))
}

fn named(params: &mut CertificateParams, names: &[(DnType, &str)]) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, name) in names {
        params.distinguished_name.push(kind.clone(), *name);
    }
}

fn client(params: &mut CertificateParams) {
    named(
        params,
        &[
            (DnType::CountryName, "DE"),
            (DnType::StateOrProvinceName, "Bayern"),
            (DnType::OrganizationName, "A, B + <C>; d  e"),
            (DnType::OrganizationalUnitName, "grün"),
            (DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]), "x@a.test"),
            (DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 1]), "me"),
            (DnType::CommonName, "client"),
        ],
    );
    params.serial_number = Some(0x000a_0b0c_u64.into());
    params.not_before = rcgen::date_time_ymd(2026, 11, 28);
    params.not_after = rcgen::date_time_ymd(2029, 8, 24);
    params.subject_alt_names = vec![
        uri("spiffe://a.test/ns/x;y,z=q"),
        uri("https://b.test/?a=b"),
        dns("client.a.test"),
        dns("*.b.test"),
        email("x@a.test"),
        address("10.0.0.1"),
        address("2001:db8::1"),
        other(&UPN, "upn@a.test"),
        other(&[1, 2, 3, 4], "other"),
    ];
}

/// A client's certificate and the one that vouches for it.
fn chain() -> [rcgen::Certificate; 2] {
    let mut authority = CertificateParams::default();
    named(&mut authority, &[(DnType::OrganizationName, "Acme"), (DnType::CommonName, "intermediate")]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.serial_number = Some(0x00b1_3ff6_u64.into());
    let key = KeyPair::generate().unwrap();
    let between = authority.self_signed(&key).unwrap();
    let mut params = CertificateParams::default();
    client(&mut params);
    let own = params.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(authority, key)).unwrap();
    [own, between]
}

fn server() -> Arc<Identity> {
    let (certificate, key) = issue(|params| {
        named(params, &[(DnType::OrganizationName, "Acme"), (DnType::CommonName, "server")]);
        params.subject_alt_names = vec![
            uri("spiffe://a.test/server"),
            uri("spiffe://a.test/second"),
            dns("server.test"),
            dns("*.server.test"),
            email("s@a.test"),
            address("10.0.0.2"),
            other(&UPN, "srv@a.test"),
        ];
    });
    Arc::new(Identity::load(certificate.pem().as_bytes(), key.as_bytes(), None, "<inline>").unwrap())
}

/// Prints of a connection with this session, shaken 35 ms before its request began.
fn printed(session: &Session, format: &str) -> String {
    let start = Instant::now() + Duration::from_secs(1);
    let mut connection = ConnectionInfo::new(
        1,
        super::address("10.0.0.1:1"),
        super::address("10.0.0.2:2"),
        start - Duration::from_millis(90),
    );
    let tls = Arc::new(TlsInfo::new(session.clone(), start - Duration::from_millis(35)));
    connection.tls = Some(Arc::clone(&tls));
    let mut info = StreamInfo::new(Arc::new(connection), start, UNIX_EPOCH);
    info.upstream.tls = Some(tls);
    let mut out = Vec::new();
    Format::compile(format).unwrap().render(&FormatContext::of(&info), &mut out);
    String::from_utf8(out).unwrap()
}

fn mutual() -> (Session, [rcgen::Certificate; 2]) {
    let chain = chain();
    let peer_chain = chain.iter().map(|certificate| certificate.der().clone()).collect();
    (Session { peer_chain, peer_validated: true, local: Some(server()), ..session() }, chain)
}

#[test]
fn certificates_are_told_as_envoy_tells_them() {
    let (session, _) = mutual();
    let subject = r"CN=client,UID=me,emailAddress=x@a.test,OU=gr\C3\BCn,O=A\, B \+ \<C\>\; d  e,ST=Bayern,C=DE";
    for (operator, expected) in [
        ("PEER_SUBJECT", subject),
        ("PEER_ISSUER", "CN=intermediate,O=Acme"),
        ("PEER_URI_SAN", "spiffe://a.test/ns/x;y,z=q,https://b.test/?a=b"),
        ("PEER_DNS_SAN", "client.a.test,*.b.test"),
        ("PEER_IP_SAN", "10.0.0.1,2001:db8::1"),
        ("PEER_CERT_V_START", "2026-11-28T00:00:00.000Z"),
        ("PEER_CERT_V_START(%Y/%m/%dT%H:%M:%S.%3f)", "2026/11/28T00:00:00.000"),
        ("PEER_CERT_V_END", "2029-08-24T00:00:00.000Z"),
        ("LOCAL_URI_SAN", "spiffe://a.test/server,spiffe://a.test/second"),
        ("LOCAL_DNS_SAN", "server.test,*.server.test"),
        ("LOCAL_IP_SAN", "10.0.0.2"),
        ("TLS_VERSION", "TLSv1.3"),
        ("TLS_CIPHER", "TLS_AES_128_GCM_SHA256"),
        ("TLS_GROUP", "X25519"),
        ("TLS_SESSION_ID", "-"),
    ] {
        for side in ["DOWNSTREAM", "UPSTREAM"] {
            assert_eq!(printed(&session, &format!("%{side}_{operator}%")), expected, "{side}_{operator}");
        }
    }
    for (operator, expected) in [
        ("PEER_SERIAL", "0a0b0c"),
        ("PEER_CHAIN_SERIALS", "0a0b0c,b13ff6"),
        ("PEER_ISSUER_SERIAL", "b13ff6"),
        ("PEER_EMAIL_SAN", "x@a.test"),
        ("PEER_OTHERNAME_SAN", "upn@a.test,other"),
        ("LOCAL_SUBJECT", "CN=server,O=Acme"),
        ("LOCAL_EMAIL_SAN", "s@a.test"),
        ("LOCAL_OTHERNAME_SAN", "srv@a.test"),
        // Of the request, which began later.
        ("HANDSHAKE_DURATION", "-35"),
    ] {
        assert_eq!(printed(&session, &format!("%DOWNSTREAM_{operator}%")), expected, "{operator}");
    }
}

#[test]
fn keys_and_chains_are_told_by_their_hashes() {
    let (session, chain) = mutual();
    let [own, between] = chain.map(|certificate| Certificate::parse(certificate.der()).unwrap());
    for (operator, expected) in [
        ("PEER_FINGERPRINT_256", own.sha256.clone()),
        ("PEER_FINGERPRINT_1", own.sha1.clone()),
        ("PEER_CHAIN_FINGERPRINTS_256", format!("{},{}", own.sha256, between.sha256)),
        ("PEER_CHAIN_FINGERPRINTS_1", format!("{},{}", own.sha1, between.sha1)),
        ("PEER_ISSUER_FINGERPRINT_256", between.sha256),
    ] {
        assert_eq!(printed(&session, &format!("%DOWNSTREAM_{operator}%")), expected, "{operator}");
    }
    // Who vouched for it is not known of a session that goes on.
    let resumed = Session { resumed: true, ..session };
    let format = "%DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256% %DOWNSTREAM_PEER_ISSUER_SERIAL% %DOWNSTREAM_PEER_SERIAL%";
    assert_eq!(printed(&resumed, format), "- - 0a0b0c");
}

#[test]
fn a_certificate_is_told_as_escaped_pem() {
    let (session, [own, _]) = mutual();
    let mut expected = own.pem().replace('\r', "");
    for (plain, escaped) in [("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")] {
        expected = expected.replace(plain, escaped);
    }
    assert_eq!(printed(&session, "%DOWNSTREAM_PEER_CERT%"), expected);
    assert_eq!(printed(&session, "%UPSTREAM_PEER_CERT%"), expected);
}

#[test]
fn of_nobody_nothing_is_told() {
    let session = session();
    for operator in ENVOYS.split_ascii_whitespace().filter(|name| name.contains("_PEER_") || name.contains("_LOCAL_")) {
        if operator.contains("_SAN") || operator.contains("PEER") || operator.ends_with("SUBJECT") {
            assert_eq!(printed(&session, &format!("%{operator}%")), "-", "{operator}");
        }
    }
}

#[test]
fn attributes_of_certificates_are_envoys() {
    let (mutual, chain) = mutual();
    let hash = Certificate::parse(chain[0].der()).unwrap().sha256;
    let subject = r"CN=client,UID=me,emailAddress=x@a.test,OU=gr\C3\BCn,O=A\, B \+ \<C\>\; d  e,ST=Bayern,C=DE";
    for (attribute, of_mutual, of_nobody) in [
        ("connection.mtls", "true", "false"),
        ("connection.requested_server_name", "", ""),
        ("connection.tls_version", "TLSv1.3", "TLSv1.3"),
        ("connection.subject_peer_certificate", subject, ""),
        ("connection.subject_local_certificate", "CN=server,O=Acme", ""),
        ("connection.uri_san_peer_certificate", "spiffe://a.test/ns/x;y,z=q", "-"),
        ("connection.dns_san_peer_certificate", "client.a.test", "-"),
        ("connection.uri_san_local_certificate", "spiffe://a.test/server", "-"),
        ("connection.dns_san_local_certificate", "server.test", "-"),
        ("connection.sha256_peer_certificate_digest", hash.as_str(), "-"),
        ("upstream.subject_peer_certificate", subject, ""),
        ("upstream.uri_san_local_certificate", "spiffe://a.test/server", "-"),
        ("upstream.tls_version", "TLSv1.3", "TLSv1.3"),
    ] {
        let format = format!("%CEL({attribute})%");
        assert_eq!(printed(&mutual, &format), of_mutual, "{attribute}");
        assert_eq!(printed(&session(), &format), of_nobody, "{attribute}");
    }
}
