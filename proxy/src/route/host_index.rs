//! Finds the virtual host of a host name: exact names by hash, then the longest suffix, the longest prefix, then `*`.
//! It must not know what a virtual host is: it maps names to numbers.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::input::HostMatch;

type Names = HashMap<Box<[u8]>, u32, ahash::RandomState>;

/// Domains of a route configuration, lower case.
#[derive(Default)]
pub(crate) struct HostIndex {
    exact: Names,
    /// What follows the `*`, by length, longest first.
    suffixes: Vec<(usize, Names)>,
    /// What precedes the `*`, by length, longest first.
    prefixes: Vec<(usize, Names)>,
    any: Option<u32>,
}

/// Why a domain cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DomainError {
    #[error("only one virtual host may have the domain *")]
    SecondAny,
    #[error("a domain may occur only once in a route configuration, whatever its case")]
    Duplicate,
}

impl HostIndex {
    /// Adds one domain of a virtual host. `*` stands at the start or the end; elsewhere it is a plain character.
    pub(crate) fn insert(&mut self, domain: &str, host: u32) -> Result<(), DomainError> {
        let domain = domain.to_ascii_lowercase();
        let previous = if domain == "*" {
            return match self.any.replace(host) {
                Some(_) => Err(DomainError::SecondAny),
                None => Ok(()),
            };
        } else if let Some(suffix) = domain.strip_prefix('*') {
            bucket(&mut self.suffixes, suffix.len()).insert(suffix.as_bytes().into(), host)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            bucket(&mut self.prefixes, prefix.len()).insert(prefix.as_bytes().into(), host)
        } else {
            self.exact.insert(domain.into_bytes().into(), host)
        };
        previous.map_or(Ok(()), |_| Err(DomainError::Duplicate))
    }

    /// The `*` host when there is no other domain: then nobody needs to look at the request's.
    pub(crate) fn only_any(&self) -> Option<u32> {
        let alone = self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty();
        self.any.filter(|_| alone)
    }

    /// The host that `name` belongs to. Case does not matter; nothing is allocated up to 256 bytes.
    pub(crate) fn find(&self, name: &[u8]) -> Option<u32> {
        self.lookup(name).map(|(host, _)| host)
    }

    /// The same, with the domain that decided.
    pub(crate) fn explain(&self, name: &[u8]) -> Option<(u32, HostMatch)> {
        let (host, found) = self.lookup(name)?;
        let lower = name.to_ascii_lowercase();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = match found {
            Found::Exact => HostMatch::Exact,
            Found::Suffix(length) => HostMatch::Suffix(text(&lower[lower.len() - length..])),
            Found::Prefix(length) => HostMatch::Prefix(text(&lower[..length])),
            Found::Any => HostMatch::Any,
        };
        Some((host, found))
    }

    fn lookup(&self, name: &[u8]) -> Option<(u32, Found)> {
        if name.iter().any(u8::is_ascii_uppercase) {
            let mut lower: SmallVec<[u8; 256]> = SmallVec::from_slice(name);
            lower.make_ascii_lowercase();
            return self.lookup_lower(&lower);
        }
        self.lookup_lower(name)
    }

    fn lookup_lower(&self, name: &[u8]) -> Option<(u32, Found)> {
        if let Some(host) = self.exact.get(name) {
            return Some((*host, Found::Exact));
        }
        // The `*` stands for at least one character.
        for (length, names) in self.suffixes.iter().filter(|(length, _)| *length < name.len()) {
            if let Some(host) = names.get(&name[name.len() - length..]) {
                return Some((*host, Found::Suffix(*length)));
            }
        }
        for (length, names) in self.prefixes.iter().filter(|(length, _)| *length < name.len()) {
            if let Some(host) = names.get(&name[..*length]) {
                return Some((*host, Found::Prefix(*length)));
            }
        }
        self.any.map(|host| (host, Found::Any))
    }
}

#[derive(Clone, Copy)]
enum Found {
    Exact,
    Suffix(usize),
    Prefix(usize),
    Any,
}

fn bucket(buckets: &mut Vec<(usize, Names)>, length: usize) -> &mut Names {
    let at = buckets.partition_point(|(other, _)| *other > length);
    if buckets.get(at).is_none_or(|(other, _)| *other != length) {
        buckets.insert(at, (length, Names::default()));
    }
    &mut buckets[at].1
}

/// Where the port of a host begins (its `:`), as Envoy's `getPortStart`: a colon inside `[…]` is none.
pub(crate) fn port_start(host: &[u8]) -> Option<usize> {
    let colon = host.iter().rposition(|byte| *byte == b':')?;
    match host.iter().rposition(|byte| *byte == b']') {
        Some(bracket) if bracket > colon => None,
        _ => Some(colon),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(domains: &[&str]) -> HostIndex {
        let mut index = HostIndex::default();
        for (host, domain) in domains.iter().enumerate() {
            index.insert(domain, host as u32).unwrap();
        }
        index
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let index = index(&["foo.com", "*.bar.com", "*.a.bar.com", "*-bar.com", "baz.*", "baz.q.*", "*"]);
        for (host, expected) in [
            ("FOO.com", 0),
            ("foo.com:81", 6),
            ("x.a.bar.com", 2),
            ("x.b.bar.com", 1),
            ("x-bar.com", 3),
            (".bar.com", 6),
            ("bar.com", 6),
            ("baz.", 6),
            ("baz.x", 4),
            ("baz.q.z", 5),
            ("", 6),
        ] {
            assert_eq!(index.find(host.as_bytes()), Some(expected), "{host}");
        }
        assert_eq!(index.explain(b"X.a.bar.com"), Some((2, HostMatch::Suffix(".a.bar.com".to_owned()))));
        assert_eq!(index.only_any(), None);
    }

    #[test]
    fn suffixes_go_before_prefixes() {
        let index = index(&["longest.prefix.*", "*.x"]);
        assert_eq!(index.find(b"longest.prefix.x"), Some(1));
        assert_eq!(index.find(b"nothing"), None);
    }

    #[test]
    fn duplicates_are_refused() {
        let mut index = index(&["*", "Foo", "*.a", "a.*"]);
        assert_eq!(index.insert("*", 9), Err(DomainError::SecondAny));
        for domain in ["foo", "*.A", "A.*"] {
            assert_eq!(index.insert(domain, 9), Err(DomainError::Duplicate));
        }
    }

    #[test]
    fn a_port_begins_after_the_last_bracket() {
        assert_eq!(port_start(b"a:1"), Some(1));
        assert_eq!(port_start(b"[::1]"), None);
        assert_eq!(port_start(b"[::1]:80"), Some(5));
        assert_eq!(port_start(b"a"), None);
    }
}
