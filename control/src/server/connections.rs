//! Connections of people and proxies: how many there may be, how long one may take until it asks something, and how long it may
//! stay without. It must not know what is asked.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;

use super::tls::{Carrier, Tls};

/// How long to wait after a connection could not be accepted: most often there are too many files open.
const PAUSE: Duration = Duration::from_millis(100);

/// How long there is to take in what came in time and is read too late, since this process had other things to do.
const LATE: Duration = Duration::from_secs(1);

/// What connections may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many there may be at once.
    pub(crate) most: usize,
    /// How long it may take from being accepted to the end of the first request's head, whatever version is spoken.
    pub(crate) head: Duration,
    /// How long there may be no request under way; twice as long at most.
    pub(crate) idle: Duration,
}

/// Accepts connections, each with its limits.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: TcpListener,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    places: Arc<Semaphore>,
    /// Some were turned away since there was room last.
    full: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(crate) fn new(listener: TcpListener, limits: Limits, tls: Option<Arc<Tls>>) -> Self {
        Self { listener, limits, tls, places: Arc::new(Semaphore::new(limits.most)), full: false, pause: None }
    }

    /// None: there are too many already, and this one is closed.
    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> Option<Guarded> {
        match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                if std::mem::take(&mut self.full) {
                    tracing::info!("there is room for connections again");
                }
                // A reason to fail is one to find it closed when it is read.
                let _ = stream.set_nodelay(true);
                Some(Guarded::new(Carrier::new(stream, peer, self.tls.as_ref()), peer, place, self.limits))
            }
            Err(_) => {
                if !std::mem::replace(&mut self.full, true) {
                    tracing::warn!(most = self.limits.most, %peer, "too many connections: more are closed at once");
                }
                None
            }
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Guarded>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, peer)) => {
                    if let Some(guarded) = self.admit(stream, peer) {
                        return Poll::Ready(Some(Ok(guarded)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}

/// What a connection is doing.
#[derive(Debug)]
struct Doing {
    limits: Limits,
    now: Mutex<Now>,
}

#[derive(Debug, Clone, Copy)]
enum Now {
    /// Nothing was asked yet.
    Beginning(Instant),
    /// So many requests are under way.
    Busy(usize),
    Idle(Instant),
}

impl Doing {
    /// When it has to end, unless it does something before.
    fn deadline(&self) -> Option<Instant> {
        match *self.now.lock() {
            Now::Beginning(since) => Some(since + self.limits.head),
            Now::Busy(_) => None,
            Now::Idle(since) => Some(since + self.limits.idle),
        }
    }
}

/// A request that is under way.
#[derive(Debug)]
struct Underway(Arc<Doing>);

impl Underway {
    fn new(doing: &Arc<Doing>) -> Self {
        let mut now = doing.now.lock();
        *now = match *now {
            Now::Busy(count) => Now::Busy(count + 1),
            Now::Beginning(_) | Now::Idle(_) => Now::Busy(1),
        };
        drop(now);
        Self(doing.clone())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut now = self.0.now.lock();
        *now = match *now {
            Now::Busy(count) if count > 1 => Now::Busy(count - 1),
            _ => Now::Idle(Instant::now()),
        };
    }
}

/// Who is at the other end of a request's connection.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) peer: SocketAddr,
    doing: Arc<Doing>,
}

impl Caller {
    /// The connection of a request, if it came over one.
    pub(crate) fn of<T>(request: &http::Request<T>) -> Option<&Self> {
        request.extensions().get()
    }
}

/// A request that is under way until its answer is told to the end.
pub(crate) struct Asked {
    /// It is so until this is dropped.
    _underway: Option<Underway>,
}

impl Asked {
    /// A request whose head is there.
    pub(crate) fn new<T>(request: &http::Request<T>) -> Self {
        Self { _underway: Caller::of(request).map(|caller| Underway::new(&caller.doing)) }
    }

    /// The answer to it.
    pub(crate) fn answered(self, response: http::Response<Body>) -> http::Response<Body> {
        response.map(|body| Body::new(Told { body, _asked: self }))
    }
}

/// An answer's body; with it the request ends.
struct Told {
    body: Body,
    _asked: Asked,
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection with its limits.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: Carrier,
    peer: SocketAddr,
    doing: Arc<Doing>,
    look: Pin<Box<Sleep>>,
    /// Its time is over, and it was given [`LATE`].
    late: bool,
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    fn new(stream: Carrier, peer: SocketAddr, place: OwnedSemaphorePermit, limits: Limits) -> Self {
        let now = Instant::now();
        let doing = Arc::new(Doing { limits, now: Mutex::new(Now::Beginning(now)) });
        let look = Box::pin(tokio::time::sleep_until(now + limits.head.min(limits.idle)));
        Self { stream, peer, doing, look, late: false, _place: place }
    }

    /// Whether its time is over. Where it is busy now it is looked at again later.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        while self.look.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let again = match self.doing.deadline() {
                Some(deadline) if deadline <= now => return true,
                Some(deadline) => deadline,
                None => now + self.doing.limits.idle,
            };
            self.late = false;
            self.look.as_mut().reset(again);
        }
        false
    }

    /// Gives one whose time is over a little more, once.
    fn extend(&mut self, context: &mut Context<'_>) -> bool {
        if std::mem::replace(&mut self.late, true) {
            return false;
        }
        self.look.as_mut().reset(Instant::now() + LATE);
        self.look.as_mut().poll(context).is_pending()
    }
}

