//! `envoy.config.bootstrap.v3.Bootstrap` -> what a process starts from. It must not know how it is started.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidegate_filters::context::{CompileContext, ConfigSource, ControlPlane, Defaults, GrpcService, Needs};
use tidegate_xds::pb::envoy::config::bootstrap::v3 as proto;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::listener::v3::Listener;
use tidegate_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use tidegate_xds::{Audit, FieldError, FieldPath, Format, SourceMap, UnknownFields};

use super::bootstrap_collections::{collection, node_parameters};
use super::cluster::ClusterDefaults;
use super::registry::Registry;
use super::sources::{Known, check_version, config_source, control_plane};
use super::store::Kind;
use super::values::{self, duration};
use super::{Node, bootstrap_values as plain};
use crate::application_log::pattern::Pattern;
use crate::listener::{ListenAddress, SocketOption};
use crate::runtime::{Layer, LayerSource};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// What the command line adds to a bootstrap.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// YAML or JSON, merged over the file.
    pub yaml: Option<String>,
    pub service_node: Option<String>,
    pub service_cluster: Option<String>,
    pub service_zone: Option<String>,
    pub allow_unknown_fields: bool,
    /// `--stats-tag`: tags of every stat.
    pub stats_tags: Vec<(String, String)>,
}

/// A bootstrap that was read and found whole, not yet compiled.
pub struct Bootstrap {
    pub(crate) message: proto::Bootstrap,
    /// Its wire form: what `config_dump` shows.
    pub(crate) bytes: Vec<u8>,
    pub(crate) source: Option<SourceMap>,
    pub(crate) registry: &'static Registry,
    pub node: Node,
    pub admin: Option<ListenAddress>,
    /// `None`: only when the admin interface shows stats.
    pub stats_flush_interval: Option<Duration>,
    /// `application_log_config`: what lines of the application log look like.
    pub log_pattern: Option<Pattern>,
    pub(crate) lds: Option<ConfigSource>,
    pub(crate) cds: Option<ConfigSource>,
    /// Asked for in place of all listeners, and of all clusters.
    pub(crate) lds_collection: Option<Arc<str>>,
    pub(crate) cds_collection: Option<Arc<str>>,
    pub(crate) ads: Option<ControlPlane>,
    /// Whom loads are reported to.
    pub(crate) load_reports: Option<GrpcService>,
    pub(crate) cluster_defaults: ClusterDefaults,
    /// What its sources may refer to.
    pub(crate) known: Known,
    pub(crate) runtime_layers: Vec<Layer>,
    pub(crate) stats_rules: tidegate_stats::Rules,
    /// Of all downstream connections.
    pub(crate) connection_limit: Option<u64>,
    /// Known, set and without effect.
    pub without_effect: Vec<(FieldPath, &'static str)>,
    /// What may be said and is hardly meant.
    pub warnings: Vec<FieldError>,
    /// How many of the texts that it was read from had fields that nobody knows.
    pub(crate) with_unknown_fields: u64,
}

impl Bootstrap {
    /// Reads a bootstrap file's text.
    ///
    /// # Errors
    /// Everything that is wrong, each with its field and, where it stands in the file, its place.
    pub fn read(
        text: &[u8],
        format: Format,
        overrides: &Overrides,
        defaults: Defaults,
    ) -> Result<Self, Vec<FieldError>> {
        Self::read_with(Registry::built_in(), text, format, overrides, defaults)
    }

    /// The same, where more filters than the built-in ones are known.
    ///
    /// # Errors
    /// As [`Bootstrap::read`].
    pub fn read_with(
        registry: &'static Registry,
        text: &[u8],
        format: Format,
        overrides: &Overrides,
        defaults: Defaults,
    ) -> Result<Self, Vec<FieldError>> {
        let unknown = if overrides.allow_unknown_fields { UnknownFields::Collect } else { UnknownFields::Reject };
        let decoded = tidegate_xds::decode(BOOTSTRAP, text, format, unknown)?;
        let (mut bytes, mut warnings) = (decoded.bytes, decoded.doubts);
        let mut with_unknown_fields = u64::from(!decoded.unknown.is_empty());
        if let Some(yaml) = &overrides.yaml {
            let over = tidegate_xds::decode(BOOTSTRAP, yaml.as_bytes(), Format::Yaml, unknown)
                .map_err(|errors| in_resource("--config-yaml", errors))?;
            tidegate_xds::merge(&mut bytes, &over.bytes);
            with_unknown_fields += u64::from(!over.unknown.is_empty());
            warnings.extend(in_resource("--config-yaml", over.doubts));
        }
        let mut read = Self::from_bytes(registry, bytes, Some(decoded.source), overrides, defaults)?;
        warnings.append(&mut read.warnings);
        Ok(Self { with_unknown_fields, warnings, ..read })
    }

