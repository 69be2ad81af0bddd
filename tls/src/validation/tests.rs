//! Tests of `validation`.

use std::sync::Arc;

use rcgen::CertificateParams;
use rustls::pki_types::CertificateDer;

use super::*;
use crate::certificate::SanKind;
use crate::testing::{Authority, dns, expired, raw_dns, uri};

fn chain(pems: &[&str]) -> Vec<CertificateDer<'static>> {
    pems.iter().flat_map(|pem| crate::pem::certificates(pem.as_bytes()).unwrap()).collect()
}

fn leaf(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Vec<CertificateDer<'static>> {
    chain(&[&authority.issue(change).0])
}

fn check(validation: &Validation, chain: &[CertificateDer<'_>]) -> Result<Outcome, Reason> {
    validation.check(chain, &Expected::default(), Peer::Server, UnixTime::now())
}

#[derive(Debug)]
struct Exactly(&'static str);

impl TextMatch for Exactly {
    fn matches(&self, text: &[u8]) -> bool {
        text == self.0.as_bytes()
    }
}

#[test]
fn a_chain_ends_in_a_root() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    assert_eq!(check(&root.validation(), &leaf(&root, |_| ())), Ok(Outcome::Validated));
    assert_eq!(
        check(&other.validation(), &leaf(&root, |_| ())),
        Err(Reason::Chain(webpki::Error::UnknownIssuer.into()))
    );
    let between = root.below("between");
    let (own, _) = between.issue(|_| ());
    assert_eq!(check(&root.validation(), &chain(&[&own, &between.pem])), Ok(Outcome::Validated));
    assert!(check(&root.validation(), &chain(&[&own])).is_err());
    // What stands between can be trusted by itself.
    assert_eq!(check(&between.validation(), &chain(&[&own])), Ok(Outcome::Validated));
    // And so can the peer's own.
    assert_eq!(check(&root.validation(), &chain(&[&root.pem])), Ok(Outcome::Validated));
    assert!(check(&root.validation(), &[]).is_err());
}

#[test]
fn those_who_trust_the_same_share_it() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let shared = |authority: &Authority, path| Roots::shared(authority.pem.as_bytes(), path).unwrap();
    let first = shared(&root, "a.pem");
    assert!(Arc::ptr_eq(&first, &shared(&root, "a.pem")));
    assert!(!Arc::ptr_eq(&first, &shared(&root, "b.pem")), "where they come from is told");
    assert!(!Arc::ptr_eq(&first, &shared(&other, "a.pem")));
    let gone = Arc::downgrade(&first);
    drop(first);
    assert!(gone.upgrade().is_none());
    assert!(Roots::shared(b"junk", "a.pem").is_err());
}

#[test]
fn where_a_chain_breaks_is_said_as_envoy_says_it() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let between = root.below("between");
    let (own, _) = between.issue(|_| ());
    let (old, _) = root.issue(expired);
    let short = {
        let mut trust = root.trust();
        trust.max_depth = Some(0);
        Validation { trust: Some(trust), ..Validation::default() }
    };
    for (validation, chain, reason) in [
        (other.validation(), chain(&[&own]), "depth 0: unable to get local issuer certificate"),
        (other.validation(), chain(&[&own, &between.pem]), "depth 1: unable to get local issuer certificate"),
        (other.validation(), chain(&[&own, &other.pem]), "depth 0: unable to get local issuer certificate"),
        (
            other.validation(),
            chain(&[&own, &between.pem, &root.pem]),
            "depth 2: self signed certificate in certificate chain",
        ),
        (other.validation(), chain(&[&root.pem]), "depth 0: self signed certificate"),
        (root.validation(), chain(&[&old]), "depth 0: certificate has expired"),
        (short, chain(&[&own, &between.pem]), "depth 1: unable to get local issuer certificate"),
    ] {
        let said = check(&validation, &chain).unwrap_err().to_string();
        let expected = format!("verify cert failed: X509_verify_cert: certificate verification error at {reason}");
        assert_eq!(said, expected);
    }
}

#[test]
fn a_chain_can_be_too_long() {
    let root = Authority::new("root");
    let (first, second) = {
        let first = root.below("1");
        let second = first.below("2");
        (first, second)
    };
    let own = chain(&[&second.issue(|_| ()).0, &second.pem, &first.pem]);
    for (depth, expected) in [(1, false), (2, true)] {
        let mut trust = root.trust();
        trust.max_depth = Some(depth);
        let validation = Validation { trust: Some(trust), ..Validation::default() };
        assert_eq!(check(&validation, &own).is_ok(), expected, "{depth}");
    }
}

