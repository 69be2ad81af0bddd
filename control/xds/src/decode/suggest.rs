//! The nearest known name for one that is not known. It must not know where names come from.

use crate::schema::{self, Enum, Message};

pub(super) fn unknown_field(message: &'static Message, name: &str) -> String {
    let known = || message.fields().iter().map(|field| field.name());
    let snake = snake_case(name);
    let near = nearest(&snake, known()).map_or_else(|| holding(&snake, known()), |near| vec![near]);
    match near.is_empty() {
        true => format!("unknown field `{name}` of {}", last_part(message.name())),
        false => format!("unknown field `{name}`; did you mean `{}`?", near.join("` or `")),
    }
}

pub(super) fn unknown_type(url: &str, name: &str) -> String {
    match nearest_type(name) {
        Some(near) => format!("unknown type {url:?}; did you mean type.googleapis.com/{near}?"),
        None => format!("unknown type {url:?}"),
    }
}

/// A type of nearly this name, or the one that took over from it in a later version of the API.
fn nearest_type(name: &str) -> Option<&'static str> {
    let last = last_part(name);
    // Comparing with all names would take long; those of few changes are about as long and end alike.
    let alike = |known: &&str| {
        last_part(known) == last
            || known.len().abs_diff(name.len()) <= allowed(name) && distance_of_few(last, last_part(known))
    };
    let known = || schema::messages().iter().map(Message::name).filter(alike);
    nearest(name, known()).or_else(|| {
        let room = |name: &'static str| name.rsplit('.').nth(2);
        let wanted = name.rsplit('.').nth(2)?;
        known().find(|known| last_part(known) == last && room(known) == Some(wanted))
    })
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Names of which `part` is a part, such as `port_value` of `port`; a few at most.
fn holding<'a>(part: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    const MOST: usize = 3;
    let holds = |name: &&str| {
        name.strip_prefix(part).is_some_and(|rest| rest.starts_with('_'))
            || name.strip_suffix(part).is_some_and(|rest| rest.ends_with('_'))
    };
    let found: Vec<&str> = known.filter(holds).collect();
    if found.len() > MOST { Vec::new() } else { found }
}

pub(super) fn unknown_value(of: &'static Enum, name: &str) -> String {
    let known = of.values().iter().map(|value| value.name());
    with_nearest("enum value", name, nearest(&name.to_ascii_uppercase(), known))
}

fn with_nearest(what: &str, name: &str, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("unknown {what} `{name}`; did you mean `{nearest}`?"),
        None => format!("unknown {what} `{name}`"),
    }
}

fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The known name with the fewest changes, if they are few.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A guess at a name this long helps nobody, and would cost time.
    const LONGEST: usize = 100;
    if name.len() > LONGEST {
        return None;
    }
    let allowed = allowed(name);
    known
        .map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn allowed(name: &str) -> usize {
    1 + name.len() / 4
}

fn distance_of_few(name: &str, known: &str) -> bool {
    let allowed = allowed(name);
    name.len().abs_diff(known.len()) <= allowed && distance(name.as_bytes(), known.as_bytes()) <= allowed
}

/// Levenshtein's distance, where two bytes that changed places are one change.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(last.len());
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut fewest = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && *x == b[j - 1] {
                fewest = fewest.min(before[j - 1] + 1);
            }
            row.push(fewest);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(a: &str, b: &str) -> usize {
        distance(a.as_bytes(), b.as_bytes())
    }

    #[test]
    fn near_names_are_found_and_far_ones_not() {
        let known = || ["clusters", "listeners", "secrets"].into_iter();
        assert_eq!(nearest("clusterz", known()), Some("clusters"));
        assert_eq!(nearest("listener", known()), Some("listeners"));
        assert_eq!(nearest("hosts", known()), None);
        assert_eq!(nearest("wbe", ["web", "api"].into_iter()), Some("web"));
        assert_eq!([("ab", "ba"), ("abc", "acb"), ("ab", "abc"), ("", "ab")].map(|(a, b)| of(a, b)), [1, 1, 1, 2]);
        assert_eq!(snake_case("routeConfigz"), "route_configz");
    }

    #[test]
    fn a_part_of_a_name_leads_to_it() {
        let known = || ["protocol", "address", "port_value", "named_port", "resolver_name"].into_iter();
        assert_eq!(holding("port", known()), ["port_value", "named_port"]);
        assert!(holding("val", known()).is_empty());
        assert!(holding("a", ["a_b", "a_c", "a_d", "e_a"].into_iter()).is_empty(), "too many to help");
    }

    #[test]
    fn types_are_found_by_few_changes_and_across_versions() {
        let router = Some("envoy.extensions.filters.http.router.v3.Router");
        assert_eq!(nearest_type("envoy.extensions.filters.http.routr.v3.Router"), router);
        assert_eq!(nearest_type("envoy.config.filter.http.router.v2.Router"), router);
        assert_eq!(nearest_type("envoy.config.filter.http.nothing_of_the_kind.v2.Nothing"), None);
        assert_eq!(nearest_type(""), None);
    }
}
