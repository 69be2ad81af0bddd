//! `FilterChain`, what it matches, and its network filters -> [`FilterChains`]. It must not know sockets.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_filters::context::{CompileContext, Needs};
use tidegate_filters::matching::cidr::Cidr;
use tidegate_filters::matching::{Inputs, Matcher};
use tidegate_filters::network::{FACTORIES, NetworkFilterConfig};
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::listener::v3 as proto;
use tidegate_xds::pb::google::protobuf::Any;
use tidegate_xds::pb::xds::r#type::matcher::v3 as matcher_proto;
use tidegate_xds::{FieldError, any};

use super::digest;
use crate::config::defaults::Values;
use crate::config::values::timeout;
use crate::config::{Compiler, cluster, data_source, http_connection_manager, tcp_proxy, tls};
use crate::http::stats::ListenerHttpStats;
use crate::listener::drain::Drain;
use crate::listener::filter_chain::{ChainMatcher, SourceType};
use crate::listener::{ChainMatch, FilterChain, FilterChains, Listener, Terminal};

const HTTP: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ECHO: &str = "envoy.extensions.filters.network.echo.v3.Echo";
const DIRECT_RESPONSE: &str = "envoy.extensions.filters.network.direct_response.v3.Config";

/// What ends a chain.
const TERMINAL: [&str; 4] = [HTTP, TCP_PROXY, ECHO, DIRECT_RESPONSE];

/// Compiles all chains of a listener, with what chooses among them.
pub(super) fn compile_all(
    compiler: &Compiler,
    listener: &proto::Listener,
    previous: Option<&Listener>,
    scope: &tidegate_stats::Scope,
    context: &mut CompileContext<'_>,
) -> Result<FilterChains, FieldError> {
    if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() {
        return Err(context.error_at("filter_chains", "no filter chains specified"));
    }
    let around = Around { compiler, listener, previous, scope };
    let default = match &listener.default_filter_chain {
        Some(chain) => Some(context.within("default_filter_chain", |context| compile_chain(&around, chain, context))?),
        None => None,
    };
    let mut chains = Vec::with_capacity(listener.filter_chains.len());
    for (index, chain) in listener.filter_chains.iter().enumerate() {
        chains.push(context.within_item("filter_chains", index, |context| compile_chain(&around, chain, context))?);
    }
    if let Some(matcher) = &listener.filter_chain_matcher {
        let matcher = compile_matcher(matcher, &listener.filter_chains, context)?;
        return Ok(FilterChains::behind(matcher, chains, default));
    }
    let mut rules = Vec::with_capacity(chains.len());
    for (index, chain) in listener.filter_chains.iter().enumerate() {
        rules.push(context.within_item("filter_chains", index, |context| {
            compile_match(chain.filter_chain_match.as_ref(), context)
        })?);
    }
    FilterChains::build(rules.into_iter().zip(chains).collect(), default).map_err(|duplicate| {
        let (first, second) = (&listener.filter_chains[duplicate.first], &listener.filter_chains[duplicate.second]);
        let reason = if first.filter_chain_match == second.filter_chain_match {
            format!("filter chain '{}' has the same matching rules defined as '{}'", second.name, first.name)
        } else {
            format!("filter chains '{}' and '{}' have overlapping matching rules", first.name, second.name)
        };
        context.error_at(&format!("filter_chains[{}]", duplicate.second), reason)
    })
}

/// `filter_chain_matcher`: its actions name chains. A chain's own `filter_chain_match` does not count then, as in Envoy.
fn compile_matcher(
    matcher: &matcher_proto::Matcher,
    chains: &[proto::FilterChain],
    context: &mut CompileContext<'_>,
) -> Result<ChainMatcher, FieldError> {
    let mut by_name = HashMap::with_capacity(chains.len());
    for (index, chain) in chains.iter().enumerate() {
        let field = format!("filter_chains[{index}].name");
        if chain.name.is_empty() {
            return Err(context.error_at(&field, "\"name\" field is required when using a listener matcher"));
        }
        if by_name.insert(chain.name.as_str(), index).is_some() {
            return Err(context.error_at(&field, format!("\"name\" field is duplicated with value '{}'", chain.name)));
        }
    }
    context.within("filter_chain_matcher", |context| {
        Matcher::compile(matcher, Inputs::Network, context, &mut |action, context| {
            let config = action.typed_config.as_ref();
            let Some("google.protobuf.StringValue") = config.and_then(|config| any::type_name(&config.type_url)) else {
                let reason = "the action of a filter chain matcher is a chain's name, a google.protobuf.StringValue";
                return Err(context.error_at("typed_config", reason));
            };
            let name: String = config.map_or(Ok(String::new()), |config| any::unpack(config, &context.path))?;
            Ok(by_name.get(name.as_str()).copied())
        })
    })
}

