//! Who may call: those that know a token. It must not know what is called.

use http::{HeaderMap, header};

/// The tokens that are known.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<String>);

impl Tokens {
    pub(crate) fn new(tokens: Vec<String>) -> Self {
        Self(tokens)
    }

    /// Whether a call with these headers may come in. Without tokens any may.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
        let (scheme, token) = given.split_at_checked("bearer ".len()).unwrap_or_default();
        // Every token is looked at, to its end: how long it takes tells nothing.
        let known = self.0.iter().fold(false, |known, one| known | equal(one.as_bytes(), token));
        self.0.is_empty() || (known && scheme.eq_ignore_ascii_case(b"bearer "))
    }
}

fn equal(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |differences, (one, other)| differences | (one ^ other));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_token_is_needed_where_there_are_some() {
        let admits = |tokens: &[&str], given: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.extend(given.map(|given| (header::AUTHORIZATION, given.parse().unwrap())));
            Tokens::new(tokens.iter().map(ToString::to_string).collect()).admit(&headers)
        };
        assert!(admits(&[], None) && admits(&[], Some("Bearer x")));
        assert!(admits(&["one", "two"], Some("Bearer two")) && admits(&["one"], Some("bearer one")));
        for given in [None, Some("Bearer "), Some("Bearer on"), Some("Bearer onex"), Some("Basic one"), Some("one")] {
            assert!(!admits(&["one"], given), "{given:?}");
        }
    }
}