impl Connected for Guarded {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller { peer: self.peer, doing: self.doing.clone() }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if !self.is_over(context) || buffer.filled().len() > before && self.extend(context) {
            return read;
        }
        tracing::debug!(peer = %self.peer, "a connection that asks nothing is closed");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower_service::Service;

    use super::*;

    const SHORT: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_secs(600);

    /// Answers after a second request has come, where `/wait` is asked for.
    #[derive(Clone, Default)]
    struct Answers(Arc<tokio::sync::Notify>);

    impl Service<http::Request<Body>> for Answers {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let (asked, go) = (Asked::new(&request), self.0.clone());
            Box::pin(async move {
                if request.uri().path() == "/wait" {
                    go.notified().await;
                }
                Ok(asked.answered(http::Response::new(Body::new(Full::new(Bytes::from_static(b"answer"))))))
            })
        }
    }

    struct Serving {
        address: SocketAddr,
        answers: Answers,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Serving {
        async fn start(limits: Limits) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (answers, incoming) = (Answers::default(), Incoming::new(listener, limits, None));
            let service = answers.clone();
            let task = tokio::spawn(async move {
                let server = tonic::transport::Server::builder().accept_http1(true);
                server.serve_with_incoming(service, incoming).await.unwrap();
            });
            Self { address, answers, task }
        }

        /// What comes after these bytes until the other side closes.
        async fn hear(&self, bytes: &[u8]) -> Vec<u8> {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut heard = Vec::new();
            // Closed with bytes that nobody read is closed too.
            let _ = stream.read_to_end(&mut heard).await;
            heard
        }
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// A connection whose other end said this before it was looked at for so long.
    async fn late(said: &[u8], how: Duration) -> (TcpStream, Guarded) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        client.write_all(said).await.unwrap();
        if !said.is_empty() {
            stream.readable().await.unwrap();
        }
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let limits = Limits { most: 1, head: SHORT, idle: LONG };
        let guarded = Guarded::new(Carrier::new(stream, peer, None), peer, place, limits);
        tokio::time::advance(how).await;
        (client, guarded)
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_in_time_is_read_however_late() {
        let (_client, mut guarded) = late(b"GET / HTTP/1.1\r\n", SHORT + LATE).await;
        let mut read = [0; 64];
        assert_eq!(guarded.read(&mut read).await.unwrap(), 16);
        // What it begins with is asked for in a while.
        let asked = Underway::new(&guarded.doing);
        let more = tokio::time::timeout(3 * SHORT, guarded.read(&mut read)).await;
        assert!(more.is_err(), "{more:?}");
        drop(asked);
        let (_client, mut guarded) = late(b"", SHORT).await;
        assert_eq!(guarded.read(&mut read).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_on_saying_what_asks_nothing_is_not_kept() {
        let (mut client, mut guarded) = late(b"GET / HTTP/1.1\r\n", SHORT).await;
        let began = Instant::now();
        let mut read = [0; 64];
        let ended = loop {
            match guarded.read(&mut read).await {
                Ok(_) => client.write_all(b"a: b\r\n").await.unwrap(),
                Err(error) => break error,
            }
            tokio::time::advance(LATE / 4).await;
        };
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= 2 * LATE, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_is_not_kept() {
        let serving = Serving::start(Limits { most: 10, head: SHORT, idle: LONG }).await;
        for bytes in [&b""[..], &PREFACE[..10], b"GET / HTTP/1.1\r\nhost: x\r\n", PREFACE] {
            let heard = serving.hear(bytes).await;
            assert!(!heard.starts_with(b"HTTP/1.1 200"), "{bytes:?}: {heard:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_more_is_not_kept() {
        let serving = Serving::start(Limits { most: 10, head: LONG, idle: SHORT }).await;
        let heard = serving.hear(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(heard.starts_with(b"HTTP/1.1 200") && heard.ends_with(b"answer"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_an_answer_is_kept() {
        let serving = Serving::start(Limits { most: 10, head: SHORT, idle: SHORT }).await;
        let waiting = serving.hear(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n");
        let others = async {
            // Each of these is kept for longer than the one that waits would be.
            for _ in 0..3 {
                serving.hear(b"").await;
            }
            serving.answers.0.notify_one();
        };
        let (heard, ()) = tokio::join!(waiting, others);
        assert!(heard.ends_with(b"answer"), "{heard:?}");
    }

    #[tokio::test]
    async fn one_too_many_is_closed_at_once_until_there_is_room() {
        let serving = Serving::start(Limits { most: 1, head: LONG, idle: LONG }).await;
        let ask = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let first = TcpStream::connect(serving.address).await.unwrap();
        assert!(serving.hear(ask).await.is_empty());
        drop(first);
        while serving.hear(ask).await.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
