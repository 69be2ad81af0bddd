//! Stats that belong to no other room: listeners', managers', subscriptions' and the process' own. It must not know when they
//! are counted.

pub mod cluster_manager;
pub mod control_plane;
pub mod listener;
pub mod scoped_routes;
pub mod server;
pub mod subscription;
