//! Which routes of a list can match a path at all, in the list's order, so that 1,000 routes cost a few look-ups.
//! It must not know what a route is; it may name a candidate too many, never one too few.
//!
//! Each route says what its paths begin with, or are ([`Key`]). The distinct texts are sorted, and each knows the longest
//! other one that it begins with. The longest text that a path begins with is the path's predecessor in that order, or
//! one of those that the predecessor begins with; from there the chain names every candidate.

/// What a route asks of a path, as far as it can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    /// The path is this.
    Exact { text: &'a [u8], ignore_case: bool },
    /// The path begins with this; an empty text asks nothing.
    Prefix { text: &'a [u8], ignore_case: bool },
}

/// The index of one list of routes.
#[derive(Default)]
pub(crate) struct PathIndex {
    sensitive: Sorted,
    /// Texts in lower case, of routes that ignore case.
    folded: Sorted,
}

#[derive(Default)]
struct Sorted {
    texts: Box<[Text]>,
    ignore_case: bool,
}

struct Text {
    bytes: Box<[u8]>,
    /// The longest other text that this one begins with and that has `prefix` routes.
    parent: Option<u32>,
    /// Routes whose path is this; ascending.
    exact: Box<[u32]>,
    /// Routes whose path begins with this; ascending.
    prefix: Box<[u32]>,
}

impl PathIndex {
    /// An index over the routes 0, 1, 2, ….
    pub(crate) fn new<'a>(keys: impl Iterator<Item = Key<'a>> + Clone) -> Self {
        Self { sensitive: Sorted::new(keys.clone(), false), folded: Sorted::new(keys, true) }
    }

    /// The routes that may match `path` (without its query), ascending. Allocates nothing.
    pub(crate) fn candidates<'a>(&'a self, path: &[u8]) -> Candidates<'a> {
        let sensitive = self.sensitive.find(path);
        let folded = self.folded.find(path);
        Candidates {
            exact: [sensitive.exact, folded.exact],
            chains: [(&self.sensitive, sensitive.chain), (&self.folded, folded.chain)],
            at_least: 0,
        }
    }
}

/// See [`PathIndex::candidates`].
pub(crate) struct Candidates<'a> {
    exact: [&'a [u32]; 2],
    chains: [(&'a Sorted, Option<u32>); 2],
    at_least: u32,
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let mut least: Option<u32> = None;
        let mut consider = |list: &[u32]| {
            let found = list.get(list.partition_point(|route| *route < self.at_least)).copied();
            least = match (least, found) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        };
        self.exact.iter().for_each(|list| consider(list));
        for (sorted, start) in &self.chains {
            let mut at = *start;
            while let Some(index) = at {
                let text = &sorted.texts[index as usize];
                consider(&text.prefix);
                at = text.parent;
            }
        }
        let found = least?;
        self.at_least = found + 1;
        Some(found as usize)
    }
}

/// Where a path stands among the texts.
struct Place<'a> {
    exact: &'a [u32],
    /// The longest text that the path begins with.
    chain: Option<u32>,
}

