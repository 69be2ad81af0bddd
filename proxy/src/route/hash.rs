//! The hash by which a load balancer keeps alike requests together (`hash_policy`), computed as Envoy does.
//! It must not know which load balancer asks.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::HeaderValue;
use smallvec::SmallVec;
use tidegate_filters::http::{HeaderKey, Headers, RequestHead};
use tidegate_filters::matching::{cookie, query_parameter};
use tidegate_filters::stream_info::Address;
use xxhash_rust::xxh64::xxh64;

use super::{RouteInput, Substitution};

/// One entry of `hash_policy`.
#[derive(Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    /// Ends the list once there is a hash.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug)]
pub enum HashSource {
    /// All values of a header, sorted; each rewritten first if there is a rewrite.
    Header {
        name: HeaderKey,
        rewrite: Option<Substitution>,
    },
    Cookie(CookieSource),
    /// The client's IP address.
    SourceIp,
    /// The first value of a query parameter, as it stands.
    QueryParameter(Box<[u8]>),
    /// A filter state object that can be hashed.
    FilterState(Box<str>),
}

/// A cookie; one that is set where the request has none, if it has a lifetime.
#[derive(Debug)]
pub struct CookieSource {
    pub name: Box<str>,
    /// What a new cookie says after its value, from `Max-Age` to `HttpOnly`; none is made without.
    pub new: Option<Box<str>>,
}

/// What hashing a request gave.
#[derive(Debug, Default, PartialEq)]
pub struct Hashed {
    pub hash: Option<u64>,
    /// `set-cookie` headers for the response.
    pub cookies: Vec<HeaderValue>,
}

