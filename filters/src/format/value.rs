//! The value of one operator, on its way from a stream's facts to text or JSON.
//! It must not know operators.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value as Json;

use super::time::TimeFormat;
use super::write::{escape_from, json_value, signed, unsigned};
use crate::stream_info::{Address, ResponseFlags};

/// What an operator gives; nothing is allocated for the usual ones.
pub(super) enum Value<'a> {
    Absent,
    Text(&'a [u8]),
    Owned(Vec<u8>),
    Unsigned(u64),
    Signed(i64),
    /// With its port.
    Address(&'a Address),
    /// Without its port; masked to a prefix and written as a range when a length is given.
    Host(&'a Address, Option<u8>),
    Time(SystemTime, &'a TimeFormat),
    Flags(ResponseFlags, FlagNames),
    /// Every white space becomes `_`.
    NoSpaces(&'a str),
    /// As text, a string stands without quotes.
    Json(Cow<'a, Json>),
    /// As text, a string stands in quotes.
    QuotedJson(Json),
    /// Cut after so many bytes of its text; JSON that is no string is not cut.
    Cut(Box<Value<'a>>, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlagNames {
    Short,
    Long,
}

impl<'a> Value<'a> {
    pub(super) fn text(value: Option<&'a (impl AsRef<[u8]> + ?Sized)>) -> Self {
        value.map_or(Self::Absent, |value| Self::Text(value.as_ref()))
    }

    /// Empty text is no value.
    pub(super) fn non_empty(value: Option<&'a Arc<str>>) -> Self {
        value.filter(|value| !value.is_empty()).map_or(Self::Absent, |value| Self::Text(value.as_bytes()))
    }

    /// At most `length` bytes.
    pub(super) fn cut(self, length: Option<usize>) -> Self {
        match (self, length) {
            (value, None) | (value @ Value::Absent, _) => value,
            (Self::Text(text), Some(length)) => Self::Text(&text[..length.min(text.len())]),
            (value, Some(length)) => Self::Cut(Box::new(value), length),
        }
    }

    /// Whether there is none, or an empty string.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Absent => true,
            Self::Text(text) => text.is_empty(),
            Self::Owned(text) => text.is_empty(),
            Self::NoSpaces(text) => text.is_empty(),
            Self::Json(json) => json.is_null() || json.as_str() == Some(""),
            Self::QuotedJson(json) => json.is_null(),
            Self::Cut(value, _) => value.is_empty(),
            _ => false,
        }
    }

    /// Appends the value as text; `false`, and nothing written, when there is none.
    pub(super) fn write_text(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Absent => return false,
            Self::Text(text) => out.extend_from_slice(text),
            Self::Owned(text) => out.extend_from_slice(text),
            Self::Unsigned(number) => unsigned(out, *number),
            Self::Signed(number) => signed(out, *number),
            Self::Address(address) => write_address(address, out),
            Self::Host(address, prefix) => write_host(address, *prefix, out),
            Self::Time(time, format) => format.write(*time, out),
            Self::Flags(flags, names) => write_flags(*flags, *names, out),
            Self::NoSpaces(text) => {
                out.extend(text.bytes().map(|byte| if byte.is_ascii_whitespace() { b'_' } else { byte }));
            }
            Self::Json(json) => match &**json {
                Json::Null => return false,
                Json::String(text) => out.extend_from_slice(text.as_bytes()),
                other => json_value(out, other),
            },
            Self::QuotedJson(json) => json_value(out, json),
            Self::Cut(value, length) => {
                let start = out.len();
                if !value.write_text(out) {
                    return false;
                }
                out.truncate(start.saturating_add(*length).min(out.len()));
            }
        }
        true
    }

    /// Appends the value as JSON: numbers, booleans, objects and lists as such, the rest as a string. `false`, and nothing
    /// written, when there is none.
    pub(super) fn write_json(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Unsigned(number) => unsigned(out, *number),
            Self::Signed(number) => signed(out, *number),
            Self::Json(json) if json.is_null() => return false,
            Self::Json(json) => json_value(out, json),
            Self::QuotedJson(json) if json.is_null() => return false,
            Self::QuotedJson(json) => json_value(out, json),
            Self::Cut(value, _) if !value.is_json_string() => return value.write_json(out),
            textual => {
                out.push(b'"');
                let start = out.len();
                if !textual.write_text(out) {
                    out.pop();
                    return false;
                }
                escape_from(out, start);
                out.push(b'"');
            }
        }
        true
    }

    fn is_json_string(&self) -> bool {
        match self {
            Self::Unsigned(_) | Self::Signed(_) | Self::QuotedJson(_) => false,
            Self::Json(json) => json.is_string(),
            _ => true,
        }
    }
}

fn write_address(address: &Address, out: &mut Vec<u8>) {
    match address {
        Address::Ip(socket) => {
            match socket.ip() {
                IpAddr::V4(v4) => write_ip(v4.into(), out),
                v6 => {
                    out.push(b'[');
                    write_ip(v6, out);
                    out.push(b']');
                }
            }
            out.push(b':');
            unsigned(out, socket.port().into());
        }
        Address::Pipe(path) | Address::Internal(path) => out.extend_from_slice(path.as_bytes()),
    }
}

fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                unsigned(out, octet.into());
            }
        }
        IpAddr::V6(v6) => {
            use std::io::Write as _;
            let _infallible = write!(out, "{v6}");
        }
    }
}

fn write_host(address: &Address, prefix: Option<u8>, out: &mut Vec<u8>) {
    let Some(socket) = address.ip() else { return write_address(address, out) };
    let Some(prefix) = prefix else { return write_ip(socket.ip(), out) };
    let (masked, prefix) = match socket.ip() {
        IpAddr::V4(v4) => {
            let prefix = prefix.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            (IpAddr::V4((v4.to_bits() & mask).into()), prefix)
        }
        IpAddr::V6(v6) => {
            let prefix = prefix.min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            (IpAddr::V6((v6.to_bits() & mask).into()), prefix)
        }
    };
    write_ip(masked, out);
    out.push(b'/');
    unsigned(out, prefix.into());
}

fn write_flags(flags: ResponseFlags, names: FlagNames, out: &mut Vec<u8>) {
    if flags.is_empty() {
        return out.push(b'-');
    }
    let mut first = true;
    for (_, short, long) in flags.raised() {
        if !first {
            out.push(b',');
        }
        first = false;
        let name = if names == FlagNames::Short { short } else { long };
        out.extend_from_slice(name.as_bytes());
    }
}
