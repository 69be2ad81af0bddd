//! Stats that belong to no other room: listeners' and the process' own. It must not know when they are counted.

pub mod listener;
pub mod server;
