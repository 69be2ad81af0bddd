//! Finds the virtual host of a host name: exact names by hash, then the longest suffix, the longest prefix, then `*`.
//! It must not know what a virtual host is: it maps names to what it is given.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::input::HostMatch;

/// Names to hosts.
pub(crate) trait Names<H>: Default {
    fn get(&self, name: &[u8]) -> Option<&H>;
    /// Returns what stood there before.
    fn put(&mut self, name: &[u8], host: H) -> Option<H>;
    fn take(&mut self, name: &[u8]);
    fn is_empty(&self) -> bool;
}

/// Names that are put there once.
pub(crate) type Fixed<H> = HashMap<Box<[u8]>, H, ahash::RandomState>;

/// Names that come and go. Clones share structure.
pub(crate) type Persistent<H> =
    imbl::GenericHashMap<Arc<[u8]>, H, ahash::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

impl<H> Names<H> for Fixed<H> {
    fn get(&self, name: &[u8]) -> Option<&H> {
        self.get(name)
    }

    fn put(&mut self, name: &[u8], host: H) -> Option<H> {
        self.insert(name.into(), host)
    }

    fn take(&mut self, name: &[u8]) {
        self.remove(name);
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<H: Clone> Names<H> for Persistent<H> {
    fn get(&self, name: &[u8]) -> Option<&H> {
        self.get(name)
    }

    fn put(&mut self, name: &[u8], host: H) -> Option<H> {
        self.insert(name.into(), host)
    }

    fn take(&mut self, name: &[u8]) {
        self.remove(name);
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

/// Domains of a route configuration, lower case.
#[derive(Clone)]
pub(crate) struct HostIndex<H, N> {
    exact: N,
    /// What follows the `*`, by length, longest first.
    suffixes: Vec<(usize, N)>,
    /// What precedes the `*`, by length, longest first.
    prefixes: Vec<(usize, N)>,
    any: Option<H>,
}

impl<H, N: Default> Default for HostIndex<H, N> {
    fn default() -> Self {
        Self { exact: N::default(), suffixes: Vec::new(), prefixes: Vec::new(), any: None }
    }
}

/// Why a domain cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DomainError {
    #[error("only one virtual host may have the domain *")]
    SecondAny,
    #[error("a domain may occur only once in a route configuration, whatever its case")]
    Duplicate,
}

impl DomainError {
    /// Why a domain cannot be added that there is already.
    pub(crate) fn of(domain: &str) -> Self {
        if domain == "*" { Self::SecondAny } else { Self::Duplicate }
    }
}

impl<H, N: Names<H>> HostIndex<H, N> {
    /// Adds one domain of a virtual host. `*` stands at the start or the end; elsewhere it is a plain character.
    pub(crate) fn insert(&mut self, domain: &str, host: H) -> Result<(), DomainError> {
        let domain = domain.to_ascii_lowercase();
        let previous = match Place::of(&domain) {
            Place::Any => {
                return match self.any.replace(host) {
                    Some(_) => Err(DomainError::SecondAny),
                    None => Ok(()),
                };
            }
            Place::Suffix(suffix) => bucket(&mut self.suffixes, suffix.len()).put(suffix.as_bytes(), host),
            Place::Prefix(prefix) => bucket(&mut self.prefixes, prefix.len()).put(prefix.as_bytes(), host),
            Place::Exact(name) => self.exact.put(name.as_bytes(), host),
        };
        previous.map_or(Ok(()), |_| Err(DomainError::Duplicate))
    }

    /// Takes out a domain that was added.
    pub(crate) fn remove(&mut self, domain: &str) {
        let domain = domain.to_ascii_lowercase();
        match Place::of(&domain) {
            Place::Any => self.any = None,
            Place::Suffix(suffix) => remove_from(&mut self.suffixes, suffix),
            Place::Prefix(prefix) => remove_from(&mut self.prefixes, prefix),
            Place::Exact(name) => self.exact.take(name.as_bytes()),
        }
    }

    /// Whether this very domain was added.
    pub(crate) fn has(&self, domain: &str) -> bool {
        let domain = domain.to_ascii_lowercase();
        let within = |buckets: &[(usize, N)], part: &str| {
            buckets.iter().any(|(length, names)| *length == part.len() && names.get(part.as_bytes()).is_some())
        };
        match Place::of(&domain) {
            Place::Any => self.any.is_some(),
            Place::Suffix(suffix) => within(&self.suffixes, suffix),
            Place::Prefix(prefix) => within(&self.prefixes, prefix),
            Place::Exact(name) => self.exact.get(name.as_bytes()).is_some(),
        }
    }

    /// The `*` host when there is no other domain: then nobody needs to look at the request's.
    pub(crate) fn only_any(&self) -> Option<&H> {
        self.any.as_ref().filter(|_| self.has_no_names())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.any.is_none() && self.has_no_names()
    }

    fn has_no_names(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty()
    }

    /// The host that `name` belongs to, and what decided. Case does not matter; nothing is allocated up to 256 bytes.
    pub(crate) fn find(&self, name: &[u8]) -> Option<(&H, Found)> {
        if name.iter().any(u8::is_ascii_uppercase) {
            let mut lower: SmallVec<[u8; 256]> = SmallVec::from_slice(name);
            lower.make_ascii_lowercase();
            return self.find_lower(&lower);
        }
        self.find_lower(name)
    }

    fn find_lower(&self, name: &[u8]) -> Option<(&H, Found)> {
        if let Some(host) = self.exact.get(name) {
            return Some((host, Found::Exact));
        }
        // The `*` stands for at least one character.
        for (length, names) in self.suffixes.iter().filter(|(length, _)| *length < name.len()) {
            if let Some(host) = names.get(&name[name.len() - length..]) {
                return Some((host, Found::Suffix(*length)));
            }
        }
        for (length, names) in self.prefixes.iter().filter(|(length, _)| *length < name.len()) {
            if let Some(host) = names.get(&name[..*length]) {
                return Some((host, Found::Prefix(*length)));
            }
        }
        self.any.as_ref().map(|host| (host, Found::Any))
    }
}

/// Where a domain is kept.
enum Place<'a> {
    Any,
    Suffix(&'a str),
    Prefix(&'a str),
    Exact(&'a str),
}

impl<'a> Place<'a> {
    fn of(domain: &'a str) -> Self {
        match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(""), _) => Self::Any,
            (Some(suffix), _) => Self::Suffix(suffix),
            (None, Some(prefix)) => Self::Prefix(prefix),
            (None, None) => Self::Exact(domain),
        }
    }
}

/// What decided, the weakest first; a longer part is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Found {
    Any,
    Prefix(usize),
    Suffix(usize),
    Exact,
}

impl Found {
    /// The domain that decided for `name`.
    pub(crate) fn domain(self, name: &[u8]) -> HostMatch {
        let lower = name.to_ascii_lowercase();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Self::Exact => HostMatch::Exact,
            Self::Suffix(length) => HostMatch::Suffix(text(&lower[lower.len() - length..])),
            Self::Prefix(length) => HostMatch::Prefix(text(&lower[..length])),
            Self::Any => HostMatch::Any,
        }
    }
}

fn bucket<N: Default>(buckets: &mut Vec<(usize, N)>, length: usize) -> &mut N {
    let at = buckets.partition_point(|(other, _)| *other > length);
    if buckets.get(at).is_none_or(|(other, _)| *other != length) {
        buckets.insert(at, (length, N::default()));
    }
    &mut buckets[at].1
}

fn remove_from<H, N: Names<H>>(buckets: &mut Vec<(usize, N)>, part: &str) {
    let Some(at) = buckets.iter().position(|(length, _)| *length == part.len()) else { return };
    buckets[at].1.take(part.as_bytes());
    if buckets[at].1.is_empty() {
        buckets.remove(at);
    }
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

    fn filled<N: Names<u32>>(domains: &[&str]) -> HostIndex<u32, N> {
        let mut index = HostIndex::default();
        for (host, domain) in domains.iter().enumerate() {
            index.insert(domain, host as u32).unwrap();
        }
        index
    }

    fn index(domains: &[&str]) -> HostIndex<u32, Fixed<u32>> {
        filled(domains)
    }

    fn host(index: &HostIndex<u32, Fixed<u32>>, name: &[u8]) -> Option<u32> {
        index.find(name).map(|(host, _)| *host)
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
            assert_eq!(self::host(&index, host.as_bytes()), Some(expected), "{host}");
        }
        let (found, by) = index.find(b"X.a.bar.com").unwrap();
        assert_eq!((*found, by.domain(b"X.a.bar.com")), (2, HostMatch::Suffix(".a.bar.com".to_owned())));
        assert_eq!(index.only_any(), None);
    }

