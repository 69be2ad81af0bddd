//! Routes: what they match, and what is done then. It must not know what they expand to.

use serde_json::{Value, json};
use tidegate_xds::FieldPath;

use super::{Cors, Headers, Limits, Method};
use crate::short::scalars::{Compared, HeaderName, HostText, Name, Path, Pattern, Reference, SomeTime, Time, Yes};
use crate::short::shape::{Definitions, Faults, Map, Or, Shape, Whole, brief, describe, record, words};

record! {
    /// One route: what it matches, and one of `to`, `redirect` and `respond`.
    Route {
        /// A name for logs (`%ROUTE_NAME%`).
        name: Option<Name> | "none",
        /// Which requests. `match: /api` stands for `match: { prefix: /api }`.
        r#match: Option<Or<Match>> | "all",
        /// The upstream that requests are sent to, or several with their shares: `{ stable: 95, canary: 5 }`.
        to: Option<Destination> | "none",
        /// Answers with a redirect.
        redirect: Option<Redirect> | "none",
        /// Answers by itself.
        respond: Option<Respond> | "none",
        /// What the upstream gets in place of path and host.
        rewrite: Option<Rewrite> | "as they came",
        /// How long the upstream may take for the whole response, tries included; `0s` is for ever.
        timeout: Option<Time> | "15s",
        /// How long nothing may happen in either direction; `0s` is for ever.
        idle_timeout: Option<Time> | "5m",
        /// When another try is made.
        retry: Option<Retry> | "none",
        /// What decides which of the upstream's hosts a request goes to; acts with the balances `ring_hash` and `maglev`.
        hash: Option<Hash> | "chance",
        /// Whether WebSocket connections are let through.
        websocket: Option<Yes> | "they are refused (403)",
        /// Which other sites may call it from a browser.
        cors: Option<Cors> | "as the host's",
        /// What it may take.
        limits: Option<Limits> | "as the host's",
        /// Changes to requests before they are sent to the upstream.
        request_headers: Option<Headers> | "none",
        /// Changes to responses.
        response_headers: Option<Headers> | "none",
    }
    exactly_one: to, redirect, respond;
    only_with to: rewrite, timeout, idle_timeout, retry, hash, websocket, cors, request_headers;
}

record! {
    /// Which requests: all of what is said must hold.
    #[derive(Default)]
    Match {
        /// The path begins with these whole segments: `/api` is `/api` and `/api/x`, not `/apis`.
        prefix: Option<Path> | "any path",
        /// The path is exactly this.
        path: Option<Path> | "any path",
        /// The whole path matches this regular expression.
        regex: Option<Pattern> | "any path",
        /// The method is one of these.
        methods: Vec<Method> | "any method",
        /// Headers by name. `x-user: a` stands for `x-user: { exact: a }`.
        headers: Map<HeaderName, Or<HeaderMatch>> | "any headers",
        /// Parameters of the query by name. `page: "1"` stands for `page: { exact: "1" }`.
        query: Map<Compared, Or<TextMatch>> | "any query",
    }
    at_most_one: prefix, path, regex;
}

record! {
    /// What a header is compared with: one of these.
    HeaderMatch {
        /// It is exactly this.
        exact: Option<Compared> | "not asked",
        /// It begins so.
        prefix: Option<Compared> | "not asked",
        /// It ends so.
        suffix: Option<Compared> | "not asked",
        /// It holds this.
        contains: Option<Compared> | "not asked",
        /// All of it matches this regular expression.
        regex: Option<Pattern> | "not asked",
        /// Whether it is there at all.
        present: Option<bool> | "not asked",
        /// Turns the answer round; a header that is not there then matches.
        not: bool = false,
    }
    exactly_one: exact, prefix, suffix, contains, regex, present;
}

record! {
    /// What a parameter is compared with: one of these.
    TextMatch {
        /// It is exactly this.
        exact: Option<Compared> | "not asked",
        /// It begins so.
        prefix: Option<Compared> | "not asked",
        /// It ends so.
        suffix: Option<Compared> | "not asked",
        /// It holds this.
        contains: Option<Compared> | "not asked",
        /// All of it matches this regular expression.
        regex: Option<Pattern> | "not asked",
    }
    exactly_one: exact, prefix, suffix, contains, regex;
}

/// Where requests go: an upstream, or several with their shares.
#[derive(Debug, Clone)]
pub(in crate::short) enum Destination {
    One(Reference),
    Split(Map<Reference, Whole<0, 1_000_000>>),
}

impl Shape for Destination {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        match value {
            Value::String(_) => Reference::read(value, path, faults).map(Self::One),
            Value::Object(_) => {
                let split = Map::<Reference, Whole<0, 1_000_000>>::read(value, path, faults)?;
                let some = split.0.iter().any(|(_, share)| share.0 > 0);
                if !some {
                    faults.push(path, "one of the shares must be more than 0");
                }
                some.then_some(Self::Split(split))
            }
            other => {
                let found = describe(other);
                faults.push(path, format!("expected an upstream, or upstreams with their shares, found {found}"));
                None
            }
        }
    }

    fn schema(definitions: &mut Definitions) -> Value {
        let split = Map::<Reference, Whole<0, 1_000_000>>::schema(definitions);
        json!({"anyOf": [Reference::schema(definitions), split]})
    }
}

