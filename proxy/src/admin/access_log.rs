//! The access log of the admin interface: a line for each request that it answered.
//! It must not know what the answers say.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use http::HeaderValue;
use http::request::Parts;
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::http::{RequestHead, ResponseHead};
use tidegate_filters::stream_info::{Address, StreamInfo};
use tokio::net::{TcpListener, UnixListener};

use super::AdminState;
use super::reply::Reply;
use super::traffic::Counting;

/// Both ends of a connection to the admin interface.
#[derive(Debug, Clone)]
pub struct Peers {
    remote: Address,
    local: Address,
}

impl Connected<IncomingStream<'_, Counting<TcpListener>>> for Peers {
    fn connect_info(stream: IncomingStream<'_, Counting<TcpListener>>) -> Self {
        let remote = Address::Ip(*stream.remote_addr());
        let local = stream.io().inner.local_addr().map_or_else(|_| remote.clone(), Address::Ip);
        Self { remote, local }
    }
}

impl Connected<IncomingStream<'_, Counting<UnixListener>>> for Peers {
    fn connect_info(_: IncomingStream<'_, Counting<UnixListener>>) -> Self {
        let unnamed = Address::Pipe(Arc::from(""));
        Self { remote: unnamed.clone(), local: unnamed }
    }
}

/// Writes the line of one request.
pub(super) fn write(state: &dyn AdminState, peers: Option<&Peers>, request: &Parts, reply: &Reply, started: Instant) {
    let logs = state.access_logs();
    let Some(peers) = peers.filter(|_| !logs.is_empty()) else { return };
    let now = Instant::now();
    let connection = ConnectionInfo::new(0, peers.remote.clone(), peers.local.clone(), started);
    let mut info = StreamInfo::new(Arc::new(connection), started, SystemTime::now() - (now - started));
    info.end = Some(now);
    info.protocol = Some(request.version);
    info.response_code = Some(reply.status);
    info.details = Some("via_upstream".into());
    info.bytes.body_sent = reply.body.len() as u64;
    let empty = HeaderValue::from_static("");
    let path = request.uri.path_and_query().and_then(|path| HeaderValue::from_str(path.as_str()).ok());
    let host = request.headers.get(http::header::HOST).cloned();
    let mut head = RequestHead::new(request.method.clone(), host.unwrap_or(empty.clone()), path.unwrap_or(empty));
    head.headers = request.headers.clone();
    head.headers.remove(http::header::HOST);
    let mut response = ResponseHead::new(reply.status);
    response.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    let context = FormatContext {
        request: Some(&head),
        response: Some(&response),
        access_log_type: AccessLogType::DownstreamEnd,
        ..FormatContext::of(&info)
    };
    for log in logs {
        log.log(&context);
    }
}
