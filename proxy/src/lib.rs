//! The data plane of Tidegate: listeners, HTTP, routes, clusters, and what compiles an Envoy configuration into them.

pub mod admin;
pub mod allocator;
pub mod app;
pub mod application_log;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control_plane;
mod discovery;
pub mod http;
pub mod io;
pub mod listener;
mod process;
pub mod quickstart;
pub mod resident;
pub mod route;
pub mod runtime;
pub mod server;
mod services;
pub mod snapshot;
mod sources;
pub mod stats;
pub mod status;
pub mod tcp;
mod worker;