fn compile_match(
    rule: Option<&proto::FilterChainMatch>,
    context: &mut CompileContext<'_>,
) -> Result<ChainMatch, FieldError> {
    let Some(rule) = rule else { return Ok(ChainMatch::default()) };
    context.within("filter_chain_match", |context| {
        for (index, name) in rule.server_names.iter().enumerate() {
            let partial = name.strip_prefix("*.").unwrap_or(name).contains('*');
            if partial {
                let reason = format!("partial wildcards are not supported in server_names: {name}");
                return Err(context.error_at(&format!("server_names[{index}]"), reason));
            }
        }
        use proto::filter_chain_match::ConnectionSourceType as Source;
        Ok(ChainMatch {
            destination_port: rule.destination_port.as_ref().and_then(|port| u16::try_from(port.value).ok()),
            destination: ranges("prefix_ranges", &rule.prefix_ranges, context)?,
            server_names: rule.server_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            transport_protocol: rule.transport_protocol.clone(),
            application_protocols: rule.application_protocols.clone(),
            direct_source: ranges("direct_source_prefix_ranges", &rule.direct_source_prefix_ranges, context)?,
            source_type: match Source::try_from(rule.source_type) {
                Ok(Source::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
                Ok(Source::External) => SourceType::External,
                _ => SourceType::Any,
            },
            source: ranges("source_prefix_ranges", &rule.source_prefix_ranges, context)?,
            source_ports: rule.source_ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect(),
        })
    })
}

fn ranges(field: &str, ranges: &[core::CidrRange], context: &mut CompileContext<'_>) -> Result<Vec<Cidr>, FieldError> {
    let compile = |(index, range): (usize, &core::CidrRange)| {
        context.within_item(field, index, |context| Cidr::compile(range, context))
    };
    ranges.iter().enumerate().map(compile).collect()
}

/// What a chain takes from the listener that it stands in.
struct Around<'a> {
    compiler: &'a Compiler,
    listener: &'a proto::Listener,
    /// The listener that this one replaces.
    previous: Option<&'a Listener>,
    scope: &'a tidegate_stats::Scope,
}

impl Around<'_> {
    /// A chain that looks the same is another one where this differs.
    fn digest(&self) -> u64 {
        let seeds = ahash::RandomState::with_seeds(5, 6, 7, 8);
        let has_matcher = self.listener.filter_chain_matcher.is_some();
        seeds.hash_one((self.scope.prefix(), self.compiler.buffer_limit_bytes, self.listener.drain_type, has_matcher))
    }
}

fn compile_chain(
    around: &Around<'_>,
    chain: &proto::FilterChain,
    context: &mut CompileContext<'_>,
) -> Result<Arc<FilterChain>, FieldError> {
    let digest = digest(chain) ^ around.digest();
    let before =
        around.previous.into_iter().flat_map(|listener| listener.chains.all.iter().chain(&listener.chains.default));
    if let Some(same) = before.into_iter().find(|before| before.digest == digest) {
        same.needs.iter().for_each(|needs| context.needs.discover(needs));
        return Ok(Arc::clone(same));
    }
    let (mut needs, resource, stats) = (Needs::default(), context.resource, context.stats.clone());
    let mut within =
        CompileContext { resource, path: context.path.clone(), defaults: context.defaults, stats, needs: &mut needs };
    let compiled = compile_new(around, chain, digest, &mut within);
    context.needs.clusters.extend(std::mem::take(&mut needs.clusters));
    context.needs.discover(&needs);
    let needs = Some(needs).filter(|needs| *needs != Needs::default()).map(Box::new);
    compiled.map(|chain| Arc::new(FilterChain { needs, ..chain }))
}

/// Compiles a chain that no listener has; its needs are the context's.
fn compile_new(
    around: &Around<'_>,
    chain: &proto::FilterChain,
    digest: u64,
    context: &mut CompileContext<'_>,
) -> Result<FilterChain, FieldError> {
    let tls = match &chain.transport_socket {
        Some(socket) => context.within("transport_socket", |context| {
            tls::downstream(socket, around.scope, &around.compiler.cluster_defaults.tls, context)
        })?,
        None => None,
    };
    let (filters, terminal) = compile_filters(around, &chain.filters, context)?;
    Ok(FilterChain {
        name: chain.name.as_str().into(),
        metadata: chain.metadata.as_ref().map(|metadata| Arc::new(cluster::values::metadata(Some(metadata)))),
        filters,
        terminal,
        server_names: server_names(around.listener, chain),
        tls,
        transport_connect_timeout: timeout(
            chain.transport_socket_connect_timeout.as_ref(),
            Values::of(context.defaults).handshake_timeout,
        ),
        drain: Arc::new(Drain::new(super::drain_type(around.listener))),
        needs: None,
        digest,
    })
}

