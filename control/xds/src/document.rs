//! A configuration text as a tree of JSON-like values, each with its place in the text.
//! It must not know the schema: what a value is for is decided by `decode`.

use crate::{FieldError, FieldPath, Location};

/// Nodes refer to each other by position, so that an alias costs nothing and dropping a deep tree does not recurse.
pub(crate) type NodeId = usize;

/// The deepest nesting of objects and lists that is read, in the text and in messages: protobuf's JSON limit.
pub(crate) const MAX_DEPTH: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Document {
    nodes: Vec<Node>,
    root: NodeId,
    /// What the text may be expanded to through its aliases.
    budget: usize,
    /// What can be read, but is hardly meant so.
    doubts: Vec<FieldError>,
}

/// More doubts about one text are not worth a line each.
const MOST_DOUBTS: usize = 100;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) location: Location,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As JSON spells it.
    Number(String),
    Text(String),
    List(Vec<NodeId>),
    Object(Vec<(Key, NodeId)>),
}

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) location: Location,
}

impl Document {
    pub(crate) fn new(source_bytes: usize) -> Self {
        let budget = source_bytes.saturating_mul(16).saturating_add(16 << 20);
        Self { nodes: Vec::new(), root: 0, budget, doubts: Vec::new() }
    }

    /// Notes what is hardly meant so.
    pub(crate) fn doubt(&mut self, at: Location, reason: String) {
        if self.doubts.len() < MOST_DOUBTS {
            self.doubts.push(FieldError::new(FieldPath::root(), reason).at(Some(at)));
        }
    }

    pub(crate) fn take_doubts(&mut self) -> Vec<FieldError> {
        std::mem::take(&mut self.doubts)
    }

    pub(crate) fn add(&mut self, location: Location, value: Value) -> NodeId {
        self.nodes.push(Node { location, value });
        self.nodes.len() - 1
    }

    pub(crate) fn set_root(&mut self, root: NodeId) {
        self.root = root;
    }

    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        const NOTHING: &Node = &Node { location: Location { line: 1, column: 1 }, value: Value::Null };
        self.nodes.get(id).unwrap_or(NOTHING)
    }
}

impl Value {
    /// What a person would call it, for an error.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Number(value) => format!("the number {value}"),
            Self::Text(value) => format!("{:?}", shorten(value)),
            Self::List(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

/// Where in the text each field of a decoded message stands, to give a place to errors that are found later.
#[derive(Debug, Default)]
pub struct SourceMap(Document);

impl SourceMap {
    pub(crate) fn new(document: Document) -> Self {
        Self(document)
    }

    /// The place of a field, or of the nearest thing around it that is in the text.
    pub fn locate(&self, path: &FieldPath) -> Option<Location> {
        if self.0.nodes.is_empty() {
            return None;
        }
        let mut at = self.0.root;
        let mut location = self.0.node(at).location;
        for step in steps(path.as_str()) {
            let Some((next, place)) = self.step(at, &step) else {
                break;
            };
            (at, location) = (next, place);
        }
        Some(location)
    }

    /// The names of an object, each with its place.
    pub fn names(&self, path: &FieldPath) -> Vec<(&str, Location)> {
        let mut at = self.0.root;
        for step in steps(path.as_str()) {
            match self.step(at, &step) {
                Some((next, _)) => at = next,
                None => return Vec::new(),
            }
        }
        match &self.0.node(at).value {
            Value::Object(entries) => entries.iter().map(|(key, _)| (key.name.as_str(), key.location)).collect(),
            _ => Vec::new(),
        }
    }

    /// Gives each error without a place the one of its field.
    pub fn place(&self, errors: &mut [FieldError]) {
        for error in errors.iter_mut().filter(|error| error.location.is_none()) {
            error.location = self.locate(&error.path);
        }
    }

    fn step(&self, at: NodeId, step: &PathStep) -> Option<(NodeId, Location)> {
        match (step, &self.0.node(at).value) {
            (PathStep::Index(index), Value::List(items)) => {
                let item = *items.get(*index)?;
                Some((item, self.0.node(item).location))
            }
            // One object may stand where a list is expected.
            (PathStep::Index(0), _) => Some((at, self.0.node(at).location)),
            (PathStep::Name(name), Value::Object(entries)) => entries
                .iter()
                .rev()
                .find(|(key, _)| key.name == *name || crate::schema::is_json_name(name, &key.name))
                .map(|(key, value)| (*value, key.location)),
            _ => None,
        }
    }
}

enum PathStep {
    Name(String),
    Index(usize),
}

/// Takes a path's text apart again.
fn steps(path: &str) -> impl Iterator<Item = PathStep> + '_ {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(inner) = rest.strip_prefix("[\"") {
            let (key, after) = quoted(inner)?;
            rest = after;
            return Some(PathStep::Name(key));
        }
        if let Some(inner) = rest.strip_prefix('[') {
            let (index, after) = inner.split_once(']')?;
            rest = after;
            return Some(PathStep::Index(index.parse().ok()?));
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        (!name.is_empty()).then(|| PathStep::Name(name.to_owned()))
    })
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut key = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                return text.get(at + 1..)?.strip_prefix(']').map(|after| (key, after));
            }
            '\\' => key.push(chars.next()?.1),
            other => key.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_place_in_the_text() {
        let text = "a:\n  bC:\n  - x: 1\n    'k.[': 2\n";
        let map = SourceMap::new(crate::yaml::parse(text).unwrap());
        let at = |path: FieldPath| map.locate(&path).map(|location| (location.line, location.column));
        let item = FieldPath::root().field("a").field("b_c").index(0);
        assert_eq!(at(item.clone().field("x")), Some((3, 5)));
        assert_eq!(at(item.clone().key("k.[")), Some((4, 5)));
        assert_eq!(at(item.field("missing")), Some((3, 5)), "the nearest thing around it");
        assert_eq!(at(FieldPath::root().field("a").index(0).field("b_c")), Some((2, 3)), "one object as a list");
        let names: Vec<_> = map.names(&FieldPath::root()).iter().map(|(name, place)| (*name, place.line)).collect();
        assert_eq!(names, [("a", 1)]);
        assert!(map.names(&FieldPath::root().field("b")).is_empty());
    }
}
