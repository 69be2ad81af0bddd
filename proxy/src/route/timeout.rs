//! How long a request may take: a route's timeouts, and what a request's own headers make of them.
//! Pure: no timer runs here. Envoy: `FilterUtility::finalTimeout`, `refreshDurationTimeout`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::grpc_timeout;

const X_ENVOY_EXPECTED_RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const X_ENVOY_UPSTREAM_STREAM_DURATION_MS: HeaderName = HeaderName::from_static("x-envoy-upstream-stream-duration-ms");

/// A bound on time; `None` bounds nothing (Envoy's 0).
pub type Limit = Option<Duration>;

/// The timeouts of a route. A field that is itself optional was not set where it is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// `timeout`: from the end of the request to the end of the response, retries included.
    pub request: Limit,
    /// `idle_timeout`; else the connection manager's `stream_idle_timeout`.
    pub idle: Option<Limit>,
    /// `flush_timeout`; else the connection manager's, else the idle timeout.
    pub flush: Option<Limit>,
    /// `max_stream_duration`: with it the request timeout is no more, and `grpc-timeout` is rewritten.
    pub stream: Option<Box<StreamDuration>>,
    /// The deprecated `max_grpc_timeout` and `grpc_timeout_offset`.
    pub grpc: Option<Box<GrpcTimeout>>,
}

impl Timeouts {
    /// Envoy's 15 s.
    pub const DEFAULT_REQUEST: Duration = Duration::from_secs(15);
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { request: Some(Self::DEFAULT_REQUEST), idle: None, flush: None, stream: None, grpc: None }
    }
}

/// `RouteAction.MaxStreamDuration`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamDuration {
    pub max: Option<Limit>,
    pub grpc_header_max: Option<Limit>,
    pub grpc_header_offset: Option<Duration>,
}

/// The deprecated bounds of `grpc-timeout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcTimeout {
    pub max: Limit,
    pub offset: Option<Duration>,
}

/// How the router is configured, as far as timeouts see it.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimeoutOptions {
    /// Not with the router's `suppress_envoy_headers`.
    pub insert_expected: bool,
    /// The router's `respect_expected_rq_timeout`.
    pub respect_expected: bool,
    /// Whether the request is gRPC.
    pub grpc: bool,
    /// Whether a try that times out goes on beside the next.
    pub hedge_on_per_try_timeout: bool,
}

/// What bounds one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimeouts {
    pub global: Limit,
    pub per_try: Limit,
    pub per_try_idle: Limit,
}

impl Timeouts {
    /// The bounds of one request. Takes the headers that ask for others, and says upstream what it may expect.
    pub fn of_request(
        &self,
        (per_try, per_try_idle): (Limit, Limit),
        headers: &mut HeaderMap,
        options: TimeoutOptions,
    ) -> RequestTimeouts {
        let mut global = match (&self.stream, &self.grpc) {
            (Some(_), _) => None,
            (None, Some(grpc)) if options.grpc => grpc.of(headers),
            (None, _) => self.request,
        };
        let expected = if options.respect_expected { headers.get(&X_ENVOY_EXPECTED_RQ_TIMEOUT_MS) } else { None };
        match expected {
            Some(expected) => global = millis(expected).map_or(global, limit),
            None => {
                if let Some(asked) = headers.remove(&X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
                    global = millis(&asked).map_or(global, limit);
                }
            }
        }
        let asked = headers.remove(&X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
        let per_try = asked.as_ref().and_then(millis).map_or(per_try, limit);
        let per_try = per_try.filter(|per_try| global.is_none_or(|global| *per_try < global));
        let timeouts = RequestTimeouts { global, per_try, per_try_idle };
        self.announce(&timeouts, Duration::ZERO, headers, options);
        timeouts
    }

    /// Says upstream what it may expect, `elapsed` after the request began: again for each retry.
    pub fn announce(
        &self,
        timeouts: &RequestTimeouts,
        elapsed: Duration,
        headers: &mut HeaderMap,
        options: TimeoutOptions,
    ) {
        let whole = if options.hedge_on_per_try_timeout { None } else { timeouts.per_try };
        let Some(mut expected) = whole.or(timeouts.global) else { return };
        if let Some(global) = timeouts.global {
            // 0 would mean no limit.
            expected = global
                .checked_sub(elapsed)
                .filter(|left| !left.is_zero())
                .map_or(Duration::from_millis(1), |left| expected.min(left));
        }
        if options.insert_expected {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, HeaderValue::from(millis));
        }
        if options.grpc && self.stream.is_none() && self.grpc.is_some() {
            grpc_timeout::write(headers, expected);
        }
    }

