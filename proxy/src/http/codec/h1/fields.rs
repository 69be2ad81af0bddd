//! What heads of requests and responses and trailer sections have in common: where they end, and their fields.
//! It must not know start lines.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;
use tidegate_filters::http::Spelling;

use crate::http::codec::CodecError;
use crate::http::protocol::{Preserved, Underscores};

/// Fields that a head may have without an allocation for the parser.
pub(super) const FIELDS_ON_STACK: usize = 128;

/// Limits and leniency of one side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    /// The start line counts. Trailers have the same limit of their own.
    pub max_bytes: usize,
    /// A request's `host` counts.
    pub max_headers: usize,
    pub underscores: Underscores,
    /// `content-length` beside `chunked` is dropped instead of refused.
    pub allow_chunked_length: bool,
    /// The names' spelling is kept beside them (`preserve_case`).
    pub keep_spelling: Option<Preserved>,
}

/// Looks for the end of a head in a buffer that grows, each byte once.
///
/// Lines are judged in order, so that the outcome does not depend on how the bytes arrived.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct HeadEnd {
    /// All complete lines before this offset are good.
    line: usize,
    /// No LF between `line` and this offset.
    searched: usize,
    /// Bytes of empty lines that were skipped before the head.
    skipped: usize,
}

impl HeadEnd {
    /// Counts bytes that were skipped before the head: all of them so far.
    pub(super) fn skip(&mut self, bytes: usize) -> usize {
        self.skipped += bytes;
        self.skipped
    }

    /// The length of the head including its empty line, once it is there. `check_start` judges the first line (without
    /// its CRLF) as soon as that is complete; a head that is complete is left to the parser.
    pub(super) fn find(
        &mut self,
        buffer: &[u8],
        limit: usize,
        check_start: impl FnOnce(&[u8]) -> Result<(), CodecError>,
    ) -> Result<Option<usize>, CodecError> {
        let unchecked = self.line == 0;
        let found = self.search(buffer, limit);
        if unchecked && self.line > 0 && !matches!(found, Ok(Some(_))) {
            let end = memchr(b'\r', buffer).unwrap_or(self.line);
            check_start(&buffer[..end])?;
        }
        found
    }

    fn search(&mut self, buffer: &[u8], limit: usize) -> Result<Option<usize>, CodecError> {
        while let Some(at) = memchr(b'\n', &buffer[self.searched..]) {
            let end = self.searched + at + 1;
            if end > limit {
                return Err(CodecError::HEADERS_TOO_LARGE);
            }
            let line = &buffer[self.line..end - 1];
            let Some((b'\r', line)) = line.split_last() else { return Err(CodecError::MALFORMED) };
            if line.is_empty() {
                *self = Self::default();
                return Ok(Some(end));
            }
            (self.line, self.searched) = (end, end);
        }
        self.searched = buffer.len();
        if buffer.len() > limit { Err(CodecError::HEADERS_TOO_LARGE) } else { Ok(None) }
    }
}

/// What `transfer-encoding` says; several of them are never one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum TransferEncoding {
    #[default]
    Absent,
    Chunked,
    Unsupported,
}

/// The options of `connection` that matter here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Some other token: the name of a field that is for this connection only.
    pub nominates: bool,
}

impl ConnectionOptions {
    fn read(&mut self, value: &[u8]) {
        for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                self.nominates = true;
            }
        }
    }
}

/// How fields are taken in.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldRules {
    /// Whether `host` is a request's host rather than a field like others.
    pub request: bool,
    pub underscores: Underscores,
    pub keep_spelling: Option<Preserved>,
}

/// The fields of a head, and what was seen in passing. `transfer-encoding`, `http2-settings` and a request's `host` are not
/// among `headers`.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub headers: HeaderMap,
    pub host: Option<HeaderValue>,
    pub content_length: Option<u64>,
    pub transfer_encoding: TransferEncoding,
    pub connection: ConnectionOptions,
    /// `proxy-connection: close`, which Envoy honours too.
    pub proxy_close: bool,
    pub upgrade: bool,
    expects: bool,
    /// `expect` is exactly `100-continue`.
    pub expect_continue: bool,
    pub spelling: Option<Box<Spelling>>,
    /// Fields dropped because of an underscore.
    pub underscored: u32,
    /// Names, colons, blanks and values, as Envoy counts them.
    pub bytes: usize,
}

/// Room for the headers that are added on the way, so that the map need not grow.
const HEADROOM: usize = 6;

