//! `envoy.config.metrics.v3.StatsConfig` -> the rules by which stats are shown. It must not know any stat.

use std::collections::BTreeSet;
use std::ops::Range;

use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::StringMatcher;
use tidegate_stats::{Buckets, NameMatcher, Rules, Shown, TagFinder, TagRules};
use tidegate_xds::pb::envoy::config::metrics::v3 as proto;
use tidegate_xds::{Coverage, FieldError};

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.metrics.v3.StatsConfig",
        enforced: &[
            "stats_tags",
            "use_all_default_tags",
            "stats_matcher",
            "histogram_bucket_settings",
            "allow_default_tag_overrides",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.metrics.v3.TagSpecifier",
        enforced: &["tag_name", "regex", "fixed_value"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.metrics.v3.StatsMatcher",
        enforced: &["reject_all", "exclusion_list", "inclusion_list"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.metrics.v3.HistogramBucketSettings",
        enforced: &["match", "buckets"],
        listed: &[("bins", "only says how much memory a histogram starts with")],
    },
];

/// Compiles the rules.
pub(crate) fn compile(config: &proto::StatsConfig, context: &mut CompileContext<'_>) -> Result<Rules, FieldError> {
    Ok(Rules {
        tags: tags(config, context)?,
        shown: match &config.stats_matcher {
            Some(matcher) => context.within("stats_matcher", |context| shown(matcher, context))?,
            None => Shown::All,
        },
        buckets: buckets(&config.histogram_bucket_settings, context)?,
        defers: false,
    })
}

fn tags(config: &proto::StatsConfig, context: &mut CompileContext<'_>) -> Result<TagRules, FieldError> {
    let set = |value: &Option<tidegate_xds::pb::google::protobuf::BoolValue>| value.as_ref().map(|value| value.value);
    let defaults = set(&config.use_all_default_tags).unwrap_or(true);
    let overrides = set(&config.allow_default_tag_overrides).unwrap_or(false);
    let overridden: BTreeSet<&str> = match overrides {
        true => config.stats_tags.iter().map(|tag| tag.tag_name.as_str()).collect(),
        false => BTreeSet::new(),
    };
    let mut rules = TagRules::new(|tag| defaults && !overridden.contains(tag));
    for (index, tag) in config.stats_tags.iter().enumerate() {
        context.within_item("stats_tags", index, |context| add_tag(&mut rules, tag, context))?;
    }
    Ok(rules)
}

fn add_tag(rules: &mut TagRules, tag: &proto::TagSpecifier, context: &CompileContext<'_>) -> Result<(), FieldError> {
    use proto::tag_specifier::TagValue;
    let name = tag.tag_name.as_str();
    match &tag.tag_value {
        Some(TagValue::FixedValue(value)) => rules.add_fixed(name, value),
        Some(TagValue::Regex(regex)) if !regex.is_empty() => {
            if name.is_empty() {
                return Err(context.error_at("tag_name", "tag_name cannot be empty"));
            }
            let finder = finder(regex)
                .map_err(|reason| context.error_at("regex", format!("Invalid regex '{regex}': {reason}")))?;
            rules.add_custom(name, regex, finder);
        }
        Some(TagValue::Regex(_)) | None => {
            if !rules.add_default(name) {
                let reason = format!("No regex specified for tag specifier and no default regex for name: '{name}'");
                return Err(context.error_at("regex", reason));
            }
        }
    }
    Ok(())
}

/// Finds the first group, which is taken out of the name, and the second one, which is the value; the first is both if it is
/// alone. Expressions are ECMAScript's: Istio's look ahead.
fn finder(expression: &str) -> Result<TagFinder, String> {
    let regex = fancy_regex::Regex::new(expression).map_err(|error| error.to_string())?;
    if regex.captures_len() < 2 {
        // Without a group nothing is ever found, as in Envoy.
        return Ok(Box::new(|_| None));
    }
    let empty = |name: &str| name.len()..name.len();
    Ok(Box::new(move |name| {
        // An expression that backtracks too long finds nothing.
        let captures = regex.captures(name).ok().flatten()?;
        let group = |index| captures.get(index).map(|group| group.range());
        let remove: Range<usize> = group(1).unwrap_or_else(|| empty(name));
        let value = if captures.len() > 2 { group(2).unwrap_or_else(|| empty(name)) } else { remove.clone() };
        Some((remove, value))
    }))
}

fn shown(matcher: &proto::StatsMatcher, context: &mut CompileContext<'_>) -> Result<Shown, FieldError> {
    use proto::stats_matcher::StatsMatcher;
    let mut list = |field: &str, list: &_| -> Result<NameMatcher, FieldError> {
        let patterns = context.within(field, |context| StringMatcher::compile_list(list, context))?;
        Ok(Box::new(move |name| patterns.iter().any(|pattern| pattern.matches(name.as_bytes()))))
    };
    Ok(match &matcher.stats_matcher {
        Some(StatsMatcher::RejectAll(true)) => Shown::None,
        Some(StatsMatcher::RejectAll(false)) => Shown::All,
        Some(StatsMatcher::ExclusionList(patterns)) => Shown::AllBut(list("exclusion_list", patterns)?),
        Some(StatsMatcher::InclusionList(patterns)) => Shown::Only(list("inclusion_list", patterns)?),
        None => return Err(context.error("one of reject_all, exclusion_list and inclusion_list is required")),
    })
}

fn buckets(
    settings: &[proto::HistogramBucketSettings],
    context: &mut CompileContext<'_>,
) -> Result<Vec<Buckets>, FieldError> {
    let compile = |(index, settings): (usize, &proto::HistogramBucketSettings)| {
        context.within_item("histogram_bucket_settings", index, |context| {
            let Some(matcher) = &settings.r#match else { return Err(context.error_at("match", "value is required")) };
            let matcher = context.within("match", |context| StringMatcher::compile(matcher, context))?;
            let mut bounds = settings.buckets.clone();
            bounds.sort_by(f64::total_cmp);
            Ok(Buckets { matches: Box::new(move |name| matcher.matches(name.as_bytes())), bounds: bounds.into() })
        })
    };
    settings.iter().enumerate().map(compile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_filters::context::{Defaults, Needs};
    use tidegate_stats::{Store, Tagged};
    use tidegate_xds::{FieldPath, Format, UnknownFields};

    fn compile_yaml(yaml: &str) -> Result<Rules, String> {
        let message = "envoy.config.metrics.v3.StatsConfig";
        let decoded = tidegate_xds::decode(message, yaml.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
        let config: proto::StatsConfig = tidegate_xds::any::decode(&decoded.bytes, &FieldPath::root()).unwrap();
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: "bootstrap",
            path: FieldPath::root(),
            defaults: Defaults::Safe,
            stats: Store::new().root(),
            needs: &mut needs,
        };
        compile(&config, &mut context).map_err(|error| error.to_string())
    }

    fn tags(yaml: &str, name: &str) -> (String, Vec<String>) {
        let Tagged { name, tags } = compile_yaml(yaml).unwrap().tags.extract(name);
        (name, tags.into_iter().map(|(tag, value)| format!("{tag}={value}")).collect())
    }

    #[test]
    fn tags_are_found_by_expression_default_or_fixed() {
        let yaml = "{stats_tags: [
            {tag_name: cluster, regex: '^cluster(?=\\.).*?(\\.v-(.*?)-v)'},
            {tag_name: region, fixed_value: eu},
            {tag_name: both, regex: '_(one)_'}]}";
        let (name, found) = tags(yaml, "cluster.a.v-x-v.up_one_rq_200");
        assert_eq!(name, "cluster..up__rq");
        assert_eq!(found, ["envoy.response_code=200", "region=eu", "both=one", "envoy.cluster_name=a", "cluster=x"]);
    }

    #[test]
    fn defaults_can_be_left_out_and_overridden() {
        let chosen = "{use_all_default_tags: false, stats_tags: [{tag_name: envoy.cluster_name}]}";
        assert_eq!(tags(chosen, "cluster.a.rq_200").1, ["envoy.cluster_name=a"]);
        let own = "stats_tags: [{tag_name: envoy.cluster_name, regex: '^cluster\\.((b.).*?\\.)'}]";
        assert_eq!(tags(&format!("{{{own}}}"), "cluster.bcd.x").1, ["envoy.cluster_name=bcd"]);
        let over = format!("{{allow_default_tag_overrides: true, {own}}}");
        assert_eq!(tags(&over, "cluster.bcd.x").1, ["envoy.cluster_name=bc"]);
        assert_eq!(tags(&over, "cluster.a.x").1, Vec::<String>::new());
    }

    #[test]
    fn an_expression_without_a_group_finds_nothing() {
        let yaml = "{stats_tags: [{tag_name: a, regex: abc}]}";
        assert_eq!(tags(yaml, "abc"), ("abc".into(), vec![]));
    }

    #[test]
    fn stats_are_chosen_and_bucketed() {
        let yaml = "{stats_matcher: {inclusion_list: {patterns: [{prefix: a.}]}},
            histogram_bucket_settings: [{match: {suffix: time}, buckets: [20, 5]}]}";
        let rules = compile_yaml(yaml).unwrap();
        assert_eq!(rules.buckets("a.time"), [5.0, 20.0]);
        let store = Store::with_rules(rules);
        store.root().counter("a.x").inc();
        store.root().counter("b.x").inc();
        assert_eq!(store.counters().len(), 1);
        let none = Store::with_rules(compile_yaml("{stats_matcher: {reject_all: true}}").unwrap());
        none.root().counter("a").inc();
        assert!(none.counters().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (yaml, path) in [
            ("{stats_tags: [{tag_name: '', regex: a}]}", "stats_tags[0].tag_name"),
            ("{stats_tags: [{tag_name: foo}]}", "stats_tags[0].regex"),
            ("{stats_tags: [{tag_name: foo, regex: '('}]}", "stats_tags[0].regex"),
            ("{stats_matcher: {}}", "stats_matcher"),
        ] {
            let error = compile_yaml(yaml).err().unwrap();
            assert!(error.contains(path), "{error}");
        }
    }
}
