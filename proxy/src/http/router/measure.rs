//! What `track_cluster_stats` asks for: how much of its time a try took, and how large its two messages were.
//! It must not know what becomes of a try.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tidegate_filters::http::{Body, Frame, RequestHead, ResponseHead};

use super::Shared;
use super::observed::{self, Observe};
use crate::cluster::Cluster;
use crate::cluster::pool::Begun;

/// The measures of one try; they are recorded when it is over.
pub(super) struct Measure {
    cluster: Arc<Cluster>,
    started: Instant,
    per_try: Option<Duration>,
    /// It ended by itself: where the whole request's time ran down, its own limit did not come into play.
    ended: bool,
    request: Fields,
    sent_bytes: Arc<AtomicU64>,
    response: Option<Fields>,
    received_bytes: u64,
}

/// The fields of a head, with Envoy's pseudo-headers among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fields {
    count: u64,
    bytes: u64,
}

impl Measure {
    /// `None` where the cluster does not ask for it.
    pub(super) fn begin(shared: &Shared<'_>, head: &RequestHead) -> Option<Box<Self>> {
        let stats = shared.cluster.stats();
        if stats.sizes().is_none() && stats.timeout_budgets().is_none() {
            return None;
        }
        Some(Box::new(Self {
            cluster: Arc::clone(&shared.cluster),
            started: Instant::now(),
            per_try: shared.timeouts.per_try,
            ended: false,
            request: Fields::of_request(head),
            sent_bytes: Arc::default(),
            response: None,
            received_bytes: 0,
        }))
    }

    /// The request's head as it goes up, and its body, counted.
    pub(super) fn connected(&mut self, head: &RequestHead, body: Body) -> Body {
        self.request = Fields::of_request(head);
        observed::count(body, &self.sent_bytes)
    }

    /// The try gave no response.
    pub(super) fn failed(&mut self) {
        self.ended = true;
    }

    /// The response has begun; from here on the measure goes with its body.
    pub(super) fn begun(mut self: Box<Self>, begun: &mut Begun) {
        let response = &mut begun.response;
        self.ended = true;
        self.response = Some(Fields::of_response(&response.head));
        response.body = observed::observe(response.body.take(), self);
    }
}

impl Observe for Measure {
    fn frame(&mut self, frame: &Frame) {
        self.received_bytes += observed::data_bytes(frame);
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        let stats = self.cluster.stats();
        if let Some(budgets) = stats.timeout_budgets().filter(|_| self.ended) {
            budgets
                .upstream_rq_timeout_budget_per_try_percent_used()
                .record(percent(self.started.elapsed(), self.per_try));
        }
        let Some(sizes) = stats.sizes() else { return };
        sizes.upstream_rq_headers_size().record(self.request.bytes);
        sizes.upstream_rq_headers_count().record(self.request.count);
        sizes.upstream_rq_body_size().record(self.sent_bytes.load(Relaxed));
        if let Some(response) = self.response {
            sizes.upstream_rs_headers_size().record(response.bytes);
            sizes.upstream_rs_headers_count().record(response.count);
            sizes.upstream_rs_body_size().record(self.received_bytes);
        }
    }
}

/// How much of the whole request's time was used, where its cluster asks for it.
pub(super) fn record_budget(cluster: &Cluster, since: Instant, limit: Option<Duration>) {
    if let Some(budgets) = cluster.stats().timeout_budgets() {
        budgets.upstream_rq_timeout_budget_percent_used().record(percent(since.elapsed(), limit));
    }
}

/// Nothing of an endless time is ever used.
fn percent(used: Duration, limit: Option<Duration>) -> u64 {
    let limit = limit.map_or(0, |limit| limit.as_millis());
    (used.as_millis() * 100).checked_div(limit).map_or(0, |percent| u64::try_from(percent).unwrap_or(u64::MAX))
}

impl Fields {
    fn of_request(head: &RequestHead) -> Self {
        let mut fields = Self::of(&head.headers);
        fields.add(":method", head.method.as_str().len());
        for (name, value) in [(":authority", &head.authority), (":path", &head.path), (":scheme", &head.scheme)] {
            if !value.is_empty() {
                fields.add(name, value.len());
            }
        }
        if let Some(protocol) = &head.protocol {
            fields.add(":protocol", protocol.len());
        }
        fields
    }

    fn of_response(head: &ResponseHead) -> Self {
        let mut fields = Self::of(&head.headers);
        fields.add(":status", 3);
        fields
    }

    fn of(headers: &HeaderMap) -> Self {
        let bytes = headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum();
        Self { count: headers.len() as u64, bytes }
    }

    fn add(&mut self, name: &str, value_bytes: usize) {
        self.count += 1;
        self.bytes += (name.len() + value_bytes) as u64;
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method, StatusCode};

    use super::*;

    #[test]
    fn heads_are_measured_with_their_pseudo_headers() {
        let value = HeaderValue::from_static;
        let mut request = RequestHead::new(Method::GET, value("example.com"), value("/a"));
        request.headers.insert("x-a", value("bc"));
        // :method GET, :authority example.com, :path /a, :scheme http, x-a bc.
        assert_eq!(Fields::of_request(&request), Fields { count: 5, bytes: 10 + 21 + 7 + 11 + 5 });
        let response = ResponseHead::new(StatusCode::OK);
        assert_eq!(Fields::of_response(&response), Fields { count: 1, bytes: 10 });
    }

    #[test]
    fn nothing_of_an_endless_time_is_used() {
        let second = Duration::from_secs(1);
        assert_eq!(percent(second, Some(4 * second)), 25);
        assert_eq!(percent(second, Some(second / 2)), 200);
        assert_eq!(percent(second, None), 0);
        assert_eq!(percent(second, Some(Duration::ZERO)), 0);
    }
}
