//! One request on a connection to a host: sent, answered, counted to its end. It must not know where the connection came from.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Uri};
use tidegate_filters::http::{Body, RequestHead, ResponseHead};

use super::body::ResponseBody;
use super::{Connection, Pool, max_headers_bytes, options};
use crate::cluster::pool::h2_upload::Upload;
use crate::cluster::pool::place::Content;
use crate::cluster::pool::{Active, Begun, ConnectionFacts, Pump, StreamRequest, StreamReset};
use crate::http::codec::h2::{STATUS_BYTES, fields_bytes, request_bytes};
use crate::http::codec::metered::CountedStream;
use crate::http::codec::stats::Http2CodecStats;

/// A place for one stream on a connection.
pub(crate) struct Lease {
    sender: SendRequest<Bytes>,
    facts: ConnectionFacts,
    stream: StreamGuard,
}

/// Counts a stream until it is over, and how it ended.
pub(super) struct StreamGuard {
    pub(super) connection: Arc<Connection>,
    pub(super) pool: Arc<Pool>,
    _active: Active,
    /// Whether all of the request is with the host; absent before anything is.
    pub(super) uploaded: Option<Arc<AtomicBool>>,
    /// All of the response came, or the host has reset the stream.
    pub(super) over: bool,
    /// Its bytes on the wire, if anybody asks for them.
    pub(super) counted: Option<CountedStream>,
}

impl StreamGuard {
    /// The stream failed; what is left of it needs no reset any more (Envoy's `onStreamReset`).
    pub(super) fn failed(&mut self, error: &h2::Error) {
        let traffic = &self.pool.cluster.stats().traffic;
        let remote_reset = error.is_reset() && error.is_remote();
        match error.reason() {
            _ if error.is_go_away() && error.is_remote() => {}
            Some(Reason::REFUSED_STREAM) if remote_reset => self.codec().rx_reset().inc(),
            Some(_) if remote_reset => {
                self.codec().rx_reset().inc();
                traffic.upstream_rq_rx_reset().inc();
            }
            // The connection goes with it, so that no frame says so.
            _ if error.is_library() && error.is_go_away() || self.connection.meter.is_flooded() => {
                traffic.upstream_rq_tx_reset().inc();
            }
            // Ours, counted when it is dropped.
            Some(_) if !error.is_remote() => return,
            _ => traffic.upstream_rq_pending_failure_eject().inc(),
        }
        self.settled();
    }

    /// How the stream failed, in Envoy's words.
    pub(super) fn reset_of(&self, error: &h2::Error) -> StreamReset {
        match error.reason() {
            // The host will not look at this stream any more.
            Some(_) if error.is_remote() && error.is_go_away() => StreamReset::Refused,
            Some(Reason::REFUSED_STREAM) => StreamReset::Refused,
            Some(reason) if error.is_remote() && error.is_reset() => StreamReset::Remote(reason.into()),
            // Our codec gave it up, or all of the connection, for what the host sent.
            Some(_) if error.is_library() => StreamReset::Protocol,
            // Nothing was read any more, so that all the codec knows is that the transport is gone.
            _ if self.connection.meter.is_flooded() => StreamReset::Protocol,
            _ => StreamReset::Termination,
        }
    }

    pub(super) fn codec(&self) -> &Http2CodecStats {
        self.pool.cluster.stats().codec.http2()
    }

    /// How it ended is counted.
    pub(super) fn settled(&mut self) {
        self.uploaded = None;
        self.over = true;
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let unfinished = self.uploaded.as_ref().is_some_and(|uploaded| !self.over || !uploaded.load(Relaxed));
        self.codec().streams_active().dec();
        if unfinished {
            self.codec().tx_reset().inc();
            self.pool.cluster.stats().traffic.upstream_rq_tx_reset().inc();
            if let Some(counted) = &self.counted {
                counted.reset();
            }
        }
        let shared = &self.connection.shared;
        *shared.idle_since.lock() = Instant::now();
        shared.active.fetch_sub(1, Relaxed);
        let mut state = self.pool.state.lock();
        if self.connection.is_over() {
            state.connections.retain(|connection| !Arc::ptr_eq(connection, &self.connection));
            state.leave_if_empty();
        }
        self.pool.offer(&mut state, &self.connection);
    }
}

impl Lease {
    pub(in crate::cluster::pool) fn facts(&self) -> &ConnectionFacts {
        &self.facts
    }

    pub(super) fn new(connection: Arc<Connection>, pool: Arc<Pool>, active: Active) -> Self {
        let shared = &connection.shared;
        let rested = options(&pool.cluster).keepalive.and_then(|rules| rules.idle_interval);
        if shared.active.fetch_add(1, Relaxed) == 0
            && rested
                .is_some_and(|rested| shared.opened.load(Relaxed) > 0 && shared.idle_since.lock().elapsed() >= rested)
        {
            shared.woken.notify_one();
        }
        pool.cluster.stats().codec.http2().streams_active().inc();
        let opened = shared.opened.fetch_add(1, Relaxed) + 1;
        let most = pool.cluster.config().http.max_requests_per_connection;
        if most.is_some_and(|most| opened >= u64::from(most)) && !shared.closing.swap(true, Relaxed) {
            pool.cluster.stats().traffic.upstream_cx_max_requests().inc();
        }
        let (sender, facts) = (connection.sender.clone(), connection.facts.clone());
        let stream = StreamGuard { connection, pool, _active: active, uploaded: None, over: false, counted: None };
        Self { sender, facts, stream }
    }
}

