//! Scoped routes: route tables by a key that is made of a request's headers.
//! It must not know what is in a table, nor where scopes come from.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use tidegate_filters::http::{HeaderKey, Headers, RequestHead};

use super::RouteTable;
use crate::snapshot::Snapshot;

/// `ScopedRoutes`: how a request's key is made, and where its scope is looked up.
pub struct ScopedRoutes {
    /// Makes a request's key, part by part.
    pub fragments: Vec<HeaderFragment>,
    pub scopes: Scopes,
}

/// Each scope's table by its key.
pub type InlineScopes = HashMap<Box<[u8]>, Arc<RouteTable>, ahash::RandomState>;

/// Where scopes are.
pub enum Scopes {
    /// In the configuration itself.
    Inline(InlineScopes),
    /// In the snapshot, under this name of their source.
    Discovered(Arc<str>),
}

/// Scopes that were discovered, by their keys. Clones share structure.
#[derive(Clone, Default)]
pub struct ScopeTable(imbl::GenericHashMap<Arc<[u8]>, Scope, ahash::RandomState, imbl::shared_ptr::DefaultSharedPtr>);

/// What a discovered scope leads to.
#[derive(Clone)]
pub enum Scope {
    /// A route configuration of its own.
    Inline(Arc<RouteTable>),
    /// A route configuration of this name, once there is one.
    Named(Arc<str>),
    /// One that nobody has asked for yet (`on_demand`).
    Asleep,
}

impl ScopeTable {
    /// The scope of this key ([`scope_key`]).
    pub fn get(&self, key: &[u8]) -> Option<&Scope> {
        self.0.get(key)
    }

    /// Adds a scope, in place of one of the same key.
    pub fn insert(&mut self, key: Arc<[u8]>, scope: Scope) {
        self.0.insert(key, scope);
    }

    /// Takes the scope of this key away, if there is one.
    pub fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}

/// One part of a key (`HeaderValueExtractor`): from the first value of a header.
#[derive(Debug, Clone)]
pub struct HeaderFragment {
    pub header: HeaderKey,
    /// Parts the value into elements; when empty, the value is the only one.
    pub element_separator: Box<[u8]>,
    pub extract: Extract,
}

/// Which element of a header's value.
#[derive(Debug, Clone)]
pub enum Extract {
    /// By its place.
    Index(usize),
    /// What comes after `key` and `separator`, in the first element of that key.
    Element { separator: Box<[u8]>, key: Box<[u8]> },
}

/// Fragments, each behind its length: two lists of fragments are equal if and only if these are.
pub type Key = SmallVec<[u8; 128]>;

/// The key that these fragments make.
pub fn scope_key<'a>(fragments: impl Iterator<Item = &'a str>) -> Key {
    let mut key = Key::new();
    fragments.for_each(|fragment| push(&mut key, fragment.as_bytes()));
    key
}

impl ScopedRoutes {
    /// A request's key; none when a part of it is missing.
    pub fn key(&self, head: &RequestHead) -> Option<Key> {
        let mut key = Key::new();
        for fragment in &self.fragments {
            push(&mut key, fragment.of(head)?);
        }
        Some(key)
    }

    /// The table of a request; none when a part of its key is missing, no scope has the key, or its routes have not come.
    pub fn table(&self, head: &RequestHead, snapshot: &Snapshot) -> Option<Arc<RouteTable>> {
        let key = self.key(head)?;
        let source = match &self.scopes {
            Scopes::Inline(tables) => return tables.get(&*key).cloned(),
            Scopes::Discovered(source) => source,
        };
        match snapshot.scopes.get(source)?.get(&key)? {
            Scope::Inline(table) => Some(Arc::clone(table)),
            Scope::Named(name) => snapshot.routes.get(name).cloned(),
            Scope::Asleep => None,
        }
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
        let (mut inline, mut snapshot) = (InlineScopes::default(), Snapshot::default());
        let (mut discovered, source) = (ScopeTable::default(), Arc::<str>::from("s"));
        for (index, key) in [["a", "bc"], ["ab", "c"], ["", ""]].into_iter().enumerate() {
            let table = Arc::new(one_host(vec![Spec::new(&key.join("/"), prefix("/"))]));
            let (bytes, name) = (scope_key(key.into_iter()), Arc::<str>::from(index.to_string()));
            inline.insert(Box::from(&*bytes), Arc::clone(&table));
            let scope = if index == 0 { Scope::Inline(Arc::clone(&table)) } else { Scope::Named(Arc::clone(&name)) };
            discovered.insert(Arc::from(&*bytes), scope);
            snapshot.routes.insert(name, table);
        }
        discovered.insert(Arc::from(&*scope_key(["asleep", ""].into_iter())), Scope::Asleep);
        snapshot.scopes.insert(Arc::clone(&source), Arc::new(discovered));
        let fragments = || fragments.each_ref().map(HeaderFragment::clone).into();
        let inline = ScopedRoutes { fragments: fragments(), scopes: Scopes::Inline(inline) };
        let discovered = ScopedRoutes { fragments: fragments(), scopes: Scopes::Discovered(source) };
        let named = |x, y| {
            let mut head = get("h", "/");
            head.headers.insert("x", HeaderValue::from_static(x));
            head.headers.insert("y", HeaderValue::from_static(y));
            let found = [&inline, &discovered].map(|scopes| {
                let mut found = None;
                assert_eq!(allocations(|| found = scopes.table(&head, &snapshot)), 0);
                found.map(|table| crate::route::testing::decide(&table, &crate::route::testing::World::new(), &head))
            });
            assert_eq!(found[0], found[1]);
            let [found, _] = found;
            found
        };
        assert_eq!((named("a", "bc").as_deref(), named("ab", "c").as_deref()), (Some("a/bc"), Some("ab/c")));
        assert_eq!((named("", "").as_deref(), named("a", "b")), (Some("/"), None));
        assert_eq!(named("asleep", ""), None);
        assert!(inline.table(&get("h", "/"), &snapshot).is_none());
    }
}
