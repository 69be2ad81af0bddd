//! The control plane: moves xDS resources and never interprets them.
//! It must not know what a resource means: names, versions and bytes go through, and whoever asked judges them.

pub mod client;
pub mod run;
pub mod server;
pub mod short;
pub mod source;
