//! Errors of a configuration: which resource, which field, why, and where in the source.
//! It must not know how a configuration is read or checked.

use std::fmt::{self, Write};

/// A place in a source text, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    pub line: u32,
    pub column: u32,
}

/// The way from a resource's root to a field: `virtual_hosts[0].routes[2].match`, map entries as `labels["app"]`.
///
/// Either built by value (`path.field("clusters").index(3)`) or kept while walking: `push_*` returns the length to
/// give to [`FieldPath::truncate`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    pub fn root() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn field(mut self, name: &str) -> Self {
        self.push_field(name);
        self
    }

    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.push_index(index);
        self
    }

    /// An entry of a map.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.push_key(key);
        self
    }

    /// This path below `parent`.
    #[must_use]
    pub fn under(self, parent: &Self) -> Self {
        let mut joined = parent.0.clone();
        if !joined.is_empty() && !self.0.is_empty() && !self.0.starts_with('[') {
            joined.push('.');
        }
        joined.push_str(&self.0);
        Self(joined)
    }

    pub fn push_field(&mut self, name: &str) -> usize {
        let before = self.0.len();
        if before > 0 {
            self.0.push('.');
        }
        self.0.push_str(name);
        before
    }

    pub fn push_index(&mut self, index: usize) -> usize {
        let before = self.0.len();
        // Writing to a String cannot fail.
        let _ = write!(self.0, "[{index}]");
        before
    }

    pub fn push_key(&mut self, key: &str) -> usize {
        let before = self.0.len();
        self.0.push_str("[\"");
        for c in key.chars() {
            if matches!(c, '"' | '\\') {
                self.0.push('\\');
            }
            self.0.push(c);
        }
        self.0.push_str("\"]");
        before
    }

    /// Back to the length that a `push_*` returned.
    pub fn truncate(&mut self, length: usize) {
        if self.0.is_char_boundary(length) {
            self.0.truncate(length);
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FieldError {
    /// Name of the resource, where one has been read.
    pub resource: Option<String>,
    pub path: FieldPath,
    pub reason: String,
    /// Place in the source text, for configuration that came as text.
    pub location: Option<Location>,
}

impl FieldError {
    pub fn new(path: FieldPath, reason: impl Into<String>) -> Self {
        Self { resource: None, path, reason: reason.into(), location: None }
    }

    #[must_use]
    pub fn in_resource(mut self, name: &str) -> Self {
        self.resource = Some(name.to_owned());
        self
    }

    #[must_use]
    pub fn at(mut self, location: Option<Location>) -> Self {
        self.location = location;
        self
    }

    /// The same error seen from the message that holds this one at `parent`.
    #[must_use]
    pub fn under(mut self, parent: &FieldPath) -> Self {
        self.path = self.path.under(parent);
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(resource) = &self.resource {
            write!(f, "resource '{resource}': ")?;
        }
        if !self.path.is_root() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)?;
        if let Some(location) = self.location {
            write!(f, " (line {}, column {})", location.line, location.column)?;
        }
        Ok(())
    }
}

/// A path kept on the stack while a message is walked, so that it costs nothing until there is an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trail<'a> {
    up: Option<&'a Trail<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Trail<'a> {
    pub(crate) const ROOT: Trail<'static> = Trail { up: None, step: Step::Root };

    pub(crate) fn field(&'a self, name: &'a str) -> Trail<'a> {
        Trail { up: Some(self), step: Step::Field(name) }
    }

    pub(crate) fn index(&'a self, index: usize) -> Trail<'a> {
        Trail { up: Some(self), step: Step::Index(index) }
    }

    pub(crate) fn key(&'a self, key: &'a str) -> Trail<'a> {
        Trail { up: Some(self), step: Step::Key(key) }
    }

    pub(crate) fn path(&self) -> FieldPath {
        let mut path = self.up.map_or_else(FieldPath::root, Trail::path);
        match self.step {
            Step::Root => 0,
            Step::Field(name) => path.push_field(name),
            Step::Index(index) => path.push_index(index),
            Step::Key(key) => path.push_key(key),
        };
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_fields_positions_and_map_keys() {
        let path = FieldPath::root().field("virtual_hosts").index(3).field("typed_per_filter_config").key("a\"b");
        assert_eq!(path.as_str(), r#"virtual_hosts[3].typed_per_filter_config["a\"b"]"#);
        let below = FieldPath::root().field("name").under(&FieldPath::root().field("clusters").index(1));
        assert_eq!(below.as_str(), "clusters[1].name");
    }

    #[test]
    fn a_path_goes_back_to_where_it_was() {
        let mut path = FieldPath::root().field("a");
        let before = path.push_field("b");
        path.push_index(0);
        path.truncate(before);
        assert_eq!(path.as_str(), "a");
    }

    #[test]
    fn an_error_says_resource_field_reason_and_place() {
        let error = FieldError::new(FieldPath::root().field("name"), "is required")
            .in_resource("x")
            .at(Some(Location { line: 3, column: 7 }));
        assert_eq!(error.to_string(), "resource 'x': name: is required (line 3, column 7)");
    }

    #[test]
    fn a_trail_becomes_a_path() {
        let clusters = Trail::ROOT.field("clusters");
        let first = clusters.index(0);
        assert_eq!(first.field("name").path().as_str(), "clusters[0].name");
    }
}
