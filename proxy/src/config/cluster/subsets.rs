//! `LbSubsetConfig` and the typed `Subset`, which say the same in two messages.

use std::sync::Arc;

use tidegate_filters::context::CompileContext;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use tidegate_xds::pb::envoy::config::cluster::v3::cluster::lb_subset_config::LbSubsetSelector as LegacySelector;
use tidegate_xds::pb::envoy::extensions::load_balancing_policies::subset::v3::Subset;
use tidegate_xds::pb::envoy::extensions::load_balancing_policies::subset::v3::subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy;
use tidegate_xds::pb::envoy::extensions::load_balancing_policies::subset::v3::subset::{
    LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
};

use super::values::object;
use crate::cluster::lb::{Balancing, Fallback, MetadataMatch, Selector, SelectorFallback, SubsetConfig};

/// The old message as the new one, which has the same fields and enum values.
pub(super) fn typed(proto: &LbSubsetConfig) -> Subset {
    let selector = |selector: &LegacySelector| LbSubsetSelector {
        keys: selector.keys.clone(),
        single_host_per_subset: selector.single_host_per_subset,
        fallback_policy: selector.fallback_policy,
        fallback_keys_subset: selector.fallback_keys_subset.clone(),
    };
    Subset {
        fallback_policy: proto.fallback_policy,
        default_subset: proto.default_subset.clone(),
        subset_selectors: proto.subset_selectors.iter().map(selector).collect(),
        allow_redundant_keys: false,
        locality_weight_aware: proto.locality_weight_aware,
        scale_locality_weight: proto.scale_locality_weight,
        panic_mode_any: proto.panic_mode_any,
        list_as_any: proto.list_as_any,
        metadata_fallback_policy: proto.metadata_fallback_policy,
        subset_lb_policy: None,
    }
}

/// Divides a cluster; without selectors there is nothing to divide, as in Envoy.
pub(super) fn divide(
    mut balancing: Balancing,
    proto: &Subset,
    context: &mut CompileContext<'_>,
) -> Result<Balancing, FieldError> {
    if proto.subset_selectors.is_empty() {
        return Ok(balancing);
    }
    if proto.locality_weight_aware && !balancing.locality_weighted {
        let reason = "locality weight aware subset LB requires that a locality_weighted_lb_config be set";
        return Err(context.error_at("locality_weight_aware", reason));
    }
    let mut selectors = Vec::with_capacity(proto.subset_selectors.len());
    for (index, of) in proto.subset_selectors.iter().enumerate() {
        selectors.push(context.within_item("subset_selectors", index, |context| selector(of, context))?);
    }
    let fallback_list = LbSubsetMetadataFallbackPolicy::FallbackList as i32;
    balancing.subsets = Some(Arc::new(SubsetConfig {
        selectors,
        fallback: match LbSubsetFallbackPolicy::try_from(proto.fallback_policy) {
            Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Fallback::Any,
            Ok(LbSubsetFallbackPolicy::DefaultSubset) => Fallback::Default,
            Ok(LbSubsetFallbackPolicy::NoFallback) | Err(_) => Fallback::None,
        },
        default_subset: proto
            .default_subset
            .as_ref()
            .map(|values| MetadataMatch::new(&object(values)))
            .unwrap_or_default(),
        locality_weight_aware: proto.locality_weight_aware,
        scale_locality_weight: proto.scale_locality_weight,
        panic_mode_any: proto.panic_mode_any,
        list_as_any: proto.list_as_any,
        metadata_fallback_list: proto.metadata_fallback_policy == fallback_list,
        allow_redundant_keys: proto.allow_redundant_keys,
    }));
    Ok(balancing)
}

fn selector(proto: &LbSubsetSelector, context: &CompileContext<'_>) -> Result<Selector, FieldError> {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        names
    };
    let (keys, fallback_keys) = (sorted(&proto.keys), sorted(&proto.fallback_keys_subset));
    let policy = LbSubsetSelectorFallbackPolicy::try_from(proto.fallback_policy);
    let by_keys = policy == Ok(LbSubsetSelectorFallbackPolicy::KeysSubset);
    let field = "fallback_keys_subset";
    if !by_keys && !fallback_keys.is_empty() {
        return Err(context.error_at(field, "can be set only for KEYS_SUBSET fallback_policy"));
    }
    if by_keys && fallback_keys.is_empty() {
        return Err(context.error_at(field, "cannot be empty"));
    }
    if by_keys && fallback_keys.iter().any(|key| !keys.contains(key)) {
        return Err(context.error_at(field, "must be a subset of selector keys"));
    }
    if by_keys && fallback_keys == keys {
        return Err(context.error_at(field, "cannot be equal to keys"));
    }
    Ok(Selector {
        keys,
        fallback: match policy {
            Ok(LbSubsetSelectorFallbackPolicy::NoFallback) => Some(SelectorFallback::To(Fallback::None)),
            Ok(LbSubsetSelectorFallbackPolicy::AnyEndpoint) => Some(SelectorFallback::To(Fallback::Any)),
            Ok(LbSubsetSelectorFallbackPolicy::DefaultSubset) => Some(SelectorFallback::To(Fallback::Default)),
            Ok(LbSubsetSelectorFallbackPolicy::KeysSubset) => Some(SelectorFallback::Keys(fallback_keys)),
            Ok(LbSubsetSelectorFallbackPolicy::NotDefined) | Err(_) => None,
        },
        single_host: proto.single_host_per_subset,
    })
}
