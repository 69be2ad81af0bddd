//! Sets of bytes: what a class of RE2's holds, whose characters are Latin-1's. It must not know how classes are written.

use std::fmt::Write as _;

/// What a class holds.
pub(super) struct ByteSet {
    members: [bool; 256],
    /// Complements of named classes, written. They stay so: case folding comes before negation.
    complements: String,
}

impl Default for ByteSet {
    fn default() -> Self {
        Self { members: [false; 256], complements: String::new() }
    }
}

impl ByteSet {
    /// Adds what `member` holds.
    pub(super) fn add(&mut self, member: impl Fn(u8) -> bool) {
        for byte in 0..=u8::MAX {
            self.members[usize::from(byte)] |= member(byte);
        }
    }

    /// Adds a named class or its complement.
    pub(super) fn add_named(&mut self, member: impl Fn(u8) -> bool, negated: bool) {
        if !negated {
            return self.add(member);
        }
        let mut named = Self::default();
        named.add(member);
        match named.ranges() {
            ranges if ranges.is_empty() => self.add(|_| true),
            ranges => {
                let _infallible = write!(self.complements, "[^{ranges}]");
            }
        }
    }

    /// Writes a class.
    pub(super) fn write(&self, out: &mut String, negated: bool) {
        let (ranges, complements) = (self.ranges(), &self.complements);
        let _infallible = match (ranges.is_empty() && complements.is_empty(), negated) {
            (true, true) => write!(out, "(?s:.)"),
            (true, false) => write!(out, r"[^\x00-\xff]"),
            (false, true) => write!(out, "[^{ranges}{complements}]"),
            (false, false) => write!(out, "[{ranges}{complements}]"),
        };
    }

    fn ranges(&self) -> String {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for (byte, _) in self.members.iter().enumerate().filter(|(_, member)| **member) {
            match ranges.last_mut() {
                Some(last) if last.1 + 1 == byte => last.1 = byte,
                _ => ranges.push((byte, byte)),
            }
        }
        let mut written = String::new();
        for (low, high) in ranges {
            let _infallible = write!(written, "\\x{low:02x}-\\x{high:02x}");
        }
        written
    }
}

/// The members of `[:name:]`.
pub(super) fn posix(name: &[u8]) -> Option<fn(u8) -> bool> {
    let member: fn(u8) -> bool = match name {
        b"alnum" => |b| b.is_ascii_alphanumeric(),
        b"alpha" => |b| b.is_ascii_alphabetic(),
        b"ascii" => |b| b.is_ascii(),
        b"blank" => |b| matches!(b, b'\t' | b' '),
        b"cntrl" => |b| b.is_ascii_control(),
        b"digit" => |b| b.is_ascii_digit(),
        b"graph" => |b| b.is_ascii_graphic(),
        b"lower" => |b| b.is_ascii_lowercase(),
        b"print" => |b| b.is_ascii_graphic() || b == b' ',
        b"punct" => |b| b.is_ascii_punctuation(),
        b"space" => |b| matches!(b, b'\t'..=b'\r' | b' '),
        b"upper" => |b| b.is_ascii_uppercase(),
        b"word" => |b| b.is_ascii_alphanumeric() || b == b'_',
        b"xdigit" => |b| b.is_ascii_hexdigit(),
        _ => return None,
    };
    Some(member)
}
