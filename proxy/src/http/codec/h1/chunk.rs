//! The chunked coding (RFC 9112 §7.1) and its trailer section: extensions dropped, every terminator checked.
//! It must not know which message it belongs to.

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName};
use memchr::memchr;

use super::body::{Piece, take};
use super::fields::{HeadEnd, refused, value_of};
use crate::http::codec::CodecError;

/// A chunk-size line, its extensions included, is not longer than this.
const MAX_LINE_BYTES: usize = 4096;
/// Nor are all of a message's extensions together (RFC 9112 §7.1.1).
const MAX_EXTENSION_BYTES: usize = 16 << 10;
/// Digits of a size that are not leading zeros; 2^60 bytes are enough.
const MAX_DIGITS: usize = 15;
const MAX_TRAILER_BYTES: usize = 60 << 10;
const MAX_TRAILERS: usize = 100;

/// Decodes one chunked body.
#[derive(Debug, Default)]
pub(crate) struct ChunkDecoder {
    state: State,
    /// Bytes of the line that is being read in which there is no LF.
    searched: usize,
    extensions: usize,
    trailers: HeadEnd,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    Data(u64),
    /// The CRLF after a chunk's data.
    DataEnd,
    Trailers,
}

impl ChunkDecoder {
    /// The next piece; `None` when more bytes are needed. After `Piece::End` it is of no more use.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, CodecError> {
        loop {
            match &mut self.state {
                State::Size => match self.size(buffer)? {
                    None => return Ok(None),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Data(size),
                },
                State::Data(left) => {
                    let Some(data) = take(left, buffer) else { return Ok(None) };
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    return Ok(Some(data));
                }
                State::DataEnd => match &buffer[..] {
                    [] | [b'\r'] => return Ok(None),
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    _ => return Err(CodecError::MALFORMED),
                },
                State::Trailers => {
                    let Some(end) = self.trailers.find(buffer, MAX_TRAILER_BYTES, |_| Ok(()))? else { return Ok(None) };
                    return parse_trailers(buffer, end).map(|trailers| Some(Piece::End(trailers)));
                }
            }
        }
    }

    /// Takes a chunk-size line.
    fn size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, CodecError> {
        if buffer.first().is_some_and(|first| !first.is_ascii_hexdigit()) {
            return Err(CodecError::MALFORMED);
        }
        let Some(at) = memchr(b'\n', &buffer[self.searched..]) else {
            self.searched = buffer.len();
            return if buffer.len() > MAX_LINE_BYTES { Err(CodecError::MALFORMED) } else { Ok(None) };
        };
        let length = self.searched + at + 1;
        self.searched = 0;
        if length > MAX_LINE_BYTES {
            return Err(CodecError::MALFORMED);
        }
        let line = buffer[..length - 1].strip_suffix(b"\r").ok_or(CodecError::MALFORMED)?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (digits, extension) = line.split_at(digits);
        if !is_extension(extension) {
            return Err(CodecError::MALFORMED);
        }
        self.extensions += extension.len();
        let zeros = digits.iter().take_while(|b| **b == b'0').count();
        if digits.is_empty() || digits.len() - zeros > MAX_DIGITS || self.extensions > MAX_EXTENSION_BYTES {
            return Err(CodecError::MALFORMED);
        }
        let size = digits.iter().fold(0, |size, digit| size << 4 | hex(*digit));
        buffer.advance(length);
        Ok(Some(size))
    }
}

/// Nothing (blanks are padding, which old servers write), or what follows the size from `;` on. What it says does not
/// matter, but it must not hide a line end.
fn is_extension(bytes: &[u8]) -> bool {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    match bytes.iter().find(|b| !blank(b)) {
        None => true,
        Some(b';') => bytes.iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f)),
        Some(_) => false,
    }
}

fn hex(digit: u8) -> u64 {
    u64::from(match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    })
}

/// Takes the trailer section of `length` bytes. Names that frame, route or authorise are dropped: a trailer never says
/// more than a header was allowed to.
fn parse_trailers(buffer: &mut BytesMut, length: usize) -> Result<Option<HeaderMap>, CodecError> {
    let section = buffer.split_to(length);
    if length == 2 {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let parsed = match httparse::parse_headers(&section, &mut fields) {
        Ok(httparse::Status::Complete((consumed, parsed))) if consumed == length => parsed,
        Ok(_) => return Err(CodecError::MALFORMED),
        Err(error) => return Err(refused(error, &section)),
    };
    let mut trailers = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| CodecError::MALFORMED)?;
        let value = value_of(field.value)?;
        if may_be_a_trailer(&name) {
            trailers.append(name, value);
        }
    }
    Ok(Some(trailers))
}

/// Names that a trailer must not carry, beside everything that begins with `x-envoy-` and `x-forwarded-`.
const FORBIDDEN: &[&str] = &[
    // Framing and the connection.
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Routing.
    "forwarded",
    "host",
    "x-http-method-override",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
    // Request modifiers and conditions.
    "cache-control",
    "expect",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "max-forwards",
    "pragma",
    "range",
    // Authentication and cookies.
    "authorization",
    "cookie",
    "proxy-authenticate",
    "proxy-authorization",
    "set-cookie",
    "www-authenticate",
    // Response control data, and how the content is to be read.
    "age",
    "content-encoding",
    "content-range",
    "content-type",
    "date",
    "expires",
    "location",
    "retry-after",
    "vary",
    "warning",
];

/// RFC 9110 §6.5.1: not what frames, routes, authenticates, controls or describes the content.
pub(crate) fn may_be_a_trailer(name: &HeaderName) -> bool {
    let name = name.as_str();
    !name.starts_with("x-envoy-") && !name.starts_with("x-forwarded-") && !FORBIDDEN.contains(&name)
}
