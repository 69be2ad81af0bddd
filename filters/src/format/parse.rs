//! Reads a format string: what is literal, and where commands stand. It must not know which commands there are.
//!
//! A command is `%NAME%`, `%NAME(parameter)%`, `%NAME:length%` or both; `%%` is a percent sign.

use super::{Extensions, FormatError, Operator, Part, commands};

/// A command as it stands in the format.
#[derive(Debug, PartialEq, Eq)]
struct Command<'a> {
    name: &'a str,
    parameter: &'a str,
    length: Option<usize>,
}

/// Splits a format into its parts.
pub(super) fn parts(format: &str, extensions: Extensions) -> Result<Vec<Part>, FormatError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("%%") {
            literal.push('%');
            rest = after;
            continue;
        }
        let position = format.len() - rest.len();
        let (command, after) =
            command(rest).ok_or_else(|| FormatError::NoCommand { format: format.to_owned(), position })?;
        let operator = commands::compile(command.name, command.parameter, command.length, extensions)?;
        match operator {
            Operator::Constant(text) => literal.push_str(&text),
            operator => {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Operator(operator));
            }
        }
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

/// The command at the start of `text`, which begins with `%`, and what follows it. A parameter ends at the first `)` after
/// which the command can end.
fn command(text: &str) -> Option<(Command<'_>, &str)> {
    let body = &text[1..];
    let end =
        body.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).filter(|end| *end > 0)?;
    let (name, rest) = body.split_at(end);
    let Some(inside) = rest.strip_prefix('(') else {
        let (length, after) = ending(rest)?;
        return Some((Command { name, parameter: "", length }, after));
    };
    let line = inside.split('\n').next().unwrap_or_default();
    line.match_indices(')').find_map(|(close, _)| {
        let (length, after) = ending(&inside[close + 1..])?;
        Some((Command { name, parameter: &inside[..close], length }, after))
    })
}

/// `%` or `:length%`, and what follows.
fn ending(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(after) = text.strip_prefix('%') {
        return Some((None, after));
    }
    let (digits, after) = text.strip_prefix(':')?.split_once('%')?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some((Some(plain.then(|| digits.parse().ok()).flatten()?), after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_a_name_a_parameter_and_a_length() {
        for (text, name, parameter, length, after) in [
            ("%DURATION% x", "DURATION", "", None, " x"),
            ("%DURATION()%", "DURATION", "", None, ""),
            ("%REQ(a?b):5%c", "REQ", "a?b", Some(5), "c"),
            ("%PATH:3%", "PATH", "", Some(3), ""),
            ("%START_TIME(%Y)%", "START_TIME", "%Y", None, ""),
            ("%START_TIME(a%)%", "START_TIME", "a%", None, ""),
            ("%REQ(a))%", "REQ", "a)", None, ""),
        ] {
            assert_eq!(command(text), Some((Command { name, parameter, length }, after)), "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_found_at_its_position() {
        for (format, position) in [
            ("%", 0),
            ("100%", 3),
            ("a %% %REQ(a", 5),
            ("%REQ(a%", 0),
            ("%REQ(a)", 0),
            ("%REQ(a):x%", 0),
            ("%REQ(a):%", 0),
            ("%REQ(a):-1%", 0),
            ("%REQ(a):99999999999999999999%", 0),
            ("%req(a)%", 0),
            ("%REQ(a\nb)%", 0),
            ("%REQ()?%", 0),
        ] {
            let error = parts(format, Extensions::default()).unwrap_err();
            assert_eq!(error, FormatError::NoCommand { format: format.to_owned(), position });
        }
    }
}
