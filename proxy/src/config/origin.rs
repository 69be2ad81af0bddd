//! What resources are called that several sources may each have one of: a secret of one source is never taken for that of
//! another. It must not know what the resources are.

use std::sync::Arc;

use tidegate_filters::context::{CompileContext, ConfigSource};
use tidegate_xds::FieldError;
use xxhash_rust::xxh64::xxh64;

/// Between the name that a source knows and what tells the source from others; no name holds it.
const MARK: char = '\0';

/// What tells a source from others, whoever waits for it and how long; nothing for the aggregated stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Origin(Arc<str>);

impl Origin {
    pub(crate) fn of(source: &ConfigSource) -> Self {
        match source {
            ConfigSource::Ads(_) => Self::default(),
            other => {
                let text = format!("{:?}", other.clone().without_wait());
                Self(format!("{MARK}{:016x}", xxh64(text.as_bytes(), 0)).into())
            }
        }
    }

    /// That of a resource that is called so.
    pub(crate) fn of_called(called: &str) -> Self {
        called.find(MARK).map_or_else(Self::default, |at| Self(called[at..].into()))
    }

    /// What the resource of a name that comes from there is called here.
    pub(crate) fn call(&self, name: &str) -> String {
        format!("{name}{}", self.0)
    }

    pub(crate) fn is_of(&self, called: &str) -> bool {
        called.find(MARK).map_or("", |at| &called[at..]) == &*self.0
    }
}

/// What a static resource is called: there may be one of each kind of its type.
pub(crate) fn fixed(name: &str, kind: &str) -> String {
    format!("{name}{MARK}{kind}")
}

/// What the source calls a resource that is called so here.
pub(crate) fn name_of(called: &str) -> &str {
    called.split_once(MARK).map_or(called, |(name, _)| name)
}

/// Whether a source may call a resource so.
pub(crate) fn is_name(name: &str) -> bool {
    !name.contains(MARK)
}

/// What a resource is called here that comes from there.
///
/// # Errors
/// A name that no source may use.
pub(crate) fn call(name: &str, source: &ConfigSource, context: &CompileContext<'_>) -> Result<String, FieldError> {
    if is_name(name) { Ok(Origin::of(source).call(name)) } else { Err(context.error_at("name", "holds a NUL")) }
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::Wait;

    use super::*;

    #[test]
    fn a_name_of_one_source_is_not_that_of_another() {
        let file = |path: &str| ConfigSource::File { path: path.into(), watched_directory: None };
        let sources = [ConfigSource::Ads(Wait(None)), file("a.yaml"), file("b.yaml")];
        let called = sources.map(|source| Origin::of(&source).call("s"));
        assert!(called[0] == "s" && called[1] != called[0] && called[2] != called[1], "{called:?}");
        for (called, source) in called.iter().zip([file("a.yaml"), file("b.yaml")].iter().skip(1)) {
            assert!(!Origin::of(source).is_of(called));
        }
        for one in &called {
            assert!(
                name_of(one) == "s" && Origin::of_called(one).is_of(one) && Origin::of_called(one).call("s") == *one
            );
        }
        let ads = |seconds| Origin::of(&ConfigSource::Ads(Wait(Some(std::time::Duration::from_secs(seconds)))));
        assert_eq!(ads(1), ads(2));
    }
}