    /// Lets go of what was needed to load the static resources and to place errors in the file: several times the size of
    /// what was compiled from it.
    pub(crate) fn forget_static_resources(&mut self) {
        self.message.static_resources = None;
        self.source = None;
    }

    fn from_bytes(
        registry: &'static Registry,
        bytes: Vec<u8>,
        source: Option<SourceMap>,
        overrides: &Overrides,
        defaults: Defaults,
    ) -> Result<Self, Vec<FieldError>> {
        let place = |mut errors: Vec<FieldError>| {
            if let Some(source) = &source {
                source.place(&mut errors);
            }
            errors
        };
        tidegate_xds::validate(BOOTSTRAP, &bytes).map_err(place)?;
        let Audit { unsupported, without_effect, .. } = tidegate_xds::audit(BOOTSTRAP, &bytes, registry.coverage());
        if !unsupported.is_empty() {
            return Err(place(unsupported));
        }
        let message: proto::Bootstrap =
            tidegate_xds::any::decode(&bytes, &FieldPath::root()).map_err(|error| place(vec![error]))?;
        let mut needs = Needs::default();
        let mut context = plain_context(&mut needs, defaults);
        let node = super::node::compile(message.node.as_ref(), overrides);
        let ads = message.dynamic_resources.as_ref().and_then(|dynamic| dynamic.ads_config.as_ref());
        let ads = ads.map(|ads| ads.api_type() == core::api_config_source::ApiType::DeltaGrpc);
        let known = node.known(ads, primary_clusters(&message));
        let (admin, Dynamic { lds, cds, lds_collection, cds_collection, ads }) =
            compile_sources(&message, &node, &known, &mut context).map_err(|error| place(vec![error]))?;
        let cluster_defaults =
            ClusterDefaults::compile(&message, &node, &known, &mut context).map_err(|error| place(vec![error]))?;
        let load_reports = load_reports(&message, &mut context).map_err(|error| place(vec![error]))?;
        let runtime_layers = match &message.layered_runtime {
            // Where nothing is said of layers there is one to modify.
            Some(layers) if layers.layers.is_empty() => vec![Layer { name: "".into(), source: LayerSource::Admin }],
            Some(layers) => context
                .within("layered_runtime", |context| super::runtime::compile(layers, &node.cluster, &known, context))
                .map_err(|error| place(vec![error]))?,
            None => Vec::new(),
        };
        let mut stats_rules = match &message.stats_config {
            Some(config) => context
                .within("stats_config", |context| super::stats::compile(config, context))
                .map_err(|error| place(vec![error]))?,
            None => tidegate_stats::Rules::default(),
        };
        for (tag, value) in &overrides.stats_tags {
            stats_rules.tags.add_universal(tag, value);
        }
        stats_rules.defers =
            message.deferred_stat_options.is_some_and(|options| options.enable_deferred_creation_stats);
        let connection_limit = match &message.overload_manager {
            Some(manager) => context
                .within("overload_manager", |context| super::overload::compile(manager, context))
                .map_err(|error| place(vec![error]))?,
            None => None,
        };
        let log_pattern = log_pattern(&message, &context).map_err(|error| place(vec![error]))?;
        let stats_flush_interval = match &message.stats_flush {
            Some(proto::bootstrap::StatsFlush::StatsFlushOnAdmin(true)) => None,
            _ => Some(message.stats_flush_interval.as_ref().map_or(Duration::from_secs(5), duration)),
        };
        plain::check(&message, stats_flush_interval, &context).map_err(|error| place(vec![error]))?;
        let warnings = place(super::warnings::of(&message));
        Ok(Self {
            message,
            bytes,
            source,
            registry,
            node,
            admin,
            stats_flush_interval,
            log_pattern,
            lds,
            cds,
            lds_collection,
            cds_collection,
            ads,
            load_reports,
            cluster_defaults,
            known,
            runtime_layers,
            stats_rules,
            connection_limit,
            without_effect,
            warnings,
            with_unknown_fields: 0,
        })
    }

    /// The node as `/server_info` shows it.
    pub(crate) fn node_json(&self) -> serde_json::Value {
        super::node::json(&self.node_message())
    }

    /// The node as control planes are told.
    pub(crate) fn node_message(&self) -> core::Node {
        super::node::message(self.message.node.as_ref(), &self.node)
    }

    /// Whether the process begins as if health checks had been failed by hand: `flags_path` holds a file `drain`.
    pub(crate) fn drains_from_the_start(&self) -> bool {
        let flags = &self.message.flags_path;
        !flags.is_empty() && PathBuf::from(flags).join("drain").exists()
    }

