//! The nearest known name for one that is not known. It must not know where names come from.

use crate::schema::{Enum, Message};

pub(super) fn unknown_field(message: &'static Message, name: &str) -> String {
    let known = message.fields().iter().map(|field| field.name());
    with_nearest("field", name, nearest(&snake_case(name), known))
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
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A guess at a name this long helps nobody, and would cost time.
    const LONGEST: usize = 100;
    if name.len() > LONGEST {
        return None;
    }
    let allowed = 1 + name.len() / 4;
    known
        .map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_not() {
        let known = || ["clusters", "listeners", "secrets"].into_iter();
        assert_eq!(nearest("clusterz", known()), Some("clusters"));
        assert_eq!(nearest("listener", known()), Some("listeners"));
        assert_eq!(nearest("hosts", known()), None);
        assert_eq!(snake_case("routeConfigz"), "route_configz");
    }
}
