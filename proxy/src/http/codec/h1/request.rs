//! Decodes a request's head: start line, target forms, Host, framing, upgrade. Whatever could be read in two ways is
//! refused (RFC 9112; Envoy's response code details). It must not know what is done with the request.

use std::mem::MaybeUninit;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use http::header::{EXPECT, UPGRADE};
use http::{HeaderValue, Method, Version};
use tidegate_filters::http::RequestHead;
use tidegate_filters::matching::StringMatcher;

use super::connection::remove_nominated;
use super::fields::{FIELDS_ON_STACK, FieldRules, Fields, HeadEnd, HeadLimits, TransferEncoding, blame, refused};
pub(crate) use super::target::is_authority;
use super::{Framing, target};
use crate::http::codec::CodecError;
use crate::http::protocol::Http1Options;

/// How requests are read.
#[derive(Debug, Clone)]
pub(crate) struct RequestRules {
    pub limits: HeadLimits,
    pub http1: Http1Options,
    /// `default_host_for_http_10`.
    pub default_host: Option<HeaderValue>,
    /// `proxy_100_continue`: `expect` stays in the head, for the upstream to answer it.
    pub keep_expect: bool,
    /// `ignore_http_11_upgrade`: what is offered beside these is an upgrade.
    pub ignored_upgrades: Arc<[StringMatcher]>,
}

/// A decoded head.
///
/// `connection`, `upgrade` and other hop-by-hop fields are still in it, for the connection manager to strip; fields that
/// `connection` nominates, `transfer-encoding`, `http2-settings` and offers of h2c are not. The authority is empty when the
/// client named no host. `scheme` is that of an absolute target, else `http`.
#[derive(Debug)]
#[allow(dead_code, reason = "what a head was is told whole; the codec's tests read all of it")]
pub(crate) struct DecodedRequest {
    pub head: RequestHead,
    pub framing: Framing,
    /// Whether the client wants the connection to stay.
    pub keep_alive: bool,
    /// `expect: 100-continue`: the client waits for a go-ahead. The header is gone, unless it is to be kept.
    pub expects_continue: bool,
    /// An upgrade or CONNECT: what follows the head is not HTTP once it is accepted, and nothing may pass before.
    pub tunnel: bool,
    pub head_bytes: usize,
    /// Of the fields alone, as Envoy counts them.
    pub field_bytes: usize,
    /// Fields dropped for an underscore in their name.
    pub underscored: u32,
}

/// Decodes one head from the front of `buffer`, leaving what follows; `None` when it is not whole yet. `end` remembers
/// what was looked at, so that each byte is looked at once.
pub(crate) fn decode(
    buffer: &mut BytesMut,
    end: &mut HeadEnd,
    rules: &RequestRules,
) -> Result<Option<DecodedRequest>, CodecError> {
    if !skip_empty_lines(buffer, end, rules)? {
        return Ok(None);
    }
    let check_start = |line: &[u8]| check_request_line(line, rules);
    let Some(length) = end.find(buffer, rules.limits.max_bytes, check_start)? else { return Ok(None) };
    let decoded = parse(&buffer[..length], rules)?;
    buffer.advance(length);
    Ok(Some(decoded))
}

/// Empty lines before a request line are skipped (RFC 9112 §2.2). False while there is nothing else.
fn skip_empty_lines(buffer: &mut BytesMut, end: &mut HeadEnd, rules: &RequestRules) -> Result<bool, CodecError> {
    loop {
        match &buffer[..] {
            [] | [b'\r'] => return Ok(false),
            [b'\r', b'\n', ..] => {
                buffer.advance(2);
                if end.skip(2) > rules.limits.max_bytes {
                    return Err(CodecError::HEADERS_TOO_LARGE);
                }
            }
            // Anything else than the first byte of a method is no HTTP: TLS, HTTP/2, garbage.
            [first, ..] if !is_token_byte(*first) => return Err(CodecError::MALFORMED),
            _ => return Ok(true),
        }
    }
}

fn parse(head: &[u8], rules: &RequestRules) -> Result<DecodedRequest, CodecError> {
    let limit = rules.limits.max_headers;
    if limit <= FIELDS_ON_STACK {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
        return parse_into(head, rules, &mut fields[..limit]);
    }
    // A field takes at least four bytes, so this is bounded by the head.
    let mut fields = vec![MaybeUninit::uninit(); limit.min(head.len() / 4)];
    parse_into(head, rules, &mut fields)
}