/// The names that a chain is chosen by.
fn server_names(listener: &proto::Listener, chain: &proto::FilterChain) -> Box<[String]> {
    let rule = chain.filter_chain_match.as_ref().filter(|_| listener.filter_chain_matcher.is_none());
    rule.into_iter().flat_map(|rule| &rule.server_names).map(|name| name.to_ascii_lowercase()).collect()
}

type Compiled = (Vec<Arc<dyn NetworkFilterConfig>>, Terminal);

fn compile_filters(
    around: &Around<'_>,
    filters: &[proto::Filter],
    context: &mut CompileContext<'_>,
) -> Result<Compiled, FieldError> {
    let Some((last, before)) = filters.split_last() else { return Ok((Vec::new(), Terminal::Close)) };
    let mut compiled = Vec::with_capacity(before.len());
    for (index, filter) in before.iter().enumerate() {
        compiled.push(context.within_item("filters", index, |context| {
            if let Some(proto::filter::ConfigType::ConfigDiscovery(discovery)) = &filter.config_type {
                let compile = |context: &mut CompileContext<'_>| {
                    around.compiler.discovered_filter::<Arc<dyn NetworkFilterConfig>>(&filter.name, discovery, context)
                };
                return context.within("config_discovery", compile).map(|filter| filter as _);
            }
            let config = typed_config(filter, context)?;
            if let Some(kind) = any::type_name(&config.type_url).filter(|kind| TERMINAL.contains(kind)) {
                return Err(context.error(format!(
                    "terminal filter named {} of type {kind} must be the last filter in a network filter chain.",
                    filter.name
                )));
            }
            around.compiler.network_filter(config, context)
        })?);
    }
    let terminal = context.within_item("filters", before.len(), |context| {
        let config = typed_config(last, context)?;
        let name = any::type_name(&config.type_url);
        if let Some(factory) = FACTORIES.iter().find(|factory| name == Some(factory.message())) {
            return Err(context.error(format!(
                "non-terminal filter named {} of type {} is the last filter in a network filter chain.",
                last.name,
                factory.message()
            )));
        }
        context.within("typed_config", |context| terminal(around, config, context))
    })?;
    Ok((compiled, terminal))
}

fn typed_config<'a>(filter: &'a proto::Filter, context: &CompileContext<'_>) -> Result<&'a Any, FieldError> {
    match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(config)) => Ok(config),
        Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
            Err(context.error_at("config_discovery", "not supported yet: discovery of the last filter of a chain"))
        }
        None => {
            Err(context
                .error(format!("Didn't find a registered implementation for '{}' with type URL: ''", filter.name)))
        }
    }
}

fn terminal(around: &Around<'_>, config: &Any, context: &mut CompileContext<'_>) -> Result<Terminal, FieldError> {
    let Around { compiler, scope, .. } = around;
    use tidegate_xds::pb::envoy::extensions::filters::network as filters;
    match any::type_name(&config.type_url) {
        Some(HTTP) => {
            let config = any::unpack(config, &context.path)?;
            let hcm = http_connection_manager::compile(compiler, &config, context)?;
            let stats =
                ListenerHttpStats::new(&scope.scope(&format!("http.{}.", config.stat_prefix.replace(':', "_"))));
            Ok(Terminal::Http(Arc::new(hcm), stats))
        }
        Some(TCP_PROXY) => {
            let config = any::unpack(config, &context.path)?;
            tcp_proxy::compile(compiler, &config, context).map(|proxy| Terminal::Tcp(Arc::new(proxy)))
        }
        Some(ECHO) => Ok(Terminal::Echo),
        Some(DIRECT_RESPONSE) => {
            let config: filters::direct_response::v3::Config = any::unpack(config, &context.path)?;
            let bytes = match &config.response {
                Some(source) => context.within("response", |context| data_source(source, context))?,
                None => Bytes::new(),
            };
            Ok(Terminal::DirectResponse(bytes))
        }
        _ => Err(context.error(compiler.unsupported("a network filter", &config.type_url))),
    }
}
