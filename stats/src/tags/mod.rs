//! Tags: what a stat's name says about whom it counts, taken out of the name (`cluster.web.upstream_rq_total` is
//! `cluster.upstream_rq_total` of `envoy.cluster_name=web`). It must not know how tags are shown, nor how custom
//! expressions are written: whoever compiles `stats_config` gives a function.

mod tokens;
mod well_known;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use regex::Regex;

use tokens::Tokens;

/// Finds a custom tag in a name: the part to take out of the name, and the part that is the value.
pub type TagFinder = Box<dyn Fn(&str) -> Option<(Range<usize>, Range<usize>)> + Send + Sync>;

/// A name with its tags taken out, and the tags in the order of their rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    pub name: String,
    pub tags: Vec<(Arc<str>, String)>,
}

/// The rules that find tags in names: Envoy's well-known ones, and those of `stats_tags`.
pub struct TagRules {
    anywhere: Vec<Rule>,
    /// Rules for names whose part before the first dot is the key. They act after the others.
    by_first_part: HashMap<Box<str>, Vec<Rule>>,
}

struct Rule {
    tag: Arc<str>,
    find: Find,
    /// The command line's.
    universal: bool,
}

enum Find {
    /// A well-known expression, tried on names that contain `hint`; it does not find the value `except`.
    Pattern {
        source: &'static str,
        hint: &'static str,
        except: &'static str,
        regex: OnceLock<Option<Regex>>,
    },
    Tokens(Tokens),
    Custom(TagFinder),
    Fixed(String),
}

impl Default for TagRules {
    fn default() -> Self {
        Self::new(|_| true)
    }
}

impl TagRules {
    /// The well-known rules of those tags that are wanted by default.
    pub fn new(wanted: impl Fn(&str) -> bool) -> Self {
        let mut rules = Self { anywhere: Vec::new(), by_first_part: HashMap::new() };
        rules.add_well_known(wanted);
        rules
    }

    /// Every stat has this tag. Dots in the value do not matter.
    pub fn add_fixed(&mut self, tag: &str, value: &str) {
        self.add(first_part_of(value), Rule { tag: tag.into(), find: Find::Fixed(value.to_owned()), universal: false });
    }

    /// Every stat has this tag, whatever other rules say of it: the first to be given of a name acts.
    pub fn add_universal(&mut self, tag: &str, value: &str) {
        let before = self.anywhere.iter().take_while(|rule| rule.universal).count();
        let rule = Rule { tag: tag.into(), find: Find::Fixed(value.to_owned()), universal: true };
        self.anywhere.insert(before, rule);
    }

    /// A tag that a custom expression finds; `expression` is its source, which says which names it can be in.
    pub fn add_custom(&mut self, tag: &str, expression: &str, finder: TagFinder) {
        self.add(first_part_of(expression), Rule { tag: tag.into(), find: Find::Custom(finder), universal: false });
    }

    /// The well-known rules of one tag; `false` if there are none.
    #[must_use]
    pub fn add_default(&mut self, tag: &str) -> bool {
        self.add_well_known(|name| name == tag) > 0
    }

    /// Takes the tags out of a name. Every rule sees the whole name; of rules for the same tag the first to find one acts.
    pub fn extract(&self, name: &str) -> Tagged {
        // Envoy counts files before it knows any rule.
        if name.starts_with("filesystem.") {
            return Tagged { name: name.to_owned(), tags: Vec::new() };
        }
        let mut tags: Vec<(Arc<str>, String)> = Vec::new();
        let mut taken: Vec<Range<usize>> = Vec::new();
        let first_part = name.split_once('.').and_then(|(first, _)| self.by_first_part.get(first));
        for rule in self.anywhere.iter().chain(first_part.into_iter().flatten()) {
            if tags.iter().any(|(tag, _)| *tag == rule.tag) {
                continue;
            }
            if let Find::Fixed(value) = &rule.find {
                tags.push((Arc::clone(&rule.tag), value.clone()));
            } else if let Some((remove, value)) = rule.find.find(name) {
                tags.push((Arc::clone(&rule.tag), name[value].to_owned()));
                taken.push(remove);
            }
        }
        Tagged { name: without(name, taken), tags }
    }

    fn add_well_known(&mut self, wanted: impl Fn(&str) -> bool) -> usize {
        let mut added = 0;
        for pattern in well_known::PATTERNS.iter().filter(|pattern| wanted(pattern.tag)) {
            let (source, hint, except) = (pattern.expression, pattern.hint, pattern.except);
            let find = Find::Pattern { source, hint, except, regex: OnceLock::new() };
            self.add(first_part_of(source), Rule { tag: pattern.tag.into(), find, universal: false });
            added += 1;
        }
        for (tag, tokens) in well_known::TOKENS.iter().filter(|(tag, _)| wanted(tag)) {
            let tokens = Tokens::new(tokens);
            self.add(tokens.first_part(), Rule { tag: (*tag).into(), find: Find::Tokens(tokens), universal: false });
            added += 1;
        }
        added
    }

