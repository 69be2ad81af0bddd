//! Makes a request's path the one that is matched, authorised and forwarded: once, before anything looks at it.
//! It must not know routes; the query is never touched.

use http::HeaderValue;

use super::options::{EscapedSlashes, PathRules};

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Normalized {
    /// It was as it should be.
    Same,
    /// Forward this instead.
    Changed(HeaderValue),
    /// Tell the client to come back with this one (307).
    Redirect(HeaderValue),
    /// Refuse (400). Logs name the path as far as it was made another.
    Rejected(Option<HeaderValue>),
}

/// Applies the rules in Envoy's order: escaped slashes, then normalisation, then merging.
pub(crate) fn normalize(path: &HeaderValue, rules: PathRules) -> Normalized {
    if rules == PathRules::default() {
        return Normalized::Same;
    }
    let whole = path.as_bytes();
    let end = whole.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(whole.len());
    let (mut current, query) = (whole[..end].to_vec(), &whole[end..]);
    let mut redirect = false;

    if rules.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(&current)
    {
        if rules.escaped_slashes == EscapedSlashes::Reject {
            let shown = HeaderValue::from_bytes(&[&unescaped, query].concat()).ok();
            return Normalized::Rejected(shown);
        }
        redirect = rules.escaped_slashes == EscapedSlashes::UnescapeAndRedirect;
        current = unescaped;
    }
    if rules.normalize {
        match canonical(&current) {
            Some(canonical) => current = canonical,
            None => return Normalized::Rejected(None),
        }
    }
    if rules.merge_slashes {
        current = merge_slashes(&current);
    }
    if rules.reject_hidden_dot_segments && hides_dot_segment(&current) {
        return Normalized::Rejected(None);
    }
    if current == whole[..end] {
        return Normalized::Same;
    }
    current.extend_from_slice(query);
    match HeaderValue::from_maybe_shared(bytes::Bytes::from(current)) {
        Ok(value) if redirect => Normalized::Redirect(value),
        Ok(value) => Normalized::Changed(value),
        Err(_) => Normalized::Rejected(None),
    }
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// The byte that `%XX` at the start of `bytes` stands for.
fn escaped(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

/// `%2F` and `%5C` become what they stand for; `None` when there were none.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let Some((&first, tail)) = rest.split_first() {
        match escaped(rest) {
            Some(byte @ (b'/' | b'\\')) => {
                found = true;
                out.push(byte);
                rest = &rest[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    found.then_some(out)
}

/// Path canonicalisation as Envoy's (Chromium's): backslashes are slashes, escapes of unreserved characters are undone,
/// dot segments (escaped dots included) resolved, what may not stand in a path escaped. `None`: not a path.
fn canonical(path: &[u8]) -> Option<Vec<u8>> {
    if !matches!(path.first(), Some(b'/' | b'\\')) {
        return None;
    }
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(&first) = rest.first() {
        if matches!(first, b'/' | b'\\') {
            out.push(b'/');
            rest = &rest[1..];
            rest = resolve_dots(&mut out, rest);
            continue;
        }
        match (first, escaped(rest)) {
            (b'%', Some(byte)) => {
                if byte == 0 {
                    return None;
                }
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b'.') {
                    out.push(byte);
                } else {
                    out.extend_from_slice(&rest[..3]);
                }
                rest = &rest[3..];
            }
            (byte, _) if must_escape(byte) => {
                out.extend_from_slice(format!("%{byte:02X}").as_bytes());
                rest = &rest[1..];
            }
            (byte, _) => {
                out.push(byte);
                rest = &rest[1..];
            }
        }
    }
    Some(out)
}

fn must_escape(byte: u8) -> bool {
    byte <= b' ' || byte >= 0x7f || matches!(byte, b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'#' | b'?')
}

/// Just after a slash: swallows `.` and `..` segments, removing what `..` steps out of.
fn resolve_dots<'a>(out: &mut Vec<u8>, rest: &'a [u8]) -> &'a [u8] {
    let (dots, length) = leading_dots(rest);
    let ends = matches!(rest.get(length), None | Some(b'/' | b'\\'));
    if !ends || dots == 0 || dots > 2 {
        return rest;
    }
    if dots == 2 {
        out.pop();
        let parent = out.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash);
        out.truncate(parent);
        out.push(b'/');
    }
    let after = &rest[length..];
    match after.first() {
        None => after,
        Some(_) => resolve_dots(out, &after[1..]),
    }
}

