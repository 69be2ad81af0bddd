//! Upstreams: which hosts they have, and how these are reached. It must not know what they expand to.

use crate::short::scalars::{Address, Name, SomeTime};
use crate::short::shape::{Or, Whole, brief, record, words};

words! {
    /// How endpoints are found.
    Discovery {
        /// They are what is written.
        Static = "static",
        /// Their names are resolved again and again.
        Dns = "dns",
    }
}

words! {
    /// What is spoken with an upstream.
    Protocol {
        Http1 = "http1",
        Http2 = "http2",
        Same = "same",
    }
}

words! {
    /// How a host is chosen.
    Balance {
        RoundRobin = "round_robin",
        LeastRequest = "least_request",
        Random = "random",
        RingHash = "ring_hash",
        Maglev = "maglev",
    }
}

record! {
    /// Where requests are sent.
    Upstream {
        /// Its hosts. `10.0.0.1:8080` stands for `{ address: 10.0.0.1:8080 }`.
        endpoints: Vec<Or<Endpoint>>,
        /// `static`: addresses are IP addresses. `dns`: they are names, whose addresses are all used, and looked up again
        /// when they expire.
        discovery: Discovery = "static",
        /// `http1`, `http2` (also for gRPC), or the `same` as the client's.
        protocol: Protocol = "http1",
        /// `least_request` (of two at random the one with fewer requests), `round_robin`, `random`, or by the route's `hash`:
        /// `ring_hash`, `maglev`.
        balance: Balance = "least_request",
        /// How long a connection may take to stand.
        connect_timeout: SomeTime = "5s",
        /// How much it may be asked for at once.
        limits: Option<UpstreamLimits> | "those of its fields",
    }
    not_yet: tls, health_check, outlier_detection;
}

record! {
    /// How much an upstream may be asked for at once by one gateway process; what is more is answered 503.
    UpstreamLimits {
        /// Connections.
        connections: Whole<1, 4_000_000> = 1024,
        /// Requests that wait for a connection.
        pending: Whole<1, 4_000_000> = 1024,
        /// Requests under way.
        requests: Whole<1, 4_000_000> = 1024,
        /// Tries under way that are not the first.
        retries: Whole<1, 4_000_000> = 3,
    }
}

record! {
    /// A host of an upstream.
    Endpoint {
        /// Host and port: `10.0.0.1:8080`, `[2001:db8::1]:8080`, with `discovery: dns` also `web.internal:8080`.
        address: Address,
        /// Its share beside the others.
        weight: Whole<1, 1_000_000> = 1,
        /// The zone that it is in, as `/clusters` and load reports tell it.
        zone: Option<Name> | "none",
    }
}

brief!(Endpoint.address);