#[test]
fn what_has_expired_is_accepted_only_where_that_is_asked_for() {
    let root = Authority::new("root");
    let old = leaf(&root, expired);
    assert!(matches!(
        check(&root.validation(), &old),
        Err(Reason::Chain(Broken { error: webpki::Error::CertExpired { .. }, .. }))
    ));
    let mut trust = root.trust();
    trust.allow_expired = true;
    assert!(check(&Validation { trust: Some(trust), ..Validation::default() }, &old).is_ok());
    let mut trust = Authority::new("other").trust();
    trust.allow_expired = true;
    assert!(check(&Validation { trust: Some(trust), ..Validation::default() }, &old).is_err(), "nobody vouches for it");
}

#[test]
fn a_chain_that_was_valid_once_is_not_looked_at_for_long() {
    let root = Authority::new("root");
    let mut trust = root.trust();
    trust.allow_expired = true;
    let lenient = Validation { trust: Some(trust), ..Validation::default() };
    let old = root.below("between");
    let (own, _) = old.issue(expired);
    assert!(check(&lenient, &chain(&[&own, &old.pem])).is_ok());
    // As many as it likes of one name, none of which has signed anything.
    let others: Vec<Authority> = (0..101).map(|_| root.below("between")).collect();
    let mut pems = vec![own.as_str()];
    pems.extend(others.iter().map(|other| other.pem.as_str()));
    let many = chain(&pems);
    let (leaf, between) = many.split_first().unwrap();
    assert!(super::trust::other_times(leaf, between).len() <= 4);
    let error = webpki::Error::MaximumPathDepthExceeded;
    let result = check(&lenient, &many);
    assert!(matches!(&result, Err(Reason::Chain(broken)) if broken.error == error), "{result:?}");
}

#[test]
fn what_was_revoked_is_refused_and_what_nobody_speaks_for() {
    let root = Authority::new("root");
    let serial = |serial: u64| leaf(&root, move |params| params.serial_number = Some(serial.into()));
    let mut trust = root.trust();
    trust.revoke(root.revoke(&[7]).as_bytes(), "<inline>").unwrap();
    let validation = Validation { trust: Some(trust), ..Validation::default() };
    assert_eq!(check(&validation, &serial(7)), Err(Reason::Chain(webpki::Error::CertRevoked.into())));
    assert!(check(&validation, &serial(8)).is_ok());
    let between = root.below("between");
    let own = chain(&[&between.issue(|_| ()).0, &between.pem]);
    assert_eq!(check(&validation, &own), Err(Reason::Chain(webpki::Error::UnknownRevocationStatus.into())));
}

#[test]
fn names_are_asked_for_by_kind_and_with_all_their_bytes() {
    let root = Authority::new("root");
    let text = |kind: SanKind, value| SanMatcher { kind, pattern: SanPattern::Text(Arc::new(Exactly(value))) };
    let exact = |name: &str| SanMatcher { kind: SanKind::Dns, pattern: SanPattern::DnsExact(name.into()) };
    let with = |matcher: SanMatcher| Validation { sans: vec![matcher], ..root.validation() };
    let own = leaf(&root, |params| params.subject_alt_names = vec![dns("*.a.test"), uri("spiffe://a/b")]);
    for (matcher, expected) in [
        (exact("x.a.test"), true),
        (exact("a.test"), false),
        (text(SanKind::Dns, "*.a.test"), true),
        (text(SanKind::Uri, "spiffe://a/b"), true),
        (text(SanKind::Email, "spiffe://a/b"), false),
        (text(SanKind::Uri, "spiffe://a"), false),
    ] {
        assert_eq!(check(&with(matcher.clone()), &own).is_ok(), expected, "{matcher:?}");
    }
    let nul = leaf(&root, |params| raw_dns(params, b"a.test\0.evil.test"));
    let refused = check(&with(exact("a.test")), &nul).unwrap_err();
    assert_eq!(refused.to_string(), "verify cert failed: SAN matcher, certificate SANs are [a.test\0.evil.test]");
    let refused = check(&with(exact("a.test")), &own).unwrap_err();
    assert_eq!(refused.to_string(), "verify cert failed: SAN matcher, certificate SANs are [*.a.test, spiffe://a/b]");
}

