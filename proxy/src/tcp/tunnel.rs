//! `tunneling_config`: the connection's bytes in a CONNECT or POST to an HTTP host.
//! It must not know how hosts are chosen or how often is tried.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tidegate_filters::format::{Format, FormatContext};
use tidegate_filters::http::{Body, BodyError, Frame, RequestHead};
use tidegate_filters::metadata::{Sharing, StateObject};
use tidegate_filters::stream_info::StreamInfo;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{Notify, oneshot};

use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::Host;
use crate::cluster::pool::{Begun, Informational, PoolError, Stream, StreamRequest};
use crate::cluster::proxied::Proxied;
use crate::http::request_id;
use crate::io::Transport;
use crate::route::HeaderMutations;

/// A compiled `tunneling_config`.
pub struct Tunnel {
    /// The request's authority.
    pub hostname: Format,
    /// The path of a POST; a CONNECT without one.
    pub post_path: Option<HeaderValue>,
    pub headers: HeaderMutations,
    /// A generated id, and where it is told.
    pub request_id: Option<RequestId>,
    /// The response's are put into the filter state.
    pub tells_headers: bool,
    pub tells_trailers: bool,
}

/// `request_id_extension`: each request of a tunnel has an id of its own.
pub struct RequestId {
    pub header: HeaderName,
    /// Of the dynamic metadata.
    pub metadata_key: String,
}

/// Where a request's id is noted.
const NAMESPACE: &str = "envoy.filters.network.tcp_proxy";
const TOLD_HEADERS: &str = "envoy.tcp_proxy.propagate_response_headers";
const TOLD_TRAILERS: &str = "envoy.tcp_proxy.propagate_response_trailers";

/// Headers or trailers as filter state.
struct Told(Vec<(String, String)>);

impl Told {
    fn of(headers: &HeaderMap) -> Vec<(String, String)> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
    }

    fn put(self, key: &str, stream: &mut StreamInfo) {
        stream.filter_state.set(key, Arc::new(self), false, Sharing::None);
    }
}

