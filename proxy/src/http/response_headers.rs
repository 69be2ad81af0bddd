//! What the connection manager does to a response's headers last (Envoy's `mutateResponseHeaders` and what surrounds
//! it): date, server, hop-by-hop, request id, via. It must not know where the response came from.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, SERVER, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderValue, StatusCode};
use tidegate_filters::http::{RequestHead, ResponseHead};
use tidegate_filters::stream_info::StreamInfo;

use super::headers::{KEEP_ALIVE, PROXY_CONNECTION, X_ENVOY_FORCE_TRACE, X_REQUEST_ID};
use super::options::{HttpConnectionManager, ServerHeader};
use super::proxy_status;
use super::request_headers::{append_to_list, is_upgrade};

/// Finishes `head` for the client. `request` is absent when its head could not be decoded.
pub(crate) fn finish(
    hcm: &HttpConnectionManager,
    request: Option<&RequestHead>,
    info: &StreamInfo,
    head: &mut ResponseHead,
) {
    head.headers.entry(DATE).or_insert_with(http_date);
    match hcm.server_header {
        ServerHeader::Overwrite => {
            head.headers.insert(SERVER, hcm.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            head.headers.entry(SERVER).or_insert_with(|| hcm.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    let upgrading = request.is_some_and(|request| is_upgrade(&request.headers)) && is_upgrade(&head.headers);
    if upgrading {
        let framed = head.headers.contains_key(TRANSFER_ENCODING) || head.headers.contains_key(CONTENT_LENGTH);
        if !framed && !head.status.is_informational() {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    } else {
        head.headers.remove(CONNECTION);
        head.headers.remove(UPGRADE);
    }
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.remove(&KEEP_ALIVE);
    head.headers.remove(&PROXY_CONNECTION);
    if let Some(request) = request
        && (hcm.always_set_request_id_in_response || request.headers.contains_key(&X_ENVOY_FORCE_TRACE))
        && let Some(id) = request.headers.get(&X_REQUEST_ID)
    {
        head.headers.insert(X_REQUEST_ID, id.clone());
    }
    if let Some(via) = &hcm.via {
        append_to_list(&mut head.headers, VIA, via);
    }
    if let Some(rules) = &hcm.proxy_status {
        proxy_status::write(rules, info, head);
    }
}

/// Whether a response with this status to this request carries no body whatever its headers say.
pub(crate) fn is_bodyless(request_method: &http::Method, status: StatusCode) -> bool {
    *request_method == http::Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || status.is_informational()
}

/// Now, as an HTTP date; rendered once a second and thread.
pub(crate) fn http_date() -> HeaderValue {
    thread_local! {
        static CACHED: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    CACHED.with_borrow_mut(|(second, value)| {
        if *second != now
            && let Ok(fresh) = HeaderValue::from_str(&render_date(now))
        {
            (*second, *value) = (now, fresh);
        }
        value.clone()
    })
}

/// IMF-fixdate (RFC 9110 §5.6.7) of a time in seconds since 1970.
fn render_date(seconds: u64) -> String {
    let time = DateTime::<Utc>::from(UNIX_EPOCH + Duration::from_secs(seconds));
    time.format("%a, %d %b %Y %T GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdates() {
        assert_eq!(render_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(render_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(render_date(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
    }
}
