//! The codec as its users see it: raw bytes in, messages out, and back.

mod attacks;
mod body;
mod encode;
mod properties;
mod request;
mod response;
mod server;
mod speed;