impl Fields {
    /// Takes in what the parser found.
    pub(super) fn collect(parsed: &[httparse::Header<'_>], rules: &FieldRules) -> Result<Self, CodecError> {
        let headers =
            HeaderMap::try_with_capacity(parsed.len() + HEADROOM).map_err(|_| CodecError::TOO_MANY_HEADERS)?;
        let spelling = rules.keep_spelling.map(|keep| Spelling::new(keep.proper_words));
        let mut fields = Self { headers, spelling: spelling.map(Box::new), ..Self::default() };
        if parsed.is_empty() {
            // Envoy counts a field without a name then.
            fields.bytes = 3;
        }
        for field in parsed {
            fields.bytes += field.name.len() + field.value.len() + 3;
            if rules.underscores != Underscores::Allow && field.name.contains('_') {
                if rules.underscores == Underscores::Reject {
                    return Err(CodecError::UNEXPECTED_UNDERSCORE);
                }
                fields.underscored += 1;
                continue;
            }
            if let Some(spelling) = &mut fields.spelling
                && let Ok(name) = HeaderName::from_bytes(field.name.as_bytes())
            {
                spelling.keep(&name, field.name.as_bytes());
            }
            fields.take(field, rules)?;
        }
        Ok(fields)
    }

    fn take(&mut self, field: &httparse::Header<'_>, rules: &FieldRules) -> Result<(), CodecError> {
        let (name, text) = (field.name.as_bytes(), field.value);
        let mut value = None;
        match Known::of(name) {
            None => {}
            Some(Known::Host) if rules.request => {
                if self.host.replace(value_of(text)?).is_some() {
                    return Err(CodecError::INVALID_AUTHORITY);
                }
                return Ok(());
            }
            Some(Known::Host) => {}
            Some(Known::TransferEncoding) => {
                let first = self.transfer_encoding == TransferEncoding::Absent;
                self.transfer_encoding = if first && text.eq_ignore_ascii_case(b"chunked") {
                    TransferEncoding::Chunked
                } else {
                    TransferEncoding::Unsupported
                };
                return Ok(());
            }
            Some(Known::Http2Settings) => return Ok(()),
            Some(Known::ContentLength) => {
                let length = content_length(text).ok_or(CodecError::MALFORMED)?;
                if self.content_length.replace(length).is_some() {
                    return Err(CodecError::MALFORMED);
                }
                if text.len() > 1 && text[0] == b'0' {
                    value = Some(HeaderValue::from(length));
                }
            }
            Some(Known::Connection) => self.connection.read(text),
            Some(Known::ProxyConnection) => {
                let mut options = ConnectionOptions::default();
                options.read(text);
                self.proxy_close |= options.close;
            }
            Some(Known::Upgrade) => self.upgrade = true,
            Some(Known::Expect) => {
                let only = !std::mem::replace(&mut self.expects, true);
                self.expect_continue = only && text.eq_ignore_ascii_case(b"100-continue");
            }
        }
        let value = match value {
            Some(value) => value,
            None => value_of(text)?,
        };
        let header = HeaderName::from_bytes(name).map_err(|_| CodecError::MALFORMED)?;
        self.headers.try_append(header, value).map_err(|_| CodecError::TOO_MANY_HEADERS)?;
        Ok(())
    }

    /// Drops `content-length` where the message's framing does not follow it.
    pub(super) fn forget_length(&mut self) {
        self.headers.remove(CONTENT_LENGTH);
        self.content_length = None;
    }
}

/// The fields that framing and the connection depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Host,
    Expect,
    Upgrade,
    Connection,
    ContentLength,
    Http2Settings,
    ProxyConnection,
    TransferEncoding,
}

impl Known {
    fn of(name: &[u8]) -> Option<Self> {
        let (known, candidate): (&[u8], Self) = match name.len() {
            4 => (b"host", Self::Host),
            6 => (b"expect", Self::Expect),
            7 => (b"upgrade", Self::Upgrade),
            10 => (b"connection", Self::Connection),
            14 if name[0] | 0x20 == b'c' => (b"content-length", Self::ContentLength),
            14 => (b"http2-settings", Self::Http2Settings),
            16 => (b"proxy-connection", Self::ProxyConnection),
            17 => (b"transfer-encoding", Self::TransferEncoding),
            _ => return None,
        };
        name.eq_ignore_ascii_case(known).then_some(candidate)
    }
}

/// What trailers took as they came, as Envoy counts fields.
pub(crate) fn trailer_bytes(trailers: &HeaderMap) -> u64 {
    trailers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 3) as u64).sum()
}

/// A value of its own. Copying the few bytes that most values have costs less than counting references to the head (8 ns
/// against 13 ns for 24 bytes), and the buffer that was read into stays with its connection.
pub(super) fn value_of(text: &[u8]) -> Result<HeaderValue, CodecError> {
    HeaderValue::from_bytes(text).map_err(|_| CodecError::INVALID_CHARACTERS)
}

/// `1*DIGIT` that fits (RFC 9110 §8.6); leading zeros are legal.
fn content_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |length, byte| match byte {
        b'0'..=b'9' => length.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// What to say of bytes that the parser refused: Envoy tells control characters from other faults.
pub(super) fn blame(bytes: &[u8]) -> CodecError {
    let control = |b: &u8| (*b < b' ' && !matches!(b, b'\t' | b'\r' | b'\n')) || *b == 0x7f;
    if bytes.iter().any(control) { CodecError::INVALID_CHARACTERS } else { CodecError::MALFORMED }
}

/// The error for what the parser refused in `bytes`.
pub(super) fn refused(error: httparse::Error, bytes: &[u8]) -> CodecError {
    match error {
        httparse::Error::TooManyHeaders => CodecError::TOO_MANY_HEADERS,
        _ => blame(bytes),
    }
}