/// Hashes a request by all policies in turn: each hash is XORed with what came before, rotated by one. Cookies that were
/// made are to be set on the response; ask once a request.
pub fn hash(policies: &[HashPolicy], input: &RouteInput<'_>) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let found = policy.source.hash(input, &mut |cookie| hashed.cookies.push(cookie));
        if let Some(found) = found {
            hashed.hash = Some(hashed.hash.unwrap_or(0).rotate_left(1) ^ found);
        }
        if policy.terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

/// The hash alone, as weighted clusters draw by it: makes no cookies.
pub(crate) fn hash_only(policies: &[HashPolicy], input: &RouteInput<'_>) -> Option<u64> {
    let mut hash = None;
    for policy in policies {
        if let Some(found) = policy.source.present(input) {
            hash = Some(hash.unwrap_or(0_u64).rotate_left(1) ^ found);
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

impl HashSource {
    fn hash(&self, input: &RouteInput<'_>, set_cookie: &mut dyn FnMut(HeaderValue)) -> Option<u64> {
        self.present(input).or_else(|| match self {
            Self::Cookie(cookie) => cookie.make(input, set_cookie),
            _ => None,
        })
    }

    fn present(&self, input: &RouteInput<'_>) -> Option<u64> {
        match self {
            Self::Header { name, rewrite } => header(input.head, name, rewrite.as_ref()),
            Self::Cookie(source) => {
                cookie(input.head, source.name.as_bytes()).filter(|value| !value.is_empty()).map(of)
            }
            Self::SourceIp => input.remote.ip().map(|address| of(address.ip().to_string().as_bytes())),
            Self::QueryParameter(name) => query_parameter(input.head.query()?, name).map(of),
            Self::FilterState(key) => input.filter_state.get(key)?.hash(),
        }
    }
}

impl CookieSource {
    /// A cookie that is the same for all streams of a connection, so that a race on it is none.
    fn make(&self, input: &RouteInput<'_>, set_cookie: &mut dyn FnMut(HeaderValue)) -> Option<u64> {
        let attributes = self.new.as_deref()?;
        let (remote, local) = (text(&input.connection.remote), text(&input.connection.local));
        let value = format!("{:016x}", of(format!("{remote}{local}").as_bytes()));
        if let Ok(cookie) = HeaderValue::from_str(&format!("{}=\"{value}\"{attributes}", self.name)) {
            set_cookie(cookie);
        }
        Some(of(value.as_bytes()))
    }
}

fn text(address: &Address) -> String {
    match address {
        // As Envoy prints it, without a scope.
        Address::Ip(SocketAddr::V6(address)) => format!("[{}]:{}", address.ip(), address.port()),
        other => other.to_string(),
    }
}

fn of(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

fn header(head: &RequestHead, name: &HeaderKey, rewrite: Option<&Substitution>) -> Option<u64> {
    let rewritten = |value| match rewrite {
        Some(rewrite) => Cow::Owned(rewrite.apply(value)),
        None => Cow::Borrowed(value),
    };
    let mut values: SmallVec<[_; 4]> = head.values(name).map(rewritten).collect();
    if values.is_empty() {
        return None;
    }
    values.sort();
    Some(values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::testing::{World, get};
    use http::header::COOKIE;

    fn policy(source: HashSource) -> HashPolicy {
        HashPolicy { source, terminal: false }
    }

    fn by_header(name: &'static str) -> HashSource {
        HashSource::Header { name: HeaderKey::new(name), rewrite: None }
    }

    #[test]
    fn values_of_a_header_are_sorted_and_chained() {
        let world = World::new();
        let mut head = get("h", "/");
        head.headers.append("x", HeaderValue::from_static("foo"));
        head.headers.append("x", HeaderValue::from_static("bar"));
        let expected = xxh64(b"foo", xxh64(b"bar", 0));
        assert_eq!(hash(&[policy(by_header("x"))], &world.input(&head)).hash, Some(expected));
        let rewrite = Some(Substitution::new("^[a-z]", "b").unwrap());
        let rewritten = HashSource::Header { name: HeaderKey::new("x"), rewrite };
        assert_eq!(hash(&[policy(rewritten)], &world.input(&head)).hash, Some(xxh64(b"boo", xxh64(b"bar", 0))));
    }

    #[test]
    fn hashes_are_rotated_and_combined_until_a_terminal_one() {
        let world = World::new();
        let mut head = get("h", "/?a=1&b&a=2");
        head.headers.append("x", HeaderValue::from_static("v"));
        let parameter = |name: &str| policy(HashSource::QueryParameter(name.as_bytes().into()));
        let first = xxh64(b"1", 0);
        let both = first.rotate_left(1) ^ xxh64(b"v", 0);
        let list = [parameter("none"), parameter("a"), policy(by_header("x"))];
        assert_eq!(hash(&list, &world.input(&head)).hash, Some(both));
        let [none, mut one, two] = list;
        one.terminal = true;
        assert_eq!(hash(&[none, one, two], &world.input(&head)).hash, Some(first));
        assert_eq!(hash(&[parameter("b")], &world.input(&head)).hash, Some(xxh64(b"", 0)));
    }

    #[test]
    fn a_cookie_is_made_where_there_is_none() {
        let world = World::new();
        let cookie = |new: Option<&str>| {
            [policy(HashSource::Cookie(CookieSource { name: "c".into(), new: new.map(Box::from) }))]
        };
        let mut head = get("h", "/");
        let made = hash(&cookie(Some("; Max-Age=60; HttpOnly")), &world.input(&head));
        let value = format!("{:016x}", xxh64(b"10.0.0.1:123410.0.0.2:80", 0));
        assert_eq!(made.cookies, [format!("c=\"{value}\"; Max-Age=60; HttpOnly").as_str()]);
        assert_eq!(made.hash, Some(xxh64(value.as_bytes(), 0)));
        assert_eq!(hash(&cookie(None), &world.input(&head)), Hashed::default());
        head.headers.append(COOKIE, HeaderValue::from_static("a=1; c=\"x\"; c=y"));
        let found = Hashed { hash: Some(xxh64(b"x", 0)), cookies: Vec::new() };
        assert_eq!(hash(&cookie(Some("")), &world.input(&head)), found);
        assert_eq!(hash_only(&cookie(Some("")), &world.input(&get("h", "/"))), None);
    }

    #[test]
    fn the_source_is_its_ip_address() {
        let world = World::new();
        assert_eq!(
            hash(&[policy(HashSource::SourceIp)], &world.input(&get("h", "/"))).hash,
            Some(xxh64(b"10.0.0.1", 0))
        );
    }
}
