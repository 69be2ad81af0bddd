//! The substitution formatter: Envoy's format strings (`%REQ(:path)%`), parsed once, rendered into a reused buffer. It is
//! the one home of them: access logs, header values, local replies.
//! It must not know who asks, nor where the text goes.

mod commands;
mod error;
mod fields;
mod grpc;
mod json;
mod operator;
mod parse;
mod query;
mod string;
mod time;
mod value;
pub(crate) mod write;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

pub use error::FormatError;
pub(crate) use grpc::status as grpc_status;
use http::HeaderMap;
pub use string::{COVERAGE, SubstitutionFormat};

use crate::http::filter::RouteView;
use crate::http::{RequestHead, ResponseHead};
use crate::matching::cel::{Facts, Functions};
use crate::runtime::{NoRuntime, Runtime};
use crate::stream_info::StreamInfo;
use operator::Operator;

/// What a format may ask about. What is not there prints `-`.
#[derive(Clone, Copy)]
pub struct FormatContext<'a> {
    pub request: Option<&'a RequestHead>,
    pub response: Option<&'a ResponseHead>,
    pub response_trailers: Option<&'a HeaderMap>,
    pub local_reply_body: Option<&'a str>,
    pub info: &'a StreamInfo,
    pub access_log_type: AccessLogType,
    /// For the route's metadata.
    pub route: Option<&'a dyn RouteView>,
    /// For filters whose threshold or share the runtime may change.
    pub runtime: &'a dyn Runtime,
}

impl<'a> From<&'a StreamInfo> for FormatContext<'a> {
    fn from(info: &'a StreamInfo) -> Self {
        Self::of(info)
    }
}

impl<'a> FormatContext<'a> {
    /// The stream's facts and nothing else.
    pub fn of(info: &'a StreamInfo) -> Self {
        Self {
            request: None,
            response: None,
            response_trailers: None,
            local_reply_body: None,
            info,
            access_log_type: AccessLogType::NotSet,
            route: None,
            runtime: &NoRuntime,
        }
    }

    /// What CEL expressions may ask about.
    pub(crate) fn facts(&self) -> Facts<'a> {
        Facts {
            info: self.info,
            request: self.request,
            response: self.response,
            response_trailers: self.response_trailers,
            route: self.route,
        }
    }
}

/// What costs time to know, and is found out only once a format was compiled that prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Costly {
    /// Header and wire bytes of HTTP/2 and of upstreams.
    WireBytes = 1,
    /// How long it took to find the route.
    RouteTime = 2,
    /// How long an attempt waited for its connection.
    PoolWait = 4,
    /// When a response's body began.
    BodyBegin = 8,
}

static ASKED_FOR: AtomicU8 = AtomicU8::new(0);

impl Costly {
    /// Whether anybody in this process may print it.
    pub fn is_asked_for(self) -> bool {
        ASKED_FOR.load(Relaxed) & self as u8 != 0
    }

    fn ask_for(self) {
        ASKED_FOR.fetch_or(self as u8, Relaxed);
    }
}

/// Why a line is written (`envoy.data.accesslog.v3.AccessLogType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum AccessLogType {
    #[default]
    NotSet,
    TcpUpstreamConnected,
    TcpPeriodic,
    TcpConnectionEnd,
    DownstreamStart,
    DownstreamPeriodic,
    DownstreamEnd,
    UpstreamPoolReady,
    UpstreamPeriodic,
    UpstreamEnd,
    DownstreamTunnelSuccessfullyEstablished,
    UdpTunnelUpstreamConnected,
    UdpPeriodic,
    UdpSessionEnd,
    TcpConnectionStart,
}

impl AccessLogType {
    /// Envoy's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::TcpUpstreamConnected => "TcpUpstreamConnected",
            Self::TcpPeriodic => "TcpPeriodic",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
            Self::UpstreamPoolReady => "UpstreamPoolReady",
            Self::UpstreamPeriodic => "UpstreamPeriodic",
            Self::UpstreamEnd => "UpstreamEnd",
            Self::DownstreamTunnelSuccessfullyEstablished => "DownstreamTunnelSuccessfullyEstablished",
            Self::UdpTunnelUpstreamConnected => "UdpTunnelUpstreamConnected",
            Self::UdpPeriodic => "UdpPeriodic",
            Self::UdpSessionEnd => "UdpSessionEnd",
            Self::TcpConnectionStart => "TcpConnectionStart",
        }
    }
}

/// Which operators there are beside the built-in ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// `envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery`
    pub(crate) req_without_query: bool,
    /// What `envoy.extensions.formatter.cel.v3.Cel` lets expressions call.
    pub(crate) functions: Functions,
}

/// A compiled format string.
#[derive(Debug, Clone)]
pub struct Format {
    parts: Vec<Part>,
    /// What stands for a value that is not there.
    empty: Cow<'static, str>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    Operator(Operator),
}

impl Format {
    /// Compiles a format string with the built-in operators.
    ///
    /// # Errors
    /// Envoy's words: the position of what is no command, or what is wrong with one.
    pub fn compile(format: &str) -> Result<Self, FormatError> {
        Self::with(format, Extensions::default(), "-")
    }

    /// The same, but a value that is not there leaves nothing (Envoy's `omit_empty_values`).
    ///
    /// # Errors
    /// As [`Format::compile`].
    pub fn compile_omitting_empty(format: &str) -> Result<Self, FormatError> {
        Self::with(format, Extensions::default(), "")
    }

    /// Whether it is one command and no text beside it.
    pub(crate) fn is_one_operator(&self) -> bool {
        matches!(&*self.parts, [Part::Operator(_)])
    }

    pub(crate) fn with(format: &str, extensions: Extensions, empty: &'static str) -> Result<Self, FormatError> {
        Ok(Self { parts: parse::parts(format, extensions)?, empty: Cow::Borrowed(empty) })
    }

    /// Whether every rendering gives the same text.
    pub fn is_constant(&self) -> bool {
        self.constant().is_some()
    }

    /// The text, if every rendering gives the same.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text. A value that is not there is `-`.
    pub fn render(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Operator(operator) => {
                    if !operator.value(context).write_text(out) {
                        out.extend_from_slice(self.empty.as_bytes());
                    }
                }
            }
        }
    }

    /// The one operator that this consists of.
    fn single(&self) -> Option<&Operator> {
        match self.parts.as_slice() {
            [Part::Operator(operator)] => Some(operator),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
