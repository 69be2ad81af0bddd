//! Which resource a client refused, and where it came from: clients say it in words of their own. It must not know how it was
//! asked or told.

use std::sync::Arc;

use super::resource_set::Resource;
use crate::client::beginning;

/// So many are told of one refusal.
const MOST: usize = 5;

/// How much of what a client says is looked through, in bytes.
const LONGEST: usize = 4096;

/// Of what a response said, that which the client means by its reason: all that it names, or the only one there was. Each as
/// `file:line: TYPE 'name'`.
pub(super) fn meant(said: &[Arc<Resource>], reason: &str) -> String {
    let reason = beginning(reason, LONGEST);
    let told = |resource: &Arc<Resource>| {
        let (place, kind, name) = (resource.place(None), resource.kind.short(), &resource.name);
        if place.is_empty() { format!("{kind} '{name}'") } else { format!("{place}: {kind} '{name}'") }
    };
    let named = said.iter().filter(|resource| said.len() == 1 || names(reason, &resource.name));
    named.take(MOST).map(told).collect::<Vec<_>>().join(", ")
}

/// Whether a text holds a name as a word of its own.
fn names(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || "_-.|/".contains(c);
    let ends = |after: &str| {
        // What ends a sentence is no part of a name.
        let mut after = after.chars();
        match after.next() {
            Some('.') => !after.next().is_some_and(is_part),
            other => !other.is_some_and(is_part),
        }
    };
    let begins = |before: &str| !before.ends_with(is_part);
    !name.is_empty() && text.match_indices(name).any(|(at, _)| begins(&text[..at]) && ends(&text[at + name.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::cluster;

    fn at(name: &str, line: u32) -> Arc<Resource> {
        let resource = Arc::into_inner(cluster(name, "")).unwrap();
        let location = tidegate_xds::Location { line, column: 1 };
        Arc::new(Resource { origin: Some(("c.yaml".into(), Some(location))), ..resource })
    }

    #[test]
    fn what_a_client_names_has_its_line() {
        let said = [at("a", 1), at("a.b", 2), at("a-b", 3), cluster("stored", "")];
        for (reason, told) in [
            ("Error adding/updating cluster(s) a.b: no such thing", "c.yaml:2: Cluster 'a.b'"),
            ("Error adding/updating cluster(s) a: x, a-b: y", "c.yaml:1: Cluster 'a', c.yaml:3: Cluster 'a-b'"),
            ("I do not like a.", "c.yaml:1: Cluster 'a'"),
            ("not 'stored'!", "Cluster 'stored'"),
            ("nothing of that", ""),
        ] {
            assert_eq!(meant(&said, reason), told, "{reason}");
        }
        // Of one alone there is no doubt.
        assert_eq!(meant(&said[2..3], "no"), "c.yaml:3: Cluster 'a-b'");
        assert!(!meant(&said, &format!("{}a", "ä".repeat(LONGEST))).contains("c.yaml"));
    }
}
