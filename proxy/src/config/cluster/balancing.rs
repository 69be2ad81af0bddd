//! How a cluster balances: `load_balancing_policy`, or `lb_policy` with its fields; both give the same values.

use tidegate_filters::context::CompileContext;
use tidegate_filters::runtime::Keyed;
use tidegate_xds::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier as LegacyLocality;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::{CommonLbConfig, LbConfig, LbPolicy};
use tidegate_xds::pb::envoy::config::cluster::v3::{Cluster, cluster};
use tidegate_xds::pb::envoy::config::core::v3::RuntimeDouble;
use tidegate_xds::pb::envoy::extensions::load_balancing_policies as typed;
use tidegate_xds::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::LocalityConfigSpecifier;
use tidegate_xds::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig, LocalityLbConfig, SlowStartConfig,
};
use tidegate_xds::pb::google::protobuf::{Any, UInt32Value, UInt64Value};
use tidegate_xds::{FieldError, any, audit};

use super::subsets;
use super::values::{self, whole_percent};
use crate::cluster::lb::{Balancing, HashFunction, HashKey, HashOptions, LeastRequest, Maglev, Policy, RingHash};
use crate::config::registry::Registry;

const PREFIX: &str = "envoy.extensions.load_balancing_policies.";

/// Compiles whichever form the cluster uses.
pub(super) fn compile(proto: &Cluster, context: &mut CompileContext<'_>) -> Result<Balancing, FieldError> {
    let common = proto.common_lb_config.clone().unwrap_or_default();
    let mut balancing = match &proto.load_balancing_policy {
        Some(policy) => {
            refuse_mixture(proto, &common, context)?;
            context.within("load_balancing_policy", |context| first_supported(policy, context))?
        }
        None => legacy(proto, &common, context)?,
    };
    balancing.panic_threshold = whole_percent(common.healthy_panic_threshold.as_ref(), 50);
    Ok(balancing)
}

/// Old fields that have no meaning beside `load_balancing_policy`.
fn refuse_mixture(proto: &Cluster, common: &CommonLbConfig, context: &CompileContext<'_>) -> Result<(), FieldError> {
    if proto.lb_subset_config.is_some() {
        return Err(context.error_at("lb_subset_config", "cannot be combined with load_balancing_policy"));
    }
    if common.locality_config_specifier.is_some() || common.consistent_hashing_lb_config.is_some() {
        let reason = "load_balancing_policy cannot be combined with partial fields (zone_aware_lb_config, \
                      locality_weighted_lb_config, consistent_hashing_lb_config) of common_lb_config";
        return Err(context.error_at("common_lb_config", reason));
    }
    Ok(())
}

/// The first policy of the list that is supported, as the protocol says; the others are not looked into.
fn first_supported(policies: &LoadBalancingPolicy, context: &mut CompileContext<'_>) -> Result<Balancing, FieldError> {
    let mut passed_over = Vec::new();
    for (index, policy) in policies.policies.iter().enumerate() {
        let extension = policy.typed_extension_config.clone().unwrap_or_default();
        let config = extension.typed_config.unwrap_or_default();
        let compiled = context.within_item("policies", index, |context| {
            context.within("typed_extension_config", |context| {
                context.within("typed_config", |context| typed_policy(&config, context))
            })
        })?;
        match compiled {
            Some(balancing) => return Ok(balancing),
            None => passed_over.push(config.type_url),
        }
    }
    if let [only] = passed_over.as_slice() {
        return Err(context.error(format!("not supported yet: {only}")));
    }
    Err(context.error(format!("no supported load balancing policy among [{}]", passed_over.join(", "))))
}

fn typed_policy(config: &Any, context: &mut CompileContext<'_>) -> Result<Option<Balancing>, FieldError> {
    let Some(name) = any::type_name(&config.type_url) else {
        return Ok(None);
    };
    let Some(short) = name.strip_prefix(PREFIX) else {
        return Ok(None);
    };
    let path = context.path.clone();
    let balancing = match short {
        "round_robin.v3.RoundRobin" => {
            let proto: typed::round_robin::v3::RoundRobin = any::unpack(config, &path)?;
            refuse_slow_start(proto.slow_start_config.as_ref(), context)?;
            localities(proto.locality_lb_config.as_ref(), Policy::RoundRobin)
        }
        "random.v3.Random" => {
            let proto: typed::random::v3::Random = any::unpack(config, &path)?;
            localities(proto.locality_lb_config.as_ref(), Policy::Random)
        }
        "least_request.v3.LeastRequest" => {
            let proto: typed::least_request::v3::LeastRequest = any::unpack(config, &path)?;
            refuse_slow_start(proto.slow_start_config.as_ref(), context)?;
            let full_scan =
                proto.selection_method == typed::least_request::v3::least_request::SelectionMethod::FullScan as i32;
            let policy = least_request(proto.choice_count, proto.active_request_bias.as_ref(), full_scan);
            localities(proto.locality_lb_config.as_ref(), Policy::LeastRequest(policy))
        }
        "ring_hash.v3.RingHash" => {
            let proto: typed::ring_hash::v3::RingHash = any::unpack(config, &path)?;
            let weighted = proto.locality_weighted_lb_config.is_some();
            weighted_by_locality(weighted, Policy::RingHash(typed_ring_hash(&proto, context)?))
        }
        "maglev.v3.Maglev" => {
            let proto: typed::maglev::v3::Maglev = any::unpack(config, &path)?;
            let hash = hashing(proto.consistent_hashing_lb_config.as_ref());
            let weighted = proto.locality_weighted_lb_config.is_some();
            weighted_by_locality(weighted, Policy::Maglev(maglev(proto.table_size, hash, context)?))
        }
        "subset.v3.Subset" => {
            let proto: typed::subset::v3::Subset = any::unpack(config, &path)?;
            typed_subset(&proto, context)?
        }
        _ => return Ok(None),
    };
    audit_policy(name, config, context)?;
    Ok(Some(balancing))
}

