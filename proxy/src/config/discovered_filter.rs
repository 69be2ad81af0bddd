//! Filters whose configuration is discovered (ECDS): one stands in its chain and acts as what came last under its name.
//! HTTP filters, network filters and listener filters. It must not know where configurations come from.
//!
//! See <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/overview/extension>.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use http::StatusCode;
use parking_lot::Mutex;
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::context::{CompileContext, Defaults, ExtensionSubscription, Needs};
use tidegate_filters::http::{HttpFilter, HttpFilterConfig, LocalReply, Overrides, Request, Step, StreamContext};
use tidegate_filters::listener::{ListenerFilter, ListenerFilterConfig};
use tidegate_filters::network::{NetworkFilter, NetworkFilterConfig};
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

/// What a kind of filters compiles to.
pub(crate) trait Discoverable: Clone + Send + Sync + 'static {
    /// As stats name the kind, and what errors call it.
    const KIND: (&'static str, &'static str);

    /// Whether there is a filter of this type.
    fn knows(compiler: &Compiler, type_url: &str) -> bool;

    fn compile(compiler: &Compiler, config: &Any, context: &mut CompileContext<'_>) -> Result<Self, FieldError>;
}

impl Discoverable for Arc<dyn HttpFilterConfig> {
    const KIND: (&'static str, &'static str) = ("http_filter", "an HTTP filter");

    fn knows(compiler: &Compiler, type_url: &str) -> bool {
        compiler.registry.http_filter(type_url).is_some()
    }

    fn compile(compiler: &Compiler, config: &Any, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        match compiler.http_filter(config, false, context)? {
            Some(compiled) => Ok(compiled),
            None => Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url))),
        }
    }
}

impl Discoverable for Arc<dyn NetworkFilterConfig> {
    const KIND: (&'static str, &'static str) = ("network_filter", "a network filter");

    fn knows(_: &Compiler, type_url: &str) -> bool {
        let name = any::type_name(type_url);
        tidegate_filters::network::FACTORIES.iter().any(|factory| name == Some(factory.message()))
    }

    fn compile(compiler: &Compiler, config: &Any, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        compiler.network_filter(config, context)
    }
}

impl Discoverable for Arc<dyn ListenerFilterConfig> {
    const KIND: (&'static str, &'static str) = ("tcp_listener_filter", "a listener filter");

    fn knows(_: &Compiler, type_url: &str) -> bool {
        let name = any::type_name(type_url);
        tidegate_filters::listener::FACTORIES.iter().any(|factory| name == Some(factory.message()))
    }

    fn compile(compiler: &Compiler, config: &Any, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        compiler.listener_filter(config, context).map(Arc::from)
    }
}

/// One place in one chain.
pub(crate) struct DiscoveredFilter<C> {
    compiler: Compiler,
    name: String,
    /// Types that it may have.
    types: Vec<String>,
    stats: Scope,
    defaults: Defaults,
    /// Acts when nothing comes.
    fallback: Option<C>,
    current: ArcSwapOption<C>,
}

/// A place, whatever stands there.
trait Place: Send + Sync {
    /// Compiles a configuration for this place; the answer puts it there.
    ///
    /// # Errors
    /// A type that was not announced, or what the filter says is wrong.
    fn prepare<'a>(&'a self, config: &Any) -> Result<Box<dyn FnOnce() + 'a>, FieldError>;

    /// Nothing has come, and nothing is waited for: the default acts, if there is one.
    fn fall_back(&self);

    /// What came was taken away: the default acts, if there is one.
    fn reset(&self);
}

impl<C: Discoverable> Place for DiscoveredFilter<C> {
    fn prepare<'a>(&'a self, config: &Any) -> Result<Box<dyn FnOnce() + 'a>, FieldError> {
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: &self.name,
            path: FieldPath::root(),
            defaults: self.defaults,
            stats: self.stats.clone(),
            needs: &mut needs,
        };
        let compiled = compile::<C>(&self.compiler, &self.types, config, &mut context)?;
        Ok(Box::new(move || self.current.store(Some(Arc::new(compiled)))))
    }

    fn fall_back(&self) {
        if self.current.load().is_none() {
            self.reset();
        }
    }

    fn reset(&self) {
        self.current.store(self.fallback.clone().map(Arc::new));
    }
}

