//! RE2's syntax, rewritten into that of the `regex` crate: what Envoy's configurations hold and what runs them here.
//! It must not know what is matched. Envoy runs RE2 on Latin-1, so that a character is a byte, `.` is any byte but `\n`,
//! `\d \w \s \b` and case folding are ASCII's: the output is for `regex::bytes` with `unicode(false)`.

use std::fmt::Write as _;

mod byte_set;

use byte_set::ByteSet;

/// Why a pattern is no RE2 pattern; the texts are RE2's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    #[error("missing ]: {0}")]
    MissingBracket(String),
    #[error("missing ): {0}")]
    MissingParenthesis(String),
    #[error("unexpected ): {0}")]
    UnexpectedParenthesis(String),
    #[error("trailing \\")]
    TrailingBackslash,
    #[error("invalid escape sequence: {0}")]
    Escape(String),
    #[error("invalid character class range: {0}")]
    ClassRange(String),
    #[error("no argument for repetition operator: {0}")]
    NoArgument(char),
    #[error("bad repetition operator: {0}")]
    Repetition(String),
    #[error("invalid repetition size: {0}")]
    RepetitionSize(String),
    #[error("invalid perl operator: {0}")]
    PerlOperator(String),
    #[error("invalid named capture group: {0}")]
    GroupName(String),
    #[error("bad RE2 syntax nesting: more than {0} levels")]
    Nesting(usize),
}

/// RE2's bounds: of one repetition, and of nesting.
const MAX_REPEAT: u32 = 1000;
const MAX_DEPTH: usize = 1000;

/// Rewrites `pattern`; the number of its capture groups comes with it.
pub(super) fn translate(pattern: &str) -> Result<(String, usize), SyntaxError> {
    let mut translator = Translator {
        input: pattern.as_bytes(),
        at: 0,
        out: String::new(),
        groups: 0,
        flags: String::new(),
        repeats: Repeats::default(),
    };
    translator.run()?;
    Ok((translator.out, translator.groups))
}

struct Translator<'a> {
    input: &'a [u8],
    at: usize,
    out: String,
    groups: usize,
    /// A change of flags that a repetition operator may still come before: it applies to what stood before the change.
    flags: String,
    repeats: Repeats,
}

/// How often things are repeated by counts within one another: RE2 bounds the product.
#[derive(Default)]
struct Repeats {
    /// Of what stands right before, at least once.
    last: u32,
    /// The most of anything in this group.
    most: u32,
    /// The same of the groups around it.
    outer: Vec<u32>,
}

impl Repeats {
    fn open(&mut self) {
        self.outer.push(std::mem::take(&mut self.most));
    }

    fn close(&mut self) {
        self.last = self.most;
        self.most = self.outer.pop().unwrap_or(0).max(self.last);
    }

    /// What stands right before is repeated up to so often: how often that makes of what is in it.
    fn times(&mut self, count: u32) -> u32 {
        self.last = self.last.max(1).saturating_mul(count.max(1));
        self.most = self.most.max(self.last);
        self.last
    }
}

/// What stands before a repetition operator.
#[derive(PartialEq)]
enum Before {
    Nothing,
    Operand,
    /// A repetition that began here in the input.
    Repetition(usize),
}