#[test]
fn the_names_that_a_connection_is_for_must_be_there() {
    let root = Authority::new("root");
    let own = leaf(&root, |params| {
        params.subject_alt_names =
            vec![dns("a.test"), uri("spiffe://a/b"), rcgen::SanType::IpAddress([10, 0, 0, 1].into()), dns("10.0.0.2")];
    });
    let sans = |name: &str| vec![SanMatcher { kind: SanKind::Dns, pattern: SanPattern::DnsExact(name.into()) }];
    let trusting = |name: &str| Validation { sans: sans(name), ..root.validation() };
    let expect = |validation: &Validation, server_name: Option<&str>, any: Option<&str>| {
        let expected = Expected { server_name: server_name.map(Into::into), any: any.map(Into::into) };
        let now = UnixTime::now();
        let accepted = validation.check(&own, &expected, Peer::Server, now).is_ok();
        assert_eq!(validation.check_again(&own, &expected, Peer::Server, now).is_ok(), accepted, "{expected:?}");
        accepted
    };
    for (validation, server_name, any, accepted) in [
        (root.validation(), Some("a.test"), None, true),
        (root.validation(), Some("b.test"), None, false),
        // What is named to a host is a DNS name.
        (root.validation(), Some("spiffe://a/b"), None, false),
        (root.validation(), Some("10.0.0.1"), None, false),
        (root.validation(), Some("10.0.0.2"), None, true),
        (root.validation(), None, Some("10.0.0.1"), true),
        (root.validation(), None, Some("10.0.0.2"), true),
        (root.validation(), None, Some("10.0.0.3"), false),
        (root.validation(), None, Some("spiffe://a/b"), true),
        (root.validation(), None, Some(""), false),
        (root.validation(), Some("a.test"), Some("b.test"), false),
        // It goes in place of the names that are configured, the other beside them.
        (trusting("z.test"), Some("a.test"), None, true),
        (trusting("z.test"), None, Some("a.test"), false),
        (trusting("a.test"), None, Some("10.0.0.1"), true),
        // A name that nobody vouches for is none.
        (Validation::default(), None, Some("a.test"), false),
    ] {
        assert_eq!(expect(&validation, server_name, any), accepted, "{server_name:?} {any:?} {validation:?}");
    }
}

#[test]
fn a_pin_stands_by_itself() {
    let root = Authority::new("root");
    let own = leaf(&root, |_| ());
    let facts = Certificate::parse(&own[0]).unwrap();
    let hash: [u8; 32] = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &own[0]).as_ref().try_into().unwrap();
    let by_hash = Validation { hashes: vec![[0; 32], hash], ..Validation::default() };
    assert_eq!(check(&by_hash, &own), Ok(Outcome::Validated));
    let by_key = Validation { spki: vec![facts.spki_sha256], ..Validation::default() };
    assert_eq!(check(&by_key, &own), Ok(Outcome::Validated));
    assert_eq!(check(&by_hash, &leaf(&root, |_| ())), Err(Reason::Hash));
}

#[test]
fn whoever_fails_can_be_let_in_but_is_not_validated() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let validation = Validation { accept_untrusted: true, ..other.validation() };
    assert_eq!(check(&validation, &leaf(&root, |_| ())), Ok(Outcome::NotValidated));
    assert_eq!(check(&validation, &leaf(&other, |_| ())), Ok(Outcome::Validated));
    assert_eq!(check(&Validation::default(), &leaf(&root, |_| ())), Ok(Outcome::NotValidated));
}

#[test]
fn each_trust_domain_has_roots_of_its_own() {
    let (a, b) = (Authority::new("a"), Authority::new("b"));
    let domains = vec![("a.test".to_owned(), a.trust()), ("b.test".to_owned(), b.trust())];
    let validation = Validation { spiffe: Some(Spiffe { domains }), ..Validation::default() };
    let svid = |root: &Authority, names: &[&str]| {
        leaf(root, |params| {
            params.subject_alt_names = names.iter().map(|name| uri(name)).collect();
            params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        })
    };
    assert_eq!(check(&validation, &svid(&a, &["spiffe://a.test/x"])), Ok(Outcome::Validated));
    assert_eq!(check(&validation, &svid(&b, &["spiffe://B.test/x"])), Ok(Outcome::Validated));
    assert!(matches!(check(&validation, &svid(&b, &["spiffe://a.test/x"])), Err(Reason::Chain(_))), "another's domain");
    for usages in [vec![], vec![rcgen::KeyUsagePurpose::CrlSign]] {
        let own = leaf(&a, |params| {
            params.subject_alt_names = vec![uri("spiffe://a.test/x")];
            params.key_usages.clone_from(&usages);
        });
        assert!(matches!(check(&validation, &own), Err(Reason::Domain(_))), "{usages:?}");
    }
    for names in [
        &["spiffe://c.test/x"][..],
        &["https://a.test/x"],
        &["spiffe:///x"],
        &[],
        &["spiffe://a.test/x", "spiffe://a.test/y"],
    ] {
        assert!(matches!(check(&validation, &svid(&a, names)), Err(Reason::Domain(_))), "{names:?}");
    }
}