/// Only the chosen policy of a list is held to what is supported.
/// The typed subset policy; its child chooses within a subset.
fn typed_subset(proto: &typed::subset::v3::Subset, context: &mut CompileContext<'_>) -> Result<Balancing, FieldError> {
    let child = proto.subset_lb_policy.clone().unwrap_or_default();
    let balancing = context.within("subset_lb_policy", |context| first_supported(&child, context))?;
    if balancing.subsets.is_some() {
        return Err(context.error_at("subset_lb_policy", "subset LB policy is not supported as child"));
    }
    subsets::divide(balancing, proto, context)
}

fn audit_policy(name: &str, config: &Any, context: &CompileContext<'_>) -> Result<(), FieldError> {
    let found = audit(name, &config.value, Registry::built_in().coverage());
    match found.unsupported.into_iter().next() {
        Some(error) => Err(error.under(&context.path).in_resource(context.resource)),
        None => Ok(()),
    }
}

fn localities(proto: Option<&LocalityLbConfig>, policy: Policy) -> Balancing {
    let mut balancing = Balancing { policy, ..Balancing::default() };
    match proto.and_then(|proto| proto.locality_config_specifier.as_ref()) {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => balancing.locality_weighted = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            balancing.fail_traffic_on_panic = zone.fail_traffic_on_panic;
        }
        None => {}
    }
    balancing
}

fn weighted_by_locality(weighted: bool, policy: Policy) -> Balancing {
    Balancing { policy, locality_weighted: weighted, ..Balancing::default() }
}

fn refuse_slow_start(proto: Option<&SlowStartConfig>, context: &CompileContext<'_>) -> Result<(), FieldError> {
    let window = proto.and_then(|proto| proto.slow_start_window.as_ref());
    match values::limit(window, "slow_start_config.slow_start_window", context)? {
        Some(_) => Err(context.error_at("slow_start_config.slow_start_window", "not supported yet: slow_start_window")),
        None => Ok(()),
    }
}

fn least_request(choices: Option<UInt32Value>, bias: Option<&RuntimeDouble>, full_scan: bool) -> LeastRequest {
    let choices = choices.map_or(2, |choices| choices.value);
    LeastRequest {
        choices: (!full_scan).then_some(choices),
        bias: bias.map_or(Keyed { key: None, default: 1.0 }, |bias| Keyed {
            key: (!bias.runtime_key.is_empty()).then(|| bias.runtime_key.as_str().into()),
            default: bias.default_value,
        }),
    }
}

fn hashing(proto: Option<&ConsistentHashingLbConfig>) -> HashOptions {
    proto
        .map_or(HashOptions::default(), |proto| hash_options(proto.use_hostname_for_hashing, proto.hash_balance_factor))
}

fn hash_options(use_hostname: bool, balance_factor: Option<UInt32Value>) -> HashOptions {
    HashOptions {
        key: if use_hostname { HashKey::Hostname } else { HashKey::Address },
        balance_factor: balance_factor.map(|factor| factor.value).filter(|&factor| factor > 0),
    }
}

fn typed_ring_hash(
    proto: &typed::ring_hash::v3::RingHash,
    context: &CompileContext<'_>,
) -> Result<RingHash, FieldError> {
    let hash = match &proto.consistent_hashing_lb_config {
        Some(hashing) => self::hashing(Some(hashing)),
        #[expect(deprecated, reason = "Envoy still reads the fields that stood here before")]
        None => hash_options(proto.use_hostname_for_hashing, proto.hash_balance_factor),
    };
    let murmur = proto.hash_function == typed::ring_hash::v3::ring_hash::HashFunction::MurmurHash2 as i32;
    ring_hash(proto.minimum_ring_size, proto.maximum_ring_size, murmur, hash, context)
}

