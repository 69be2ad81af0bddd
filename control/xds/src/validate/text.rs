//! Rules of strings. It must not know where a string comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::number::check_count;
use crate::schema::rules::{Form, TextRules};

/// Checks a string; the error says what it must be.
pub(super) fn check(rules: &TextRules, value: &str) -> Result<(), String> {
    if rules.ignore_empty && value.is_empty() {
        return Ok(());
    }
    let must = |holds: bool, reason: &dyn Fn() -> String| if holds { Ok(()) } else { Err(reason()) };
    must(rules.equal.is_none_or(|equal| equal == value), &|| format!("must be {:?}", rules.equal.unwrap_or_default()))?;
    must(rules.any_of.is_empty() || rules.any_of.contains(&value), &|| {
        format!("{value:?} must be one of {}", rules.any_of.join(", "))
    })?;
    must(!rules.none_of.contains(&value), &|| format!("must not be {value:?}"))?;
    let (min, max) = rules.characters;
    if (min, max) != (0, u64::MAX) {
        check_count(value.chars().count(), min, max, "character")?;
    }
    let (min, max) = rules.bytes;
    check_count(value.len(), min, max, "byte")?;
    must(rules.prefix.is_none_or(|prefix| value.starts_with(prefix)), &|| {
        format!("{value:?} must start with {:?}", rules.prefix.unwrap_or_default())
    })?;
    must(rules.suffix.is_none_or(|suffix| value.ends_with(suffix)), &|| {
        format!("{value:?} must end with {:?}", rules.suffix.unwrap_or_default())
    })?;
    must(rules.contains.is_none_or(|part| value.contains(part)), &|| {
        format!("{value:?} must contain {:?}", rules.contains.unwrap_or_default())
    })?;
    must(rules.not_contains.is_none_or(|part| !value.contains(part)), &|| {
        format!("{value:?} must not contain {:?}", rules.not_contains.unwrap_or_default())
    })?;
    if let Some(pattern) = rules.pattern.filter(|pattern| !pattern.matches(value)) {
        return Err(format!("{value:?} must match {}", pattern.source));
    }
    match rules.form.filter(|form| !has_form(*form, value)) {
        Some(form) => Err(format!("{value:?} is not {}", describe(form))),
        None => Ok(()),
    }
}

fn has_form(form: Form, value: &str) -> bool {
    match form {
        Form::Ip => value.parse::<IpAddr>().is_ok(),
        Form::Ipv4 => value.parse::<Ipv4Addr>().is_ok(),
        Form::Ipv6 => value.parse::<Ipv6Addr>().is_ok(),
        Form::Hostname => is_hostname(value),
        Form::Address => is_hostname(value) || value.parse::<IpAddr>().is_ok(),
        Form::Uuid => is_uuid(value),
        Form::HeaderName => is_header_name(value),
        Form::HeaderValue => value.bytes().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)),
        Form::HeaderString => !value.contains(['\0', '\n', '\r']),
    }
}

fn describe(form: Form) -> &'static str {
    match form {
        Form::Ip => "an IP address",
        Form::Ipv4 => "an IPv4 address",
        Form::Ipv6 => "an IPv6 address",
        Form::Hostname => "a host name",
        Form::Address => "an IP address or host name",
        Form::Uuid => "a UUID",
        Form::HeaderName => "a header name",
        Form::HeaderValue => "a header value",
        Form::HeaderString => "allowed in a header (no NUL, CR or LF)",
    }
}

fn is_hostname(value: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // A last dot ends the last label; Envoy's check does not see it.
    value.len() <= 253 && value.strip_suffix('.').unwrap_or(value).split('.').all(label)
}

fn is_uuid(value: &str) -> bool {
    value.len() == 36
        && value.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A token of RFC 9110 or a pseudo-header; `(` to `/` and `@` excepted as in Envoy's rule, which takes `,` for one.
fn is_header_name(value: &str) -> bool {
    let name = value.strip_prefix(':').unwrap_or(value);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+,-.^_|~`".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_and_values_follow_envoys_patterns() {
        for (form, pattern) in [
            (Form::HeaderName, r"^:?[0-9a-zA-Z!#$%&'*+-.^_|~\x60]+$"),
            (Form::HeaderValue, r"^[^\x{0}-\x{8}\x{A}-\x{1F}\x{7F}]*$"),
            (Form::HeaderString, r"^[^\x{0}\x{A}\x{D}]*$"),
        ] {
            let regex = regex::Regex::new(pattern).unwrap();
            for code in 0..=0x17f {
                let c = char::from_u32(code).unwrap();
                for text in [format!("{c}"), format!("a{c}"), format!(":{c}")] {
                    assert_eq!(has_form(form, &text), regex.is_match(&text), "{form:?} {text:?}");
                }
            }
            assert_eq!(has_form(form, ""), regex.is_match(""), "{form:?}");
        }
    }

    #[test]
    fn addresses_and_host_names() {
        for (form, good, bad) in [
            (Form::Address, "a-b.example", "a_b"),
            (Form::Address, "::1", "a..b"),
            (Form::Ip, "10.0.0.1", "10.0.0"),
            (Form::Ipv4, "10.0.0.1", "::1"),
            (Form::Ipv6, "::1", "10.0.0.1"),
            (Form::Hostname, "a.b", "-a"),
            (Form::Uuid, "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ] {
            assert!(has_form(form, good), "{good}");
            assert!(!has_form(form, bad), "{bad}");
        }
    }
}
