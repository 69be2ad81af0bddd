//! Routes: which virtual host and route a request takes, and what that route says is to be done with it.
//! Everything here is pure (no clock, no I/O, no randomness of its own); it must not know protos, pools or sockets.

#[cfg(test)]
pub(crate) mod allocations;
mod entry;
mod forward;
pub mod grpc_timeout;
mod hash;
mod host_index;
mod input;
mod internal_redirect;
mod list;
mod matcher;
mod mirror;
mod path_index;
mod redirect;
mod retry;
mod rewrite;
mod scope;
mod table;
mod tally;
#[cfg(test)]
pub(crate) mod testing;
mod timeout;
mod upgrade;

pub use entry::{Action, BufferLimit, Overrides, Route, RouteEntry};
pub use forward::{ClusterName, ClusterSelector, ForwardAction, MetadataMatch, WeightedCluster, WeightedClusters};
pub use hash::{CookieSource, HashPolicy, HashSource, Hashed, hash};
pub use input::{HostMatch, Mismatch, Outcome, RouteInput, Trace, TriedRoute};
pub use internal_redirect::{
    InternalRedirectPolicy, RedirectHistory, RedirectPredicate, RedirectRefusal, RedirectTarget,
};
pub(crate) use list::RouteList;
pub use matcher::{Criterion, PathMatch, PathRegex, RouteMatch, Text};
pub use mirror::MirrorPolicy;
pub use redirect::{DirectResponse, Redirect, RedirectPath, tls_location};
pub use retry::{
    BackOff, HedgePolicy, HostPredicate, PreviousPriorities, RateLimitedBackOff, RequestRetries, ResetFormat, RetryOn,
    RetryPolicy,
};
pub use rewrite::{HostRewrite, PathRewrite, set_host};
pub use scope::{
    Extract, HeaderFragment, InlineScopes, Key as ScopeKey, Scope, ScopeTable, ScopedRoutes, Scopes, scope_key,
};
pub use table::{AttemptHeaders, RouteConfig, RouteTable, TlsRequirement, VirtualCluster, VirtualHost, route};
pub(crate) use table::{Branch, DiscoveredHost, Routes, TableBuilder};
pub use tally::{Tallies, Tally};
pub use tidegate_filters::http::HeaderMutations;
pub use tidegate_filters::matching::Substitution;
pub use tidegate_filters::matching::uri_template::{TemplateError, UriRewrite, UriTemplate};
pub use timeout::{
    GrpcTimeout, Limit, RequestTimeouts, StreamDuration, TimeoutOptions, Timeouts, take_stream_duration,
};
pub use upgrade::{ConnectConfig, Upgrade};
