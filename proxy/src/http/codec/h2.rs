//! The client's side of HTTP/2, on the `h2` crate: requests in, responses out, one task a stream.
//! It must not know what an exchange does.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, COOKIE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use tidegate_filters::http::{Body, BodyError, RequestHead, ResponseHead};
use tokio::sync::Notify;

use super::metered::{CountedStream, Meter};
use super::stats::Http2CodecStats;
use crate::http::connect_udp;
use crate::http::downstream::{BodyLength, Downstream, Gone, ResetReason};
use crate::http::protocol::Underscores;
use crate::http::wire_bytes::WireBytes;

/// What a stream's first frame says.
pub(crate) struct Opened {
    pub head: RequestHead,
    pub body: Body,
    pub stream: Stream,
}

/// Why a request is refused before anyone looks at it; its stream has been reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Malformed,
    /// The options do not allow its fields: Envoy's details.
    Head(&'static str),
}

/// What the `h2` crate may take in for a head of at most `max_bytes`. It answers what is larger by itself and says nothing of
/// it, so it gets room enough for us to see, refuse and log what is a little too large.
pub(crate) fn list_limit(max_bytes: usize) -> u32 {
    u32::try_from(max_bytes.saturating_mul(4)).unwrap_or(u32::MAX)
}

/// The size of a head's fields as Envoy counts it.
pub(crate) fn fields_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// What a request's head may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadRules {
    /// Pseudo header fields count too.
    pub max_headers: usize,
    /// Of names and values, pseudo header fields included.
    pub max_bytes: usize,
    pub underscores: Underscores,
    pub buffer_limit_bytes: usize,
}

impl HeadRules {
    /// Applies the options to the fields; `Err` carries Envoy's details.
    fn apply(
        &self,
        method: &Method,
        uri: &http::Uri,
        headers: &mut HeaderMap,
        stats: &Http2CodecStats,
    ) -> Result<(), &'static str> {
        let underscored = |name: &http::HeaderName| name.as_str().contains('_');
        match self.underscores {
            Underscores::Allow => {}
            Underscores::Reject if headers.keys().any(underscored) => {
                stats.requests_rejected_with_underscores_in_headers().inc();
                return Err("http2.unexpected_underscore");
            }
            Underscores::Reject => {}
            Underscores::Drop => {
                let names: Vec<_> = headers.keys().filter(|name| underscored(name)).cloned().collect();
                for name in names {
                    stats.dropped_headers_with_underscores().inc();
                    headers.remove(name);
                }
            }
        }
        let pseudo = 1
            + usize::from(uri.scheme().is_some())
            + usize::from(uri.authority().is_some())
            + usize::from(uri.path_and_query().is_some());
        if headers.len() + pseudo > self.max_headers {
            stats.header_overflow().inc();
            return Err("http2.too_many_headers");
        }
        if fields_bytes(headers) + pseudo_bytes(method, uri) > self.max_bytes {
            stats.header_list_size_too_large().inc();
            return Err("http2.header_list_size_too_large");
        }
        Ok(())
    }
}

/// `:status` with its value.
pub(crate) const STATUS_BYTES: usize = 10;

/// The size of a request's fields, pseudo header fields included.
pub(crate) fn request_bytes<B>(request: &http::Request<B>) -> usize {
    let protocol = request.extensions().get::<h2::ext::Protocol>().map_or(0, |protocol| 9 + protocol.as_str().len());
    pseudo_bytes(request.method(), request.uri()) + protocol + fields_bytes(request.headers())
}

fn pseudo_bytes(method: &Method, uri: &http::Uri) -> usize {
    let field = |name: &str, value: Option<&str>| value.map_or(0, |value| name.len() + value.len());
    field(":method", Some(method.as_str()))
        + field(":scheme", uri.scheme_str())
        + field(":authority", uri.authority().map(http::uri::Authority::as_str))
        + field(":path", uri.path_and_query().map(http::uri::PathAndQuery::as_str))
}