fn parse_into<'a>(
    head: &'a [u8],
    rules: &RequestRules,
    fields: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<DecodedRequest, CodecError> {
    let mut parsed = httparse::Request::new(&mut []);
    let outcome = parsed.parse_with_uninit_headers(head, fields);
    if outcome != Ok(httparse::Status::Complete(head.len())) {
        check_request_line(head.split(|b| *b == b'\r').next().unwrap_or_default(), rules)?;
        return Err(outcome.err().map_or(CodecError::MALFORMED, |error| refused(error, head)));
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(CodecError::MALFORMED);
    };
    check_method(method.as_bytes(), rules.http1.allow_custom_methods)?;
    target::check(target.as_bytes(), method == "CONNECT")?;
    let version = if minor == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    if version == Version::HTTP_10 && !rules.http1.accept_http_10 {
        return Err(CodecError::LOW_VERSION);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| CodecError::MALFORMED)?;
    let field_rules =
        FieldRules { request: true, underscores: rules.limits.underscores, keep_spelling: rules.limits.keep_spelling };
    let fields = Fields::collect(parsed.headers, &field_rules)?;
    assemble(head.len(), method, target.as_bytes(), version, fields, rules)
}

fn assemble(
    head_bytes: usize,
    method: Method,
    target: &[u8],
    version: Version,
    mut fields: Fields,
    rules: &RequestRules,
) -> Result<DecodedRequest, CodecError> {
    let upgrade = asked_upgrade(&method, version, &rules.ignored_upgrades, &mut fields);
    let framing = framing(version, upgrade, &mut fields, &rules.limits)?;
    let keep_alive = match version {
        Version::HTTP_11 => !fields.connection.close && !fields.proxy_close,
        _ => fields.connection.keep_alive && !fields.connection.close,
    };
    if fields.connection.nominates {
        remove_nominated(&mut fields.headers)?;
    }
    let target = target::read(&method, target, rules.http1.allow_absolute_url)?;
    if !fields.host.as_ref().is_none_or(|host| is_authority(host.as_bytes())) {
        return Err(CodecError::INVALID_AUTHORITY);
    }
    let default = || rules.default_host.clone().filter(|_| version == Version::HTTP_10);
    let authority = target.authority.or(fields.host).or_else(default).unwrap_or_else(|| HeaderValue::from_static(""));
    if fields.expect_continue && !rules.keep_expect {
        fields.headers.remove(EXPECT);
    }
    let mut request = RequestHead::new(method, authority, target.path);
    request.version = version;
    request.headers = fields.headers;
    request.spelling = fields.spelling;
    if let Some(scheme) = target.scheme {
        request.scheme = HeaderValue::from_static(scheme);
    }
    Ok(DecodedRequest {
        head: request,
        framing,
        keep_alive,
        expects_continue: fields.expect_continue,
        tunnel: upgrade.is_some(),
        head_bytes,
        field_bytes: fields.bytes,
        underscored: fields.underscored,
    })
}

/// How a request asks to leave HTTP behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upgrade {
    Connect,
    Protocol,
}

/// How the request wants to leave HTTP. An offer of h2c is taken out, as is any offer in HTTP/1.0, which knows none.
/// Several `upgrade` fields become the list that they are, so that all of it is judged.
fn asked_upgrade(method: &Method, version: Version, ignored: &[StringMatcher], fields: &mut Fields) -> Option<Upgrade> {
    if *method == Method::CONNECT {
        return Some(Upgrade::Connect);
    }
    if !fields.upgrade {
        return None;
    }
    let offers: Vec<&[u8]> = fields.headers.get_all(UPGRADE).iter().map(HeaderValue::as_bytes).collect();
    if version == Version::HTTP_10 || offers.iter().all(|offer| offer.eq_ignore_ascii_case(b"h2c")) {
        fields.headers.remove(UPGRADE);
        return None;
    }
    if offers.len() > 1
        && let Ok(list) = HeaderValue::from_bytes(&offers.join(&b","[..]))
    {
        fields.headers.insert(UPGRADE, list);
    }
    if fields.connection.upgrade && !ignored.is_empty() {
        ignore_upgrades(ignored, fields);
    }
    fields.connection.upgrade.then_some(Upgrade::Protocol)
}

