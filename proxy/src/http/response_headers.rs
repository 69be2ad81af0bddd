//! What the connection manager does to a response's headers last (Envoy's `mutateResponseHeaders` and what surrounds
//! it): date, server, hop-by-hop, request id, via. It must not know where the response came from.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, SERVER, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderValue, StatusCode};
use tidegate_filters::http::{RequestHead, ResponseHead};

use super::headers::{KEEP_ALIVE, PROXY_CONNECTION, X_ENVOY_FORCE_TRACE, X_REQUEST_ID};
use super::options::{HttpConnectionManager, ServerHeader};
use super::request_headers::{append_to_list, is_upgrade};

/// Finishes `head` for the client. `request` is absent when its head could not be decoded.
pub(crate) fn finish(hcm: &HttpConnectionManager, request: Option<&RequestHead>, head: &mut ResponseHead) {
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
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = seconds / 86_400;
    let of_day = seconds % 86_400;
    let (year, month, day) = civil(days);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[(month - 1) as usize],
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// Year, month and day of a day since 1970: Howard Hinnant's civil-from-days.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
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
