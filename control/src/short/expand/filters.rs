//! The filters that all listeners have, and what hosts and routes say to them. They do nothing where nobody says anything, so
//! that a limit that comes or goes changes routes, and no listener. It must not know which route is which.

use serde_json::{Map, Value, json};

use super::{duration, typed};
use crate::short::form::{Cors, Limits, Method, Rate, RateBy};
use crate::short::scalars::HeaderName;
use crate::short::shape::Word;

const CORS: &str = "envoy.filters.http.cors";
const RATE: &str = "envoy.filters.http.local_ratelimit";
const BODY: &str = "envoy.filters.http.buffer";

const RATE_MESSAGE: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

/// Stats of limits are `limits.http_local_rate_limit.*`.
const STAT_PREFIX: &str = "limits";

/// How many clients have a limit of their own at once.
const MOST_CLIENTS: u32 = 10_000;

/// In this order on the way of a request.
pub(super) fn all() -> Value {
    json!([
        {"name": CORS, "typed_config": typed("envoy.extensions.filters.http.cors.v3.Cors", json!({}))},
        {"name": RATE, "typed_config": typed(RATE_MESSAGE, json!({"stat_prefix": STAT_PREFIX}))},
        {
            "name": BODY,
            "typed_config": typed("envoy.extensions.filters.http.buffer.v3.Buffer", json!({"max_request_bytes": u32::MAX})),
            "disabled": true,
        },
        {"name": "envoy.filters.http.router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({}))},
    ])
}

/// What a host or a route says to them.
pub(super) fn said(limits: &Limits, cors: Option<&Cors>) -> Map<String, Value> {
    let mut said = Map::new();
    said.extend(cors.map(|cors| (CORS.to_owned(), self::cors(cors))));
    said.extend(limits.rate.as_ref().map(|rate| (RATE.to_owned(), self::rate(rate))));
    if let Some(size) = &limits.body {
        let limit = json!({"buffer": {"max_request_bytes": size.0}});
        said.insert(BODY.to_owned(), typed("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", limit));
    }
    said
}

fn rate(rate: &Rate) -> Value {
    let all = json!({"default_value": {"numerator": 100}});
    let bucket = json!({
        "max_tokens": rate.burst.unwrap_or(rate.requests).0,
        "tokens_per_fill": rate.requests.0,
        "fill_interval": duration(rate.per.0),
    });
    let mut limit = json!({
        "stat_prefix": STAT_PREFIX,
        "token_bucket": bucket,
        "filter_enabled": all,
        "filter_enforced": all,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
    });
    if rate.by == RateBy::Client {
        limit["rate_limits"] = json!([{"actions": [{"remote_address": {}}]}]);
        limit["descriptors"] = json!([{"entries": [{"key": "remote_address"}], "token_bucket": bucket}]);
        limit["max_dynamic_descriptors"] = json!(MOST_CLIENTS);
        limit["always_consume_default_token_bucket"] = json!(false);
    }
    typed(RATE_MESSAGE, limit)
}

fn cors(cors: &Cors) -> Value {
    let origins: Vec<Value> = cors.origins.iter().map(|origin| origin_matcher(&origin.0)).collect();
    let methods: Vec<&str> = cors.methods.iter().map(|method: &Method| method.word()).collect();
    let names = |names: &[HeaderName]| names.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(", ");
    let mut policy = json!({"allow_origin_string_match": origins, "allow_methods": methods.join(", ")});
    for (field, headers) in [("allow_headers", &cors.headers), ("expose_headers", &cors.expose)] {
        if !headers.is_empty() {
            policy[field] = json!(names(headers));
        }
    }
    if let Some(max_age) = &cors.max_age {
        policy["max_age"] = json!(max_age.0.as_secs().to_string());
    }
    if cors.credentials {
        policy["allow_credentials"] = json!(true);
    }
    typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", policy)
}

/// `*.` stands for one label or more.
fn origin_matcher(origin: &str) -> Value {
    match origin.split_once("://*.") {
        Some((scheme, suffix)) => {
            let (scheme, suffix) = (regex::escape(scheme), regex::escape(suffix));
            json!({"safe_regex": {"regex": format!("{scheme}://[A-Za-z0-9._-]+\\.{suffix}")}})
        }
        None => json!({"exact": origin}),
    }
}
