//! `GrpcService` -> a service behind a cluster, and how long to wait before its stream is opened again.
//! It must not know what is called.

use std::time::Duration;

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate_filters::context::{CompileContext, GrpcService, Waits};
use tidegate_filters::format::Format;
use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use tidegate_xds::{Coverage, FieldError};

use super::values::duration;

const OF_CALLS: &str = "of calls, not of streams";

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.core.v3.GrpcService",
        enforced: &["envoy_grpc", "google_grpc", "initial_metadata"],
        listed: &[("timeout", "of single calls; a stream has no deadline")],
    },
    Coverage {
        message: "envoy.config.core.v3.GrpcService.EnvoyGrpc",
        enforced: &["cluster_name", "authority", "retry_policy", "max_receive_message_length", "skip_envoy_headers"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.RetryPolicy",
        enforced: &["retry_back_off"],
        listed: &[
            ("num_retries", "a stream is opened again for ever"),
            ("retry_on", OF_CALLS),
            ("retry_priority", OF_CALLS),
            ("retry_host_predicate", OF_CALLS),
            ("host_selection_retry_max_attempts", OF_CALLS),
        ],
    },
    Coverage { message: "envoy.config.core.v3.HeaderValue", enforced: &["key", "value", "raw_value"], listed: &[] },
];

/// Refused as a whole, with the way out, wherever it stands.
pub(crate) const OPAQUE: &[&str] = &["envoy.config.core.v3.GrpcService.GoogleGrpc"];

/// A gRPC service behind a cluster.
///
/// # Errors
/// `google_grpc`, which has a transport of its own, and headers that are none.
pub(crate) fn grpc_service(
    service: &core::GrpcService,
    context: &mut CompileContext<'_>,
) -> Result<GrpcService, FieldError> {
    let metadata = metadata(&service.initial_metadata, context)?;
    match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => context.within("envoy_grpc", |context| {
            let authority = if grpc.authority.is_empty() { &grpc.cluster_name } else { &grpc.authority };
            let authority =
                HeaderValue::from_str(authority).map_err(|_| context.error_at("authority", "not a header value"))?;
            Ok(GrpcService {
                cluster: grpc.cluster_name.clone(),
                authority,
                metadata,
                max_message_bytes: grpc.max_receive_message_length.map_or(usize::MAX, |most| most.value as usize),
                envoy_headers: !grpc.skip_envoy_headers,
            })
        }),
        Some(TargetSpecifier::GoogleGrpc(google)) => {
            let reason = format!(
                "not supported yet: google_grpc; use envoy_grpc with a cluster of the same address ('{}')",
                google.target_uri
            );
            Err(context.error_at("google_grpc", reason))
        }
        None => Err(context.error("a target is required")),
    }
}

/// `retry_policy.retry_back_off`: none is Envoy's 500 ms to 30 s.
///
/// # Errors
/// A longest wait that is shorter than the first.
pub(super) fn waits(service: &core::GrpcService, context: &CompileContext<'_>) -> Result<Waits, FieldError> {
    let policy = match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => grpc.retry_policy.as_ref(),
        _ => None,
    };
    let Some(back_off) = policy.and_then(|policy| policy.retry_back_off.as_ref()) else { return Ok(Waits::default()) };
    // Envoy counts in whole milliseconds.
    let whole = |time: Duration| Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let first = whole(back_off.base_interval.as_ref().map(duration).unwrap_or_default());
    let longest = back_off.max_interval.as_ref().map_or(first.saturating_mul(10), |longest| whole(duration(longest)));
    if longest < first {
        let field = "envoy_grpc.retry_policy.retry_back_off.max_interval";
        return Err(context.error_at(field, "max_interval must be greater than or equal to the base_interval"));
    }
    Ok(Waits { first, longest })
}

/// What goes with every call: the last of one name, and none that is empty. Operators are checked and go as they are
/// written, as in Envoy: no request stands behind a call of the proxy's own. (`raw_value`, which Envoy leaves out, goes.)
fn metadata(headers: &[core::HeaderValue], context: &mut CompileContext<'_>) -> Result<HeaderMap, FieldError> {
    let mut metadata = HeaderMap::new();
    for (index, header) in headers.iter().enumerate() {
        let (name, value) = context.within_item("initial_metadata", index, |context| entry(header, context))?;
        if value.is_empty() {
            continue;
        }
        match metadata.entry(name) {
            Entry::Occupied(mut before) => drop(before.insert(value)),
            Entry::Vacant(place) => drop(place.insert(value)),
        }
    }
    Ok(metadata)
}