    fn add(&mut self, first_part: Option<&'_ str>, rule: Rule) {
        match first_part {
            Some(part) => self.by_first_part.entry(part.into()).or_default().push(rule),
            None => self.anywhere.push(rule),
        }
    }
}

impl Find {
    fn find(&self, name: &str) -> Option<(Range<usize>, Range<usize>)> {
        match self {
            Self::Pattern { source, hint, except, regex } => {
                if !name.contains(hint) {
                    return None;
                }
                // A test compiles every well-known expression.
                let captures =
                    regex.get_or_init(|| Regex::new(&well_known::expand(source)).ok()).as_ref()?.captures(name)?;
                let remove = captures.get(1)?.range();
                let value = captures.get(2).map_or(remove.clone(), |value| value.range());
                (name[value.clone()] != **except).then_some((remove, value))
            }
            Self::Tokens(tokens) => tokens.find(name),
            Self::Custom(finder) => finder(name),
            Self::Fixed(_) => None,
        }
    }
}

/// The part that names must begin with if an expression is to match: that of `^cluster\.…` and of `^cluster(?=\.)…`.
fn first_part_of(expression: &str) -> Option<&str> {
    let rest = expression.strip_prefix('^')?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|end| *end > 0)?;
    let (part, after) = rest.split_at(end);
    (after == "$" || (after.len() > 1 && (after.starts_with(r"\.") || after.starts_with(r"(?=\.)")))).then_some(part)
}

fn without(name: &str, mut ranges: Vec<Range<usize>>) -> String {
    ranges.sort_by_key(|range| range.start);
    let mut kept = String::with_capacity(name.len());
    let mut at = 0;
    for range in ranges {
        kept.push_str(&name[at..range.start.max(at)]);
        at = at.max(range.end);
    }
    kept + &name[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(rules: &TagRules, name: &str) -> (String, Vec<String>) {
        let tagged = rules.extract(name);
        (tagged.name, tagged.tags.into_iter().map(|(tag, value)| format!("{tag}={value}")).collect())
    }

    #[test]
    fn well_known_tags_are_taken_out_of_names() {
        let rules = TagRules::default();
        let (name, tags) = tagged(&rules, "cluster.web_80.upstream_rq_503");
        assert_eq!(name, "cluster.upstream_rq");
        assert_eq!(tags, ["envoy.response_code=503", "envoy.cluster_name=web_80"]);
        let (name, tags) = tagged(&rules, "listener.127.0.0.1_80.http.ingress.downstream_rq_2xx");
        assert_eq!(name, "listener.http.downstream_rq_xx");
        assert_eq!(
            tags,
            [
                "envoy.response_code_class=2",
                "envoy.http_conn_manager_prefix=ingress",
                "envoy.listener_address=127.0.0.1_80"
            ]
        );
        assert_eq!(tagged(&rules, "server.live"), ("server.live".into(), vec![]));
        assert!(tagged(&rules, "listener.admin.downstream_cx_total").1.is_empty());
    }

    #[test]
    fn custom_rules_act_beside_the_well_known() {
        let mut rules = TagRules::default();
        rules.add_fixed("region", "eu");
        rules.add_custom(
            "user",
            "user-(.*?)-",
            Box::new(|name| {
                let start = name.find("user-")? + 5;
                let end = start + name[start..].find('-')?;
                Some((start..end + 1, start..end))
            }),
        );
        let (name, tags) = tagged(&rules, "cluster.a.user-bob-total");
        assert_eq!(name, "cluster.user-total");
        assert_eq!(tags, ["region=eu", "user=bob", "envoy.cluster_name=a"]);
    }

    #[test]
    fn without_defaults_only_those_asked_for_act() {
        let mut rules = TagRules::new(|_| false);
        assert!(rules.add_default("envoy.cluster_name"));
        assert!(!rules.add_default("envoy.nonsense"));
        let (name, tags) = tagged(&rules, "cluster.a.upstream_rq_200");
        assert_eq!((name.as_str(), tags), ("cluster.upstream_rq_200", vec!["envoy.cluster_name=a".into()]));
    }

    #[test]
    fn an_expression_says_how_names_must_begin() {
        assert_eq!(first_part_of(r"^cluster\.(.*)"), Some("cluster"));
        assert_eq!(first_part_of(r"^listener(?=\.).*?"), Some("listener"));
        assert_eq!(first_part_of(r"^server$"), Some("server"));
        assert_eq!(first_part_of(r"^(a|b)\."), None);
        assert_eq!(first_part_of(r"cluster\."), None);
    }

    #[test]
    fn overlapping_parts_are_taken_out_once() {
        assert_eq!(without("abcdef", vec![3..5, 1..4]), "af");
        assert_eq!(without("abc", vec![]), "abc");
    }
}