    /// Makes the file of outlier events. No cluster can eject hosts yet, so nothing is written; whoever waits for the file
    /// finds it, as with Envoy.
    pub(crate) fn open_outlier_event_log(&self) -> Result<(), FieldError> {
        let manager = self.message.cluster_manager.as_ref();
        let Some(detection) = manager.and_then(|manager| manager.outlier_detection.as_ref()) else { return Ok(()) };
        let path = &detection.event_log_path;
        if path.is_empty() {
            return Ok(());
        }
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        opened.map(drop).map_err(|cause| {
            let field = FieldPath::root().field("cluster_manager").field("outlier_detection").field("event_log_path");
            FieldError::new(field, format!("unable to open file '{path}': {cause}"))
        })
    }

    /// Whether a worker takes a cluster in when it first uses it.
    pub(crate) fn defers_clusters(&self) -> bool {
        self.message.cluster_manager.as_ref().is_some_and(|manager| manager.enable_deferred_cluster_creation)
    }

    /// The clusters of gRPC services that are called from the start, each with the field that names it.
    pub(crate) fn service_clusters(&self) -> Vec<(FieldPath, &str)> {
        let root = FieldPath::root();
        let reports = self.load_reports.as_ref().map(|service| {
            (grpc_cluster(root.clone().field("cluster_manager").field("load_stats_config")), service.cluster.as_str())
        });
        let ads = self.ads.as_ref().map(|ads| {
            (grpc_cluster(root.clone().field("dynamic_resources").field("ads_config")), ads.service.cluster.as_str())
        });
        reports.into_iter().chain(ads).collect()
    }

    /// What is said of the version in `server.version`.
    pub(crate) fn version_override(&self) -> Option<u64> {
        self.message.stats_server_version_override.as_ref().map(|value| value.value)
    }

    /// Options of the admin interface's socket.
    pub(crate) fn admin_socket_options(&self) -> Vec<SocketOption> {
        self.message.admin.as_ref().map_or_else(Vec::new, |admin| values::socket_options(&admin.socket_options))
    }

    pub(crate) fn admin_message(&self) -> proto::Admin {
        self.message.admin.clone().unwrap_or_default()
    }

    pub(crate) fn listeners(&self) -> &[Listener] {
        self.message.static_resources.as_ref().map_or(&[], |resources| &resources.listeners)
    }

    pub(crate) fn secrets(&self) -> &[Secret] {
        self.message.static_resources.as_ref().map_or(&[], |resources| &resources.secrets)
    }

    pub(crate) fn clusters(&self) -> &[Cluster] {
        self.message.static_resources.as_ref().map_or(&[], |resources| &resources.clusters)
    }

    /// The safe defaults that change what this configuration does, each with the field where it acts.
    #[must_use]
    pub fn changed_defaults(&self, defaults: Defaults) -> Vec<String> {
        const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let mut changed = Vec::new();
        for (index, listener) in self.listeners().iter().enumerate() {
            for (chain_index, chain) in listener.filter_chains.iter().enumerate() {
                for (filter_index, filter) in chain.filters.iter().enumerate() {
                    let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { continue };
                    if tidegate_xds::any::type_name(&config.type_url) != Some(HCM) {
                        continue;
                    }
                    let Ok(hcm) = tidegate_xds::any::unpack(config, &FieldPath::root()) else { continue };
                    let place = format!(
                        "static_resources.listeners[{index}].filter_chains[{chain_index}].filters[{filter_index}]"
                    );
                    let here = super::http_connection_manager::changed_defaults(&hcm, defaults);
                    changed.extend(here.into_iter().map(|what| format!("{place}: {what}")));
                }
            }
        }
        changed
    }

    /// Gives an error its place in the file.
    pub(crate) fn place(&self, errors: &mut [FieldError]) {
        if let Some(source) = &self.source {
            source.place(errors);
        }
    }
}

fn plain_context(needs: &mut Needs, defaults: Defaults) -> CompileContext<'_> {
    let stats = tidegate_stats::Store::new().root();
    CompileContext { resource: "bootstrap", path: FieldPath::root(), defaults, stats, needs }
}

/// `dynamic_resources`.
#[derive(Default)]
struct Dynamic {
    lds: Option<ConfigSource>,
    cds: Option<ConfigSource>,
    lds_collection: Option<Arc<str>>,
    cds_collection: Option<Arc<str>>,
    ads: Option<ControlPlane>,
}

