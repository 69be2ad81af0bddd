//! Texts of the short form that mean something: times, sizes, addresses, names. Each is read once, and valid from then on.
//! It must not know where they stand.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use regex_syntax::hir::{Hir, HirKind};
use serde_json::{Value, json};
use tidegate_xds::FieldPath;

use super::shape::{Definitions, Faults, Shape, describe, text};

/// Longer than any limit is meant.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// How long a name may be.
const LONGEST_NAME: usize = 200;

/// How long a regular expression may be.
const LONGEST_PATTERN: usize = 4096;

/// How many characters and classes a regular expression may be once its repetitions are written out: about what a proxy
/// compiles within its own limit.
const LARGEST_PATTERN: u64 = 50_000;

/// A text with a reading of its own.
macro_rules! texts {
    ($($(#[doc = $about:literal])+ $name:ident($inner:ty): $what:literal, $pattern:literal, $read:expr;)+) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone, PartialEq, Eq, Hash)]
            pub(super) struct $name(pub(super) $inner);

            impl Shape for $name {
                fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
                    let read: fn(&str) -> Option<$inner> = $read;
                    let text = text(value, $what, path, faults)?;
                    let read = read(text).map(Self);
                    if read.is_none() {
                        faults.push(path, format!("expected {}, found {}", $what, describe(value)));
                    }
                    read
                }

                fn schema(_: &mut Definitions) -> Value {
                    json!({"title": $what, "type": "string", "pattern": $pattern})
                }
            }
        )+
    };
}

texts! {
    /// The name of a listener or an upstream.
    Name(String): "a name of letters, digits, `.`, `_` and `-`", "^[A-Za-z0-9._-]{1,200}$", |text| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (1..=LONGEST_NAME).contains(&text.len()).then_some(())?;
        text.bytes().all(fits).then(|| text.to_owned())
    };

    /// What names an upstream, or a cluster that is not of the short form.
    Reference(String): "the name of an upstream", "^[^\\s]+$", |text| {
        (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.to_owned())
    };

    /// A time with its unit: `250ms`, `10s`, `1h30m`.
    Time(Duration): "a time with its unit, such as `10s`", "^([0-9]+(ms|s|m|h))+$", time;

    /// A time that is not 0.
    SomeTime(Duration): "a time with its unit that is not 0, such as `10s`", "^([0-9]+(ms|s|m|h))+$", |text| {
        time(text).filter(|time| !time.is_zero())
    };

    /// A size with its unit: `512B`, `64KiB`, `10MiB`.
    Size(u32): "a size with its unit, such as `10MiB`", "^[0-9]+(B|KiB|MiB|GiB)$", |text| {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return None,
        };
        let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
        u32::try_from(bytes).ok().filter(|bytes| *bytes > 0)
    };

    /// An address to listen on.
    Bind(SocketAddr): "an IP address and a port, such as `0.0.0.0:8080` or `[::]:8080`", "^.+:[0-9]{1,5}$", |text| {
        text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0)
    };

    /// Where an upstream's host is.
    Address((Host, u16)): "a host and a port, such as `10.0.0.1:8080` or `web.internal:8080`", "^.+:[0-9]{1,5}$", |text| {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return (address.port() > 0).then(|| (Host::Ip(address.ip()), address.port()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = self::port(port).filter(|port| *port > 0)?;
        let numeric = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        (is_host(host) && !numeric).then(|| (Host::Name(host.to_owned()), port))
    };

    /// What `host` is matched with: `shop.example.com`, `*.example.com`, `shop.*`, `*`.
    Domain(String): "a host name, `*.` and a suffix, a prefix and `.*`, or `*`", "^(\\*|[A-Za-z0-9._-]+\\.\\*|(\\*\\.)?[A-Za-z0-9._-]+(:[0-9]+)?)$", |text| {
        let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
        let plain = match (name.strip_prefix("*."), name.strip_suffix(".*")) {
            (Some(_), Some(_)) => return None,
            // Behind a wildcard at the end there is nothing.
            (None, Some(_)) if port.is_some() => return None,
            (Some(rest), None) | (None, Some(rest)) => rest,
            (None, None) => name,
        };
        port.is_none_or(|port| self::port(port).is_some()).then_some(())?;
        (text == "*" || is_host(plain)).then(|| text.to_ascii_lowercase())
    };

    /// A host as it is sent: without a wildcard.
    HostText(String): "a host name, with a port or without", "^[A-Za-z0-9._-]+(:[0-9]+)?$", |text| {
        let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
        (is_host(name) && port.is_none_or(|port| self::port(port).is_some())).then(|| text.to_owned())
    };

    /// A path, or the beginning of one.
    Path(String): "a path that begins with `/`, without `?`, `#` and spaces", "^/[!-~]*$", |text| {
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
        (text.starts_with('/') && text.bytes().all(fits)).then(|| text.to_owned())
    };

    /// A header's name, in lower case.
    HeaderName(String): "the name of a header", "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", |text| {
        let name = http::HeaderName::from_bytes(text.as_bytes()).ok()?;
        (text.len() <= LONGEST_NAME).then(|| name.as_str().to_owned())
    };

    /// A header's value, as it is sent.
    HeaderValue(String): "the value of a header, in ASCII and on one line", "^[ -~\\t]*$", |text| {
        let fits = text.len() <= 4096 && text.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
        fits.then(|| text.to_owned())
    };

    /// What a value is compared with.
    Compared(String): "text that is not empty, in ASCII and on one line", "^[ -~]+$", |text| {
        let fits = (1..=1024).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        fits.then(|| text.to_owned())
    };

    /// An origin of `Access-Control-Allow-Origin`.
    Origin(String): "an origin such as `https://shop.example.com`, one with `*.` before its host, or `*`", "^(\\*|[a-z][a-z0-9+.-]*://(\\*\\.)?[A-Za-z0-9._-]+(:[0-9]+)?)$", |text| {
        if text == "*" {
            return Some(text.to_owned());
        }
        let (scheme, host) = text.split_once("://")?;
        let host = host.strip_prefix("*.").unwrap_or(host);
        let (name, port) = host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+.-".contains(&byte));
        (is_scheme && is_host(name) && port.is_none_or(|port| self::port(port).is_some())).then(|| text.to_owned())
    };

    /// Where an access log goes.
    LogTarget(String): "`stdout`, `stderr`, `none`, or the path of a file", "^(stdout|stderr|none|.*/.*)$", |text| {
        (["stdout", "stderr", "none"].contains(&text) || text.contains('/')).then(|| text.to_owned())
    };
}

fn time(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total += Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds)?);
        (total <= LONGEST).then_some(())?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// A host of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Host {
    Ip(IpAddr),
    Name(String),
}

