//! Tests of `identity`.

use super::*;
use crate::testing::Authority;

fn refused(chain: &str, key: &str) -> String {
    Identity::load(chain.as_bytes(), key.as_bytes(), None, "a.pem").unwrap_err().0
}

#[test]
fn a_chain_and_its_key_belong_together() {
    let root = Authority::new("root");
    let (chain, key) = root.issue(|params| params.subject_alt_names = vec![crate::testing::dns("A.test")]);
    let identity = Identity::load(chain.as_bytes(), key.as_bytes(), None, "a.pem").unwrap();
    assert_eq!(identity.names(), ["a.test"]);
    let (_, other) = root.issue(|_| ());
    assert_eq!(refused(&chain, &other), "Failed to load private key from a.pem, Cause: KEY_VALUES_MISMATCH");
}

#[test]
fn what_cannot_be_used_is_refused_and_no_key_is_told() {
    let (chain, key) = Authority::new("root").issue(|_| ());
    for (chain, key, reason) in [
        ("", key.as_str(), "there is no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, "is not an X.509 certificate"),
        (&chain, "", "there is no private key"),
        (
            &chain,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "encrypted private keys",
        ),
        (
            &chain,
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "encrypted",
        ),
        (&chain, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "Failed to load private key"),
    ] {
        let refused = refused(chain, key);
        assert!(refused.contains(reason), "{refused}");
        assert!(!refused.contains("c2VjcmV0"), "{refused}");
    }
}

#[test]
fn a_name_without_alternatives_is_the_common_one() {
    let (chain, key) = Authority::new("root").issue(|_| ());
    assert_eq!(Identity::load(chain.as_bytes(), key.as_bytes(), None, "a").unwrap().names(), ["leaf"]);
}
