//! The HTTP filter contract: what a filter is compiled from, what it is handed, and what it may answer.
//! It must not know how bytes become requests nor who forwards them.

pub(crate) mod base64;
pub mod body;
mod buffer;
mod cors;
mod csrf;
mod fault;
pub mod filter;
mod grpc_calls;
mod grpc_http1_bridge;
mod grpc_stats;
mod grpc_web;
pub mod head;
pub mod header_key;
mod header_mutation;
pub mod header_mutations;
pub mod header_options;
mod health_check;
mod local_limiter;
mod local_ratelimit;
pub mod local_reply;
mod named_counters;
mod on_demand;
mod query_edits;
pub mod rate_limit;
mod rate_limit_action;
mod rbac;
mod set_filter_state;
mod set_metadata;
mod slow_body;
#[cfg(test)]
pub(crate) mod testing;

pub use body::{Body, BodyError, Frame};
pub use filter::{
    FilterFactory, HttpFilter, HttpFilterConfig, Override, Overrides, Request, Response, Step, StreamContext,
};
pub use head::{RequestHead, ResponseHead, Spelling};
pub use header_key::{HeaderKey, Headers};
pub use header_mutations::HeaderMutations;
pub use local_reply::LocalReply;

/// Every built-in one, sorted by message: one line each.
pub const FACTORIES: &[&dyn FilterFactory] = &[
    &buffer::Factory,
    &cors::Factory,
    &csrf::Factory,
    &fault::Factory,
    &grpc_http1_bridge::Factory,
    &grpc_stats::Factory,
    &grpc_web::Factory,
    &header_mutation::Factory,
    &health_check::Factory,
    &local_ratelimit::Factory,
    &on_demand::Factory,
    &rbac::Factory,
    &set_filter_state::Factory,
    &set_metadata::Factory,
];

#[cfg(test)]
mod tests {
    use super::FACTORIES;

    #[test]
    fn factories_are_sorted_and_cover_what_exists() {
        assert!(FACTORIES.is_sorted_by_key(|factory| factory.message()));
        for factory in FACTORIES {
            let mistakes: Vec<_> = factory.coverage().iter().flat_map(tidegate_xds::Coverage::mistakes).collect();
            assert!(mistakes.is_empty(), "{}: {mistakes:#?}", factory.message());
            assert!(factory.coverage().iter().any(|coverage| coverage.message == factory.message()));
        }
    }
}