impl Sorted {
    fn new<'a>(keys: impl Iterator<Item = Key<'a>>, ignore_case: bool) -> Self {
        #[expect(clippy::type_complexity, reason = "exact and prefix routes of one text, in order")]
        let mut texts: std::collections::BTreeMap<Box<[u8]>, (Vec<u32>, Vec<u32>)> = Default::default();
        for (route, key) in (0..).zip(keys) {
            let (text, folds, exact) = match key {
                Key::Exact { text, ignore_case } => (text, ignore_case, true),
                Key::Prefix { text, ignore_case } => (text, ignore_case, false),
            };
            if folds == ignore_case {
                let text = if folds { text.to_ascii_lowercase() } else { text.to_vec() };
                let lists = texts.entry(text.into()).or_default();
                if exact { lists.0.push(route) } else { lists.1.push(route) }
            }
        }
        let mut sorted: Vec<Text> = Vec::with_capacity(texts.len());
        // Texts that the current one may begin with, longest last.
        let mut open: Vec<u32> = Vec::new();
        for (index, (bytes, (exact, prefix))) in (0..).zip(texts) {
            while open.last().is_some_and(|parent| !bytes.starts_with(&sorted[*parent as usize].bytes)) {
                open.pop();
            }
            let parent = open.last().copied();
            if !prefix.is_empty() {
                open.push(index);
            }
            sorted.push(Text { bytes, parent, exact: exact.into(), prefix: prefix.into() });
        }
        Self { texts: sorted.into(), ignore_case }
    }

    fn find(&self, path: &[u8]) -> Place<'_> {
        let nowhere = Place { exact: &[], chain: None };
        let after = self.texts.partition_point(|text| self.compare(&text.bytes, path).is_le());
        let Some(at) = after.checked_sub(1) else { return nowhere };
        let text = &self.texts[at];
        let shared = self.shared(&text.bytes, path);
        let exact: &[u32] = if shared == text.bytes.len() && shared == path.len() { &text.exact } else { &[] };
        let mut chain = Some(at as u32);
        while let Some(index) = chain
            && self.texts[index as usize].bytes.len() > shared
        {
            chain = self.texts[index as usize].parent;
        }
        Place { exact, chain }
    }

    fn compare(&self, text: &[u8], path: &[u8]) -> std::cmp::Ordering {
        if self.ignore_case {
            text.iter().copied().cmp(path.iter().map(u8::to_ascii_lowercase))
        } else {
            text.cmp(path)
        }
    }

    /// How many bytes both begin with.
    fn shared(&self, text: &[u8], path: &[u8]) -> usize {
        let same =
            |(one, other): &(&u8, &u8)| one == other || (self.ignore_case && **one == other.to_ascii_lowercase());
        text.iter().zip(path).take_while(same).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Key<'_> {
        Key::Prefix { text: text.as_bytes(), ignore_case: false }
    }

    fn exact(text: &str) -> Key<'_> {
        Key::Exact { text: text.as_bytes(), ignore_case: false }
    }

    fn candidates(keys: &[Key<'_>], path: &str) -> Vec<usize> {
        PathIndex::new(keys.iter().copied()).candidates(path.as_bytes()).collect()
    }

    #[test]
    fn candidates_come_in_the_order_of_the_list() {
        let keys = [prefix("/a/b"), exact("/a/b/c"), prefix("/"), prefix("/a/b/c/d"), prefix("/a"), prefix("")];
        assert_eq!(candidates(&keys, "/a/b/c"), [0, 1, 2, 4, 5]);
        assert_eq!(candidates(&keys, "/a/b/cc"), [0, 2, 4, 5]);
        assert_eq!(candidates(&keys, "/b"), [2, 5]);
        assert_eq!(candidates(&keys, ""), [5]);
        assert_eq!(candidates(&[], "/"), [0; 0]);
    }

    #[test]
    fn case_is_ignored_where_a_route_says_so() {
        let folded = Key::Prefix { text: b"/Ab", ignore_case: true };
        let keys = [prefix("/Ab"), folded, Key::Exact { text: b"/aBC", ignore_case: true }];
        assert_eq!(candidates(&keys, "/abc"), [1, 2]);
        assert_eq!(candidates(&keys, "/AbX"), [0, 1]);
    }

    mod against_a_scan {
        use super::*;
        use proptest::prelude::*;

        fn holds(key: &Key<'_>, path: &[u8]) -> bool {
            let (text, ignore_case, exact) = match *key {
                Key::Exact { text, ignore_case } => (text, ignore_case, true),
                Key::Prefix { text, ignore_case } => (text, ignore_case, false),
            };
            let same = |part: &[u8]| if ignore_case { part.eq_ignore_ascii_case(text) } else { part == text };
            if exact { same(path) } else { path.len() >= text.len() && same(&path[..text.len()]) }
        }

        proptest! {
            #[test]
            fn candidates_are_exactly_what_a_scan_finds(
                texts in prop::collection::vec(("[abAB/]{0,6}", any::<bool>(), any::<bool>()), 0..40),
                path in "[abAB/]{0,8}",
            ) {
                let keys: Vec<Key<'_>> = texts.iter().map(|(text, ignore_case, exact)| {
                    let (text, ignore_case) = (text.as_bytes(), *ignore_case);
                    if *exact { Key::Exact { text, ignore_case } } else { Key::Prefix { text, ignore_case } }
                }).collect();
                let scan: Vec<usize> = (0..keys.len()).filter(|at| holds(&keys[*at], path.as_bytes())).collect();
                prop_assert_eq!(candidates(&keys, &path), scan);
            }
        }
    }
}
