//! The heads of a request and a response as every part of the proxy sees them, whatever the protocol on the wire.
//! They must not know framing: `content-length` and `transfer-encoding` are the codec's business.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

/// A request's head. Pseudo-headers are fields; header names are lower case, as in Envoy.
///
/// `path` holds the path and query exactly as they will be forwarded; it is normalised once, by the connection
/// manager, before anyone matches on it. It is empty for a plain CONNECT.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    /// `http` or `https` (the `:scheme` of HTTP/2; derived from the transport for HTTP/1).
    pub scheme: HeaderValue,
    /// `:authority`, or HTTP/1's Host. Never repeated in `headers`.
    pub authority: HeaderValue,
    pub path: HeaderValue,
    /// `:protocol` of an extended CONNECT; for HTTP/1 upgrades the `upgrade` header stays in `headers`.
    pub protocol: Option<HeaderValue>,
    pub version: Version,
    pub headers: HeaderMap,
    /// How the client spelled the header names, where that is kept.
    pub spelling: Option<Box<Spelling>>,
}

impl RequestHead {
    /// A request with an empty header map.
    pub fn new(method: Method, authority: HeaderValue, path: HeaderValue) -> Self {
        Self {
            method,
            scheme: HeaderValue::from_static("http"),
            authority,
            path,
            protocol: None,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            spelling: None,
        }
    }

    /// The path without query and fragment, as bytes.
    pub fn path_only(&self) -> &[u8] {
        let path = self.path.as_bytes();
        let end = path.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(path.len());
        &path[..end]
    }

    /// The query without its `?`, if there is one.
    pub fn query(&self) -> Option<&[u8]> {
        let path = self.path.as_bytes();
        let start = path.iter().position(|b| matches!(b, b'?' | b'#'))?;
        if path[start] == b'#' {
            return None;
        }
        let query = &path[start + 1..];
        let end = query.iter().position(|b| *b == b'#').unwrap_or(query.len());
        Some(&query[..end])
    }

    /// One value of a header; pseudo-headers (`:path`, `:authority`, `:method`, `:scheme`, `:protocol`) and `host` included.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        match name.as_bytes().first() {
            Some(b':') => self.pseudo(name),
            _ if name.eq_ignore_ascii_case("host") => Some(self.authority.as_bytes()),
            _ => self.headers.get(name).map(HeaderValue::as_bytes),
        }
    }

    fn pseudo(&self, name: &str) -> Option<&[u8]> {
        match name {
            ":path" if self.path.is_empty() => None,
            ":path" => Some(self.path.as_bytes()),
            ":authority" => Some(self.authority.as_bytes()),
            ":method" => Some(self.method.as_str().as_bytes()),
            ":scheme" => Some(self.scheme.as_bytes()),
            ":protocol" => self.protocol.as_ref().map(HeaderValue::as_bytes),
            _ => None,
        }
    }

    /// Whether this is a gRPC request: `application/grpc` or `application/grpc+…`, as Envoy's `hasGrpcContentType`.
    pub fn is_grpc(&self) -> bool {
        has_grpc_content_type(&self.headers)
    }
}

/// A response's head. Hop-by-hop headers and framing are the codec's.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    /// How the upstream spelled the header names, where that is kept.
    pub spelling: Option<Box<Spelling>>,
}

impl ResponseHead {
    pub fn new(status: StatusCode) -> Self {
        Self { status, version: Version::HTTP_11, headers: HeaderMap::new(), spelling: None }
    }

    /// Inserts a header, replacing what was there.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }
}

/// How the sender of an HTTP/1 message spelled its header names (Envoy's `preserve_case` formatter). Nothing but the codec
/// that writes the message may depend on it.
#[derive(Debug, Clone, Default)]
pub struct Spelling {
    names: HeaderMap<Bytes>,
    /// Names that the message did not bring are written in proper case.
    pub proper_words: bool,
    /// Of a response, where it goes on.
    pub reason: Option<Bytes>,
}

impl Spelling {
    /// None yet; `proper_words` is for the names that the message does not bring.
    pub fn new(proper_words: bool) -> Self {
        Self { proper_words, ..Self::default() }
    }

    /// Remembers a name's spelling; the first one counts.
    pub fn keep(&mut self, name: &HeaderName, spelled: &[u8]) {
        if let Ok(entry) = self.names.try_entry(name) {
            entry.or_insert_with(|| Bytes::copy_from_slice(spelled));
        }
    }

    /// The spelling of a name that the message brought.
    pub fn of(&self, name: &HeaderName) -> Option<&[u8]> {
        self.names.get(name).map(Bytes::as_ref)
    }
}

/// Whether `content-type` is `application/grpc` or begins with `application/grpc+` (Envoy's `Grpc::Common`).
pub fn has_grpc_content_type(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some(value) = headers.get(http::header::CONTENT_TYPE) else { return false };
    let value = value.as_bytes();
    value.starts_with(GRPC) && matches!(value.get(GRPC.len()), None | Some(b'+'))
}