fn entry(header: &core::HeaderValue, context: &CompileContext<'_>) -> Result<(HeaderName, HeaderValue), FieldError> {
    if header.key.starts_with(':') || header.key.eq_ignore_ascii_case("host") {
        return Err(context.error_at("key", ":-prefixed or host headers may not be modified"));
    }
    let name =
        HeaderName::from_bytes(header.key.as_bytes()).map_err(|_| context.error_at("key", "not a header name"))?;
    Format::compile(&header.value).map_err(|error| context.error_at("value", error.to_string()))?;
    let bytes = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let value = HeaderValue::from_bytes(bytes).map_err(|_| context.error_at("value", "not a header value"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use tidegate_filters::context::{Defaults, Needs};
    use tidegate_stats::Store;
    use tidegate_xds::{FieldPath, Format, UnknownFields, any, audit};

    use super::*;
    use crate::config::registry::Registry;

    fn with<T>(text: &str, act: impl FnOnce(&core::GrpcService, &mut CompileContext<'_>) -> T) -> T {
        const MESSAGE: &str = "envoy.config.core.v3.GrpcService";
        let decoded = tidegate_xds::decode(MESSAGE, text.as_bytes(), Format::Yaml, UnknownFields::Reject).unwrap();
        let audited = audit(MESSAGE, &decoded.bytes, Registry::built_in().coverage());
        assert!(audited.unsupported.is_empty(), "{:?}", audited.unsupported);
        let service: core::GrpcService = any::decode(&decoded.bytes, &FieldPath::root()).unwrap();
        let mut needs = Needs::default();
        let mut context = CompileContext {
            resource: "a",
            path: FieldPath::root(),
            defaults: Defaults::Envoy,
            stats: Store::new().root(),
            needs: &mut needs,
        };
        act(&service, &mut context)
    }

    #[test]
    fn google_grpc_is_refused_with_a_way_out() {
        let error = with("{google_grpc: {target_uri: 'x:1', stat_prefix: g}}", |service, context| {
            grpc_service(service, context).unwrap_err().to_string()
        });
        assert!(error.contains("use envoy_grpc with a cluster of the same address ('x:1')"), "{error}");
    }

    #[test]
    fn headers_that_may_not_be_given_are_refused() {
        for (header, reason) in [
            ("{key: ':path', value: a}", ":-prefixed or host headers may not be modified"),
            ("{key: Host, value: a}", ":-prefixed or host headers may not be modified"),
            ("{key: a, value: '50%'}", "Couldn't find valid command"),
            ("{key: 'a b', value: a}", "not a header name"),
        ] {
            let text = format!("{{envoy_grpc: {{cluster_name: a}}, initial_metadata: [{header}]}}");
            let error = with(&text, |service, context| grpc_service(service, context).unwrap_err().to_string());
            assert!(error.contains("initial_metadata[0].") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn waits_are_as_the_policy_says() {
        let waits = |policy: &str| {
            let text = format!("{{envoy_grpc: {{cluster_name: a, retry_policy: {{{policy}}}}}}}");
            with(&text, |service, context| waits(service, context).map_err(|error| error.to_string()))
        };
        let of = |first, longest| {
            let millis = Duration::from_millis;
            Ok(Waits { first: millis(first), longest: millis(longest) })
        };
        assert_eq!(waits(""), of(500, 30_000));
        assert_eq!(waits("retry_back_off: {base_interval: 0.02s}"), of(20, 200));
        assert_eq!(waits("retry_back_off: {base_interval: 0.02s, max_interval: 0.03s}, num_retries: 1"), of(20, 30));
        let wrong = waits("retry_back_off: {base_interval: 0.02s, max_interval: 0.01s}").unwrap_err();
        assert!(wrong.contains("max_interval must be greater than or equal to the base_interval"), "{wrong}");
    }
}