/// Takes offers out that are to be ignored; with the last of them the request is one like any other.
fn ignore_upgrades(ignored: &[StringMatcher], fields: &mut Fields) {
    let Some(offers) = fields.headers.get(UPGRADE) else { return };
    let all = || offers.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let heeded = |offer: &&[u8]| !ignored.iter().any(|matcher| matcher.matches(offer));
    if all().all(|offer| heeded(&offer)) {
        return;
    }
    let left: Vec<&[u8]> = all().filter(heeded).collect();
    match HeaderValue::from_bytes(&left.join(&b","[..])) {
        Ok(left) if !left.is_empty() => drop(fields.headers.insert(UPGRADE, left)),
        _ => {
            fields.headers.remove(UPGRADE);
            fields.connection.upgrade = false;
        }
    }
}

/// How the body is delimited (RFC 9112 §6.3), or why nobody can say.
fn framing(
    version: Version,
    upgrade: Option<Upgrade>,
    fields: &mut Fields,
    limits: &HeadLimits,
) -> Result<Framing, CodecError> {
    let encoding = fields.transfer_encoding;
    if upgrade == Some(Upgrade::Connect) {
        match fields.content_length {
            None => {}
            Some(0) => fields.forget_length(),
            Some(_) => return Err(CodecError::BODY_DISALLOWED),
        }
    }
    if encoding != TransferEncoding::Absent && fields.content_length.is_some() {
        if encoding != TransferEncoding::Chunked || !limits.allow_chunked_length {
            return Err(CodecError::CONTENT_LENGTH_AND_CHUNKED);
        }
        fields.forget_length();
    }
    if encoding == TransferEncoding::Unsupported
        || (encoding == TransferEncoding::Chunked && upgrade == Some(Upgrade::Connect))
    {
        return Err(CodecError::INVALID_TRANSFER_ENCODING);
    }
    if encoding == TransferEncoding::Chunked && version == Version::HTTP_10 {
        return Err(CodecError::TRANSFER_ENCODING_NOT_ALLOWED);
    }
    match (upgrade, encoding, fields.content_length) {
        (Some(_), TransferEncoding::Absent, None | Some(0)) => Ok(Framing::UntilClose),
        (Some(_), ..) => Err(CodecError::BODY_DISALLOWED),
        (None, TransferEncoding::Chunked, _) => Ok(Framing::Chunked),
        (None, _, None | Some(0)) => Ok(Framing::None),
        (None, _, Some(length)) => Ok(Framing::Length(length)),
    }
}

/// Judges a request line alone: to refuse early, and to say why the parser refused.
fn check_request_line(line: &[u8], rules: &RequestRules) -> Result<(), CodecError> {
    let mut parts = line.split(|b| *b == b' ');
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (version, more) = (parts.next(), parts.next());
    check_method(method, rules.http1.allow_custom_methods).map_err(|_| blame(line))?;
    target::check(target, method == b"CONNECT").map_err(|_| blame(line))?;
    match (version, more) {
        // HTTP/0.9 has none.
        (None, _) => Err(CodecError::LOW_VERSION),
        (Some(version), None) => check_version(version, rules.http1.accept_http_10),
        (Some(_), Some(_)) => Err(blame(line)),
    }
}

fn check_version(version: &[u8], accept_http_10: bool) -> Result<(), CodecError> {
    match version {
        b"HTTP/1.1" => Ok(()),
        b"HTTP/1.0" if accept_http_10 => Ok(()),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(CodecError::LOW_VERSION),
        _ => Err(blame(version)),
    }
}

fn check_method(method: &[u8], custom: bool) -> Result<(), CodecError> {
    let good = if custom { !method.is_empty() && method.iter().all(|b| is_token_byte(*b)) } else { is_known(method) };
    if good { Ok(()) } else { Err(blame(method)) }
}

/// The methods that Envoy knows; others need `allow_custom_methods`.
fn is_known(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"POST" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"PATCH" | b"CONNECT" | b"TRACE")
        || matches!(
            method,
            b"ACL"
                | b"BIND"
                | b"CHECKOUT"
                | b"COPY"
                | b"LINK"
                | b"LOCK"
                | b"MERGE"
                | b"MKACTIVITY"
                | b"MKCALENDAR"
                | b"MKCOL"
                | b"MOVE"
                | b"MSEARCH"
                | b"NOTIFY"
                | b"PROPFIND"
                | b"PROPPATCH"
                | b"PURGE"
                | b"QUERY"
                | b"REBIND"
                | b"REPORT"
                | b"SEARCH"
                | b"SOURCE"
                | b"SUBSCRIBE"
                | b"UNBIND"
                | b"UNLINK"
                | b"UNLOCK"
                | b"UNSUBSCRIBE"
        )
}

/// `tchar` (RFC 9110 §5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}