/// Takes a request apart. `leave` is told when a response ends the connection; `meter` counts the stream's bytes.
pub(crate) fn open(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    rules: HeadRules,
    (leave, meter): (&Arc<Notify>, &Arc<Meter>),
    stats: &Http2CodecStats,
) -> Result<Opened, Refused> {
    let counted = meter.adopt(respond.stream_id().as_u32());
    if let Some(counted) = &counted {
        counted.bytes.add_received_fields(request_bytes(&request) as u64);
    }
    let (mut parts, receiving) = request.into_parts();
    if let Err(details) = rules.apply(&parts.method, &parts.uri, &mut parts.headers, stats) {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Err(Refused::Head(details));
    }
    let Some(head) = head_of(parts) else {
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return Err(Refused::Malformed);
    };
    let upgrade = head.headers.contains_key(UPGRADE);
    let body = if receiving.is_end_stream() {
        Body::Empty
    } else {
        let bytes = counted.as_ref().map(|counted| Arc::clone(&counted.bytes));
        Body::stream(RequestBody { receiving, data_done: false, bytes, stats: stats.clone() })
    };
    let stream = Stream {
        counted,
        respond,
        sending: None,
        chunk: Bytes::new(),
        end: End::Open,
        upgrade,
        connect: upgrade && !connect_udp::is_asked(&head) || head.method == Method::CONNECT,
        sent_body: 0,
        limit: rules.buffer_limit_bytes,
        leave: Arc::clone(leave),
        meter: Arc::clone(meter),
        stats: stats.clone(),
    };
    Ok(Opened { head, body, stream })
}

fn head_of(mut parts: http::request::Parts) -> Option<RequestHead> {
    let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let host = take_host(&mut parts.headers)?;
    let authority = match (authority, host) {
        (Some(authority), Some(host)) if !authority.as_bytes().eq_ignore_ascii_case(host.as_bytes()) => return None,
        (Some(authority), _) => HeaderValue::from_str(&authority).ok()?,
        (None, Some(host)) => host,
        (None, None) => HeaderValue::from_static(""),
    };
    if !super::h1::request::is_authority(authority.as_bytes()) {
        return None;
    }
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        if parts.headers.contains_key(name) {
            return None;
        }
    }
    let mut method = parts.method;
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        // Past the codec an extended CONNECT (RFC 8441) is an upgrade like HTTP/1's, as in Envoy.
        method = Method::GET;
        parts.headers.insert(UPGRADE, HeaderValue::from_str(protocol.as_str()).ok()?);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let path = match parts.uri.path_and_query() {
        Some(path) => HeaderValue::from_str(path.as_str()).ok()?,
        None => HeaderValue::from_static(""),
    };
    let mut head = RequestHead::new(method, authority, path);
    head.scheme = match parts.uri.scheme_str() {
        Some("https") => HeaderValue::from_static("https"),
        _ => HeaderValue::from_static("http"),
    };
    head.version = Version::HTTP_2;
    join_cookies(&mut parts.headers);
    head.headers = parts.headers;
    Some(head)
}

/// Removes Host; two of them are malformed (`None`).
#[expect(clippy::option_option, reason = "malformed, absent and present are three answers")]
fn take_host(headers: &mut HeaderMap) -> Option<Option<HeaderValue>> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return None;
    }
    headers.remove(HOST);
    Some(host)
}

/// Cookie crumbs become one header again (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(all.join(&b"; "[..]))) {
        headers.insert(COOKIE, joined);
    }
}

