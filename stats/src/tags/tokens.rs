//! A rule by the parts of a name between dots: `cluster.*.grpc.$.**`. It must not know which tag it finds.

use std::ops::Range;

/// A pattern of parts: `*` is any one, `**` any number of them, `$` the tag's value.
pub(super) struct Tokens(Vec<&'static str>);

impl Tokens {
    pub(super) fn new(pattern: &'static str) -> Self {
        Self(pattern.split('.').collect())
    }

    /// The part that names must begin with, if it is a literal one.
    pub(super) fn first_part(&self) -> Option<&'static str> {
        self.0.first().copied().filter(|part| !matches!(*part, "*" | "**" | "$"))
    }

    /// The value with the dot after it, or with the dot before it if it is the last part; and the value.
    pub(super) fn find(&self, name: &str) -> Option<(Range<usize>, Range<usize>)> {
        let value = find(&self.0, name, 0)??;
        let remove =
            if value.end < name.len() { value.start..value.end + 1 } else { value.start.saturating_sub(1)..value.end };
        Some((remove, value))
    }
}

/// Matches a pattern against the parts from byte `at` on. `None`: no match; `Some(None)`: a match without `$`.
fn find(pattern: &[&str], name: &str, at: usize) -> Option<Option<Range<usize>>> {
    let Some((&first, rest)) = pattern.split_first() else {
        return (at > name.len()).then_some(None);
    };
    if first == "**" && rest.is_empty() {
        return (at <= name.len()).then_some(None);
    }
    let part = name.get(at..)?.split('.').next().unwrap_or_default();
    let next = at + part.len() + 1;
    match first {
        "**" => find(rest, name, at).or_else(|| find(pattern, name, next)),
        "$" => find(rest, name, next).map(|_| Some(at..at + part.len())),
        "*" => find(rest, name, next),
        literal => (literal == part).then(|| find(rest, name, next)).flatten(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(pattern: &'static str, name: &'static str) -> Option<(&'static str, String)> {
        let (remove, value) = Tokens::new(pattern).find(name)?;
        Some((&name[value], format!("{}{}", &name[..remove.start], &name[remove.end..])))
    }

    #[test]
    fn parts_are_matched_one_by_one() {
        assert_eq!(value("cluster.$.**", "cluster.a.b.c"), Some(("a", "cluster.b.c".into())));
        assert_eq!(value("cluster.$.**", "cluster.a"), None);
        assert_eq!(value("cluster.$.**", "listener.a.b"), None);
        assert_eq!(value("cluster.*.grpc.*.$.**", "cluster.a.grpc.s.m.x"), Some(("m", "cluster.a.grpc.s.x".into())));
        assert_eq!(value("a.$", "a.b"), Some(("b", "a".into())));
        assert_eq!(value("$.rbac.**", "x.rbac.y"), Some(("x", "rbac.y".into())));
    }

    #[test]
    fn any_number_of_parts_leaves_enough_for_the_rest() {
        assert_eq!(value("a.**.b.c.$", "a.x.b.b.c.d"), Some(("d", "a.x.b.b.c".into())));
        assert_eq!(value("m.$.**.query.*", "m.v.x.query.y"), Some(("v", "m.x.query.y".into())));
        assert_eq!(value("m.$.**.query.*", "m.v.query.y"), Some(("v", "m.query.y".into())));
        assert_eq!(value("m.$.**.query.*", "m.v.query"), None);
    }
}
