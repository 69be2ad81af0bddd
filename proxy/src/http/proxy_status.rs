//! `proxy-status` (RFC 9209, Envoy's `ProxyStatusUtils`): what went wrong, and with whom, in one response header.
//! It must not know why a stream has the flags that it has.

use http::{HeaderName, HeaderValue, StatusCode};
use tidegate_filters::http::ResponseHead;
use tidegate_filters::stream_info::{ResponseFlags, StreamInfo};

use super::options::ProxyStatus;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Error type and recommended status of the first of these flags that a stream has.
const ERRORS: [(ResponseFlags, &str, Option<StatusCode>); 24] = {
    use ResponseFlags as Flags;
    const NONE: Option<StatusCode> = None;
    const INTERNAL: Option<StatusCode> = Some(StatusCode::INTERNAL_SERVER_ERROR);
    const BAD_GATEWAY: Option<StatusCode> = Some(StatusCode::BAD_GATEWAY);
    const UNAVAILABLE: Option<StatusCode> = Some(StatusCode::SERVICE_UNAVAILABLE);
    const TIMEOUT: Option<StatusCode> = Some(StatusCode::GATEWAY_TIMEOUT);
    [
        (Flags::FAILED_LOCAL_HEALTH_CHECK, "destination_unavailable", UNAVAILABLE),
        (Flags::NO_HEALTHY_UPSTREAM, "destination_unavailable", UNAVAILABLE),
        (Flags::UPSTREAM_REQUEST_TIMEOUT, "http_response_timeout", TIMEOUT),
        (Flags::DURATION_TIMEOUT, "connection_timeout", TIMEOUT),
        (Flags::LOCAL_RESET, "connection_timeout", TIMEOUT),
        (Flags::UPSTREAM_REMOTE_RESET, "connection_terminated", BAD_GATEWAY),
        (Flags::UPSTREAM_CONNECTION_FAILURE, "connection_refused", BAD_GATEWAY),
        (Flags::UNAUTHORIZED_EXTERNAL_SERVICE, "connection_refused", BAD_GATEWAY),
        (Flags::UPSTREAM_CONNECTION_TERMINATION, "connection_terminated", BAD_GATEWAY),
        (Flags::OVERLOAD_MANAGER, "connection_limit_reached", UNAVAILABLE),
        (Flags::DROP_OVERLOAD, "connection_limit_reached", UNAVAILABLE),
        (Flags::UPSTREAM_OVERFLOW, "connection_limit_reached", UNAVAILABLE),
        (Flags::NO_ROUTE_FOUND, "destination_not_found", INTERNAL),
        (Flags::RATE_LIMITED, "connection_limit_reached", UNAVAILABLE),
        (Flags::RATE_LIMIT_SERVICE_ERROR, "connection_limit_reached", UNAVAILABLE),
        (Flags::UPSTREAM_RETRY_LIMIT_EXCEEDED, "destination_unavailable", UNAVAILABLE),
        (Flags::STREAM_IDLE_TIMEOUT, "http_response_timeout", TIMEOUT),
        (Flags::INVALID_ENVOY_REQUEST_HEADERS, "http_request_error", NONE),
        (Flags::DOWNSTREAM_PROTOCOL_ERROR, "http_request_error", NONE),
        (Flags::UPSTREAM_MAX_STREAM_DURATION_REACHED, "http_response_timeout", TIMEOUT),
        (Flags::NO_FILTER_CONFIG_FOUND, "proxy_configuration_error", INTERNAL),
        (Flags::UPSTREAM_PROTOCOL_ERROR, "http_protocol_error", BAD_GATEWAY),
        (Flags::NO_CLUSTER_FOUND, "destination_unavailable", UNAVAILABLE),
        (Flags::DNS_RESOLUTION_FAILED, "dns_error", BAD_GATEWAY),
    ]
};

