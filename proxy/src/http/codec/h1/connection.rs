//! Hop-by-hop fields that a request's `connection` nominates (RFC 9110 §7.6.1), as Envoy's `sanitizeConnectionHeader`.
//! The fixed ones (`connection` itself, `keep-alive`, `proxy-connection`, `upgrade`, `te`) are the connection manager's.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TE};

use crate::http::codec::CodecError;

/// From this many tokens on `connection` is refused.
const TOO_MANY_TOKENS: usize = 10;
/// From this length on a nominated `te` is refused.
const TOO_LONG_TE: usize = 256;

/// Removes the fields that `connection` nominates, and their names from it; what names no field (`close`, `upgrade`) stays.
/// `te` stays if it offers trailers. A request that nominates what a proxy relies on is refused.
pub(crate) fn remove_nominated(headers: &mut HeaderMap) -> Result<(), CodecError> {
    let mut kept: Vec<u8> = Vec::new();
    let mut nominated: Vec<HeaderName> = Vec::new();
    let tokens = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    for (index, token) in tokens.map(<[u8]>::trim_ascii).filter(|token| !token.is_empty()).enumerate() {
        if index + 1 >= TOO_MANY_TOKENS {
            return Err(CodecError::CONNECTION_HEADER_REJECTED);
        }
        if names_no_field(token) {
            if !kept.is_empty() {
                kept.extend_from_slice(b", ");
            }
            kept.extend_from_slice(token);
            continue;
        }
        if must_stay(token) {
            return Err(CodecError::CONNECTION_HEADER_REJECTED);
        }
        // What is no field name nominates nothing.
        nominated.extend(HeaderName::from_bytes(token));
    }
    for name in nominated {
        if name == TE && offers_trailers(headers)? {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(name);
        }
    }
    match HeaderValue::from_bytes(&kept) {
        Ok(value) if !value.is_empty() => headers.insert(CONNECTION, value),
        _ => headers.remove(CONNECTION),
    };
    Ok(())
}

/// Options of the connection, and framing fields: those are settled already and cannot be nominated away.
fn names_no_field(token: &[u8]) -> bool {
    ["close", "keep-alive", "upgrade", "http2-settings", "connection", "content-length", "transfer-encoding"]
        .iter()
        .any(|known| token.eq_ignore_ascii_case(known.as_bytes()))
}

/// Their removal would hide where a request came from or for whom it is.
fn must_stay(token: &[u8]) -> bool {
    token[0] == b':'
        || ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]
            .iter()
            .any(|known| token.eq_ignore_ascii_case(known.as_bytes()))
}

fn offers_trailers(headers: &HeaderMap) -> Result<bool, CodecError> {
    let mut offers = false;
    for value in headers.get_all(TE) {
        if value.len() >= TOO_LONG_TE {
            return Err(CodecError::CONNECTION_HEADER_REJECTED);
        }
        offers |= value.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"));
    }
    Ok(offers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::AUTHORIZATION;

    fn after(fields: &[(&'static str, &'static str)]) -> Result<HeaderMap, CodecError> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_nominated(&mut headers).map(|()| headers)
    }

    #[test]
    fn nominated_fields_go() {
        let left = after(&[("connection", "close, Foo"), ("connection", "bar"), ("foo", "1"), ("baz", "2")]).unwrap();
        assert_eq!(left[CONNECTION], "close");
        assert!(!left.contains_key("foo"));
        assert_eq!(left["baz"], "2");
        let left = after(&[("connection", "authorization"), ("authorization", "x")]).unwrap();
        assert!(!left.contains_key(AUTHORIZATION) && !left.contains_key(CONNECTION));
    }

    #[test]
    fn te_keeps_trailers_only() {
        assert_eq!(after(&[("connection", "te"), ("te", "gzip, trailers")]).unwrap()[TE], "trailers");
        assert!(!after(&[("connection", "te"), ("te", "gzip, trailers;q=0.5")]).unwrap().contains_key(TE));
    }

    #[test]
    fn what_a_proxy_relies_on_is_not_nominated_away() {
        for token in ["x-forwarded-for", "X-Forwarded-Proto", "x-forwarded-host", ":path", "host"] {
            assert_eq!(after(&[("connection", token)]).unwrap_err(), CodecError::CONNECTION_HEADER_REJECTED, "{token}");
        }
        let left = after(&[("connection", "content-length"), ("content-length", "5")]).unwrap();
        assert_eq!(left["content-length"], "5");
    }

    #[test]
    fn nine_tokens_are_enough() {
        assert!(after(&[("connection", "a,b,c,d,e,f,g,h,i")]).is_ok());
        assert!(after(&[("connection", "a,b,c,d,e,f,g,h,i,j")]).is_err());
    }
}
