//! The server's side of xDS (<https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol>): what there is, what
//! each client asked for, and what it is told. It must not know what a resource means, nor where it comes from.

pub mod resource_set;