impl HttpFilterConfig for DiscoveredFilter<Arc<dyn HttpFilterConfig>> {
    fn new_stream(self: Arc<Self>, overrides: Overrides<'_>) -> Option<Box<dyn HttpFilter>> {
        match self.current.load_full() {
            Some(current) => Arc::clone(&*current).new_stream(overrides),
            None => Some(Box::new(Missing)),
        }
    }
}

impl NetworkFilterConfig for DiscoveredFilter<Arc<dyn NetworkFilterConfig>> {
    fn is_there(&self) -> bool {
        self.current.load().is_some()
    }

    fn new_connection(self: Arc<Self>) -> Option<Box<dyn NetworkFilter>> {
        Arc::clone(&*self.current.load_full()?).new_connection()
    }
}

impl ListenerFilterConfig for DiscoveredFilter<Arc<dyn ListenerFilterConfig>> {
    fn is_there(&self) -> bool {
        self.current.load().is_some()
    }

    fn new_connection(&self, connection: &ConnectionInfo) -> Option<Box<dyn ListenerFilter>> {
        self.current.load_full()?.new_connection(connection)
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

fn compile<C: Discoverable>(
    compiler: &Compiler,
    types: &[String],
    config: &Any,
    context: &mut CompileContext<'_>,
) -> Result<C, FieldError> {
    let name = any::type_name(&config.type_url).unwrap_or(&config.type_url);
    if !types.iter().any(|known| any::type_name(known) == Some(name)) {
        let known: Vec<&str> = types.iter().map(|known| any::type_name(known).unwrap_or(known)).collect();
        let reason = format!("Error: filter config has type URL {name} but expect {}.", known.join(", "));
        return Err(context.error_at("typed_config", reason));
    }
    C::compile(compiler, config, context)
}

/// The places of a process, by the name that is discovered: those of listeners that are gone are gone.
#[derive(Clone, Default)]
pub(crate) struct DiscoveredFilters(Arc<Mutex<Places>>);

type Places = HashMap<String, Vec<Weak<dyn Place>>>;

impl DiscoveredFilters {
    fn add(&self, name: &str, place: Weak<dyn Place>) {
        let mut places = self.0.lock();
        let of_name = places.entry(name.to_owned()).or_default();
        of_name.retain(|place| place.strong_count() > 0);
        of_name.push(place);
    }

    fn live(&self, name: &str) -> Vec<Arc<dyn Place>> {
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
        let compiled = live.iter().map(|place| place.prepare(given)).collect::<Result<Vec<_>, _>>()?;
        compiled.into_iter().for_each(|put| put());
        Ok(())
    }

    /// Nothing comes under the name.
    pub(crate) fn fall_back(&self, name: &str) {
        self.live(name).iter().for_each(|place| place.fall_back());
    }

    /// Its source took it away: the default acts, or requests fail.
    pub(crate) fn remove(&self, name: &str) {
        self.live(name).iter().for_each(|place| place.reset());
    }
}

impl Compiler {
    /// A place for what is discovered under `name`.
    pub(crate) fn discovered_filter<C: Discoverable>(
        &self,
        name: &str,
        discovery: &ExtensionConfigSource,
        context: &mut CompileContext<'_>,
    ) -> Result<Arc<DiscoveredFilter<C>>, FieldError> {
        let (kind, what) = C::KIND;
        let Some(source) = &discovery.config_source else {
            return Err(context.error_at("config_source", "a config source is required"));
        };
        let source = context.within("config_source", |context| config_source(source, &self.known, context))?;
        for (index, type_url) in discovery.type_urls.iter().enumerate() {
            if !C::knows(self, type_url) {
                let path = context.path.clone().field("type_urls").index(index);
                return Err(FieldError::new(path, self.unsupported(what, type_url)).in_resource(context.resource));
            }
        }
        let fallback = match &discovery.default_config {
            Some(config) => Some(
                context
                    .within("default_config", |context| compile::<C>(self, &discovery.type_urls, config, context))?,
            ),
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
        let weak = Arc::downgrade(&place);
        self.discovered.add(name, weak);
        let known = context.needs.extensions.insert(name.to_owned(), ExtensionSubscription { source, waits, kind });
        match known {
            Some(known) if known.kind != kind => Err(context.error(other_kind(name, known.kind, kind))),
            _ => Ok(place),
        }
    }
}

/// Names are one for all kinds here.
pub(crate) fn other_kind(name: &str, one: &str, other: &str) -> String {
    format!("not supported yet: '{name}' is discovered both for a {one} and for a {other}")
}