/// Sends the request and waits for the response's head.
pub(crate) async fn send(lease: Lease, request: &StreamRequest<'_>, body: Body) -> Result<Begun, StreamReset> {
    let Lease { sender, mut stream, .. } = lease;
    let mut sender = match sender.ready().await {
        Ok(sender) => sender,
        Err(error) => {
            stream.connection.shared.closing.store(true, Relaxed);
            return Err(stream.reset_of(&error));
        }
    };
    let Some(head) = encode(request.head, request.tunnel) else { return Err(StreamReset::Protocol) };
    let end = body.is_end();
    if let Some(bytes) = request.bytes {
        bytes.add_sent_fields(request_bytes(&head) as u64);
    }
    let (response, sending) = match sender.send_request(head, end) {
        Ok(sent) => sent,
        Err(error) => {
            stream.connection.shared.closing.store(true, Relaxed);
            return Err(stream.reset_of(&error));
        }
    };
    let uploaded = Arc::new(AtomicBool::new(end));
    stream.uploaded = Some(Arc::clone(&uploaded));
    stream.counted =
        request.bytes.and_then(|bytes| stream.connection.meter.begin(response.stream_id().as_u32(), bytes));
    let bytes = request.bytes.cloned();
    let mut upload =
        (!end).then(|| Upload { body, sending, chunk: Bytes::new(), last: false, broken: false, uploaded, bytes });
    let (mut head, receiving) = wait(response, &mut upload, request, &mut stream).await?;
    accept_upgrade(request, &mut head);
    let pump =
        upload.map(|mut upload| -> Pump { Box::pin(async move { std::future::poll_fn(|cx| upload.poll(cx)).await }) });
    let body = if receiving.is_end_stream() {
        stream.over = true;
        Body::Empty
    } else {
        Body::stream(ResponseBody { receiving, stream, data_done: false })
    };
    Ok(Begun::new(head, body, pump))
}

async fn wait(
    mut response: ResponseFuture,
    upload: &mut Option<Upload>,
    request: &StreamRequest<'_>,
    stream: &mut StreamGuard,
) -> Result<(ResponseHead, RecvStream), StreamReset> {
    let response = std::future::poll_fn(|cx| {
        if let Some(running) = upload
            && running.poll(cx).is_ready()
        {
            *upload = None;
        }
        while let Poll::Ready(Some(Ok(informational))) = response.poll_informational(cx) {
            // There is none in HTTP/2 (RFC 9113 section 8.6): a client would take what follows for another protocol.
            if informational.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Err(StreamReset::Protocol));
            }
            let mut head = ResponseHead::new(informational.status());
            head.headers = informational.into_parts().0.headers;
            count_head(request, &head.headers);
            if let Err(reset) = request.informational.informational(head) {
                return Poll::Ready(Err(reset));
            }
        }
        Pin::new(&mut response).poll(cx).map_err(|error| {
            stream.failed(&error);
            stream.reset_of(&error)
        })
    })
    .await?;
    let (parts, receiving) = response.into_parts();
    if parts.status.is_informational() {
        return Err(StreamReset::Protocol);
    }
    count_head(request, &parts.headers);
    let most = request.cluster.config().http.max_headers_count as usize;
    // Envoy takes either for a reset by the host.
    if fields_bytes(&parts.headers) > max_headers_bytes(request.cluster) || parts.headers.len() >= most {
        stream.pool.cluster.stats().traffic.upstream_rq_rx_reset().inc();
        stream.settled();
        return Err(StreamReset::Remote(Reason::INTERNAL_ERROR.into()));
    }
    let mut head = ResponseHead::new(parts.status);
    head.version = http::Version::HTTP_2;
    head.headers = parts.headers;
    Ok((head, receiving))
}

/// A response's head has come.
fn count_head(request: &StreamRequest<'_>, headers: &HeaderMap) {
    if let Some(bytes) = request.bytes {
        bytes.add_received_fields((STATUS_BYTES + fields_bytes(headers)) as u64);
    }
}

/// A 200 to an extended CONNECT is what 101 is in HTTP/1; past the pool it is one.
fn accept_upgrade(request: &StreamRequest<'_>, head: &mut ResponseHead) {
    let Some(protocol) = request.head.headers.get(http::header::UPGRADE).filter(|_| request.tunnel) else { return };
    if head.status == http::StatusCode::OK {
        head.status = http::StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(http::header::UPGRADE, protocol.clone());
        head.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
    }
}

/// The head as the `h2` crate wants it; `None` when it cannot be one.
fn encode(head: &RequestHead, tunnel: bool) -> Option<http::Request<()>> {
    let mut request = http::Request::new(());
    let upgrade = head.headers.get(http::header::UPGRADE).filter(|_| tunnel);
    *request.method_mut() = if upgrade.is_some() { Method::CONNECT } else { head.method.clone() };
    *request.version_mut() = http::Version::HTTP_2;
    let authority = http::uri::Authority::from_maybe_shared(Bytes::copy_from_slice(head.authority.as_bytes())).ok();
    *request.uri_mut() = if head.method == Method::CONNECT {
        Uri::from(authority?)
    } else {
        let path = http::uri::PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(head.path.as_bytes())).ok()?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if head.scheme == "https" { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
        parts.authority = authority;
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).ok()?
    };
    if let Some(protocol) = upgrade {
        // An upgrade is an extended CONNECT in HTTP/2 (RFC 8441).
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol.to_str().ok()?));
    }
    request.headers_mut().clone_from(&head.headers);
    for name in [http::header::CONNECTION, http::header::TRANSFER_ENCODING, http::header::UPGRADE, http::header::HOST] {
        request.headers_mut().remove(name);
    }
    Some(request)
}
