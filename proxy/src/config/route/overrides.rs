//! `typed_per_filter_config` on all its levels, merged by each filter's own rule. It must not know what filters there are.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_filters::http::filter::OverrideConfig;
use tidegate_filters::http::{FilterFactory, Override};
use tidegate_xds::pb::envoy::config::route::v3::FilterConfig;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{FieldError, any};

use super::Factories;
use crate::route::Overrides;

/// The entries of one level, by filter name.
#[derive(Default)]
pub(super) struct Level(Vec<(Arc<str>, Entry)>);

/// One entry. Whatever is configured explicitly is enabled, unless it says otherwise.
#[derive(Clone, Default)]
struct Entry {
    disabled: bool,
    config: Option<(&'static dyn FilterFactory, OverrideConfig)>,
}

/// Compiles one level.
pub(super) fn level(
    configs: &HashMap<String, Any>,
    factories: Factories<'_>,
    context: &mut CompileContext<'_>,
) -> Result<Level, FieldError> {
    let mut names: Vec<_> = configs.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let mut entries = Vec::with_capacity(names.len());
    for (name, config) in names {
        let here = context.path.clone();
        context.path = here.clone().field("typed_per_filter_config").key(name);
        let compiled = entry(config, factories, context);
        context.path = here;
        entries.push((Arc::from(name.as_str()), compiled?));
    }
    Ok(Level(entries))
}

fn entry(config: &Any, factories: Factories<'_>, context: &mut CompileContext<'_>) -> Result<Entry, FieldError> {
    if any::type_name(&config.type_url) != Some("envoy.config.route.v3.FilterConfig") {
        return Ok(Entry { disabled: false, config: compile(config, false, factories, context)? });
    }
    let wrapper: FilterConfig = any::unpack(config, &context.path)?;
    if wrapper.disabled {
        return Ok(Entry { disabled: true, config: None });
    }
    let Some(config) = &wrapper.config else {
        return Err(context.error_at("config", "a filter that is not disabled needs a configuration"));
    };
    if config.type_url.is_empty() {
        return Ok(Entry::default());
    }
    let config = context.within("config", |context| compile(config, wrapper.is_optional, factories, context))?;
    Ok(Entry { disabled: false, config })
}

fn compile(
    config: &Any,
    is_optional: bool,
    factories: Factories<'_>,
    context: &mut CompileContext<'_>,
) -> Result<Option<(&'static dyn FilterFactory, OverrideConfig)>, FieldError> {
    let Some(factory) = factories(&config.type_url) else {
        let unknown = || context.error(format!("not supported yet: {}", config.type_url));
        return if is_optional { Ok(None) } else { Err(unknown()) };
    };
    if factory.override_message() == any::type_name(&config.type_url) {
        return Ok(Some((factory, factory.compile_override(&config.value, context)?)));
    }
    match factory.override_message() {
        None if is_optional => Ok(None),
        None => Err(context.error("the filter takes no per-route configuration")),
        Some(message) => Err(context.error(format!("expected a {message}, found {:?}", config.type_url))),
    }
}

/// Merges levels, least specific first: the most specific entry says whether a filter is disabled; configurations are
/// merged by their filter.
pub(super) fn merge(levels: &[&Level]) -> Arc<Overrides> {
    let mut names: Vec<&Arc<str>> = levels.iter().flat_map(|level| level.0.iter().map(|(name, _)| name)).collect();
    names.sort();
    names.dedup();
    let merged = names.into_iter().map(|name| {
        let entries: Vec<&Entry> = levels.iter().filter_map(|level| level.get(name)).collect();
        let disabled = entries.last().map(|entry| entry.disabled);
        let levels = entries.iter().filter_map(|entry| entry.config.as_ref()).map(|(_, config)| Arc::clone(config));
        let levels = levels.collect();
        (Arc::clone(name), Override { disabled, config: merge_configs(&entries), levels })
    });
    Arc::new(Overrides(merged.collect()))
}

fn merge_configs(entries: &[&Entry]) -> Option<OverrideConfig> {
    let (factory, _) = entries.iter().rev().find_map(|entry| entry.config.as_ref())?;
    let configs = entries.iter().filter_map(|entry| entry.config.as_ref());
    // Another filter's type under the same name is passed over, as by Envoy's casts.
    let same = configs.filter(|(other, _)| other.message() == factory.message());
    factory.merge(&same.map(|(_, config)| Arc::clone(config)).collect::<Vec<_>>())
}

impl Level {
    /// One more entry, unless there is one of this name.
    pub(super) fn add(
        &mut self,
        name: &str,
        config: &Any,
        factories: Factories<'_>,
        context: &mut CompileContext<'_>,
    ) -> Result<(), FieldError> {
        if self.get(name).is_none() {
            let entry = entry(config, factories, context)?;
            self.0.push((name.into(), entry));
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&Entry> {
        self.0.iter().find(|(other, _)| **other == *name).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::route::testing::{chosen, get, try_table};
    use tidegate_filters::http::{HttpFilterConfig, Overrides as View};
    use tidegate_xds::Coverage;

    /// A filter whose override is its type URL's bytes; levels are joined.
    struct Joining;

    impl FilterFactory for Joining {
        fn message(&self) -> &'static str {
            "envoy.extensions.filters.http.buffer.v3.Buffer"
        }
        fn override_message(&self) -> Option<&'static str> {
            Some("envoy.extensions.filters.http.buffer.v3.BufferPerRoute")
        }
        fn coverage(&self) -> &'static [Coverage] {
            &[]
        }
        fn compile(&self, _: &[u8], context: &mut CompileContext<'_>) -> Result<Arc<dyn HttpFilterConfig>, FieldError> {
            Err(context.error("not here"))
        }
        fn compile_override(&self, config: &[u8], _: &mut CompileContext<'_>) -> Result<OverrideConfig, FieldError> {
            Ok(Arc::new(vec![config.len()]))
        }
        fn merge(&self, levels: &[OverrideConfig]) -> Option<OverrideConfig> {
            let lengths = levels.iter().filter_map(|level| level.downcast_ref::<Vec<usize>>());
            Some(Arc::new(lengths.flatten().copied().collect::<Vec<_>>()))
        }
    }

