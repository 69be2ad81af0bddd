//! Scoped routes: route tables by a key that is made of a request's headers.
//! It must not know what is in a table, nor where scopes come from.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use tidegate_filters::http::{HeaderKey, Headers, RequestHead};

use super::RouteTable;

/// `ScopedRoutes`: each scope's table by its key.
pub struct ScopedRoutes {
    /// Makes a request's key, part by part.
    pub fragments: Vec<HeaderFragment>,
    scopes: HashMap<Box<[u8]>, Arc<RouteTable>, ahash::RandomState>,
}

/// One part of a key (`HeaderValueExtractor`): from the first value of a header.
#[derive(Debug)]
pub struct HeaderFragment {
    pub header: HeaderKey,
    /// Parts the value into elements; when empty, the value is the only one.
    pub element_separator: Box<[u8]>,
    pub extract: Extract,
}

/// Which element of a header's value.
#[derive(Debug)]
pub enum Extract {
    /// By its place.
    Index(usize),
    /// What comes after `key` and `separator`, in the first element of that key.
    Element { separator: Box<[u8]>, key: Box<[u8]> },
}

/// Fragments, each behind its length: two lists of fragments are equal if and only if these are.
type Key = SmallVec<[u8; 128]>;

impl ScopedRoutes {
    pub fn new(fragments: Vec<HeaderFragment>) -> Self {
        Self { fragments, scopes: HashMap::default() }
    }

    /// Adds a scope; of two with one key the last counts, as in Envoy.
    pub fn insert<'a>(&mut self, fragments: impl Iterator<Item = &'a str>, table: Arc<RouteTable>) {
        let mut key = Key::new();
        fragments.for_each(|fragment| push(&mut key, fragment.as_bytes()));
        self.scopes.insert(key.to_vec().into(), table);
    }

    /// The table of a request; none when a part of its key is missing, or no scope has the key.
    pub fn table(&self, head: &RequestHead) -> Option<&Arc<RouteTable>> {
        let mut key = Key::new();
        for fragment in &self.fragments {
            push(&mut key, fragment.of(head)?);
        }
        self.scopes.get(&*key)
    }
}

fn push(key: &mut Key, fragment: &[u8]) {
    key.extend_from_slice(&fragment.len().to_le_bytes());
    key.extend_from_slice(fragment);
}

impl HeaderFragment {
    fn of<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let mut elements = split(head.first(&self.header)?, &self.element_separator);
        match &self.extract {
            Extract::Index(index) => elements.nth(*index),
            Extract::Element { separator, key } => elements.find_map(|element| {
                let (name, value) = split_once(element, separator).unwrap_or((element, b""));
                (*name == **key).then_some(value)
            }),
        }
    }
}

/// The parts between separators; the whole when the separator is empty.
fn split<'a>(text: &'a [u8], separator: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (part, others) = split_once(text, separator).map_or((text, None), |(part, others)| (part, Some(others)));
        rest = others;
        Some(part)
    })
}

fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    if separator.is_empty() {
        return None;
    }
    let at = text.windows(separator.len()).position(|window| window == separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::route::allocations::allocations;
    use crate::route::testing::{Spec, get, one_host, prefix};

    fn fragment(header: &str, element_separator: &str, extract: Extract) -> HeaderFragment {
        HeaderFragment {
            header: HeaderKey::new(header),
            element_separator: element_separator.as_bytes().into(),
            extract,
        }
    }

    fn element(separator: &str, key: &str) -> Extract {
        Extract::Element { separator: separator.as_bytes().into(), key: key.as_bytes().into() }
    }

    #[test]
    fn fragments_are_cut_from_the_first_value() {
        let part = |fragment: &HeaderFragment, values: &[&'static str]| {
            let mut head = get("h", "/");
            values.iter().for_each(|value| {
                head.headers.append("x", HeaderValue::from_static(value));
            });
            fragment.of(&head).map(|part| String::from_utf8(part.to_vec()).unwrap())
        };
        let pairs = fragment("x", ";", element("==", "k"));
        let second = fragment("x", ",", Extract::Index(1));
        for (fragment, values, expected) in [
            (&pairs, &["a==b;k==v==w;k==x"] as &[_], Some("v==w")),
            (&pairs, &["a==b;k"], Some("")),
            (&pairs, &["a==b", "k==v"], None),
            (&pairs, &[], None),
            (&second, &["a,b,c"], Some("b")),
            (&second, &[","], Some("")),
            (&second, &["a"], None),
            (&fragment("x", "", Extract::Index(0)), &["a,b"], Some("a,b")),
            (&fragment("x", "", element("=", "k")), &["k=a;k=b"], Some("a;k=b")),
        ] {
            assert_eq!(part(fragment, values).as_deref(), expected, "{fragment:?} {values:?}");
        }
    }

    #[test]
    fn a_scope_is_found_by_its_whole_key_without_allocating() {
        let fragments = ["x", "y"].map(|header| fragment(header, "", Extract::Index(0)));
        let mut scopes = ScopedRoutes::new(fragments.into());
        for key in [["a", "bc"], ["ab", "c"], ["", ""]] {
            let table = Arc::new(one_host(vec![Spec::new(&key.join("/"), prefix("/"))]));
            scopes.insert(key.into_iter(), table);
        }
        let named = |x, y| {
            let mut head = get("h", "/");
            head.headers.insert("x", HeaderValue::from_static(x));
            head.headers.insert("y", HeaderValue::from_static(y));
            let mut found = None;
            assert_eq!(allocations(|| found = scopes.table(&head)), 0);
            found.map(|table| crate::route::testing::decide(table, &crate::route::testing::World::new(), &head))
        };
        assert_eq!((named("a", "bc").as_deref(), named("ab", "c").as_deref()), (Some("a/bc"), Some("ab/c")));
        assert_eq!((named("", "").as_deref(), named("a", "b")), (Some("/"), None));
        assert!(scopes.table(&get("h", "/")).is_none());
    }
}