/// How many dots (`.` or `%2e`) begin `rest`, and in how many bytes.
fn leading_dots(rest: &[u8]) -> (usize, usize) {
    let (mut dots, mut at) = (0, 0);
    loop {
        if rest.get(at) == Some(&b'.') {
            at += 1;
        } else if escaped(&rest[at..]) == Some(b'.') {
            at += 3;
        } else {
            return (dots, at);
        }
        dots += 1;
    }
}

fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

/// Whether a segment becomes `.` or `..` for somebody who decodes `%2f`, `%5c`, `%2e` (once more, or also backslashes).
fn hides_dot_segment(path: &[u8]) -> bool {
    let mut decoded = path.to_vec();
    loop {
        let dotted = decoded
            .split(|b| matches!(b, b'/' | b'\\'))
            .any(|segment| matches!(segment.split(|b| *b == b';').next(), Some(b"." | b"..")));
        if dotted {
            return true;
        }
        let next = decode_separators(&decoded);
        if next == decoded {
            return false;
        }
        decoded = next;
    }
}

/// One round of decoding of `%2f %5c %2e %25`.
fn decode_separators(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(&first) = rest.first() {
        match escaped(rest) {
            Some(byte @ (b'/' | b'\\' | b'.' | b'%')) => {
                out.push(byte);
                rest = &rest[3..];
            }
            _ => {
                out.push(first);
                rest = &rest[1..];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PathRules = PathRules {
        normalize: true,
        merge_slashes: true,
        escaped_slashes: EscapedSlashes::Keep,
        reject_hidden_dot_segments: false,
    };

    fn after(path: &str, rules: PathRules) -> String {
        match normalize(&HeaderValue::from_str(path).unwrap(), rules) {
            Normalized::Same => path.to_owned(),
            Normalized::Changed(value) => value.to_str().unwrap().to_owned(),
            Normalized::Redirect(value) => format!("307 {}", value.to_str().unwrap()),
            Normalized::Rejected(_) => "400".to_owned(),
        }
    }

    #[test]
    fn paths_become_what_envoy_makes_of_them() {
        for (path, expected) in [
            ("/a//b", "/a/b"),
            ("/a\\b", "/a/b"),
            ("/%61bc", "/abc"),
            ("/../x", "/x"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/./b/.", "/a/b/"),
            ("/a/%2e%2E/b", "/b"),
            ("/x?y=//../", "/x?y=//../"),
            ("/a/...", "/a/..."),
            ("/a%2Fb", "/a%2Fb"),
            ("/..", "/"),
        ] {
            assert_eq!(after(path, ALL), expected, "{path}");
        }
    }

    #[test]
    fn escaped_slashes_are_unescaped_then_normalised() {
        let redirect = PathRules { escaped_slashes: EscapedSlashes::UnescapeAndRedirect, ..ALL };
        assert_eq!(after("/a%2Fb/../c", redirect), "307 /a/c");
        let reject = PathRules { escaped_slashes: EscapedSlashes::Reject, ..ALL };
        assert_eq!(after("/a%2Fb/../c", reject), "400");
        assert_eq!(after("/a/b", reject), "/a/b");
    }

    #[test]
    fn hidden_dot_segments_are_refused_but_plain_escapes_kept() {
        let safe = PathRules { reject_hidden_dot_segments: true, ..ALL };
        for path in ["/a%2f..%2fadmin", "/a/..%2fadmin", "/a/%252e%252e/b", "/a%5c..%5cb"] {
            assert_eq!(after(path, safe), "400", "{path}");
        }
        assert_eq!(after("/a%2Fb", safe), "/a%2Fb");
    }

    #[test]
    fn without_rules_nothing_changes() {
        assert_eq!(after("/a/../b", PathRules::default()), "/a/../b");
    }
}
