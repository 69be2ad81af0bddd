//! Retry and hedge policies. It must not know tries.

use http::StatusCode;
use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::HeaderMatcher;
use tidegate_xds::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate,
    retry_priority,
};
use tidegate_xds::pb::envoy::config::route::v3::{HedgePolicy as HedgeProto, RetryPolicy as RetryProto};
use tidegate_xds::pb::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use tidegate_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use tidegate_xds::{FieldError, any};

use super::{headers, values};
use crate::config::values::wrapped_u32;
use crate::route::{
    BackOff, HedgePolicy, HostPredicate, Limit, PreviousPriorities, RateLimitedBackOff, ResetFormat, RetryOn,
    RetryPolicy,
};

/// The least back-off: Envoy rounds shorter ones up.
const MILLISECOND: std::time::Duration = std::time::Duration::from_millis(1);
/// `rate_limited_retry_back_off.max_interval`, unless set.
const MAX_RESET: std::time::Duration = std::time::Duration::from_secs(300);

/// Compiles a retry policy.
pub(in crate::config) fn policy(
    proto: &RetryProto,
    context: &mut CompileContext<'_>,
) -> Result<RetryPolicy, FieldError> {
    let limit = |value, field| -> Result<Limit, FieldError> {
        Ok(values::duration(value, field, context)?.filter(|limit| !limit.is_zero()))
    };
    let per_try_timeout = limit(proto.per_try_timeout.as_ref(), "per_try_timeout")?;
    let per_try_idle_timeout = limit(proto.per_try_idle_timeout.as_ref(), "per_try_idle_timeout")?;
    let codes = proto.retriable_status_codes.iter().filter_map(|code| u16::try_from(*code).ok());
    let priority = match &proto.retry_priority {
        Some(priority) => Some(context.within("retry_priority", |context| previous_priorities(priority, context))?),
        None => None,
    };
    let rate_limited = match &proto.rate_limited_retry_back_off {
        Some(back_off) => {
            Some(context.within("rate_limited_retry_back_off", |context| rate_limited(back_off, context))?)
        }
        None => None,
    };
    Ok(RetryPolicy {
        on: RetryOn::parse(&proto.retry_on).0,
        retries: wrapped_u32(proto.num_retries.as_ref(), 1),
        per_try_timeout,
        per_try_idle_timeout,
        status_codes: codes.filter_map(|code| StatusCode::from_u16(code).ok()).collect(),
        headers: HeaderMatcher::compile_all(&proto.retriable_headers, "retriable_headers", context)?,
        request_headers: HeaderMatcher::compile_all(
            &proto.retriable_request_headers,
            "retriable_request_headers",
            context,
        )?,
        host_predicates: host_predicates(&proto.retry_host_predicate, context)?,
        host_attempts: match u32::try_from(proto.host_selection_retry_max_attempts) {
            Ok(0) | Err(_) => 1,
            Ok(attempts) => attempts,
        },
        priority,
        back_off: back_off(proto.retry_back_off.as_ref(), context)?,
        rate_limited,
        refresh_cluster: proto.refresh_cluster_on_retry,
    })
}

fn back_off(proto: Option<&RetryBackOff>, context: &mut CompileContext<'_>) -> Result<BackOff, FieldError> {
    let Some(proto) = proto else { return Ok(BackOff::default()) };
    context.within("retry_back_off", |context| {
        let base =
            values::duration(proto.base_interval.as_ref(), "base_interval", context)?.map(|base| base.max(MILLISECOND));
        let max =
            values::duration(proto.max_interval.as_ref(), "max_interval", context)?.map(|max| max.max(MILLISECOND));
        match (base, max) {
            (Some(base), Some(max)) if max < base => {
                Err(context.error_at("max_interval", "must be greater than or equal to the base_interval"))
            }
            _ => Ok(BackOff { base, max }),
        }
    })
}

fn rate_limited(
    proto: &RateLimitedRetryBackOff,
    context: &mut CompileContext<'_>,
) -> Result<RateLimitedBackOff, FieldError> {
    let mut names = Vec::with_capacity(proto.reset_headers.len());
    for (index, header) in proto.reset_headers.iter().enumerate() {
        let name =
            context.within_item("reset_headers", index, |context| headers::name("name", &header.name, context))?;
        let format = match ResetHeaderFormat::try_from(header.format) {
            Ok(ResetHeaderFormat::UnixTimestamp) => ResetFormat::UnixTimestamp,
            Ok(ResetHeaderFormat::Seconds) | Err(_) => ResetFormat::Seconds,
        };
        names.push((name, format));
    }
    let max = values::duration(proto.max_interval.as_ref(), "max_interval", context)?;
    Ok(RateLimitedBackOff { headers: names, max: max.map_or(MAX_RESET, |max| max.max(MILLISECOND)) })
}

fn host_predicates(
    predicates: &[RetryHostPredicate],
    context: &mut CompileContext<'_>,
) -> Result<Vec<HostPredicate>, FieldError> {
    let compile = |(index, predicate): (usize, &RetryHostPredicate)| {
        context.within_item("retry_host_predicate", index, |context| host_predicate(predicate, context))
    };
    predicates.iter().enumerate().map(compile).collect()
}

