//! The short form: a small YAML of hosts, routes, upstreams and limits that expands to xDS resources. A file is one of the
//! short form by its key `tidegate`. It must not know how resources are served, nor what a proxy makes of them.

mod check;
mod expand;
mod form;
mod page;
mod scalars;
mod schema;
mod shape;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tidegate_xds::{FieldError, FieldPath, Format, Location, Plain, SourceMap, plain, root_keys};

pub(crate) use expand::{Outside, Part, expand};
pub use page::page;
pub use schema::schema;
pub use yaml::yaml;

use self::expand::Made;
use self::form::File;
use self::shape::{Faults, Shape};

/// The key that makes a file one of the short form.
pub(crate) const KEY: &str = "tidegate";

/// Whether a text is of the short form.
pub fn is_short(text: &[u8], format: Format) -> bool {
    root_keys(text, format).is_ok_and(|keys| keys.iter().any(|key| key == KEY))
}

/// A file of the short form that is right by itself; what it names may be elsewhere.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// What it is called in errors.
    name: Arc<str>,
    source: SourceMap,
    file: File,
    listeners: HashMap<String, Location>,
    upstreams: HashMap<String, Location>,
    /// Made when it is first needed, and never again.
    made: OnceLock<Made>,
}

impl Parsed {
    /// Reads a file.
    ///
    /// # Errors
    /// All that is wrong with it, each with its path and place.
    pub(crate) fn read(name: &Arc<str>, text: &[u8], format: Format) -> Result<Self, Vec<FieldError>> {
        let Plain { value, doubts, source } = plain(text, format).map_err(|error| vec![error])?;
        if !doubts.is_empty() {
            return Err(doubts);
        }
        let mut faults = Faults::default();
        let file = File::read(&value, &mut FieldPath::root(), &mut faults);
        if let Some(file) = &file {
            check::file(file, &mut faults);
        }
        let mut errors = faults.into_errors();
        source.place(&mut errors);
        errors.sort_by_key(|error| error.location.map(|place| (place.line, place.column)));
        match file {
            Some(file) if errors.is_empty() => {
                // To look for each by itself would take the square of their number.
                let places = |field: &str| {
                    let names = source.names(&FieldPath::root().field(field));
                    names.into_iter().map(|(name, place)| (name.to_owned(), place)).collect()
                };
                let (listeners, upstreams) = (places("listen"), places("upstreams"));
                Ok(Self { name: name.clone(), source, file, listeners, upstreams, made: OnceLock::new() })
            }
            _ => Err(errors),
        }
    }

    /// What it expands to by itself.
    fn made(&self) -> &Made {
        self.made.get_or_init(|| Made::of(self))
    }

    /// What it is called in errors.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// `file:line: path: reason`
    fn fault(&self, path: &FieldPath, reason: &str) -> String {
        format!("{}: {path}: {reason}", self.place(path))
    }

    /// `file:line`
    fn place(&self, path: &FieldPath) -> String {
        match self.source.locate(path) {
            Some(location) => format!("{}:{}", self.name, location.line),
            None => self.name.to_string(),
        }
    }
}
