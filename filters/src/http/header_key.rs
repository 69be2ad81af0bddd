//! Which header a configuration names, ready for lookup: a pseudo-header, a plain one, or one that no message can carry.
//! It must not know what the values are compared with.

use http::header::{HeaderMap, HeaderName, HeaderValue, ValueIter};

use super::{RequestHead, ResponseHead};

/// A header's name as the configuration gives it. `host` and `:authority` are the same header, as in Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
    Plain(HeaderName),
    /// A name that Envoy accepts and no message can carry (`x foo`, `:foo`): always absent.
    Unknown,
}

impl HeaderKey {
    /// Names are matched without regard to case.
    pub fn new(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.as_bytes().first() {
            Some(b':') if is(":method") => Self::Method,
            Some(b':') if is(":scheme") => Self::Scheme,
            Some(b':') if is(":authority") => Self::Authority,
            Some(b':') if is(":path") => Self::Path,
            Some(b':') if is(":protocol") => Self::Protocol,
            Some(b':') if is(":status") => Self::Status,
            _ if is("host") => Self::Authority,
            _ => HeaderName::from_bytes(name.as_bytes()).map_or(Self::Unknown, Self::Plain),
        }
    }
}

/// A head or trailers, as far as a reader of header values is concerned.
pub trait Headers {
    /// The values in the order in which they came.
    fn values(&self, key: &HeaderKey) -> Values<'_>;

    /// The first value.
    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        self.values(key).next()
    }
}

impl Headers for RequestHead {
    fn values(&self, key: &HeaderKey) -> Values<'_> {
        match key {
            HeaderKey::Plain(name) => self.headers.get_all(name).into(),
            HeaderKey::Method => Values::One(Some(self.method.as_str().as_bytes())),
            HeaderKey::Scheme => Values::One(Some(self.scheme.as_bytes())),
            HeaderKey::Authority => Values::One(Some(self.authority.as_bytes())),
            HeaderKey::Path if self.path.is_empty() => Values::One(None),
            HeaderKey::Path => Values::One(Some(self.path.as_bytes())),
            HeaderKey::Protocol => Values::One(self.protocol.as_ref().map(HeaderValue::as_bytes)),
            HeaderKey::Status | HeaderKey::Unknown => Values::One(None),
        }
    }
}

impl Headers for ResponseHead {
    fn values(&self, key: &HeaderKey) -> Values<'_> {
        match key {
            HeaderKey::Status => Values::One(Some(self.status.as_str().as_bytes())),
            _ => Headers::values(&self.headers, key),
        }
    }
}

impl Headers for HeaderMap {
    fn values(&self, key: &HeaderKey) -> Values<'_> {
        match key {
            HeaderKey::Plain(name) => self.get_all(name).into(),
            _ => Values::One(None),
        }
    }
}

/// The values of one header.
pub enum Values<'a> {
    One(Option<&'a [u8]>),
    Many(ValueIter<'a, HeaderValue>),
}

impl<'a> From<http::header::GetAll<'a, HeaderValue>> for Values<'a> {
    fn from(all: http::header::GetAll<'a, HeaderValue>) -> Self {
        Self::Many(all.into_iter())
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            Self::One(value) => value.take(),
            Self::Many(values) => values.next().map(HeaderValue::as_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn pseudo_headers_and_host_are_found_under_any_case() {
        let head = RequestHead::new(Method::PUT, HeaderValue::from_static("h:1"), HeaderValue::from_static("/p?q"));
        for (name, value) in [(":Method", "PUT"), (":path", "/p?q"), (":authority", "h:1"), ("HOST", "h:1")] {
            assert_eq!(head.first(&HeaderKey::new(name)), Some(value.as_bytes()), "{name}");
        }
        for name in [":status", ":foo", "x foo", ":protocol", "x-none"] {
            assert_eq!(head.first(&HeaderKey::new(name)), None, "{name}");
        }
    }

    #[test]
    fn repeated_values_come_in_order() {
        let mut head = ResponseHead::new(http::StatusCode::NOT_FOUND);
        head.headers.append("x", HeaderValue::from_static("a"));
        head.headers.append("x", HeaderValue::from_static("b"));
        assert_eq!(head.values(&HeaderKey::new("X")).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(head.first(&HeaderKey::new(":status")), Some(&b"404"[..]));
    }
}
