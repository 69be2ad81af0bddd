//! The one home of matchers: what a configuration's matcher messages compile to, and how they match.
//! They know values, heads and addresses; they must not know routes, policies or the proxy.

pub mod cel;
pub mod cidr;
mod header;
mod input;
mod number;
mod query;
mod re2;
mod regex;
mod state;
mod string;
mod test;
mod tree;
pub mod uri_template;
mod value;

pub use cidr::{AddressMatcher, Cidr, CidrList};
pub use header::HeaderMatcher;
pub use input::{HostData, Inputs, LoneInput, MatchData};
pub use number::{DoubleMatcher, IntRange};
pub(crate) use query::percent_escape;
pub use query::{CookieMatcher, QueryParameterMatcher, cookie, percent_decode, query_parameter, query_parameters};
pub use re2::SyntaxError;
pub use regex::{Regex, RegexError, Substitution};
pub use state::{FilterStateMatcher, PathMatcher};
pub use string::StringMatcher;
use tidegate_xds::Coverage;
pub use tree::{CompileAction, Matcher, Outcome};
pub use value::{MetadataMatcher, MetadataPath, ValueMatcher};

const GROUPS: &[&[Coverage]] = &[
    cel::functions::COVERAGE,
    cidr::COVERAGE,
    header::COVERAGE,
    input::COVERAGE,
    number::COVERAGE,
    query::COVERAGE,
    regex::COVERAGE,
    state::COVERAGE,
    string::COVERAGE,
    test::COVERAGE,
    tree::COVERAGE,
    value::COVERAGE,
];

/// Which fields act in the messages that matchers are compiled from; they are the same wherever a matcher stands.
pub const COVERAGE: &[Coverage] = &gather::<{ count(GROUPS) }>(GROUPS);

/// How many there are in all groups.
pub(crate) const fn count(groups: &[&[Coverage]]) -> usize {
    let (mut total, mut group) = (0, 0);
    while group < groups.len() {
        total += groups[group].len();
        group += 1;
    }
    total
}

/// All groups in one list, `N` long.
pub(crate) const fn gather<const N: usize>(groups: &[&[Coverage]]) -> [Coverage; N] {
    let mut all = [Coverage { message: "", enforced: &[], listed: &[] }; N];
    let (mut at, mut group) = (0, 0);
    while group < groups.len() {
        let mut index = 0;
        while index < groups[group].len() {
            all[at] = groups[group][index];
            at += 1;
            index += 1;
        }
        group += 1;
    }
    all
}

/// For tests: a context to compile in.
#[cfg(test)]
pub(crate) mod testing {
    use tidegate_xds::{FieldError, FieldPath};

    use crate::context::{CompileContext, Defaults, Needs};

    /// Runs a compile step.
    pub(crate) fn context<T>(compile: impl FnOnce(&mut CompileContext<'_>) -> T) -> T {
        let store = tidegate_stats::Store::new();
        let mut needs = Needs::default();
        compile(&mut CompileContext {
            resource: "r",
            path: FieldPath::root(),
            defaults: Defaults::Envoy,
            stats: store.root(),
            needs: &mut needs,
        })
    }

    /// The value of a step that must succeed.
    pub(crate) fn ok<T>(compile: impl FnOnce(&mut CompileContext<'_>) -> Result<T, FieldError>) -> T {
        context(compile).unwrap()
    }

    /// The path and reason of a step that must fail.
    pub(crate) fn error<T>(compile: impl FnOnce(&mut CompileContext<'_>) -> Result<T, FieldError>) -> String {
        let error = context(compile).err().unwrap();
        format!("{}: {}", error.path, error.reason)
    }
}
