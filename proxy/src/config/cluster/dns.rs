//! DNS clusters: STRICT_DNS, LOGICAL_DNS and `envoy.cluster.dns`. Which resolver answers them is compiled in `resolver`.

use std::time::Duration;

use tidegate_filters::context::{CompileContext, Defaults};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily as LegacyFamily;
use tidegate_xds::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use tidegate_xds::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use tidegate_xds::pb::google::protobuf::Duration as DurationProto;

use super::assignment::compile_names;
use super::resolver;
use super::values::duration;
use crate::cluster::dns::{DnsOptions, LookupFamily, ResolverConfig};
use crate::cluster::endpoint::{Assignment, Name};
use crate::cluster::options::{Discovery, Dns};

/// `type: STRICT_DNS` and `LOGICAL_DNS`, with the cluster's own DNS fields.
#[expect(deprecated, reason = "Envoy 1.40 reads them")]
pub(super) fn compile(
    proto: &Cluster,
    single_endpoint: bool,
    default_resolver: &ResolverConfig,
    context: &mut CompileContext<'_>,
) -> Result<Discovery, FieldError> {
    let family = match LegacyFamily::try_from(proto.dns_lookup_family) {
        Ok(LegacyFamily::V4Only) => LookupFamily::V4Only,
        Ok(LegacyFamily::V6Only) => LookupFamily::V6Only,
        Ok(LegacyFamily::V4Preferred) => LookupFamily::V4Preferred,
        Ok(LegacyFamily::All) => LookupFamily::All,
        Ok(LegacyFamily::Auto) | Err(_) => LookupFamily::Auto,
    };
    let failure = proto.dns_failure_refresh_rate.as_ref();
    let failure = failure.map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref()));
    let rates =
        Rates { refresh: proto.dns_refresh_rate.as_ref(), failure, minimum: None, jitter: proto.dns_jitter.as_ref() };
    let mut options = rates.compile(context)?;
    options.family = family;
    options.respect_ttl = proto.respect_dns_ttl;
    options.resolver = resolver::of_cluster(proto, default_resolver, context)?;
    discovery(proto, single_endpoint, options, context)
}

/// `cluster_type: envoy.cluster.dns`: the cluster's own DNS fields do not count.
pub(super) fn compile_typed(
    proto: &Cluster,
    config: &DnsCluster,
    default_resolver: &ResolverConfig,
    context: &mut CompileContext<'_>,
) -> Result<Discovery, FieldError> {
    let options = context.within("cluster_type.typed_config", |context| {
        let failure = config.dns_failure_refresh_rate.as_ref();
        let rates = Rates {
            refresh: config.dns_refresh_rate.as_ref(),
            failure: failure.map(|rate| (rate.base_interval.as_ref(), rate.max_interval.as_ref())),
            minimum: config.dns_min_refresh_rate.as_ref(),
            jitter: config.dns_jitter.as_ref(),
        };
        let mut options = rates.compile(context)?;
        options.family = match DnsLookupFamily::try_from(config.dns_lookup_family) {
            Ok(DnsLookupFamily::V4Only) => LookupFamily::V4Only,
            Ok(DnsLookupFamily::V6Only) => LookupFamily::V6Only,
            Ok(DnsLookupFamily::V4Preferred) => LookupFamily::V4Preferred,
            Ok(DnsLookupFamily::All) => LookupFamily::All,
            Ok(DnsLookupFamily::Unspecified | DnsLookupFamily::Auto) | Err(_) => LookupFamily::Auto,
        };
        options.respect_ttl = config.respect_dns_ttl;
        options.resolver = match &config.typed_dns_resolver_config {
            Some(typed) => resolver::typed(typed, context)?,
            None => default_resolver.clone(),
        };
        Ok(options)
    })?;
    discovery(proto, config.all_addresses_in_single_endpoint, options, context)
}

fn discovery(
    proto: &Cluster,
    single_endpoint: bool,
    options: DnsOptions,
    context: &mut CompileContext<'_>,
) -> Result<Discovery, FieldError> {
    let targets = match &proto.load_assignment {
        Some(assignment) => context.within("load_assignment", |context| compile_names(assignment, context))?,
        None => Assignment::default(),
    };
    if !single_endpoint {
        return Ok(Discovery::StrictDns(Box::new(Dns { targets, options })));
    }
    if !is_single(&targets) {
        let reason = "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint";
        return Err(context.error_at("load_assignment", reason));
    }
    Ok(Discovery::LogicalDns(Box::new(Dns { targets, options })))
}

fn is_single(targets: &Assignment<Name>) -> bool {
    matches!(targets.localities.as_slice(), [locality] if locality.endpoints.len() == 1)
}

/// How often, as both forms say it.
struct Rates<'a> {
    refresh: Option<&'a DurationProto>,
    /// Base and maximum.
    failure: Option<(Option<&'a DurationProto>, Option<&'a DurationProto>)>,
    minimum: Option<&'a DurationProto>,
    jitter: Option<&'a DurationProto>,
}

impl Rates<'_> {
    fn compile(&self, context: &CompileContext<'_>) -> Result<DnsOptions, FieldError> {
        let default = DnsOptions::default();
        let failure_refresh = match self.failure {
            None => None,
            Some((base, max)) => {
                let field = "dns_failure_refresh_rate";
                let base = duration(base, field, context)?.unwrap_or(default.refresh_rate);
                let max = duration(max, field, context)?.unwrap_or(base * 10);
                if max < base {
                    let reason = "must have max_interval greater than or equal to the base_interval";
                    return Err(context.error_at(field, reason));
                }
                Some((base, max))
            }
        };
        Ok(DnsOptions {
            refresh_rate: duration(self.refresh, "dns_refresh_rate", context)?.unwrap_or(default.refresh_rate),
            failure_refresh,
            min_refresh_rate: duration(self.minimum, "dns_min_refresh_rate", context)?
                .unwrap_or(default.min_refresh_rate),
            jitter: duration(self.jitter, "dns_jitter", context)?.unwrap_or(Duration::ZERO),
            empty_on_no_records: context.defaults == Defaults::Envoy,
            ..default
        })
    }
}