/// One stream's way back.
pub(crate) struct Stream {
    respond: SendResponse<Bytes>,
    sending: Option<SendStream<Bytes>>,
    /// Queued, not yet within the client's window.
    chunk: Bytes,
    end: End,
    /// The request was an extended CONNECT: 101 is written as 200.
    upgrade: bool,
    /// It is a CONNECT, extended or not; to Envoy one of UDP is none.
    connect: bool,
    sent_body: u64,
    /// Its bytes on the wire, if anybody asks for them.
    counted: Option<CountedStream>,
    limit: usize,
    leave: Arc<Notify>,
    /// The connection's.
    meter: Arc<Meter>,
    stats: Http2CodecStats,
}

/// How the response ends.
enum End {
    Open,
    /// After what is queued.
    Data,
    Trailers(HeaderMap),
    /// END_STREAM is with the connection.
    Sent,
    Gone(Gone),
}

impl Stream {
    fn failed(&mut self) {
        self.end = End::Gone(Gone::Closed);
    }

    fn count_sent_fields(&self, bytes: usize) {
        if let Some(counted) = &self.counted {
            counted.bytes.add_sent_fields(bytes as u64);
        }
    }

    /// Moves what the window allows; ready when nothing is queued.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        loop {
            if let End::Gone(gone) = self.end {
                return Poll::Ready(Err(gone));
            }
            let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
            if !self.chunk.is_empty() {
                sending.reserve_capacity(self.chunk.len());
                match ready!(sending.poll_capacity(cx)) {
                    Some(Ok(room)) => {
                        let piece = self.chunk.split_to(room.min(self.chunk.len()));
                        let end = self.chunk.is_empty() && matches!(self.end, End::Data);
                        match sending.send_data(piece, end) {
                            Ok(()) if end => self.end = End::Sent,
                            Ok(()) => {}
                            Err(_) => self.failed(),
                        }
                    }
                    _ => self.failed(),
                }
                continue;
            }
            match std::mem::replace(&mut self.end, End::Sent) {
                End::Data => {
                    if sending.send_data(Bytes::new(), true).is_err() {
                        self.failed();
                    }
                }
                End::Trailers(trailers) => {
                    if sending.send_trailers(trailers).is_err() {
                        self.failed();
                    }
                }
                other => {
                    self.end = other;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// Headers that HTTP/2 has no place for.
fn strip_connection_headers(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

impl Downstream for Stream {
    fn version(&self) -> Version {
        Version::HTTP_2
    }

    fn send_continue(&mut self) {
        let mut go_ahead = http::Response::new(());
        *go_ahead.status_mut() = http::StatusCode::CONTINUE;
        self.count_sent_fields(STATUS_BYTES);
        // A client that has gone needs no go-ahead.
        let _ = self.respond.send_informational(go_ahead);
    }

    fn send_informational(&mut self, head: &ResponseHead) {
        let mut response = http::Response::new(());
        *response.status_mut() = head.status;
        response.headers_mut().clone_from(&head.headers);
        strip_connection_headers(response.headers_mut());
        self.count_sent_fields(STATUS_BYTES + fields_bytes(response.headers()));
        // A client that has gone needs no hints.
        let _ = self.respond.send_informational(response);
    }

    fn send_head(&mut self, head: &ResponseHead, length: BodyLength) -> Option<&'static str> {
        let mut response = http::Response::new(());
        *response.status_mut() = head.status;
        response.headers_mut().clone_from(&head.headers);
        strip_connection_headers(response.headers_mut());
        self.count_sent_fields(STATUS_BYTES + fields_bytes(response.headers()));
        if self.upgrade && head.status == StatusCode::SWITCHING_PROTOCOLS {
            *response.status_mut() = StatusCode::OK;
        }
        let end = length == BodyLength::None;
        match self.respond.send_response(response, end) {
            Ok(sending) => {
                self.sending = Some(sending);
                if end {
                    self.end = End::Sent;
                }
            }
            Err(_) => self.failed(),
        }
        None
    }

    fn send_data(&mut self, data: Bytes, end: bool) {
        self.sent_body += data.len() as u64;
        if self.chunk.is_empty() {
            self.chunk = data;
        } else {
            let mut joined = bytes::BytesMut::with_capacity(self.chunk.len() + data.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&data);
            self.chunk = joined.freeze();
        }
        if end && matches!(self.end, End::Open) {
            self.end = End::Data;
        }
    }

    fn send_trailers(&mut self, trailers: HeaderMap) {
        if matches!(self.end, End::Open) {
            self.count_sent_fields(fields_bytes(&trailers));
            self.end = End::Trailers(trailers);
        }
    }

    fn send_end(&mut self) {
        if matches!(self.end, End::Open) {
            self.end = End::Data;
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match self.poll_send(cx) {
            Poll::Pending if self.chunk.len() < self.limit.min(16 << 10) && matches!(self.end, End::Open) => {
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        ready!(self.poll_send(cx))?;
        match &self.counted {
            // Its last frame is with the connection; what it took shows when it is out.
            Some(counted) if matches!(self.end, End::Sent) => counted.bytes.poll_sent(cx).map(Ok),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if matches!(self.end, End::Sent) {
            return Poll::Pending;
        }
        let reset = match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        match ready!(reset) {
            _ if self.meter.is_broken() => Poll::Ready(Gone::Broken),
            Ok(_) => {
                self.stats.rx_reset().inc();
                Poll::Ready(Gone::Reset)
            }
            Err(_) => Poll::Ready(Gone::Closed),
        }
    }

    fn reset(&mut self, reason: ResetReason) {
        self.stats.tx_reset().inc();
        if let Some(counted) = &self.counted {
            counted.reset();
        }
        let reason = match reason {
            _ if self.connect => Reason::CONNECT_ERROR,
            ResetReason::Internal | ResetReason::UpstreamReset => Reason::INTERNAL_ERROR,
        };
        match &mut self.sending {
            Some(sending) => sending.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
        self.end = End::Gone(Gone::Closed);
    }

    fn close_after(&mut self) {
        self.leave.notify_one();
    }

    fn received_bytes(&self) -> (u64, u64) {
        self.counted.as_ref().map_or((0, 0), |counted| counted.bytes.received())
    }

    fn field_bytes(&self) -> (u64, u64) {
        self.counted.as_ref().map_or((0, 0), |counted| counted.bytes.fields())
    }

    fn sent_bytes(&self) -> (u64, u64, u64) {
        let (header, wire) = self.counted.as_ref().map_or((0, self.sent_body), |counted| counted.bytes.sent());
        (self.sent_body, header, wire)
    }
}

/// A request's body: dropped before its end, the stream is reset.
struct RequestBody {
    receiving: RecvStream,
    data_done: bool,
    /// Where its bytes are counted, if anybody asks.
    bytes: Option<Arc<WireBytes>>,
    stats: Http2CodecStats,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.receiving.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What was handed on is no more the connection's: let the client send as much again.
                    let _ = self.receiving.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(body_error(&error)))),
                None => self.data_done = true,
            }
        }
        match ready!(self.receiving.poll_trailers(cx)) {
            Ok(Some(mut trailers)) => {
                self.stats.trailers().inc();
                if let Some(bytes) = &self.bytes {
                    bytes.add_received_fields(fields_bytes(&trailers) as u64);
                }
                remove_untrusted(&mut trailers);
                Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers))))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(body_error(&error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.receiving.is_end_stream()
    }
}

fn remove_untrusted(trailers: &mut HeaderMap) {
    let names: Vec<_> = trailers.keys().filter(|name| !super::h1::body::may_be_a_trailer(name)).cloned().collect();
    for name in names {
        trailers.remove(name);
    }
}

/// How a body ends that the `h2` crate could not read on, whoever sends it.
pub(crate) fn body_error(error: &h2::Error) -> BodyError {
    match error.reason() {
        Some(reason) if error.is_reset() => BodyError::Reset(reason.into()),
        _ => BodyError::Closed,
    }
}
