//! HTTP filters whose configuration is discovered (ECDS): one stands in its chain and acts as what came last under its name.
//! It must not know where configurations come from.
//!
//! See <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/overview/extension>.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use http::StatusCode;
use parking_lot::Mutex;
use tidegate_filters::context::{CompileContext, Defaults, ExtensionSubscription, Needs};
use tidegate_filters::http::{HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Step, StreamContext};
use tidegate_filters::stream_info::ResponseFlags;
use tidegate_stats::Scope;
use tidegate_xds::pb::envoy::config::core::v3::{ExtensionConfigSource, TypedExtensionConfig};
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::{Coverage, FieldError, FieldPath, any};

use super::Compiler;
use super::sources::config_source;

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[Coverage {
    message: "envoy.config.core.v3.ExtensionConfigSource",
    enforced: &["config_source", "default_config", "apply_default_config_without_warming", "type_urls"],
    listed: &[],
}];

/// A filter compiled for one chain.
type Compiled = Arc<dyn HttpFilterConfig>;

/// One place in one chain.
pub(crate) struct DiscoveredFilter {
    compiler: Compiler,
    name: String,
    /// Types that it may have.
    types: Vec<String>,
    stats: Scope,
    defaults: Defaults,
    /// Acts when nothing comes.
    fallback: Option<Compiled>,
    current: ArcSwapOption<Compiled>,
}

impl DiscoveredFilter {
    /// Compiles a configuration for this place.
    ///
    /// # Errors
    /// A type that was not announced, or what the filter says is wrong.
    fn compile(&self, config: &Any) -> Result<Compiled, FieldError> {
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: &self.name,
            path: FieldPath::root(),
            defaults: self.defaults,
            stats: self.stats.clone(),
            needs: &mut needs,
        };
        compile(&self.compiler, &self.types, config, &mut context)
    }

    fn set(&self, compiled: Compiled) {
        self.current.store(Some(Arc::new(compiled)));
    }

    /// Nothing has come, and nothing is waited for: the default acts, if there is one.
    fn fall_back(&self) {
        if let Some(fallback) = self.fallback.as_ref().filter(|_| self.current.load().is_none()) {
            self.set(Arc::clone(fallback));
        }
    }
}

impl HttpFilterConfig for DiscoveredFilter {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        match self.current.load_full() {
            Some(current) => Arc::clone(&*current).new_stream(overrides),
            None => Some(Box::new(Missing)),
        }
    }
}

/// Stands where no configuration has come yet: requests are answered 500 with flag `NFCF`.
struct Missing;

impl HttpFilter for Missing {
    fn on_request(&mut self, _: &mut Request, _: &mut StreamContext) -> Step<'_> {
        let mut reply = LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "");
        reply.flags = ResponseFlags::NO_FILTER_CONFIG_FOUND;
        Step::Reply(Box::new(reply))
    }
}

fn compile(
    compiler: &Compiler,
    types: &[String],
    config: &Any,
    context: &mut CompileContext<'_>,
) -> Result<Compiled, FieldError> {
    let name = any::type_name(&config.type_url).unwrap_or(&config.type_url);
    if !types.iter().any(|known| any::type_name(known) == Some(name)) {
        let known: Vec<&str> = types.iter().map(|known| any::type_name(known).unwrap_or(known)).collect();
        let reason = format!("Error: filter config has type URL {name} but expect {}.", known.join(", "));
        return Err(context.error_at("typed_config", reason));
    }
    match compiler.http_filter(config, false, context)? {
        Some(compiled) => Ok(compiled),
        None => Err(context.error_at("typed_config", format!("not supported yet: {name}"))),
    }
}

/// The places of a process, by the name that is discovered: those of listeners that are gone are gone.
#[derive(Clone, Default)]
pub(crate) struct DiscoveredFilters(Arc<Mutex<HashMap<String, Vec<Weak<DiscoveredFilter>>>>>);

impl DiscoveredFilters {
    fn add(&self, place: &Arc<DiscoveredFilter>) {
        let mut places = self.0.lock();
        let of_name = places.entry(place.name.clone()).or_default();
        of_name.retain(|place| place.strong_count() > 0);
        of_name.push(Arc::downgrade(place));
    }

    fn live(&self, name: &str) -> Vec<Arc<DiscoveredFilter>> {
        let mut places = self.0.lock();
        let live: Vec<_> = places.get(name).into_iter().flatten().filter_map(Weak::upgrade).collect();
        if live.is_empty() {
            places.remove(name);
        }
        live
    }

    /// Gives every place of the name this configuration; all of them, or none.
    ///
    /// # Errors
    /// What is wrong with it for one of them.
    pub(crate) fn set(&self, config: &TypedExtensionConfig) -> Result<(), FieldError> {
        let none = Any::default();
        let given = config.typed_config.as_ref().unwrap_or(&none);
        let live = self.live(&config.name);
        let compiled = live.iter().map(|place| place.compile(given)).collect::<Result<Vec<_>, _>>()?;
        live.iter().zip(compiled).for_each(|(place, compiled)| place.set(compiled));
        Ok(())
    }

    /// Nothing comes under the name.
    pub(crate) fn fall_back(&self, name: &str) {
        self.live(name).iter().for_each(|place| place.fall_back());
    }

    /// Its source took it away: the default acts, or requests fail.
    pub(crate) fn remove(&self, name: &str) {
        for place in self.live(name) {
            place.current.store(place.fallback.clone().map(Arc::new));
        }
    }
}

impl Compiler {
    /// A place for what is discovered under `name`.
    pub(crate) fn discovered_filter(
        &self,
        name: &str,
        discovery: &ExtensionConfigSource,
        context: &mut CompileContext<'_>,
    ) -> Result<Compiled, FieldError> {
        let Some(source) = &discovery.config_source else {
            return Err(context.error_at("config_source", "a config source is required"));
        };
        let source = context.within("config_source", |context| config_source(source, &self.known, context))?;
        for (index, type_url) in discovery.type_urls.iter().enumerate() {
            if self.registry.http_filter(type_url).is_none() {
                let path = context.path.clone().field("type_urls").index(index);
                return Err(
                    FieldError::new(path, format!("not supported yet: {type_url}")).in_resource(context.resource)
                );
            }
        }
        let fallback = match &discovery.default_config {
            Some(config) => {
                Some(context.within("default_config", |context| compile(self, &discovery.type_urls, config, context))?)
            }
            None => None,
        };
        let at_once = fallback.clone().filter(|_| discovery.apply_default_config_without_warming);
        let waits = at_once.is_none();
        let place = Arc::new(DiscoveredFilter {
            compiler: self.clone(),
            name: name.to_owned(),
            types: discovery.type_urls.clone(),
            stats: context.stats.clone(),
            defaults: context.defaults,
            fallback,
            current: ArcSwapOption::from(at_once.map(Arc::new)),
        });
        self.discovered.add(&place);
        context.needs.extensions.insert(name.to_owned(), ExtensionSubscription { source, waits });
        Ok(place)
    }
}
