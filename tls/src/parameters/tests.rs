//! Tests of `parameters`.

use super::*;

fn wanted<'a>(suites: &'a [String], groups: &'a [String], algorithms: &'a [String]) -> Wanted<'a> {
    Wanted { min: Version::Tls12, max: Version::Tls13, cipher_suites: suites, groups, signature_algorithms: algorithms }
}

fn names(parameters: &Parameters) -> Vec<&'static str> {
    parameters.provider.cipher_suites.iter().map(|suite| suite_name(suite.suite())).skip(3).collect()
}

fn with_suites(list: &str) -> Result<Parameters, Refused> {
    Parameters::new(&wanted(&[list.to_owned()], &[], &[]))
}

#[test]
fn lists_are_read_as_openssl_reads_them() {
    for (list, expected) in [
        ("ECDHE-RSA-AES128-GCM-SHA256", vec!["ECDHE-RSA-AES128-GCM-SHA256"]),
        (
            "[ECDHE-RSA-CHACHA20-POLY1305|ECDHE-RSA-AES128-GCM-SHA256]",
            vec!["ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256"],
        ),
        ("ECDHE+AESGCM:!ECDSA", vec!["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384"]),
        ("ECDHE+CHACHA20:-RSA:RSA+CHACHA20", vec!["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"]),
        ("!RSA:ECDHE+AES256", vec!["ECDHE-ECDSA-AES256-GCM-SHA384"]),
    ] {
        assert_eq!(names(&with_suites(list).unwrap()), expected, "{list}");
    }
    let refused = with_suites("ECDHE-RSA-AES128-GCM-SHA256:NOPE").unwrap_err().0;
    assert!(refused.ends_with("The following ciphers were rejected when tried individually: NOPE"), "{refused}");
}

#[test]
fn what_is_not_there_is_left_out_and_told() {
    let parameters = with_suites("ECDHE-RSA-AES128-GCM-SHA256:AES128-SHA").unwrap();
    assert_eq!(names(&parameters), ["ECDHE-RSA-AES128-GCM-SHA256"]);
    assert_eq!(parameters.left_out.len(), 1, "{:?}", parameters.left_out);
    // TLS 1.3 is left.
    assert_eq!(names(&with_suites("AES128-SHA").unwrap()), [""; 0]);
    let suites = ["AES128-SHA".to_owned()];
    let old = Wanted { max: Version::Tls12, ..wanted(&suites, &[], &[]) };
    assert!(Parameters::new(&old).unwrap_err().0.contains("no cipher suite"));
    let groups = ["P-521".to_owned(), "P-256".to_owned()];
    assert_eq!(Parameters::new(&wanted(&[], &groups, &[])).unwrap().left_out, ["group P-521 is not offered"]);
    assert!(Parameters::new(&wanted(&[], &groups[..1], &[])).is_err());
    assert!(Parameters::new(&wanted(&[], &["X".to_owned()], &[])).unwrap_err().0.contains("ECDH curves"));
}

#[test]
fn versions_below_1_2_are_not_offered() {
    let old = Wanted { min: Version::Tls10, ..wanted(&[], &[], &[]) };
    let parameters = Parameters::new(&old).unwrap();
    assert_eq!((parameters.versions.len(), parameters.left_out.len()), (2, 1));
    assert!(Parameters::new(&Wanted { min: Version::Tls10, max: Version::Tls11, ..old.clone() }).is_err());
    assert!(Parameters::new(&Wanted { min: Version::Tls13, max: Version::Tls12, ..old }).is_err());
}

#[test]
fn of_tls_1_2_the_server_chooses_and_among_equals_the_client() {
    let parameters = Parameters::new(&Wanted { max: Version::Tls12, ..wanted(&[], &[], &[]) }).unwrap();
    let name =
        |offered: &[CipherSuite], ecdsa| parameters.suite_for(offered, ecdsa).map(|suite| suite_name(suite.suite()));
    use CipherSuite::{
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 as AES128, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 as AES256,
        TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 as CHACHA20,
    };
    assert_eq!(name(&[AES256, CHACHA20, AES128], false), Some("ECDHE-RSA-CHACHA20-POLY1305"));
    assert_eq!(name(&[AES256, AES128, CHACHA20], false), Some("ECDHE-RSA-AES128-GCM-SHA256"));
    assert_eq!(name(&[AES256], false), Some("ECDHE-RSA-AES256-GCM-SHA384"));
    assert_eq!(name(&[AES256], true), None);
    let newest = Parameters::new(&wanted(&[], &[], &[])).unwrap();
    assert!(newest.suite_for(&[CipherSuite::TLS13_AES_128_GCM_SHA256, AES128], false).is_none());
    let strict = Parameters::new(&Wanted { min: Version::Tls13, ..wanted(&[], &[], &[]) }).unwrap();
    assert!(strict.suite_for(&[AES128], false).is_none(), "nobody is brought down to TLS 1.2");
}