fn ring_hash(
    minimum: Option<UInt64Value>,
    maximum: Option<UInt64Value>,
    murmur: bool,
    hash: HashOptions,
    context: &CompileContext<'_>,
) -> Result<RingHash, FieldError> {
    let default = RingHash::default();
    let minimum_ring_size = minimum.map_or(default.minimum_ring_size, |size| size.value);
    let maximum_ring_size = maximum.map_or(default.maximum_ring_size, |size| size.value);
    if minimum_ring_size > maximum_ring_size {
        let reason = format!("minimum_ring_size ({minimum_ring_size}) > maximum_ring_size ({maximum_ring_size})");
        return Err(context.error_at("minimum_ring_size", reason));
    }
    let function = if murmur { HashFunction::Murmur2 } else { HashFunction::XxHash };
    Ok(RingHash { minimum_ring_size, maximum_ring_size, function, hash })
}

fn maglev(size: Option<UInt64Value>, hash: HashOptions, context: &CompileContext<'_>) -> Result<Maglev, FieldError> {
    let size = size.map_or(u64::from(Maglev::default().table_size), |size| size.value);
    match u32::try_from(size) {
        Ok(table_size) if is_prime(table_size) => Ok(Maglev { table_size, hash }),
        _ => Err(context.error_at("table_size", "the table size of maglev must be a prime number")),
    }
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor: u32| !number.is_multiple_of(divisor))
}

/// `lb_policy`, its own configuration and `common_lb_config`.
fn legacy(proto: &Cluster, common: &CommonLbConfig, context: &mut CompileContext<'_>) -> Result<Balancing, FieldError> {
    let config = proto.lb_config.as_ref();
    let hash = common
        .consistent_hashing_lb_config
        .as_ref()
        .map_or(HashOptions::default(), |hash| hash_options(hash.use_hostname_for_hashing, hash.hash_balance_factor));
    let policy = match LbPolicy::try_from(proto.lb_policy) {
        Ok(LbPolicy::LeastRequest) => legacy_least_request(config, context)?,
        Ok(LbPolicy::RingHash) => Policy::RingHash(match config {
            Some(LbConfig::RingHashLbConfig(ring)) => {
                let murmur = ring.hash_function == cluster::ring_hash_lb_config::HashFunction::MurmurHash2 as i32;
                ring_hash(ring.minimum_ring_size, ring.maximum_ring_size, murmur, hash, context)?
            }
            _ => RingHash { hash, ..RingHash::default() },
        }),
        Ok(LbPolicy::Maglev) => {
            let size = match config {
                Some(LbConfig::MaglevLbConfig(maglev)) => maglev.table_size,
                _ => None,
            };
            Policy::Maglev(maglev(size, hash, context)?)
        }
        Ok(LbPolicy::Random) => Policy::Random,
        Ok(LbPolicy::RoundRobin) => {
            if let Some(LbConfig::RoundRobinLbConfig(round_robin)) = config {
                refuse_legacy_slow_start(round_robin.slow_start_config.as_ref(), context)?;
            }
            Policy::RoundRobin
        }
        Ok(LbPolicy::LoadBalancingPolicyConfig) => {
            return Err(context.error_at("load_balancing_policy", "field load_balancing_policy need to be set"));
        }
        Ok(LbPolicy::ClusterProvided) | Err(_) => {
            let reason = "cluster provided LB specified but the cluster did not provide one";
            return Err(context.error_at("lb_policy", reason));
        }
    };
    let mut balancing = Balancing { policy, ..Balancing::default() };
    match &common.locality_config_specifier {
        Some(LegacyLocality::LocalityWeightedLbConfig(_)) => balancing.locality_weighted = true,
        Some(LegacyLocality::ZoneAwareLbConfig(zone)) => balancing.fail_traffic_on_panic = zone.fail_traffic_on_panic,
        None => {}
    }
    match &proto.lb_subset_config {
        Some(subsets) => {
            let subsets = subsets::typed(subsets);
            context.within("lb_subset_config", |context| subsets::divide(balancing, &subsets, context))
        }
        None => Ok(balancing),
    }
}

fn legacy_least_request(config: Option<&LbConfig>, context: &CompileContext<'_>) -> Result<Policy, FieldError> {
    let Some(LbConfig::LeastRequestLbConfig(least)) = config else {
        return Ok(Policy::LeastRequest(LeastRequest::default()));
    };
    refuse_legacy_slow_start(least.slow_start_config.as_ref(), context)?;
    Ok(Policy::LeastRequest(least_request(least.choice_count, least.active_request_bias.as_ref(), false)))
}

fn refuse_legacy_slow_start(
    proto: Option<&cluster::SlowStartConfig>,
    context: &CompileContext<'_>,
) -> Result<(), FieldError> {
    let window = proto.and_then(|proto| proto.slow_start_window);
    refuse_slow_start(Some(&SlowStartConfig { slow_start_window: window, ..Default::default() }), context)
}
