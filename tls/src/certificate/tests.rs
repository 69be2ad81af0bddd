//! Tests of `certificate`.

use rcgen::{CertificateParams, DnType, SanType};

use super::*;
use crate::testing::{Authority, dns, raw_dns, uri};

fn parsed(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
    let (pem, _) = Authority::new("root").issue(change);
    Certificate::parse(&crate::pem::certificates(pem.as_bytes()).unwrap()[0]).unwrap()
}

#[test]
fn names_are_spelled_as_rfc_2253_says() {
    let certificate = parsed(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "US");
        params.distinguished_name.push(DnType::OrganizationName, "A, \"B\" + <C>");
        params.distinguished_name.push(DnType::CommonName, "#grün ");
    });
    assert_eq!(certificate.subject, r#"CN=\#gr\C3\BCn\ ,O=A\, \"B\" \+ \<C\>,C=US"#);
    assert_eq!(certificate.issuer, "CN=root");
    assert_eq!(certificate.common_name.as_deref(), Some("#grün "));
}

#[test]
fn every_kind_of_name_is_there_with_all_its_bytes() {
    let certificate = parsed(|params| {
        params.subject_alt_names = vec![
            dns("a.test"),
            uri("spiffe://a/b"),
            SanType::Rfc822Name("x@a.test".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
            SanType::OtherName((
                vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
                rcgen::OtherNameValue::Utf8String("upn".into()),
            )),
        ];
    });
    let of = |kind: SanKind| certificate.sans_of(&kind).collect::<Vec<_>>();
    assert_eq!(of(SanKind::Dns), ["a.test"]);
    assert_eq!(of(SanKind::Uri), ["spiffe://a/b"]);
    assert_eq!(of(SanKind::Email), ["x@a.test"]);
    assert_eq!(of(SanKind::Ip), ["10.0.0.1", "2001:db8::1"]);
    assert_eq!(certificate.sans.last().unwrap().kind, SanKind::Other("1.3.6.1.4.1.311.20.2.3".into()));
    assert_eq!(certificate.sans.last().unwrap().value, b"upn");
    let with_nul = parsed(|params| raw_dns(params, b"a.test\0.evil"));
    assert_eq!(with_nul.sans[0].value, b"a.test\0.evil");
}

#[test]
fn fingerprints_serials_and_times_are_what_openssl_prints() {
    let certificate = parsed(|params| params.serial_number = Some(0x00b1_3ff6_u64.into()));
    assert_eq!(certificate.serial, "b13ff6");
    assert_eq!((certificate.sha256.len(), certificate.sha1.len()), (64, 40));
    assert_eq!(certificate.key, KeyKind::Ecdsa(256));
    let expired = parsed(crate::testing::expired);
    assert!(expired.seconds_until_expiration(SystemTime::now()) < -80_000);
}

#[test]
fn what_is_no_certificate_is_refused() {
    for junk in [b"".as_slice(), b"junk", &[0x30, 0x82, 0xff, 0xff]] {
        Certificate::parse(junk).unwrap_err();
    }
}

#[test]
fn pem_is_read_back_and_escaped_as_envoy_does() {
    let (text, _) = Authority::new("root").issue(|_| ());
    let der = crate::pem::certificates(text.as_bytes()).unwrap().remove(0);
    assert_eq!(pem(&der).replace('\n', ""), text.replace(['\r', '\n'], ""));
    let escaped = url_encoded_pem(&der);
    assert!(escaped.starts_with("-----BEGIN%20CERTIFICATE-----%0A"), "{escaped}");
    assert!(!escaped.contains(['+', '/', '=', '\n', ' ']));
}