words! {
    /// The scheme of a redirect.
    Scheme {
        Http = "http",
        Https = "https",
    }
}

/// The status of a redirect.
#[derive(Debug, Clone, Copy)]
pub(in crate::short) struct RedirectStatus(pub(in crate::short) &'static str);

const REDIRECTS: [(u16, &str); 5] = [
    (301, "MOVED_PERMANENTLY"),
    (302, "FOUND"),
    (303, "SEE_OTHER"),
    (307, "TEMPORARY_REDIRECT"),
    (308, "PERMANENT_REDIRECT"),
];

impl Shape for RedirectStatus {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        let known = REDIRECTS.iter().find(|(status, _)| value.as_u64() == Some(u64::from(*status)));
        if known.is_none() {
            faults.push(path, format!("expected 301, 302, 303, 307 or 308, found {}", describe(value)));
        }
        known.map(|(_, name)| Self(name))
    }

    fn schema(_: &mut Definitions) -> Value {
        json!({"enum": REDIRECTS.map(|(status, _)| status)})
    }
}

record! {
    /// Answers with a redirect to the same place, but for what is said here.
    Redirect {
        /// `http` or `https`.
        scheme: Option<Scheme> | "as it came",
        /// Another host.
        host: Option<HostText> | "as it came",
        /// Another port.
        port: Option<Whole<1, 65535>> | "as it came; that of the scheme where `scheme` changes it",
        /// Another path.
        path: Option<Path> | "as it came",
        /// This in place of the prefix that matched.
        prefix: Option<Path> | "as it came",
        /// 301, 302, 303, 307 or 308.
        status: RedirectStatus = 301,
        /// Whether the query stays.
        query: bool = true,
    }
    at_most_one: path, prefix;
}

record! {
    /// Answers by itself.
    Respond {
        /// The status, 200 to 599.
        status: Whole<200, 599> = 200,
        /// The body, as it stands here (64 KiB at most); `response_headers` may say its `content-type`.
        body: String = "",
    }
}

record! {
    /// What the upstream gets in place of path and host.
    Rewrite {
        /// This in place of the prefix that matched.
        prefix: Option<Path> | "as it came",
        /// This in place of the whole path.
        path: Option<Path> | "as it came",
        /// What of the path is replaced: each part that matches this regular expression.
        regex: Option<Pattern> | "nothing",
        /// What it is replaced with; `\1` is its first group.
        with: Option<String> | "nothing",
        /// Another host.
        host: Option<HostText> | "as it came",
    }
    at_most_one: prefix, path, regex;
    only_with regex: with;
    only_with with: regex;
}

words! {
    /// Why another try is made.
    RetryOn {
        ConnectFailure = "connect-failure",
        RefusedStream = "refused-stream",
        ResetBeforeRequest = "reset-before-request",
        Reset = "reset",
        GatewayError = "gateway-error",
        ServerError = "5xx",
        Conflict = "retriable-4xx",
        Cancelled = "cancelled",
        DeadlineExceeded = "deadline-exceeded",
        Internal = "internal",
        ResourceExhausted = "resource-exhausted",
        Unavailable = "unavailable",
    }
}

record! {
    /// When another try is made, on another host if there is one.
    Retry {
        /// How many tries after the first.
        times: Whole<1, 10> = 1,
        /// Why: `connect-failure`, `refused-stream` and `reset-before-request` (the upstream has not seen the request);
        /// `reset`, `gateway-error` (502, 503, 504), `5xx`, `retriable-4xx` (409); for gRPC `cancelled`,
        /// `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`.
        when: Vec<RetryOn> = ["connect-failure", "refused-stream", "reset-before-request"],
        /// Statuses that are reasons, too.
        statuses: Vec<Whole<400, 599>> | "none",
        /// How long one try may take.
        per_try_timeout: Option<SomeTime> | "as long as the route's `timeout`",
        /// How long is waited before the second try; doubled for each further one, up to ten times this.
        backoff: SomeTime = "25ms",
    }
}

record! {
    /// What decides which host a request goes to: one of these.
    Hash {
        /// A header.
        header: Option<HeaderName> | "not asked",
        /// A cookie.
        cookie: Option<Name> | "not asked",
        /// With `cookie`: one is set where there is none, and kept for so long; `0s` is until the browser ends.
        ttl: Option<Time> | "none is set",
        /// A parameter of the query.
        query: Option<Compared> | "not asked",
        /// The client's address.
        client_address: Option<Yes> | "not asked",
    }
    exactly_one: header, cookie, query, client_address;
    only_with cookie: ttl;
}

brief!(Match.prefix, HeaderMatch.exact, TextMatch.exact);