    #[test]
    fn suffixes_go_before_prefixes() {
        let index = index(&["longest.prefix.*", "*.x"]);
        assert_eq!(host(&index, b"longest.prefix.x"), Some(1));
        assert_eq!(host(&index, b"nothing"), None);
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
    fn domains_that_go_leave_the_others_and_clones_as_they_were() {
        let before: HostIndex<u32, Persistent<u32>> = filled(&["a", "*.b", "*.c", "d.*", "*"]);
        let mut after = before.clone();
        for domain in ["A", "*.B", "d.*", "*"] {
            assert!(after.has(domain));
            after.remove(domain);
            assert!(!after.has(domain) && before.has(domain));
        }
        for (name, first, then) in [("a", 0, None), ("x.b", 1, None), ("x.c", 2, Some(2)), ("d.x", 3, None)] {
            assert_eq!(before.find(name.as_bytes()).map(|(host, _)| *host), Some(first), "{name}");
            assert_eq!(after.find(name.as_bytes()).map(|(host, _)| *host), then, "{name}");
        }
        after.remove("*.c");
        assert!(after.is_empty() && !before.is_empty());
    }

    #[test]
    fn a_port_begins_after_the_last_bracket() {
        assert_eq!(port_start(b"a:1"), Some(1));
        assert_eq!(port_start(b"[::1]"), None);
        assert_eq!(port_start(b"[::1]:80"), Some(5));
        assert_eq!(port_start(b"a"), None);
    }
}