fn host_predicate(proto: &RetryHostPredicate, context: &CompileContext<'_>) -> Result<HostPredicate, FieldError> {
    let Some(retry_host_predicate::ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(context.error_at("typed_config", "is required"));
    };
    match any::type_name(&config.type_url) {
        Some("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate") => Ok(HostPredicate::Previous),
        Some("envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate") => Ok(HostPredicate::Canary),
        Some("envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig") => {
            let config: OmitHostMetadataConfig = any::unpack(config, &context.path.clone().field("typed_config"))?;
            let metadata = config.metadata_match.unwrap_or_default();
            Ok(HostPredicate::Metadata(
                metadata.filter_metadata.get("envoy.lb").map(values::object).unwrap_or_default(),
            ))
        }
        _ => Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url))),
    }
}

fn previous_priorities(proto: &RetryPriority, context: &CompileContext<'_>) -> Result<PreviousPriorities, FieldError> {
    let Some(retry_priority::ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(context.error_at("typed_config", "is required"));
    };
    if any::type_name(&config.type_url)
        != Some("envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig")
    {
        return Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url)));
    }
    let config: PreviousPrioritiesConfig = any::unpack(config, &context.path.clone().field("typed_config"))?;
    Ok(PreviousPriorities { update_frequency: u32::try_from(config.update_frequency).unwrap_or(1).max(1) })
}

/// Compiles a hedge policy.
pub(super) fn hedge(proto: &HedgeProto) -> HedgePolicy {
    HedgePolicy { on_per_try_timeout: proto.hedge_on_per_try_timeout }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::route::testing::{chosen, get, route_error, routes};
    use crate::route::{BackOff, HostPredicate, PreviousPriorities, RateLimitedBackOff, ResetFormat, RetryPolicy};

    fn route(policy: &str) -> String {
        format!("[{{match: {{prefix: /}}, route: {{cluster: c, retry_policy: {{{policy}}}}}}}]")
    }

    fn policy(text: &str) -> RetryPolicy {
        (*chosen(&routes(&route(text)), &get("/", &[])).forward().unwrap().retry).clone()
    }

    #[test]
    fn back_offs_are_at_least_a_millisecond() {
        let ms = |millis| Some(Duration::from_millis(millis));
        let back_off = |text: &str| policy(&format!("retry_on: 5xx, retry_back_off: {{{text}}}")).back_off;
        assert_eq!(back_off("base_interval: 0.0001s, max_interval: 0.0002s"), BackOff { base: ms(1), max: ms(1) });
        assert_eq!(back_off("base_interval: 2s"), BackOff { base: ms(2000), max: None });
        assert_eq!(
            route_error(&route("retry_back_off: {base_interval: 2s, max_interval: 1s}")),
            "routes[0].route.retry_policy.retry_back_off.max_interval: must be greater than or equal to the base_interval"
        );
        let limited =
            policy("rate_limited_retry_back_off: {reset_headers: [{name: X-R, format: UNIX_TIMESTAMP}]}").rate_limited;
        let headers = vec![(http::HeaderName::from_static("x-r"), ResetFormat::UnixTimestamp)];
        assert_eq!(limited, Some(RateLimitedBackOff { headers, max: Duration::from_secs(300) }));
    }

    #[test]
    fn extensions_go_by_type_url() {
        let typed = |name: &str, rest: &str| {
            format!("{{name: any, typed_config: {{'@type': type.googleapis.com/envoy.extensions.retry.{name}{rest}}}}}")
        };
        let hosts = [
            typed("host.previous_hosts.v3.PreviousHostsPredicate", ""),
            typed("host.omit_canary_hosts.v3.OmitCanaryHostsPredicate", ""),
            typed(
                "host.omit_host_metadata.v3.OmitHostMetadataConfig",
                ", metadata_match: {filter_metadata: {envoy.lb: {a: b}}}",
            ),
        ];
        let priority = typed("priority.previous_priorities.v3.PreviousPrioritiesConfig", ", update_frequency: 2");
        let found = policy(&format!("retry_host_predicate: [{}], retry_priority: {priority}", hosts.join(", ")));
        let metadata = serde_json::Map::from_iter([("a".to_owned(), "b".into())]);
        assert_eq!(
            found.host_predicates,
            [HostPredicate::Previous, HostPredicate::Canary, HostPredicate::Metadata(metadata)]
        );
        assert_eq!(found.priority, Some(PreviousPriorities { update_frequency: 2 }));
        assert_eq!(
            route_error(&route("retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]")),
            "routes[0].route.retry_policy.retry_host_predicate[0].typed_config: is required"
        );
    }

    #[test]
    fn an_unknown_condition_is_passed_over() {
        assert!(policy("retry_on: foo").on.is_never());
        assert_eq!((policy("num_retries: 0").retries, policy("").retries, policy("").host_attempts), (0, 1, 1));
    }
}