impl StateObject for Told {
    fn text(&self) -> Option<String> {
        None
    }
    fn json(&self) -> Option<Value> {
        let entry = |(key, value): &(String, String)| json!({"key": key, "value": value});
        Some(json!({"headers": self.0.iter().map(entry).collect::<Vec<_>>()}))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A tunnel that stands.
pub(super) struct Standing {
    begun: Begun,
    tells_trailers: bool,
}

/// The client's side while hosts are tried: nothing is read of it before one has agreed.
pub(super) struct Client {
    read: Arc<Mutex<ReadHalf<Transport>>>,
    write: WriteHalf<Transport>,
    passed: Arc<Passed>,
}

/// Bytes that have passed through a tunnel.
#[derive(Debug)]
pub(super) struct Passed {
    received: AtomicU64,
    sent: AtomicU64,
    last: Mutex<Instant>,
    moved: Notify,
    /// The response's, where they are told.
    trailers: Mutex<Option<HeaderMap>>,
}

impl Passed {
    fn new() -> Self {
        Self {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            last: Mutex::new(Instant::now()),
            moved: Notify::new(),
            trailers: Mutex::default(),
        }
    }

    fn moved(&self, way: &AtomicU64, bytes: usize) {
        way.fetch_add(bytes as u64, Relaxed);
        self.touch();
        self.moved.notify_one();
    }

    /// Something has happened: the time without anything begins anew.
    pub(super) fn touch(&self) {
        *self.last.lock() = Instant::now();
    }

    /// When something last happened.
    pub(super) fn last(&self) -> Instant {
        *self.last.lock()
    }

    /// From the client, and to it.
    pub(super) fn read(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }

    /// Waits until bytes have passed.
    pub(super) async fn more(&self) {
        self.moved.notified().await;
    }

    /// Puts the trailers that came into the filter state.
    pub(super) fn tell_trailers(&self, stream: &mut StreamInfo) {
        if let Some(trailers) = self.trailers.lock().take() {
            Told(Told::of(&trailers)).put(TOLD_TRAILERS, stream);
        }
    }
}

/// Why there is no tunnel to this host.
pub(super) enum Refused {
    Pool(PoolError),
    /// It answered, but not with a success.
    Status(StatusCode),
    Reset,
}

impl Client {
    pub(super) fn new(transport: Transport) -> Self {
        let (read, write) = tokio::io::split(transport);
        Self { read: Arc::new(Mutex::new(read)), write, passed: Arc::new(Passed::new()) }
    }

    pub(super) fn passed(&self) -> Arc<Passed> {
        Arc::clone(&self.passed)
    }
}

impl Tunnel {
    /// Asks one host for a tunnel.
    pub(super) async fn open(
        &self,
        cluster: &Arc<Cluster>,
        host: &Arc<Host>,
        client: &Client,
        proxied: Option<Arc<Proxied>>,
        stream: &mut StreamInfo,
    ) -> Result<Standing, Refused> {
        let head = self.head(stream);
        let informational = Informational::default();
        let shared = stream.connection.filter_state_now().into_owned();
        let request = StreamRequest {
            cluster,
            host,
            priority: RoutingPriority::Default,
            head: &head,
            downstream: http::Version::HTTP_11,
            state: &shared,
            proxied,
            tunnel: self.post_path.is_none(),
            terminate: None,
            informational: &informational,
            bytes: None,
            client: None,
        };
        let opened = Stream::open(&request).await.map_err(Refused::Pool)?;
        if let Some(facts) = opened.facts() {
            stream.upstream.local_address.clone_from(&facts.local);
            stream.upstream.connection_id = Some(facts.id);
            stream.upstream.tls.clone_from(&facts.tls);
            stream.upstream.protocol = Some(facts.protocol);
            stream.upstream.filter_state.clone_from(&facts.shared);
        }
        let (open, gate) = oneshot::channel();
        let body = Body::stream(FromClient {
            read: Arc::clone(&client.read),
            passed: client.passed(),
            gate: Some(gate),
            ended: false,
        });
        let begun = opened.send(&request, body).await.map_err(|_| Refused::Reset)?;
        let status = begun.response.head.status;
        if self.tells_headers {
            let mut headers = vec![(":status".to_owned(), status.as_str().to_owned())];
            headers.extend(Told::of(&begun.response.head.headers));
            Told(headers).put(TOLD_HEADERS, stream);
        }
        if !status.is_success() {
            return Err(Refused::Status(status));
        }
        // The other end is held by what was just begun.
        let _ = open.send(());
        Ok(Standing { begun, tells_trailers: self.tells_trailers })
    }

    fn head(&self, stream: &mut StreamInfo) -> RequestHead {
        let mut hostname = Vec::new();
        self.hostname.render(&FormatContext::of(stream), &mut hostname);
        let authority = HeaderValue::from_bytes(&hostname).unwrap_or(HeaderValue::from_static(""));
        let (method, path) = match &self.post_path {
            Some(path) => (Method::POST, path.clone()),
            None => (Method::CONNECT, HeaderValue::from_static("")),
        };
        let mut head = RequestHead::new(method, authority, path);
        if let Some(RequestId { header, metadata_key }) = &self.request_id {
            let id = request_id();
            let noted = id.to_str().unwrap_or_default().into();
            stream.dynamic_metadata.merge(NAMESPACE, Map::from_iter([(metadata_key.clone(), noted)]));
            head.headers.insert(header.clone(), id);
        }
        self.headers.apply_request(&mut head, &*stream);
        head
    }
}

impl Standing {
    /// Moves bytes both ways until both directions have ended, or one has failed.
    pub(super) async fn run(self, client: Client) {
        let tells_trailers = self.tells_trailers;
        let Begun { response, pump, .. } = self.begun;
        let Client { mut write, passed, .. } = client;
        let mut body = response.body;
        let downward = async {
            while let Some(Ok(frame)) = body.frame().await {
                let data = match frame.into_data() {
                    Ok(data) => data,
                    Err(frame) => {
                        *passed.trailers.lock() = frame.into_trailers().ok().filter(|_| tells_trailers);
                        break;
                    }
                };
                if write.write_all(&data).await.is_err() {
                    return;
                }
                passed.moved(&passed.sent, data.len());
            }
            // The client may be gone already; then there is nobody left to tell.
            let _ = write.shutdown().await;
        };
        let upward = async {
            if let Some(pump) = pump {
                pump.await;
            }
        };
        tokio::join!(downward, upward);
    }
}

const READ_BYTES: usize = 16 << 10;

/// The client's bytes as a request's body, once the tunnel stands.
struct FromClient {
    read: Arc<Mutex<ReadHalf<Transport>>>,
    passed: Arc<Passed>,
    gate: Option<oneshot::Receiver<()>>,
    ended: bool,
}

impl http_body::Body for FromClient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let this = &mut *self;
        if let Some(gate) = &mut this.gate {
            // Dropped without a word, the tunnel was refused and nobody reads this any more.
            if ready!(Pin::new(gate).poll(cx)).is_err() {
                return Poll::Ready(Some(Err(BodyError::Closed)));
            }
            this.gate = None;
        }
        if this.ended {
            return Poll::Ready(None);
        }
        let mut space = [std::mem::MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *this.read.lock()).poll_read(cx, &mut buffer)).map_err(|_| BodyError::Closed)?;
        this.ended = buffer.filled().is_empty();
        if this.ended {
            return Poll::Ready(None);
        }
        this.passed.moved(&this.passed.received, buffer.filled().len());
        Poll::Ready(Some(Ok(Frame::data(BytesMut::from(buffer.filled()).freeze()))))
    }
}