impl<'a> Translator<'a> {
    fn run(&mut self) -> Result<(), SyntaxError> {
        let (mut before, mut depth) = (Before::Nothing, 0usize);
        while let Some(byte) = self.peek() {
            let start = self.at;
            if !matches!(byte, b'*' | b'+' | b'?' | b'{') {
                self.apply_flags();
                self.repeats.last = 0;
            }
            match byte {
                b'(' => {
                    if self.open()? {
                        self.repeats.open();
                        depth += 1;
                        before = Before::Nothing;
                    } else if before != Before::Nothing {
                        before = Before::Operand;
                    }
                    if depth > MAX_DEPTH {
                        return Err(SyntaxError::Nesting(MAX_DEPTH));
                    }
                    continue;
                }
                b')' if depth == 0 => return Err(SyntaxError::UnexpectedParenthesis(self.whole())),
                b')' => {
                    self.repeats.close();
                    depth -= 1;
                }
                b'|' => {
                    self.pass();
                    before = Before::Nothing;
                    continue;
                }
                b'*' | b'+' | b'?' => {
                    self.pass();
                    before = self.repeated(before, start, char::from(byte))?;
                    continue;
                }
                b'{' => {
                    if self.counted()? {
                        before = self.repeated(before, start, '{')?;
                        continue;
                    }
                    self.apply_flags();
                    self.repeats.last = 0;
                    self.literal(b'{');
                    self.at += 1;
                    before = Before::Operand;
                    continue;
                }
                b'[' => {
                    self.class()?;
                    before = Before::Operand;
                    continue;
                }
                b'\\' => {
                    if self.escape()? {
                        before = Before::Operand;
                    }
                    continue;
                }
                b'.' | b'^' | b'$' => {
                    self.pass();
                    before = Before::Operand;
                    continue;
                }
                literal => {
                    self.literal(literal);
                    self.at += 1;
                    before = Before::Operand;
                    continue;
                }
            }
            self.pass();
            before = Before::Operand;
        }
        if depth > 0 { Err(SyntaxError::MissingParenthesis(self.whole())) } else { Ok(()) }
    }

    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.input.get(self.at..).unwrap_or_default()
    }

    fn text(&self, from: usize) -> String {
        String::from_utf8_lossy(&self.input[from..self.at.min(self.input.len())]).into_owned()
    }

    fn whole(&self) -> String {
        String::from_utf8_lossy(self.input).into_owned()
    }

    /// Copies one ASCII byte that means the same in both syntaxes.
    fn pass(&mut self) {
        if let Some(byte) = self.peek() {
            self.out.push(char::from(byte));
            self.at += 1;
        }
    }

    fn literal(&mut self, byte: u8) {
        if byte.is_ascii_alphanumeric() {
            self.out.push(char::from(byte));
        } else {
            let _infallible = write!(self.out, "\\x{byte:02x}");
        }
    }

    /// After a repetition operator, which began at `start`: RE2 forbids one right after another.
    fn repeated(&mut self, before: Before, start: usize, operator: char) -> Result<Before, SyntaxError> {
        let from = match before {
            Before::Nothing => return Err(SyntaxError::NoArgument(operator)),
            Before::Repetition(from) => Some(from),
            Before::Operand => None,
        };
        if self.peek() == Some(b'?') {
            self.pass();
        }
        match from {
            Some(from) => Err(SyntaxError::Repetition(self.text(from))),
            None => Ok(Before::Repetition(start)),
        }
    }

    /// `{n}`, `{n,}` or `{n,m}`; anything else is a literal brace.
    fn counted(&mut self) -> Result<bool, SyntaxError> {
        let rest = self.rest();
        let Some(end) = rest.iter().position(|b| *b == b'}') else { return Ok(false) };
        let inside = &rest[1..end];
        let (low, high) = match inside.iter().position(|b| *b == b',') {
            Some(comma) => (&inside[..comma], &inside[comma + 1..]),
            None => (inside, inside),
        };
        let Some(minimum) = decimal(low) else { return Ok(false) };
        let maximum = if high.is_empty() { None } else { Some(decimal(high)) };
        if maximum == Some(None) {
            return Ok(false);
        }
        let start = self.at;
        self.at += end + 1;
        let maximum = maximum.flatten();
        let wrong = minimum > MAX_REPEAT || maximum.is_some_and(|maximum| maximum > MAX_REPEAT || maximum < minimum);
        if wrong || self.repeats.times(maximum.unwrap_or(minimum)) > MAX_REPEAT {
            return Err(SyntaxError::RepetitionSize(self.text(start)));
        }
        let _infallible = match maximum {
            Some(maximum) => write!(self.out, "{{{minimum},{maximum}}}"),
            None => write!(self.out, "{{{minimum},}}"),
        };
        Ok(true)
    }

    /// An opening parenthesis; `false` when it was only a change of flags.
    fn open(&mut self) -> Result<bool, SyntaxError> {
        let rest = self.rest();
        if !rest.starts_with(b"(?") {
            self.groups += 1;
            self.pass();
            return Ok(true);
        }
        let name_at = if rest.starts_with(b"(?P<") {
            4
        } else if rest.starts_with(b"(?<") && !rest.starts_with(b"(?<=") && !rest.starts_with(b"(?<!") {
            3
        } else {
            return self.flags();
        };
        let named = &rest[name_at..];
        let end = named.iter().position(|b| *b == b'>').unwrap_or(named.len());
        let name = &named[..end];
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii();
        if end == named.len() || name.is_empty() || !name.iter().all(word) {
            return Err(SyntaxError::GroupName(String::from_utf8_lossy(rest).into_owned()));
        }
        self.groups += 1;
        self.at += name_at + end + 1;
        self.out.push('(');
        Ok(true)
    }

    fn apply_flags(&mut self) {
        self.out.push_str(&self.flags);
        self.flags.clear();
    }

    /// `(?i)`, `(?s-m:`, `(?:` and the like.
    fn flags(&mut self) -> Result<bool, SyntaxError> {
        let start = self.at;
        self.at += 2;
        let (mut on, mut off, mut negated) = (String::new(), String::new(), false);
        loop {
            let byte = self.peek();
            self.at += 1;
            let ends = matches!(byte, Some(b':' | b')'));
            match byte {
                Some(flag @ (b'i' | b'm' | b's' | b'U')) => {
                    let flag = char::from(flag);
                    on.retain(|f| f != flag);
                    off.retain(|f| f != flag);
                    if negated { off.push(flag) } else { on.push(flag) }
                }
                Some(b'-') if !negated => negated = true,
                Some(_) if ends && negated && off.is_empty() => {
                    return Err(SyntaxError::PerlOperator(self.text(start)));
                }
                Some(b')') if on.is_empty() && off.is_empty() => return Ok(false),
                Some(end) if ends => {
                    let dash = if off.is_empty() { "" } else { "-" };
                    let out = if end == b':' { &mut self.out } else { &mut self.flags };
                    let _infallible = write!(out, "(?{on}{dash}{off}{}", char::from(end));
                    return Ok(end == b':');
                }
                _ => return Err(SyntaxError::PerlOperator(self.text(start))),
            }
        }
    }

    /// An escape outside a class; `false` when it stands for nothing (`\Q\E`).
    fn escape(&mut self) -> Result<bool, SyntaxError> {
        let rest = self.rest();
        if rest.starts_with(b"\\Q") {
            let quoted = &rest[2..];
            let end = quoted.windows(2).position(|w| w == b"\\E").unwrap_or(quoted.len());
            self.at += (2 + end + 2).min(rest.len());
            quoted[..end].iter().for_each(|byte| self.literal(*byte));
            return Ok(end > 0);
        }
        match rest.get(1) {
            Some(b'b' | b'B' | b'A' | b'z') => {
                self.pass();
                self.pass();
            }
            Some(b'C') => {
                self.out.push_str("(?s:.)");
                self.at += 2;
            }
            Some(b'E') => {
                self.at += 2;
                return Ok(false);
            }
            _ => {
                let mut set = ByteSet::default();
                match self.named_class(&mut set)? {
                    true => set.write(&mut self.out, false),
                    false => {
                        let byte = self.escaped_byte()?;
                        self.literal(byte);
                    }
                }
            }
        }
        Ok(true)
    }

    /// `\d`, `\pL` and the like, added to a set; `false` when none stands here.
    fn named_class(&mut self, set: &mut ByteSet) -> Result<bool, SyntaxError> {
        let Some(letter) = self.input.get(self.at + 1).copied() else { return Ok(false) };
        let member: fn(u8) -> bool = match letter.to_ascii_lowercase() {
            b'd' => |b| b.is_ascii_digit(),
            b'w' => |b| b.is_ascii_alphanumeric() || b == b'_',
            b's' => |b| matches!(b, b'\t' | b'\n' | 0x0c | b'\r' | b' '),
            b'p' => return self.unicode_class(letter == b'P', set).map(|()| true),
            _ => return Ok(false),
        };
        set.add_named(member, letter.is_ascii_uppercase());
        self.at += 2;
        Ok(true)
    }

    /// `\pN`, `\p{Greek}`, `\p{^Greek}`: their part in Latin-1.
    fn unicode_class(&mut self, mut negated: bool, set: &mut ByteSet) -> Result<(), SyntaxError> {
        let start = self.at;
        let rest = &self.rest()[2..];
        let (name, length) = match rest.first() {
            Some(b'{') => {
                let end = rest.iter().position(|b| *b == b'}').unwrap_or(rest.len());
                (&rest[1..end], end + 1)
            }
            Some(_) => (&rest[..1], 1),
            None => (rest, 0),
        };
        self.at = (self.at + 2 + length).min(self.input.len());
        let bad = || SyntaxError::ClassRange(self.text(start));
        let name = match name.strip_prefix(b"^") {
            Some(name) => {
                negated = !negated;
                name
            }
            None => name,
        };
        if !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') || name.is_empty() {
            return Err(bad());
        }
        let name = String::from_utf8_lossy(name);
        if name != "Any" {
            let members = regex::Regex::new(&format!(r"\A\p{{{name}}}\z")).map_err(|_| bad())?;
            set.add_named(|byte| members.is_match(char::from(byte).encode_utf8(&mut [0; 4])), negated);
        } else if !negated {
            set.add(|_| true);
        }
        Ok(())
    }

    /// An escape that stands for one byte.
    fn escaped_byte(&mut self) -> Result<u8, SyntaxError> {
        let start = self.at;
        self.at += 1;
        let Some(letter) = self.peek() else { return Err(SyntaxError::TrailingBackslash) };
        self.at += 1;
        let octal = |byte: Option<u8>| byte.filter(|b| (b'0'..=b'7').contains(b)).map(|b| u32::from(b - b'0'));
        let value = match letter {
            b'1'..=b'7' if octal(self.peek()).is_none() => None,
            b'0'..=b'7' => {
                let mut value = u32::from(letter - b'0');
                for _ in 0..2 {
                    let Some(digit) = octal(self.peek()) else { break };
                    value = value * 8 + digit;
                    self.at += 1;
                }
                Some(value)
            }
            b'x' => self.hexadecimal(),
            b'a' => Some(7),
            b'f' => Some(0x0c),
            b'n' => Some(0x0a),
            b'r' => Some(0x0d),
            b't' => Some(9),
            b'v' => Some(0x0b),
            b'_' => Some(u32::from(b'_')),
            other if other.is_ascii() && !other.is_ascii_alphanumeric() => Some(u32::from(other)),
            _ => None,
        };
        let byte = value.and_then(|value| u8::try_from(value).ok());
        byte.ok_or_else(|| SyntaxError::Escape(self.text(start)))
    }

    fn hexadecimal(&mut self) -> Option<u32> {
        let rest = self.rest();
        let (digits, length) = match rest.first() {
            Some(b'{') => {
                let end = rest.iter().position(|b| *b == b'}')?;
                (&rest[1..end], end + 1)
            }
            _ => (rest.get(..2)?, 2),
        };
        self.at += length;
        let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u32::from_str_radix(digits, 16).ok()
    }

    /// A bracketed class, as the set of its bytes.
    fn class(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        let negated = self.peek() == Some(b'^');
        if negated {
            self.at += 1;
        }
        let (mut set, mut first) = (ByteSet::default(), true);
        loop {
            match self.peek() {
                None => return Err(SyntaxError::MissingBracket(self.whole())),
                Some(b']') if !first => break,
                Some(b'[') if self.rest().starts_with(b"[:") && self.posix_class(&mut set)? => {}
                Some(b'\\') if self.named_class(&mut set)? => {}
                Some(_) => self.class_range(&mut set)?,
            }
            first = false;
        }
        self.at += 1;
        set.write(&mut self.out, negated);
        Ok(())
    }

    fn class_byte(&mut self) -> Result<u8, SyntaxError> {
        match self.peek() {
            None => Err(SyntaxError::MissingBracket(self.whole())),
            Some(b'\\') => self.escaped_byte(),
            Some(byte) => {
                self.at += 1;
                Ok(byte)
            }
        }
    }

    fn class_range(&mut self, set: &mut ByteSet) -> Result<(), SyntaxError> {
        let start = self.at;
        let low = self.class_byte()?;
        let rest = self.rest();
        let high = if rest.first() == Some(&b'-') && rest.get(1).is_some_and(|b| *b != b']') {
            self.at += 1;
            self.class_byte()?
        } else {
            low
        };
        if high < low {
            return Err(SyntaxError::ClassRange(self.text(start)));
        }
        set.add(|byte| (low..=high).contains(&byte));
        Ok(())
    }

    /// `[:alpha:]`, `[:^alpha:]`; `false` when the text only looks like one.
    fn posix_class(&mut self, set: &mut ByteSet) -> Result<bool, SyntaxError> {
        let start = self.at;
        let rest = &self.rest()[2..];
        let Some(end) = rest.windows(2).position(|w| w == b":]") else { return Ok(false) };
        let (name, negated) = match rest[..end].strip_prefix(b"^") {
            Some(name) => (name, true),
            None => (&rest[..end], false),
        };
        self.at += end + 4;
        let Some(member) = byte_set::posix(name) else { return Err(SyntaxError::ClassRange(self.text(start))) };
        set.add_named(member, negated);
        Ok(true)
    }
}

fn decimal(digits: &[u8]) -> Option<u32> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0');
    let digits = plain.then(|| std::str::from_utf8(digits).ok()).flatten()?;
    Some(digits.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
