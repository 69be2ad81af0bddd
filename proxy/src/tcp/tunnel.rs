//! `tunneling_config`: the connection's bytes in a CONNECT or POST to an HTTP host.
//! It must not know how hosts are chosen or how often is tried.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use tidegate_filters::format::{Format, FormatContext};
use tidegate_filters::http::{Body, BodyError, Frame, RequestHead};
use tidegate_filters::stream_info::StreamInfo;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::oneshot;

use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::Host;
use crate::cluster::pool::{Begun, Informational, PoolError, Stream, StreamRequest};
use crate::io::Transport;
use crate::route::HeaderMutations;

/// A compiled `tunneling_config`.
pub struct Tunnel {
    /// The request's authority.
    pub hostname: Format,
    /// The path of a POST; a CONNECT without one.
    pub post_path: Option<HeaderValue>,
    pub headers: HeaderMutations,
}

/// A tunnel that stands.
pub(super) struct Standing {
    begun: Begun,
}

/// The client's side while hosts are tried: nothing is read of it before one has agreed.
pub(super) struct Client {
    read: Arc<Mutex<ReadHalf<Transport>>>,
    write: WriteHalf<Transport>,
    passed: Arc<Passed>,
}

/// Bytes that have passed through a tunnel.
#[derive(Debug, Default)]
pub(super) struct Passed {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Passed {
    /// From the client, and to it.
    pub(super) fn read(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
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
        Self { read: Arc::new(Mutex::new(read)), write, passed: Arc::default() }
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
        stream: &mut StreamInfo,
    ) -> Result<Standing, Refused> {
        let head = self.head(stream);
        let informational = Informational::default();
        let request = StreamRequest {
            cluster,
            host,
            priority: RoutingPriority::Default,
            head: &head,
            downstream: http::Version::HTTP_11,
            tunnel: self.post_path.is_none(),
            terminate: None,
            informational: &informational,
            bytes: None,
        };
        let opened = Stream::open(&request).await.map_err(Refused::Pool)?;
        let facts = opened.facts();
        stream.upstream.local_address.clone_from(&facts.local);
        stream.upstream.connection_id = Some(facts.id);
        stream.upstream.protocol = Some(facts.protocol);
        let (open, gate) = oneshot::channel();
        let body = Body::stream(FromClient {
            read: Arc::clone(&client.read),
            passed: client.passed(),
            gate: Some(gate),
            ended: false,
        });
        let begun = opened.send(&request, body).await.map_err(|_| Refused::Reset)?;
        let status = begun.response.head.status;
        if !status.is_success() {
            return Err(Refused::Status(status));
        }
        // The other end is held by what was just begun.
        let _ = open.send(());
        Ok(Standing { begun })
    }

    fn head(&self, stream: &StreamInfo) -> RequestHead {
        let mut hostname = Vec::new();
        self.hostname.render(&FormatContext::of(stream), &mut hostname);
        let authority = HeaderValue::from_bytes(&hostname).unwrap_or(HeaderValue::from_static(""));
        let (method, path) = match &self.post_path {
            Some(path) => (Method::POST, path.clone()),
            None => (Method::CONNECT, HeaderValue::from_static("")),
        };
        let mut head = RequestHead::new(method, authority, path);
        self.headers.apply_request(&mut head, stream);
        head
    }
}

impl Standing {
    /// Moves bytes both ways until both directions have ended, or one has failed.
    pub(super) async fn run(self, client: Client) {
        let Begun { response, pump } = self.begun;
        let Client { mut write, passed, .. } = client;
        let mut body = response.body;
        let downward = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { break };
                if write.write_all(&data).await.is_err() {
                    return;
                }
                passed.sent.fetch_add(data.len() as u64, Relaxed);
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
        this.passed.received.fetch_add(buffer.filled().len() as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(BytesMut::from(buffer.filled()).freeze()))))
    }
}