/// Digits alone: Rust's own reading takes a sign before them.
fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn is_host(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=253).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.') && !text.contains("..")
}

/// A regular expression that must match as a whole.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    pub(super) text: String,
    /// How many groups a replacement may name.
    pub(super) groups: usize,
}

impl Shape for Pattern {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        let text = text(value, "a regular expression", path, faults)?;
        if text.is_empty() {
            faults.push(path, "expected a regular expression, found nothing");
            return None;
        }
        if text.len() > LONGEST_PATTERN {
            faults.push(path, format!("a regular expression of more than {LONGEST_PATTERN} bytes"));
            return None;
        }
        if !faults.spend(cost(text)) {
            faults.push(path, "the regular expressions of this file are too many to be read");
            return None;
        }
        // Compiled they are by proxies: here that would take more time than a file may.
        match regex_syntax::parse(text) {
            Ok(parsed) if size(&parsed) > LARGEST_PATTERN => {
                faults.push(path, "a regular expression that repeats too much: no proxy takes one so large");
                None
            }
            Ok(parsed) => Some(Self { text: text.to_owned(), groups: parsed.properties().explicit_captures_len() }),
            Err(error) => {
                // The last line says what is wrong; those before draw it.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                faults.push(path, format!("no regular expression: {reason}"));
                None
            }
        }
    }

    fn schema(_: &mut Definitions) -> Value {
        json!({"title": "a regular expression", "type": "string", "format": "regex", "minLength": 1})
    }
}

/// What a regular expression costs to be read, in bytes of plain text: a class is a list of ranges, one of Unicode a long one,
/// and without case each range is looked up character by character.
fn cost(text: &str) -> usize {
    let count = |what: &str| text.matches(what).count();
    let classes = 64 * (count("[") + count("\\")) + 512 * (count("\\p") + count("\\P"));
    let flags = text.match_indices("(?").filter_map(|(at, _)| text[at + 2..].split([':', ')', '<', '>']).next());
    let without_case = flags.into_iter().any(|flags| flags.contains('i'));
    (text.len() + classes) * if without_case { 8 } else { 1 }
}

/// How many characters and classes there are where repetitions are written out.
fn size(of: &Hir) -> u64 {
    match of.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(_) => 1,
        HirKind::Repetition(repeated) => {
            let times = repeated.max.unwrap_or(repeated.min.saturating_add(1));
            size(&repeated.sub).max(1).saturating_mul(times.into())
        }
        HirKind::Capture(capture) => size(&capture.sub).saturating_add(1),
        HirKind::Concat(all) | HirKind::Alternation(all) => {
            all.iter().fold(all.len() as u64, |sum, one| sum.saturating_add(size(one)))
        }
    }
}

/// What may only be `true`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Yes;

