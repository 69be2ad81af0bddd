//! The request target (RFC 9112 §3.2) and the host that a request is for.
//! It must not know what a path means; nothing is decoded or normalised here.

use std::net::Ipv6Addr;

use http::{HeaderValue, Method};

use super::fields::{blame, value_of};
use crate::http::codec::CodecError;

/// What a request target says.
pub(super) struct Target {
    /// `http` or `https`, of the absolute form.
    pub scheme: Option<&'static str>,
    /// Of the absolute and the authority form; it replaces Host.
    pub authority: Option<HeaderValue>,
    /// Path and query as they came; empty for CONNECT.
    pub path: HeaderValue,
}

/// Reads a target that [`check`] has accepted.
pub(super) fn read(method: &Method, target: &[u8], allow_absolute_url: bool) -> Result<Target, CodecError> {
    let connect = *method == Method::CONNECT;
    let origin = target[0] == b'/' || (target[0] == b'*' && *method == Method::OPTIONS);
    if !connect && (origin || !allow_absolute_url) {
        return Ok(Target { scheme: None, authority: None, path: value_of(target)? });
    }
    if connect {
        let (_, port) = split_authority(target).ok_or(CodecError::INVALID_URL)?;
        port.ok_or(CodecError::INVALID_URL)?;
        let authority = Some(value_of(target)?);
        return Ok(Target { scheme: None, authority, path: HeaderValue::from_static("") });
    }
    let (scheme, rest) = split_scheme(target).ok_or(CodecError::INVALID_URL)?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    split_authority(authority).ok_or(CodecError::INVALID_URL)?;
    let scheme = match scheme {
        scheme if scheme.eq_ignore_ascii_case(b"http") => "http",
        scheme if scheme.eq_ignore_ascii_case(b"https") => "https",
        _ => return Err(CodecError::INVALID_SCHEME),
    };
    let path = if path.is_empty() { HeaderValue::from_static("/") } else { value_of(path)? };
    Ok(Target { scheme: Some(scheme), authority: Some(value_of(authority)?), path })
}

/// Whether the bytes may be a target at all, as Envoy's parser judges it before anything else.
pub(super) fn check(target: &[u8], connect: bool) -> Result<(), CodecError> {
    let path = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b'!'..=b'~'));
    let good = match target.first() {
        None => false,
        Some(b'/' | b'*') => path(target),
        Some(_) => {
            let rest = if connect { Some(target) } else { split_scheme(target).map(|(_, rest)| rest) };
            rest.is_some_and(|rest| {
                let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
                rest[..end].iter().all(|b| *b == b'@' || is_authority_byte(*b)) && path(&rest[end..])
            })
        }
    };
    if good { Ok(()) } else { Err(blame(target)) }
}

/// Scheme and what follows `://`.
fn split_scheme(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = target.iter().position(|b| !matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'+' | b'-' | b'.'))?;
    let (scheme, rest) = target.split_at(end);
    scheme.first()?.is_ascii_alphabetic().then_some(())?;
    Some((scheme, rest.strip_prefix(b"://")?))
}

/// Host and port of a target's authority: a registered name, an IPv4 address or a bracketed IPv6 address. User information
/// and empty ports are refused.
fn split_authority(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix(b"[") {
        let end = rest.iter().position(|b| *b == b']')?;
        std::str::from_utf8(&rest[..end]).ok()?.parse::<Ipv6Addr>().ok()?;
        (&authority[..end + 2], &rest[end + 1..])
    } else {
        let end = authority.iter().position(|b| *b == b':').unwrap_or(authority.len());
        let (host, port) = authority.split_at(end);
        let name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        (!host.is_empty() && host.iter().all(name)).then_some((host, port))?
    };
    match port.split_first() {
        None => Some((host, None)),
        Some((b':', digits)) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            Some((host, Some(std::str::from_utf8(digits).ok()?.parse().ok()?)))
        }
        Some(_) => None,
    }
}

/// Bytes of a host and port (RFC 3986 `reg-name`, IP literals and `:`). `@` would be user information, `,` a list.
static AUTHORITY_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!$%&'()*+-.:;=[]_~";
    let mut at = 0;
    while at < allowed.len() {
        table[allowed[at] as usize] = true;
        at += 1;
    }
    table
};

fn is_authority_byte(byte: u8) -> bool {
    AUTHORITY_BYTES[usize::from(byte)]
}

/// Whether this may be a `host`. An empty one may (RFC 9110 §7.2); what it means is not decided here.
pub(crate) fn is_authority(host: &[u8]) -> bool {
    host.iter().all(|b| is_authority_byte(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(method: Method, text: &'static str) -> Result<(Option<&'static str>, String, String), CodecError> {
        check(text.as_bytes(), method == Method::CONNECT)?;
        let target = read(&method, text.as_bytes(), true)?;
        let authority = target.authority.map(|host| host.to_str().unwrap().to_owned()).unwrap_or_default();
        Ok((target.scheme, authority, target.path.to_str().unwrap().to_owned()))
    }

    #[test]
    fn absolute_form_is_split() {
        let get = |text| target(Method::GET, text);
        assert_eq!(get("http://b.test/p?q"), Ok((Some("http"), "b.test".into(), "/p?q".into())));
        assert_eq!(get("HTTPS://B.Test:80"), Ok((Some("https"), "B.Test:80".into(), "/".into())));
        assert_eq!(get("http://[::1]:80/x"), Ok((Some("http"), "[::1]:80".into(), "/x".into())));
        assert_eq!(get("ftp://b.test/"), Err(CodecError::INVALID_SCHEME));
        for bad in [
            "http:///x",
            "http://b:99999/",
            "http://b:/",
            "http://u@b/",
            "http://u:p@b/",
            "http://b%41/",
            "http://[::1/",
        ] {
            assert_eq!(get(bad), Err(CodecError::INVALID_URL), "{bad}");
        }
        for bad in ["b.test:80", "x", "?x", "http://b\u{e9}/", "http://b#f", "://b/"] {
            assert_eq!(get(bad), Err(CodecError::MALFORMED), "{bad}");
        }
    }

    #[test]
    fn asterisk_is_for_options() {
        assert_eq!(target(Method::OPTIONS, "*"), Ok((None, String::new(), "*".into())));
        assert_eq!(target(Method::GET, "*"), Err(CodecError::INVALID_URL));
    }

    #[test]
    fn connect_names_host_and_port() {
        let connect = |text| target(Method::CONNECT, text);
        assert_eq!(connect("b.test:443"), Ok((None, "b.test:443".into(), String::new())));
        for bad in ["b.test", "b.test:", ":443", "b.test:443/x", "/x", "u@b.test:443", "http://b.test:443/"] {
            assert_eq!(connect(bad), Err(CodecError::INVALID_URL), "{bad}");
        }
    }

    #[test]
    fn control_bytes_are_told_apart() {
        let get = |text| target(Method::GET, text);
        assert_eq!(get("/a\0b"), Err(CodecError::INVALID_CHARACTERS));
        assert_eq!(get("/a\x7fb"), Err(CodecError::INVALID_CHARACTERS));
        assert_eq!(get("/a\tb"), Err(CodecError::MALFORMED));
        assert_eq!(get("/a\u{e9}b"), Err(CodecError::MALFORMED));
        assert!(get("/a\"<>\\^`{|}%00#b").is_ok());
    }
}