/// Says in `head` what went wrong, if something did; its status may become the recommended one.
pub(super) fn write(rules: &ProxyStatus, info: &StreamInfo, head: &mut ResponseHead) {
    let Some((_, error, recommended)) = ERRORS.iter().find(|(flag, ..)| info.flags.contains(*flag)) else { return };
    let mut text = format!("{}; error={error}", rules.name);
    if rules.details
        && let Some(details) = &info.details
    {
        let flags = rules.response_flags.then(|| info.flags.short());
        let ended = info.connection_termination_details.as_deref().filter(|_| rules.connection_termination_details);
        let parts: Vec<&str> = [Some(details.as_ref()), ended, flags.as_deref()].into_iter().flatten().collect();
        text.push_str("; details=\"");
        parts.join("; ").chars().for_each(|c| push_escaped(c, &mut text));
        text.push('"');
    }
    // Those further away have spoken first, each in a line of its own or several in one: it is a list either way.
    if let Ok(value) = HeaderValue::try_from(text) {
        let earlier: Vec<&[u8]> = head.headers.get_all(&PROXY_STATUS).iter().map(HeaderValue::as_bytes).collect();
        let all = [&earlier[..], &[value.as_bytes()]].concat().join(&b", "[..]);
        head.headers.insert(PROXY_STATUS, HeaderValue::from_bytes(&all).unwrap_or(value));
    }
    if let Some(status) = recommended.filter(|_| rules.recommended_status) {
        head.status = status;
    }
}

fn push_escaped(c: char, text: &mut String) {
    if matches!(c, '"' | '\'' | '\\') {
        text.push('\\');
    }
    text.push(c);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, SystemTime};

    use tidegate_filters::connection::ConnectionInfo;
    use tidegate_filters::stream_info::Address;

    use super::*;

    fn written(rules: &ProxyStatus, flags: ResponseFlags) -> (u16, Option<String>) {
        let address = Address::Pipe("@test".into());
        let connection = ConnectionInfo::new(1, address.clone(), address, Instant::now());
        let mut info = StreamInfo::new(Arc::new(connection), Instant::now(), SystemTime::now());
        info.flags = flags;
        info.details = Some("a\"b".into());
        let mut head = ResponseHead::new(StatusCode::NOT_FOUND);
        write(rules, &info, &mut head);
        let value = head.headers.get(PROXY_STATUS).map(|value| value.to_str().unwrap().to_owned());
        (head.status.as_u16(), value)
    }

    #[test]
    fn the_first_flag_in_envoys_order_is_the_error() {
        let mut rules = ProxyStatus {
            name: "me".into(),
            details: true,
            connection_termination_details: true,
            response_flags: true,
            recommended_status: false,
        };
        let flags = ResponseFlags::NO_CLUSTER_FOUND | ResponseFlags::NO_HEALTHY_UPSTREAM;
        let expected = r#"me; error=destination_unavailable; details="a\"b; NC,UH""#;
        assert_eq!(written(&rules, flags), (404, Some(expected.to_owned())));
        assert_eq!(written(&rules, ResponseFlags::DELAY_INJECTED), (404, None));
        (rules.details, rules.recommended_status) = (false, true);
        let expected = "me; error=dns_error".to_owned();
        assert_eq!(written(&rules, ResponseFlags::DNS_RESOLUTION_FAILED), (502, Some(expected)));
        assert_eq!(written(&rules, ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS).0, 404);
    }

    #[test]
    fn those_who_spoke_before_are_kept() {
        let rules = ProxyStatus {
            name: "me".into(),
            details: false,
            connection_termination_details: false,
            response_flags: false,
            recommended_status: false,
        };
        let address = Address::Pipe("@test".into());
        let connection = ConnectionInfo::new(1, address.clone(), address, Instant::now());
        let mut info = StreamInfo::new(Arc::new(connection), Instant::now(), SystemTime::now());
        info.flags = ResponseFlags::DNS_RESOLUTION_FAILED;
        let mut head = ResponseHead::new(StatusCode::BAD_GATEWAY);
        for earlier in [&b"one"[..], b"t\xffwo"] {
            head.headers.append(PROXY_STATUS, HeaderValue::from_bytes(earlier).unwrap());
        }
        write(&rules, &info, &mut head);
        let lines: Vec<_> = head.headers.get_all(PROXY_STATUS).iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(lines, [b"one, t\xffwo, me; error=dns_error"]);
    }
}