    fn any(name: &str, value: &[u8]) -> Any {
        Any { type_url: format!("type.googleapis.com/{name}"), value: value.to_vec() }
    }

    fn factories(type_url: &str) -> Option<&'static dyn FilterFactory> {
        type_url.contains("buffer.v3").then_some(&Joining)
    }

    fn compiled(config: Any) -> Result<Level, String> {
        let mut needs = tidegate_filters::context::Needs::default();
        let mut context = CompileContext {
            resource: "r",
            path: tidegate_xds::FieldPath::root(),
            defaults: tidegate_filters::context::Defaults::Envoy,
            stats: tidegate_stats::Store::new().root(),
            needs: &mut needs,
        };
        let configs = HashMap::from([("f".to_owned(), config)]);
        level(&configs, &factories, &mut context).map_err(|error| format!("{}: {}", error.path, error.reason))
    }

    fn wrapper(config: FilterConfig) -> Any {
        any::pack(&config)
    }

    const PER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";

    fn merged(levels: &[&Level]) -> (Option<bool>, Option<Vec<usize>>) {
        let overrides = merge(levels);
        let found = overrides.get("f").unwrap();
        (found.disabled, View(Some(found)).get::<Vec<usize>>().cloned())
    }

    #[test]
    fn levels_are_merged_by_their_filter() {
        let own = |bytes: &[u8]| compiled(any(PER_ROUTE, bytes)).unwrap();
        let disabled = compiled(wrapper(FilterConfig { disabled: true, ..FilterConfig::default() })).unwrap();
        let (one, two) = (own(&[1]), own(&[1, 2]));
        assert_eq!(merged(&[&one, &Level::default(), &two]), (Some(false), Some(vec![1, 2])));
        assert_eq!(merged(&[&one, &disabled]), (Some(true), Some(vec![1])));
        assert_eq!(merged(&[&disabled, &two]), (Some(false), Some(vec![2])));
        assert!(merge(&[&one]).get("g").is_none());
    }

    /// As Envoy 1.40 takes and refuses them.
    #[test]
    fn wrappers_are_looked_into() {
        let wrapped = |config: Option<Any>, is_optional| {
            compiled(wrapper(FilterConfig { config, is_optional, disabled: false })).map(|level| merged(&[&level]))
        };
        assert_eq!(wrapped(Some(any(PER_ROUTE, &[1, 2, 3])), false).unwrap(), (Some(false), Some(vec![3])));
        assert_eq!(wrapped(Some(Any::default()), false).unwrap(), (Some(false), None));
        assert_eq!(wrapped(Some(any("a.B", &[])), true).unwrap(), (Some(false), None));
        let at = "typed_per_filter_config[\"f\"].config";
        assert_eq!(
            wrapped(None, false).unwrap_err(),
            format!("{at}: a filter that is not disabled needs a configuration")
        );
        assert_eq!(
            wrapped(Some(any("a.B", &[])), false).unwrap_err(),
            format!("{at}: not supported yet: type.googleapis.com/a.B")
        );
        let other = compiled(any("envoy.extensions.filters.http.buffer.v3.Buffer", &[])).err().unwrap();
        assert!(other.starts_with("typed_per_filter_config[\"f\"]: expected a envoy.extensions"), "{other}");
    }

    #[test]
    fn a_weighted_cluster_is_the_most_specific_level() {
        let disable = "{f: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}";
        let enable = "{f: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}}";
        let text = format!(
            "typed_per_filter_config: {disable}\nvirtual_hosts: [{{name: v, domains: ['*'], routes: [\
             {{match: {{prefix: /w}}, route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1, typed_per_filter_config: {enable}}}]}}}}}}, \
             {{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]"
        );
        let (table, _) = try_table(&text, &factories).unwrap();
        let disabled = |path| chosen(&table, &get(path, &[])).override_of("f").unwrap().disabled;
        assert_eq!((disabled("/w"), disabled("/")), (Some(false), Some(true)));
    }
}
