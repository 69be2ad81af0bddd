//! What the short form consists of: a file, its listeners, its hosts. Each field says here what it is for, and what is so
//! without it; schema and documentation are made from this. It must not know what it expands to.

mod route;
mod upstream;

use super::scalars::{Bind, Domain, HeaderName, HeaderValue, LogTarget, Name, Origin, Size, SomeTime};
use super::shape::{Map, Or, Whole, brief, record, words};
pub(super) use route::{
    Destination, Hash, HeaderMatch, Match, Redirect, Respond, Retry, RetryOn, Rewrite, Route, TextMatch,
};
pub(super) use upstream::{Balance, Discovery, Endpoint, Protocol, Upstream, UpstreamLimits};

words! {
    /// The version of the short form.
    Version {
        V1 = "v1",
    }
}

record! {
    /// A file of the short form. What stands beside `listen`, `hosts` and `upstreams` counts for what this file defines.
    /// Files of one directory are one configuration: a host may name the listener or the upstream of another file.
    File {
        /// What makes the file one of the short form: `tidegate: v1`.
        tidegate: Version,
        /// Addresses to accept connections on, by name. `web: 0.0.0.0:8080` stands for `web: { address: 0.0.0.0:8080 }`.
        listen: Map<Name, Or<Listen>> | "no listener",
        /// What is answered on them, by the host that a request is for.
        hosts: Vec<Host> | "no host",
        /// Where requests are sent, by name.
        upstreams: Map<Name, Upstream> | "no upstream",
        /// What each host may take, where neither it nor a route says otherwise.
        limits: Option<Limits> | "no limit",
        /// Where each request is logged, for listeners that do not say it themselves.
        access_log: Option<Or<AccessLog>> | "no log",
    }
    only_with hosts: limits;
    only_with listen: access_log;
}

words! {
    /// What a connection may speak.
    ListenProtocol {
        /// As it begins.
        Auto = "auto",
        Http1 = "http1",
        Http2 = "http2",
    }
}

words! {
    /// What is done with a path that holds an escaped slash (`%2F`, `%5C`).
    EscapedSlashes {
        Redirect = "redirect",
        Reject = "reject",
        Keep = "keep",
    }
}

words! {
    /// What is done with headers whose name holds an underscore.
    Underscores {
        Drop = "drop",
        Reject = "reject",
        Keep = "keep",
    }
}

record! {
    /// An address to accept connections on, without TLS. Paths are normalised, repeated slashes merged.
    Listen {
        /// IP address and port: `0.0.0.0:8080`, `[::]:8080`.
        address: Bind,
        /// What a connection speaks: `auto` (as it begins), `http1` or `http2`.
        protocol: ListenProtocol = "auto",
        /// Whether connections begin with a PROXY header (version 1 or 2), as from a load balancer; those without are closed.
        proxy_protocol: bool = false,
        /// How many proxies before this one are trusted to have written `x-forwarded-for`; the client's address is what the
        /// last of them says.
        trusted_hops: Whole<0, 100> = 0,
        /// A path with an escaped slash: `redirect` to the unescaped one, `reject` (400), or `keep`.
        escaped_slashes: EscapedSlashes = "redirect",
        /// Headers with an underscore in their name: `drop` them, `reject` the request (400), or `keep` them.
        underscores: Underscores = "drop",
        /// How long the headers of a request may take to arrive.
        header_timeout: SomeTime = "10s",
        /// How long a connection without a request is kept.
        keepalive_timeout: SomeTime = "1h",
        /// How many connections there may be at once; more are closed at once.
        max_connections: Option<Whole<1, 4_000_000>> | "as many as the process can hold",
        /// Where each request is logged.
        access_log: Option<Or<AccessLog>> | "as the file's",
    }
    not_yet: tls, http3;
}

words! {
    /// How a line of an access log looks.
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

record! {
    /// A line for each request. `access_log: stdout` stands for `access_log: { to: stdout }`.
    AccessLog {
        /// `stdout`, `stderr`, `none`, or the path of a file (with a slash: `./access.log`).
        to: LogTarget,
        /// `text` (Envoy's default format) or `json` (an object a line).
        format: LogFormat = "text",
    }
}

record! {
    /// What is answered to requests for some host names: by the first route that matches, else with 404.
    Host {
        /// `shop.example.com`, `*.example.com`, `shop.*`, or `*` for all others. The most exact one is taken.
        names: Vec<Domain> = ["*"],
        /// The listeners that it is served on.
        listen: Vec<Name> | "those of this file, or all where it has none",
        /// Tried in this order; the first that matches is taken.
        routes: Vec<Route>,
        /// What its routes may take together.
        limits: Option<Limits> | "as the file's",
        /// Which other sites may call it from a browser.
        cors: Option<Cors> | "none",
        /// Changes to requests before they are sent to an upstream; those of the route come after these.
        request_headers: Option<Headers> | "none",
        /// Changes to responses; those of the route come after these.
        response_headers: Option<Headers> | "none",
    }
}

record! {
    /// Limits, each by itself: the nearest one counts, of the route, the host, the file.
    #[derive(Default)]
    Limits {
        /// How many requests; more are answered 429, with `x-ratelimit-*` headers that say how long.
        rate: Option<Rate> | "no limit",
        /// How long a request's body may be; a longer one is answered 413. A request is held back until its body is whole.
        body: Option<Size> | "no limit, and bodies are passed on as they come",
    }
}

words! {
    /// Who shares a limit.
    RateBy {
        All = "all",
        Client = "client",
    }
}

record! {
    /// A rate of requests. Each place that has one counts by itself, and each gateway process too.
    Rate {
        /// So many requests...
        requests: Whole<1, 1_000_000_000>,
        /// ...in this time (50ms or more), spread evenly.
        per: SomeTime = "1s",
        /// How many may come at once.
        burst: Option<Whole<1, 1_000_000_000>> | "as many as `requests`",
        /// Whether `all` requests count together, or those of each `client` address by itself (the 10,000 seen last).
        by: RateBy = "all",
    }
}

words! {
    /// A method of a request.
    Method {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Options = "OPTIONS",
    }
}

record! {
    /// Which other sites may call it from a browser (CORS): answers preflight requests, marks responses.
    Cors {
        /// `https://shop.example.com`, `https://*.example.com`, or `*` for any.
        origins: Vec<Origin>,
        /// Methods beside those that need no permission.
        methods: Vec<Method> = ["GET", "HEAD", "POST"],
        /// Request headers that may be sent.
        headers: Vec<HeaderName> | "none",
        /// Response headers that may be read.
        expose: Vec<HeaderName> | "none",
        /// How long a browser may keep the answer.
        max_age: Option<SomeTime> | "as the browser likes",
        /// Whether cookies may be sent; not together with the origin `*`.
        credentials: bool = false,
    }
}

record! {
    /// Changes to headers. Values are sent as they stand here.
    Headers {
        /// These values, in place of any that are there.
        set: Map<HeaderName, HeaderValue> | "none",
        /// These values beside any that are there.
        add: Map<HeaderName, HeaderValue> | "none",
        /// Headers that are taken out.
        remove: Vec<HeaderName> | "none",
    }
}

brief!(Listen.address, AccessLog.to);
