//! Subject alternative names that are asked for (Envoy's `SubjectAltNameMatcher` and `dnsNameMatch`).
//! It must not know chains.

use std::sync::Arc;

use crate::certificate::{San, SanKind};

/// A pattern for text, compiled by whoever knows patterns.
pub trait TextMatch: std::fmt::Debug + Send + Sync {
    /// Whether all of these bytes match.
    fn matches(&self, text: &[u8]) -> bool;
}

/// A kind of name, and what it must look like.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    pub kind: SanKind,
    pub pattern: SanPattern,
}

/// What a name must look like.
#[derive(Debug, Clone)]
pub enum SanPattern {
    /// A DNS name; one in a certificate may have a wildcard as its first label.
    DnsExact(String),
    Text(Arc<dyn TextMatch>),
}

impl SanMatcher {
    /// Whether this name is one that is asked for. All of its bytes count: one with a NUL is not what stands before it.
    pub fn matches(&self, san: &San) -> bool {
        if self.kind != san.kind {
            return false;
        }
        match &self.pattern {
            SanPattern::DnsExact(name) => std::str::from_utf8(&san.value).is_ok_and(|san| dns_name_matches(name, san)),
            SanPattern::Text(pattern) => pattern.matches(&san.value),
        }
    }
}

/// Names that the peer must have, as its connection says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The host that was named to it: a DNS name, asked for in place of what the validation asks for
    /// (`auto_sni_san_validation`).
    pub server_name: Option<Arc<str>>,
    /// Whom the request is for, of whatever kind the name is; beside what the validation asks for (`auto_san_validation`).
    pub any: Option<Arc<str>>,
}

impl Expected {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.server_name.is_none() && self.any.is_none()
    }

    /// Whether each is one of these.
    pub(super) fn is_met_by(&self, sans: &[San]) -> bool {
        let dns = |san: &San, name: &str| {
            san.kind == SanKind::Dns
                && std::str::from_utf8(&san.value).is_ok_and(|pattern| dns_name_matches(name, pattern))
        };
        let is_other = |san: &San, name: &str| san.kind != SanKind::Dns && san.value == name.as_bytes();
        let server_name = self.server_name.as_deref();
        server_name.is_none_or(|name| sans.iter().any(|san| dns(san, name)))
            && self.any.as_deref().is_none_or(|name| sans.iter().any(|san| dns(san, name) || is_other(san, name)))
    }
}

/// RFC 6125 with Envoy's bounds: case does not count, a wildcard is the first label or a part of it and stands for one label, be
/// it the only one before a single other.
fn dns_name_matches(name: &str, pattern: &str) -> bool {
    let (name, pattern) = (name.to_ascii_lowercase(), pattern.to_ascii_lowercase());
    if name == pattern {
        return true;
    }
    let (Some((first, rest)), Some((label, after))) = (pattern.split_once('.'), name.split_once('.')) else {
        return false;
    };
    let Some((before, behind)) = first.split_once('*') else { return false };
    let plain = !behind.contains('*') && !rest.contains('*');
    // No wildcard within an internationalised label (RFC 6125 section 7.2).
    let internationalised = first.starts_with("xn--");
    plain
        && !internationalised
        && rest == after
        && label.len() >= before.len() + behind.len()
        && label.starts_with(before)
        && label.ends_with(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        for (pattern, name, expected) in [
            ("example.com", "EXAMPLE.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.com", "example.com", true),
            ("*.com", "com", false),
            ("*-a.example.com", "xn--a.example.com", true),
            ("*", "example.com", false),
            ("f*.example.com", "foo.example.com", true),
            ("f*o.example.com", "foo.example.com", true),
            ("f*o.example.com", "fo.example.com", true),
            ("f*o.example.com", "f.example.com", false),
            ("*.*.example.com", "a.b.example.com", false),
            ("xn--*.example.com", "xn--a.example.com", false),
            ("a.example.com\0.evil.org", "a.example.com", false),
        ] {
            assert_eq!(dns_name_matches(name, pattern), expected, "{pattern:?} {name:?}");
        }
    }
}