    /// The bound of the whole stream, and what becomes of `grpc-timeout`. `default` is the connection manager's
    /// `max_stream_duration`. A bound of zero ends the stream at once.
    pub fn of_stream(&self, default: Limit, grpc: bool, headers: &mut HeaderMap) -> Limit {
        let stream = self.stream.as_ref();
        let by_header = stream.and_then(|stream| stream.grpc_header_max).zip(grpc_timeout::read(headers));
        let bound = match by_header {
            Some((max, asked)) => {
                let capped = max.map_or(asked, |max| asked.min(max));
                Some(capped.saturating_sub(stream.and_then(|stream| stream.grpc_header_offset).unwrap_or_default()))
            }
            None => stream.and_then(|stream| stream.max).unwrap_or(default),
        };
        if grpc && stream.is_some() {
            match bound {
                Some(bound) => grpc_timeout::write(headers, bound),
                // Envoy takes the header only where a timer had been set, which is the connection manager's.
                None if default.is_some() => {
                    headers.remove("grpc-timeout");
                }
                None => {}
            }
        }
        bound
    }
}

impl GrpcTimeout {
    fn of(&self, headers: &HeaderMap) -> Limit {
        let asked = grpc_timeout::read(headers).unwrap_or_default();
        let asked = limit(asked).map(|asked| match self.offset {
            Some(offset) if offset < asked => asked - offset,
            _ => asked,
        });
        match (asked, self.max) {
            (Some(asked), Some(max)) => Some(asked.min(max)),
            (asked, max) => asked.or(max),
        }
    }
}

/// Takes `x-envoy-upstream-stream-duration-ms`, which bounds the upstream stream in place of the cluster's option.
pub fn take_stream_duration(headers: &mut HeaderMap) -> Option<Limit> {
    let asked = headers.remove(&X_ENVOY_UPSTREAM_STREAM_DURATION_MS)?;
    millis(&asked).map(limit)
}

fn millis(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_millis)
}

