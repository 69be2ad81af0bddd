//! Protocol versions, cipher suites, groups and signature algorithms: what is configured in BoringSSL's words as what rustls does
//! of it (Envoy's `TlsParameters`). What rustls has no equivalent for is left out and told.
//! It must not know certificates.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

use crate::Refused;

/// Versions by their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Tls10,
    Tls11,
    Tls12,
    Tls13,
}

/// What is asked for, in Envoy's words; what is empty is the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub min: Version,
    pub max: Version,
    pub cipher_suites: &'a [String],
    pub groups: &'a [String],
    pub signature_algorithms: &'a [String],
}

/// What rustls is given.
#[derive(Debug, Clone)]
pub struct Parameters {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    /// Suites of TLS 1.2, the best first; what is equal stands together.
    preference: Vec<Vec<SupportedCipherSuite>>,
    /// What may be signed with; empty: whatever the key can.
    pub(crate) schemes: Vec<SignatureScheme>,
    /// What was asked for and is not there, one sentence each.
    pub left_out: Vec<String>,
}

/// TLS 1.2 suites that BoringSSL knows, in its order of preference, with what they are made of.
static SUITES: [(&str, Option<SupportedCipherSuite>, &[&str]); 20] = [
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        Some(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        &["ECDHE", "ECDSA", "AESGCM", "AES128", "AES"],
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        Some(cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        &["ECDHE", "RSA", "AESGCM", "AES128", "AES"],
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        Some(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        &["ECDHE", "ECDSA", "AESGCM", "AES256", "AES"],
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        Some(cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        &["ECDHE", "RSA", "AESGCM", "AES256", "AES"],
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        Some(cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        &["ECDHE", "ECDSA", "CHACHA20"],
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        Some(cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
        &["ECDHE", "RSA", "CHACHA20"],
    ),
    ("ECDHE-PSK-CHACHA20-POLY1305", None, &["ECDHE", "PSK", "CHACHA20"]),
    ("ECDHE-ECDSA-AES128-SHA", None, &["ECDHE", "ECDSA", "AES128", "AES", "SHA1", "SHA"]),
    ("ECDHE-RSA-AES128-SHA", None, &["ECDHE", "RSA", "AES128", "AES", "SHA1", "SHA"]),
    ("ECDHE-PSK-AES128-CBC-SHA", None, &["ECDHE", "PSK", "AES128", "AES", "SHA1", "SHA"]),
    ("ECDHE-ECDSA-AES256-SHA", None, &["ECDHE", "ECDSA", "AES256", "AES", "SHA1", "SHA"]),
    ("ECDHE-RSA-AES256-SHA", None, &["ECDHE", "RSA", "AES256", "AES", "SHA1", "SHA"]),
    ("ECDHE-PSK-AES256-CBC-SHA", None, &["ECDHE", "PSK", "AES256", "AES", "SHA1", "SHA"]),
    ("ECDHE-RSA-AES128-SHA256", None, &["ECDHE", "RSA", "AES128", "AES", "SHA256"]),
    ("AES128-GCM-SHA256", None, &["kRSA", "RSA", "AESGCM", "AES128", "AES"]),
    ("AES256-GCM-SHA384", None, &["kRSA", "RSA", "AESGCM", "AES256", "AES"]),
    ("AES128-SHA", None, &["kRSA", "RSA", "AES128", "AES", "SHA1", "SHA"]),
    ("PSK-AES128-CBC-SHA", None, &["PSK", "AES128", "AES", "SHA1", "SHA"]),
    ("AES256-SHA", None, &["kRSA", "RSA", "AES256", "AES", "SHA1", "SHA"]),
    ("PSK-AES256-CBC-SHA", None, &["PSK", "AES256", "AES", "SHA1", "SHA"]),
];

/// Envoy's default.
const DEFAULT_SUITES: [&str; 4] = [
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
];

/// Not for configuration to choose, in Envoy as here.
static TLS13_SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Envoy's default.
const DEFAULT_GROUPS: [&str; 2] = ["X25519", "P-256"];

impl Parameters {
    /// What rustls can do of what is wanted.
    ///
    /// # Errors
    /// A name is unknown, or nothing usable remains.
    pub fn new(wanted: &Wanted<'_>) -> Result<Self, Refused> {
        let mut left_out = Vec::new();
        let versions = versions(wanted.min, wanted.max, &mut left_out)?;
        let preference = suites(wanted.cipher_suites, &mut left_out)?;
        let mut suites: Vec<SupportedCipherSuite> = preference.iter().flatten().copied().collect();
        if versions.contains(&&rustls::version::TLS13) {
            suites.splice(0..0, TLS13_SUITES);
        } else if suites.is_empty() {
            return Err(Refused::new("no cipher suite of TLS 1.2 is left that is supported here"));
        }
        let kx_groups = groups(wanted.groups, &mut left_out)?;
        let schemes = schemes(wanted.signature_algorithms, &mut left_out)?;
        let provider = CryptoProvider { cipher_suites: suites, kx_groups, ..aws_lc_rs::default_provider() };
        Ok(Self { provider: Arc::new(provider), versions, preference, schemes, left_out })
    }

    /// The suite of TLS 1.2 for a client that offers these in its order: the best that both have, and among equals the one that
    /// the client prefers. `None`: the two have none, or do not speak TLS 1.2.
    pub(crate) fn suite_for(&self, offered: &[CipherSuite], ecdsa: bool) -> Option<SupportedCipherSuite> {
        if !self.speaks(ProtocolVersion::TLSv1_2) || self.agrees_on_newest(offered) {
            return None;
        }
        let suits = |suite: &&SupportedCipherSuite| suite_name(suite.suite()).contains("-ECDSA-") == ecdsa;
        self.preference.iter().find_map(|group| {
            let equal: Vec<&SupportedCipherSuite> = group.iter().filter(suits).collect();
            offered.iter().find_map(|offer| equal.iter().find(|suite| suite.suite() == *offer).map(|suite| **suite))
        })
    }

    /// The same with this one suite of TLS 1.2 alone. The versions stay: clients are told that a better one is there (the last
    /// bytes of the random, RFC 8446 section 4.1.3).
    pub(crate) fn with_suite(&self, suite: SupportedCipherSuite) -> Self {
        let mut provider = CryptoProvider::clone(&self.provider);
        provider.cipher_suites.retain(|known| known.tls13().is_some());
        provider.cipher_suites.push(suite);
        Self { provider: Arc::new(provider), ..self.clone() }
    }

    /// Whether a client that offers these suites gets TLS 1.3.
    fn agrees_on_newest(&self, offered: &[CipherSuite]) -> bool {
        let newest = |suite: &CipherSuite| TLS13_SUITES.iter().any(|known| known.suite() == *suite);
        self.speaks(ProtocolVersion::TLSv1_3) && offered.iter().any(newest)
    }

    /// Whether a client that offers these suites can be shown a certificate whose key is one of ECDSA: of TLS 1.2 the suite
    /// says what signs.
    pub(crate) fn can_ecdsa(&self, offered: &[CipherSuite]) -> bool {
        self.agrees_on_newest(offered) || offered.iter().any(|suite| suite_name(*suite).contains("-ECDSA-"))
    }

    fn speaks(&self, version: ProtocolVersion) -> bool {
        self.versions.iter().any(|known| known.version == version)
    }
}

fn versions(
    min: Version,
    max: Version,
    left_out: &mut Vec<String>,
) -> Result<Vec<&'static SupportedProtocolVersion>, Refused> {
    if min > max {
        return Err(Refused::new("the minimum protocol version is above the maximum"));
    }
    if max < Version::Tls12 {
        return Err(Refused::new(
            "TLS 1.0 and TLS 1.1 are not supported, and the maximum protocol version allows no other",
        ));
    }
    if min < Version::Tls12 {
        left_out.push("TLS versions below 1.2 are not offered, though the minimum allows them".to_owned());
    }
    let mut versions = Vec::with_capacity(2);
    if max >= Version::Tls13 {
        versions.push(&rustls::version::TLS13);
    }
    if min <= Version::Tls12 {
        versions.push(&rustls::version::TLS12);
    }
    Ok(versions)
}

/// Reads cipher lists: names, `[a|b]` for those of equal preference, and OpenSSL's words with `!`, `-` and `+`. What is equal
/// stands together.
fn suites(list: &[String], left_out: &mut Vec<String>) -> Result<Vec<Vec<SupportedCipherSuite>>, Refused> {
    let default: Vec<String> = DEFAULT_SUITES.iter().map(ToString::to_string).collect();
    let list = if list.is_empty() { &default } else { list };
    let mut chosen: Vec<Vec<usize>> = Vec::new();
    let mut killed: Vec<usize> = Vec::new();
    let whole = list.join(":");
    for word in whole.split([':', ',', ';', ' ']).filter(|word| !word.is_empty()) {
        let (operator, name) = match word.strip_prefix(['!', '-', '+']) {
            Some(name) => (word.as_bytes()[0], name),
            None => (b' ', word),
        };
        let equal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let mut found = Vec::new();
        for name in equal.unwrap_or(name).split('|') {
            found.extend(named(name).ok_or_else(|| unknown_suite(&whole, word))?);
        }
        match operator {
            b'!' | b'-' => {
                chosen.iter_mut().for_each(|group| group.retain(|index| !found.contains(index)));
                if operator == b'!' {
                    killed.extend(found);
                }
            }
            // To the end, those that are there.
            b'+' => {
                let moved: Vec<usize> =
                    chosen.iter_mut().flat_map(|group| group.extract_if(.., |index| found.contains(index))).collect();
                chosen.extend(moved.into_iter().map(|index| vec![index]));
            }
            _ => {
                found.retain(|index| !killed.contains(index) && !chosen.iter().flatten().any(|known| known == index));
                match equal {
                    Some(_) => chosen.push(found),
                    None => chosen.extend(found.into_iter().map(|index| vec![index])),
                }
            }
        }
    }
    left_out.extend(chosen.iter().flatten().filter(|index| SUITES[**index].1.is_none()).map(|index| {
        let name = SUITES[*index].0;
        format!(
            "cipher suite {name} is not offered: it has no forward secrecy or authenticates by a broken construction"
        )
    }));
    let there = |group: Vec<usize>| group.into_iter().filter_map(|index| SUITES[index].1).collect();
    let there: Vec<Vec<SupportedCipherSuite>> = chosen.into_iter().map(there).collect();
    Ok(there.into_iter().filter(|group| !group.is_empty()).collect())
}

fn unknown_suite(whole: &str, word: &str) -> Refused {
    Refused::new(format!(
        "Failed to initialize cipher suites {whole}. The following ciphers were rejected when tried individually: {word}"
    ))
}

/// The suites of a name or of words joined with `+`.
fn named(name: &str) -> Option<Vec<usize>> {
    if let Some(index) = SUITES.iter().position(|(known, ..)| *known == name) {
        return Some(vec![index]);
    }
    let mut found: Vec<usize> = (0..SUITES.len()).collect();
    for word in name.split('+') {
        let word = match word {
            "ALL" | "TLSv1.2" | "HIGH" | "FIPS" | "DEFAULT" => continue,
            "aRSA" => "RSA",
            "aECDSA" => "ECDSA",
            "kECDHE" | "EECDH" => "ECDHE",
            "aPSK" | "kPSK" => "PSK",
            other => other,
        };
        if !SUITES.iter().any(|(.., parts)| parts.contains(&word)) {
            return None;
        }
        found.retain(|index| SUITES[*index].2.contains(&word));
    }
    Some(found)
}

fn groups(list: &[String], left_out: &mut Vec<String>) -> Result<Vec<&'static dyn SupportedKxGroup>, Refused> {
    let default: Vec<String> = DEFAULT_GROUPS.iter().map(ToString::to_string).collect();
    let list = if list.is_empty() { &default } else { list };
    let mut groups = Vec::with_capacity(list.len());
    for name in list.iter().flat_map(|names| names.split(':')) {
        match name {
            "X25519" => groups.push(kx_group::X25519),
            "P-256" | "prime256v1" => groups.push(kx_group::SECP256R1),
            "P-384" | "secp384r1" => groups.push(kx_group::SECP384R1),
            "X25519MLKEM768" => groups.push(kx_group::X25519MLKEM768),
            "P-521" | "secp521r1" | "P-224" | "X25519Kyber768Draft00" | "MLKEM1024" => {
                left_out.push(format!("group {name} is not offered"));
            }
            _ => {
                return Err(Refused::new(format!("Failed to initialize ECDH curves {}", list.join(":"))));
            }
        }
    }
    if groups.is_empty() {
        return Err(Refused::new("no group is left that is supported here"));
    }
    Ok(groups)
}

/// Names of TLS 1.3's registry, in the order of rustls' preference.
const SCHEMES: [(&str, SignatureScheme); 10] = [
    ("ecdsa_secp521r1_sha512", SignatureScheme::ECDSA_NISTP521_SHA512),
    ("ecdsa_secp384r1_sha384", SignatureScheme::ECDSA_NISTP384_SHA384),
    ("ecdsa_secp256r1_sha256", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("ed25519", SignatureScheme::ED25519),
    ("rsa_pss_rsae_sha512", SignatureScheme::RSA_PSS_SHA512),
    ("rsa_pss_rsae_sha384", SignatureScheme::RSA_PSS_SHA384),
    ("rsa_pss_rsae_sha256", SignatureScheme::RSA_PSS_SHA256),
    ("rsa_pkcs1_sha512", SignatureScheme::RSA_PKCS1_SHA512),
    ("rsa_pkcs1_sha384", SignatureScheme::RSA_PKCS1_SHA384),
    ("rsa_pkcs1_sha256", SignatureScheme::RSA_PKCS1_SHA256),
];

fn schemes(list: &[String], left_out: &mut Vec<String>) -> Result<Vec<SignatureScheme>, Refused> {
    let mut schemes = Vec::with_capacity(list.len());
    for name in list.iter().flat_map(|names| names.split(':')) {
        match (SCHEMES.iter().find(|(known, _)| *known == name), name) {
            (Some((_, scheme)), _) => schemes.push(*scheme),
            (None, "rsa_pkcs1_sha1" | "ecdsa_sha1") => {
                left_out.push(format!("signature algorithm {name} is not offered"))
            }
            (None, _) => {
                return Err(Refused::new(format!("Failed to initialize TLS signature algorithms {}", list.join(":"))));
            }
        }
    }
    if schemes.is_empty() && !list.is_empty() {
        return Err(Refused::new("no signature algorithm is left that is supported here"));
    }
    Ok(schemes)
}

/// As BoringSSL and so Envoy's stats and logs name it.
pub fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        _ => "unknown",
    }
}

/// As BoringSSL and so Envoy's stats and logs name it.
pub fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => SUITES
            .iter()
            .find(|(_, suite, _)| suite.is_some_and(|suite| suite.suite() == other))
            .map_or("unknown", |(name, ..)| name),
    }
}

/// As BoringSSL and so Envoy's stats and logs name it.
pub fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => "unknown",
    }
}

/// As BoringSSL and so Envoy's stats name it.
pub fn scheme_name(scheme: SignatureScheme) -> &'static str {
    SCHEMES.iter().find(|(_, known)| *known == scheme).map_or("unknown", |(name, _)| name)
}

#[cfg(test)]
mod tests;
