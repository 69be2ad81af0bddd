//! Headers that the router would pass over where it cannot read them, and must refuse instead (`strict_check_headers`).
//! It must not know what they are for.

use http::{HeaderName, HeaderValue, StatusCode};
use tidegate_filters::http::{LocalReply, RequestHead};
use tidegate_filters::stream_info::ResponseFlags;

use crate::http::headers::{
    X_ENVOY_MAX_RETRIES, X_ENVOY_RETRY_GRPC_ON, X_ENVOY_RETRY_ON, X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
};
use crate::http::options::StrictHeader;
use crate::route::RetryOn;

/// The reply to the first header that cannot be read.
pub(super) fn check(headers: &[StrictHeader], head: &RequestHead) -> Result<(), Box<LocalReply>> {
    for header in headers {
        let name = name(*header);
        if let Some(value) = head.headers.get(&name).filter(|value| !is_valid(*header, value)) {
            let value = String::from_utf8_lossy(value.as_bytes());
            let details = format!("request_headers_failed_strict_check{{{name}}}");
            let reply = LocalReply::new(StatusCode::BAD_REQUEST, details)
                .body(format!("invalid header '{name}' with value '{value}'"))
                .flag(ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS)
                .close();
            return Err(Box::new(reply));
        }
    }
    Ok(())
}

fn name(header: StrictHeader) -> HeaderName {
    match header {
        StrictHeader::Timeout => X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
        StrictHeader::PerTryTimeout => X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
        StrictHeader::MaxRetries => X_ENVOY_MAX_RETRIES,
        StrictHeader::RetryOn => X_ENVOY_RETRY_ON,
        StrictHeader::RetryGrpcOn => X_ENVOY_RETRY_GRPC_ON,
    }
}

fn is_valid(header: StrictHeader, value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    match header {
        StrictHeader::RetryOn => RetryOn::parse_http(text).1,
        StrictHeader::RetryGrpcOn => RetryOn::parse_grpc(text).1,
        StrictHeader::Timeout | StrictHeader::PerTryTimeout | StrictHeader::MaxRetries => {
            text.trim().parse::<u64>().is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(header: StrictHeader, text: &'static str) -> bool {
        let mut head =
            RequestHead::new(http::Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/"));
        head.headers.insert(name(header), HeaderValue::from_static(text));
        check(&[header], &head).is_err()
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        use StrictHeader::*;
        for (header, text) in [(Timeout, "-1"), (PerTryTimeout, "1s"), (MaxRetries, ""), (RetryOn, "5xx,unavailable")] {
            assert!(refused(header, text), "{text}");
        }
        for (header, text) in [(Timeout, " 12 "), (MaxRetries, "+3"), (RetryOn, "5xx, reset"), (RetryGrpcOn, "")] {
            assert!(!refused(header, text), "{text}");
        }
    }

    #[test]
    fn the_reply_names_the_header() {
        let mut head =
            RequestHead::new(http::Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/"));
        head.headers.insert(X_ENVOY_MAX_RETRIES, HeaderValue::from_static("a"));
        let reply = check(&[StrictHeader::Timeout, StrictHeader::MaxRetries], &head).unwrap_err();
        assert_eq!(reply.details, "request_headers_failed_strict_check{x-envoy-max-retries}");
        assert_eq!(reply.body, "invalid header 'x-envoy-max-retries' with value 'a'");
    }
}