impl Shape for Yes {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        if *value != Value::Bool(true) {
            faults.push(path, format!("expected true, found {}", describe(value)));
        }
        value.as_bool().filter(|value| *value).map(|_| Self)
    }

    fn schema(_: &mut Definitions) -> Value {
        json!({"const": true})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Shape>(text: &str) -> Option<T> {
        T::read(&json!(text), &mut FieldPath::root(), &mut Faults::default())
    }

    #[test]
    fn times_and_sizes_have_units() {
        let milliseconds = |text| read::<Time>(text).map(|time| time.0.as_millis());
        for (text, expected) in [("250ms", 250), ("10s", 10_000), ("1h30m", 5_400_000), ("0s", 0), ("365m", 21_900_000)]
        {
            assert_eq!(milliseconds(text), Some(expected), "{text}");
        }
        for text in ["", "10", "s", "1.5s", "10 s", "1d", "9999999h", "-1s", "99999999999999999999s"] {
            assert_eq!(milliseconds(text), None, "{text}");
        }
        assert!(read::<SomeTime>("0s").is_none() && read::<SomeTime>("1ms").is_some());
        let bytes = |text| read::<Size>(text).map(|size| size.0);
        assert_eq!(["512B", "64KiB", "10MiB", "1GiB"].map(bytes), [512, 65_536, 10 << 20, 1 << 30].map(Some));
        assert_eq!(["0B", "4GiB", "10", "10MB", "MiB", "1.5MiB"].map(bytes), [None; 6]);
    }

    #[test]
    fn addresses_and_names_are_what_they_say() {
        for text in ["10.0.0.1:80", "[::1]:80", "web.internal:8080", "localhost:1"] {
            assert!(read::<Address>(text).is_some(), "{text}");
        }
        for text in ["10.0.0.1", "10.0.0.256:80", ":80", "web:0", "web:65536", "web:+80", "a b:1", "::1:80"] {
            assert!(read::<Address>(text).is_none(), "{text}");
        }
        assert!(read::<Bind>("[::]:80").is_some() && read::<Bind>("localhost:80").is_none());
        for text in ["*", "*.example.com", "shop.*", "Shop.example.com:8443"] {
            assert!(read::<Domain>(text).is_some(), "{text}");
        }
        for text in ["", "*.*", "a*b", "http://x", "a..b", "x:y", "shop.*:80", "*:80", "x:+80", "x:"] {
            assert!(read::<Domain>(text).is_none(), "{text}");
        }
        assert!(read::<HostText>("x:+80").is_none() && read::<HostText>("x:80").is_some());
        assert!(read::<HeaderName>(":path").is_none() && read::<HeaderName>("X-A").is_some_and(|it| it.0 == "x-a"));
        assert!(read::<HeaderValue>("a\r\nb: c").is_none());
        assert!(read::<Path>("/a?b").is_none() && read::<Path>("a").is_none() && read::<Path>("/a%20b").is_some());
        let origins = ["*", "https://a.example", "https://*.example:8443", "app://x"];
        assert!(origins.iter().all(|text| read::<Origin>(text).is_some()));
        assert!(
            ["a.example", "https://a/b", "https://*", "https://a:+1"].iter().all(|text| read::<Origin>(text).is_none())
        );
    }

    #[test]
    fn a_pattern_says_what_is_wrong_with_it() {
        let mut faults = Faults::default();
        assert!(Pattern::read(&json!("/a(b"), &mut FieldPath::root(), &mut faults).is_none());
        assert_eq!(faults.into_errors()[0].reason, "no regular expression: unclosed group");
        assert_eq!(read::<Pattern>("/(a)(b)").unwrap().groups, 2);
        assert!(read::<Pattern>(r"(?i)/\p{Greek}+").is_some() && read::<Pattern>(r"\p{Greeek}").is_none());
    }

    #[test]
    fn what_no_proxy_would_compile_is_not_compiled_here_either() {
        let told = |text: &str| {
            let mut faults = Faults::default();
            let read = Pattern::read(&json!(text), &mut FieldPath::root(), &mut faults);
            (read.is_some(), faults.into_errors().pop().map(|error| error.reason).unwrap_or_default())
        };
        assert!(told(r"/(a|b|c){1,400}\w{1,100}").0 && told(&"[a-f]{1000}".repeat(40)).0);
        for text in ["[a-f]{1000}".repeat(100), "(((a{1000}){1000}){1000}){1000}".to_owned(), "(ab){40000}".to_owned()]
        {
            let (taken, reason) = told(&text);
            assert!(!taken && reason.contains("repeats too much"), "{text}: {reason}");
        }
        assert!(told(&"a".repeat(LONGEST_PATTERN + 1)).1.contains("more than 4096 bytes"));
    }

    #[test]
    fn the_patterns_of_a_file_have_one_budget() {
        let mut faults = Faults::default();
        let mut take = |text: &str| Pattern::read(&json!(text), &mut FieldPath::root(), &mut faults).is_some();
        let many = (0..2000).filter(|number| take(&format!("/api/v[0-9]+/[^/]+/{number}"))).count();
        assert_eq!(many, 2000, "what people write");
        let slow = (0..2000).filter(|_| take(r"(?i)\pL\pL\pL")).count();
        assert!((1..200).contains(&slow), "{slow}");
        assert!(faults.into_errors()[0].reason.ends_with("too many to be read"));
    }
}