fn compile_sources(
    message: &proto::Bootstrap,
    node: &Node,
    known: &Known,
    context: &mut CompileContext<'_>,
) -> Result<(Option<ListenAddress>, Dynamic), FieldError> {
    let admin = match message.admin.as_ref().and_then(|admin| admin.address.as_ref()) {
        Some(address) => Some(context.within("admin", |context| {
            context.within("address", |context| values::listen_address(Some(address), context))
        })?),
        None => None,
    };
    let parameters = node_parameters(&message.node_context_params, node, context)?;
    let Some(dynamic) = &message.dynamic_resources else { return Ok((admin, Dynamic::default())) };
    context.within("dynamic_resources", |context| {
        let mut source = |field: &str, source: Option<&_>| match source {
            Some(source) => context.within(field, |context| config_source(source, known, context)).map(Some),
            None => Ok(None),
        };
        let lds = source("lds_config", dynamic.lds_config.as_ref())?;
        let cds = source("cds_config", dynamic.cds_config.as_ref())?;
        let ads = match &dynamic.ads_config {
            Some(ads) => Some(context.within("ads_config", |context| control_plane(ads, context))?),
            None => None,
        };
        let collection = |field, locator, kind: Kind, source: &Option<ConfigSource>| {
            collection(field, locator, kind.message(), source.as_ref(), &parameters, context)
        };
        let (lds_locator, cds_locator) = (&dynamic.lds_resources_locator, &dynamic.cds_resources_locator);
        let lds_collection = collection("lds_resources_locator", lds_locator, Kind::Listener, &lds)?;
        let cds_collection = collection("cds_resources_locator", cds_locator, Kind::Cluster, &cds)?;
        Ok((admin, Dynamic { lds, cds, lds_collection, cds_collection, ads }))
    })
}

/// `cluster_manager.load_stats_config`. A stream of load reports has one dialect, whichever of the two is named, and goes by the
/// third version unless the second is asked for by its name.
fn load_reports(
    message: &proto::Bootstrap,
    context: &mut CompileContext<'_>,
) -> Result<Option<GrpcService>, FieldError> {
    let manager = message.cluster_manager.as_ref();
    let Some(source) = manager.and_then(|manager| manager.load_stats_config.as_ref()) else { return Ok(None) };
    context.within("cluster_manager", |context| {
        context.within("load_stats_config", |context| {
            if source.transport_api_version() != core::ApiVersion::Auto {
                check_version(source, context)?;
            }
            control_plane(source, context).map(|control_plane| Some(control_plane.service))
        })
    })
}

fn log_pattern(message: &proto::Bootstrap, context: &CompileContext<'_>) -> Result<Option<Pattern>, FieldError> {
    use proto::bootstrap::application_log_config::log_format::LogFormat as Form;
    let format =
        message.application_log_config.as_ref().and_then(|config| config.log_format.as_ref()?.log_format.as_ref());
    match format {
        None => Ok(None),
        Some(Form::TextFormat(pattern)) => Ok(Some(Pattern::text(pattern))),
        Some(Form::JsonFormat(template)) => {
            let mut template =
                tidegate_xds::to_json("google.protobuf.Struct", &prost::Message::encode_to_vec(template));
            // A message's map has no order; two starts are to write the same lines.
            template.sort_all_objects();
            let refused = |reason| context.error_at("application_log_config.log_format.json_format", reason);
            Pattern::json(&template).map(Some).map_err(refused)
        }
    }
}

fn in_resource(name: &str, errors: Vec<FieldError>) -> Vec<FieldError> {
    errors.into_iter().map(|error| error.in_resource(name)).collect()
}

/// The clusters of a bootstrap that need no control plane.
fn primary_clusters(message: &proto::Bootstrap) -> BTreeSet<String> {
    use tidegate_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType as Discovery, DiscoveryType};
    let is_eds = |cluster: &Cluster| match &cluster.cluster_discovery_type {
        Some(Discovery::Type(kind)) => *kind == DiscoveryType::Eds as i32,
        Some(Discovery::ClusterType(custom)) => custom.name == "envoy.cluster.eds",
        None => false,
    };
    let clusters = message.static_resources.iter().flat_map(|resources| &resources.clusters);
    clusters.filter(|cluster| !is_eds(cluster)).map(|cluster| cluster.name.clone()).collect()
}

fn grpc_cluster(api_config_source: FieldPath) -> FieldPath {
    api_config_source.field("grpc_services").index(0).field("envoy_grpc").field("cluster_name")
}

/// The file that a source names, if it names one.
pub(crate) fn file_of(source: &ConfigSource) -> Option<PathBuf> {
    match source {
        ConfigSource::File { path, .. } => Some(path.clone()),
        ConfigSource::Ads(_) | ConfigSource::Stream(..) | ConfigSource::Rest(..) => None,
    }
}