fn limit(duration: Duration) -> Limit {
    if duration.is_zero() { None } else { Some(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: (Limit, Limit) = (None, None);

    fn ms(millis: u64) -> Limit {
        limit(Duration::from_millis(millis))
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn options() -> TimeoutOptions {
        TimeoutOptions { insert_expected: true, ..TimeoutOptions::default() }
    }

    fn expected(headers: &HeaderMap) -> Option<&str> {
        headers.get(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn headers_override_the_route_and_go() {
        let mut map =
            headers(&[("x-envoy-upstream-rq-timeout-ms", "200"), ("x-envoy-upstream-rq-per-try-timeout-ms", "50")]);
        let found = Timeouts::default().of_request((ms(70), ms(9)), &mut map, options());
        assert_eq!(found, RequestTimeouts { global: ms(200), per_try: ms(50), per_try_idle: ms(9) });
        assert_eq!(expected(&map), Some("50"));
        assert_eq!(map.len(), 1);
        let mut map = headers(&[("x-envoy-upstream-rq-timeout-ms", "x")]);
        assert_eq!(Timeouts::default().of_request(NONE, &mut map, options()).global, ms(15_000));
    }

    #[test]
    fn a_try_that_may_take_as_long_as_the_whole_is_not_bounded() {
        let mut map = HeaderMap::new();
        let timeouts = Timeouts { request: ms(100), ..Timeouts::default() };
        assert_eq!(timeouts.of_request((ms(100), None), &mut map, options()).per_try, None);
        let unbounded = Timeouts { request: None, ..Timeouts::default() };
        assert_eq!(unbounded.of_request((ms(100), None), &mut map, options()).per_try, ms(100));
    }

    #[test]
    fn hedging_announces_the_whole_timeout() {
        let hedging = TimeoutOptions { hedge_on_per_try_timeout: true, ..options() };
        let mut map = HeaderMap::new();
        let timeouts = Timeouts { request: ms(100), ..Timeouts::default() };
        let found = timeouts.of_request((ms(30), None), &mut map, hedging);
        assert_eq!(expected(&map), Some("100"));
        timeouts.announce(&found, Duration::from_millis(90), &mut map, options());
        assert_eq!(expected(&map), Some("10"));
        timeouts.announce(&found, Duration::from_millis(100), &mut map, options());
        assert_eq!(expected(&map), Some("1"));
    }

    #[test]
    fn an_expected_timeout_is_respected_where_the_router_says_so() {
        let both = [("x-envoy-expected-rq-timeout-ms", "7"), ("x-envoy-upstream-rq-timeout-ms", "200")];
        let respecting = TimeoutOptions { respect_expected: true, ..options() };
        let mut map = headers(&both);
        assert_eq!(Timeouts::default().of_request(NONE, &mut map, respecting).global, ms(7));
        let mut map = headers(&both);
        assert_eq!(Timeouts::default().of_request(NONE, &mut map, options()).global, ms(200));
    }

    #[test]
    fn the_deprecated_grpc_bound_caps_the_header() {
        let grpc = TimeoutOptions { grpc: true, ..options() };
        let route = |max, offset| Timeouts { grpc: Some(Box::new(GrpcTimeout { max, offset })), ..Timeouts::default() };
        for (max, offset, header, global, sent) in [
            (None, None, "100m", ms(100), "100m"),
            (ms(50), None, "100m", ms(50), "50m"),
            (ms(50), None, "0m", ms(50), "50m"),
            (None, ms(30), "100m", ms(70), "70m"),
            (None, ms(100), "100m", ms(100), "100m"),
        ] {
            let mut map = headers(&[("grpc-timeout", header)]);
            assert_eq!(route(max, offset).of_request(NONE, &mut map, grpc).global, global, "{header}");
            assert_eq!(map["grpc-timeout"], sent);
        }
        let mut map = HeaderMap::new();
        assert_eq!(route(None, None).of_request(NONE, &mut map, grpc).global, None);
    }

    #[test]
    fn a_stream_is_bounded_by_route_header_or_connection_manager() {
        let route = |stream| Timeouts { stream: Some(Box::new(stream)), ..Timeouts::default() };
        let max = |max: Limit| StreamDuration { max: Some(max), ..StreamDuration::default() };
        let header_max = |max, offset| StreamDuration {
            grpc_header_max: Some(max),
            grpc_header_offset: offset,
            ..StreamDuration::default()
        };
        let bound = |timeouts: &Timeouts, default, header: &'static str| {
            let mut map = headers(&[("grpc-timeout", header)]);
            let bound = timeouts.of_stream(default, true, &mut map);
            (bound, map.get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned()))
        };
        let sent = |text: &str| Some(text.to_owned());
        assert_eq!(bound(&Timeouts::default(), ms(9), "5m"), (ms(9), sent("5m")));
        assert_eq!(bound(&route(max(ms(7))), ms(9), "5m"), (ms(7), sent("7m")));
        assert_eq!(bound(&route(max(None)), ms(9), "5m"), (None, None));
        assert_eq!(bound(&route(max(None)), None, "5m"), (None, sent("5m")));
        assert_eq!(bound(&route(header_max(None, None)), None, "5m"), (ms(5), sent("5m")));
        assert_eq!(bound(&route(header_max(ms(3), None)), None, "5m"), (ms(3), sent("3m")));
        assert_eq!(bound(&route(header_max(None, ms(2))), None, "5m"), (ms(3), sent("3m")));
        assert_eq!(bound(&route(header_max(None, ms(9))), None, "5m"), (Some(Duration::ZERO), sent("0m")));
        let mut map = HeaderMap::new();
        let found = route(max(ms(7))).of_request(NONE, &mut map, options());
        assert_eq!(found.global, None);
    }
}
