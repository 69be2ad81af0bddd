//! The client's side of HTTP/1: heads and bodies in, responses out, one exchange after another.
//! It must not know what an exchange does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, Method, StatusCode, Version};
use parking_lot::Mutex;
use tidegate_filters::http::{Body, BodyError, ResponseHead};
use tokio::io::{ReadHalf, WriteHalf};

use super::super::CodecError;
use super::body::{BodyDecoder, Piece};
use super::encode::{self, Delimit};
use super::fields::trailer_bytes;
use super::io::{Reader, Writer};
use super::outgoing::{Answered, Outgoing};
use super::request::{self, DecodedRequest, RequestRules};
use crate::http::codec::LAST_BYTES;
use crate::http::downstream::{BodyLength, Downstream, Gone, ResetReason};
use crate::io::Transport;

/// Bytes of a next request that are read ahead while an exchange runs.
const MAX_AHEAD_BYTES: usize = 64 << 10;
/// Bytes of an unread body that are read and dropped so that the connection can go on.
const MAX_DRAINED_BYTES: u64 = 64 << 10;
/// How long a client may take to send the rest of a body that nobody reads.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(1);

type Half = Reader<ReadHalf<Transport>>;

/// Why no further request was read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The client closed between requests.
    Closed,
    /// It closed, or failed, within a head.
    Cut,
    Codec(CodecError),
}

/// Who closed a connection that the proxy wanted closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    ByClient,
    ByProxy,
}

/// A downstream HTTP/1 connection.
pub(crate) struct Server {
    reader: Option<Half>,
    /// Where a body leaves the reader when it is done with it.
    returned: Arc<Mutex<Option<Returned>>>,
    writer: Writer<WriteHalf<Transport>>,
    rules: Arc<RequestRules>,
    /// Of the request that is being served.
    current: Current,
    sent_body: u64,
    sent_head: u64,
    received_head: u64,
    received_fields: u64,
    received_trailers: u64,
    /// All of earlier requests.
    read_before: u64,
    /// All that had been written when the current request began.
    written_before: u64,
    /// Ready when the connection's time is over.
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

struct Returned {
    reader: Half,
    body: BodyDecoder,
    trailer_bytes: u64,
}

#[derive(Debug)]
struct Current {
    version: Version,
    method: Method,
    keep_alive: bool,
    said_keep_alive: bool,
    /// The response's body.
    body: Outgoing,
    broken: bool,
}

impl Default for Current {
    fn default() -> Self {
        Self {
            version: Version::HTTP_11,
            method: Method::GET,
            keep_alive: true,
            said_keep_alive: false,
            body: Outgoing::Nothing,
            broken: false,
        }
    }
}

impl Server {
    /// `cut` ends the connection whatever it does.
    pub(crate) fn new(
        transport: Transport,
        rules: Arc<RequestRules>,
        buffer_limit_bytes: usize,
        cut: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (read, write) = tokio::io::split(transport);
        Self {
            reader: Some(Reader::new(read)),
            returned: Arc::default(),
            writer: Writer::new(write, buffer_limit_bytes),
            rules,
            current: Current::default(),
            sent_body: 0,
            sent_head: 0,
            received_head: 0,
            received_fields: 0,
            received_trailers: 0,
            read_before: 0,
            written_before: 0,
            cut: Box::pin(cut),
        }
    }

    /// Waits for the first byte of a next request, holding no buffer.
    pub(crate) async fn readable(&mut self) -> Result<(), ReadError> {
        let Some(reader) = &mut self.reader else { return Err(ReadError::Cut) };
        if !reader.buffer.is_empty() {
            return Ok(());
        }
        match reader.fill().await {
            Ok(0) | Err(_) => Err(ReadError::Closed),
            Ok(_) => Ok(()),
        }
    }

    /// Reads one head. The body, if one follows, is pulled from the socket by whoever reads it. What was read stays when
    /// this is dropped.
    pub(crate) async fn read_request(&mut self) -> Result<(DecodedRequest, Body), ReadError> {
        self.current = Current { keep_alive: false, ..Current::default() };
        (self.sent_body, self.sent_head, self.received_head) = (0, 0, 0);
        (self.received_fields, self.received_trailers) = (0, 0);
        self.written_before = self.writer.accepted_bytes();
        self.read_before = self.reader.as_ref().map_or(0, Reader::used_bytes);
        // The reader stays in its place while this waits: whoever gives up waiting can still answer.
        let Some(reader) = &mut self.reader else { return Err(ReadError::Cut) };
        let decoded = loop {
            match request::decode(&mut reader.buffer, &mut reader.scanned, &self.rules) {
                Ok(Some(decoded)) => break decoded,
                Ok(None) => {}
                Err(error) => {
                    // What cannot be read as a request was received all the same.
                    reader.buffer.clear();
                    return Err(ReadError::Codec(error));
                }
            }
            match reader.fill().await {
                Ok(0) | Err(_) => return Err(ReadError::Cut),
                Ok(_) => {}
            }
        };
        self.current = Current {
            version: decoded.head.version,
            method: decoded.head.method.clone(),
            keep_alive: decoded.keep_alive,
            said_keep_alive: decoded.keep_alive && decoded.head.version == Version::HTTP_10,
            ..Current::default()
        };
        self.received_head = decoded.head_bytes as u64;
        self.received_fields = decoded.field_bytes as u64;
        let decoder = BodyDecoder::new(decoded.framing);
        if decoder.is_done() {
            return Ok((decoded, Body::Empty));
        }
        let Some(reader) = self.reader.take() else { return Err(ReadError::Cut) };
        let returned = Arc::clone(&self.returned);
        let trailers = self.rules.http1.enable_trailers;
        let body = RequestBody { part: Some(Returned { reader, body: decoder, trailer_bytes: 0 }), returned, trailers };
        Ok((decoded, Body::stream(body)))
    }

    /// Whether a part of a head has come, and no whole one.
    pub(crate) fn has_part_of_head(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| !reader.buffer.is_empty())
    }

    /// After an exchange: whether another request may follow on this connection.
    pub(crate) async fn finish_exchange(&mut self) -> bool {
        if self.current.broken || !self.current.keep_alive {
            return false;
        }
        if self.reader.is_none() {
            let Some(mut part) = self.returned.lock().take() else { return false };
            let drained = tokio::time::timeout(MAX_DRAIN_TIME, drain(&mut part)).await;
            // The reader stays in any case: what is never read would make the close a reset, and lose the response.
            self.reader = Some(part.reader);
            if !drained.unwrap_or(false) {
                return false;
            }
        }
        if let Some(reader) = &mut self.reader {
            reader.release();
        }
        true
    }

    /// Whether all of the last request has come.
    pub(crate) fn has_whole_request(&self) -> bool {
        self.reader.is_some() || self.returned.lock().as_ref().is_some_and(|part| part.body.is_done())
    }

    /// Says goodbye: everything written, then the client is given time to close (Envoy's `delayed_close_timeout`), so that
    /// what it still sends cannot cost it the response. Without that time, the connection closes at once.
    pub(crate) async fn close(mut self, delayed: Option<Duration>) -> Closed {
        let returned = self.returned.lock().take().map(|part| part.reader);
        let mut reader = self.reader.take().or(returned);
        let mut closed = Closed::ByProxy;
        if let Some(limit) = delayed {
            let waiting = async {
                if std::future::poll_fn(|cx| self.writer.poll_flush(cx)).await.is_err() {
                    return;
                }
                let Some(reader) = &mut reader else { return };
                while matches!(reader.fill().await, Ok(n) if n > 0) {
                    reader.buffer.clear();
                }
            };
            if tokio::time::timeout(limit, waiting).await.is_ok() {
                closed = Closed::ByClient;
            }
        }
        let farewell = async { std::future::poll_fn(|cx| self.writer.poll_shutdown(cx)).await };
        // A client that takes nothing any more goes without.
        let _ = tokio::time::timeout(LAST_BYTES, farewell).await;
        if let Some(reader) = &mut reader {
            reader.empty_socket();
        }
        closed
    }

    pub(crate) fn read_bytes(&self) -> u64 {
        let returned = self.returned.lock();
        let reader = self.reader.as_ref().or(returned.as_ref().map(|part| &part.reader));
        reader.map_or(0, |reader| reader.read_bytes)
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.writer.written_bytes
    }

    fn end_body(&mut self, trailers: Option<&HeaderMap>) {
        // Fewer bytes than announced: only closing tells the client.
        match self.current.body.end(trailers, &mut self.writer) {
            Ok(fields) => self.sent_head += fields as u64,
            Err(_) => self.current.broken = true,
        }
    }
}

/// Reads away what is left of a small body, so that the next request can be told apart from it.
async fn drain(part: &mut Returned) -> bool {
    let mut drained = 0;
    loop {
        match part.body.decode(&mut part.reader.buffer) {
            Ok(Some(Piece::End(_))) => return true,
            Ok(Some(Piece::Data(data))) => {
                drained += data.len() as u64;
                let left = part.body.remaining().unwrap_or(0);
                if drained + left > MAX_DRAINED_BYTES {
                    return false;
                }
            }
            Ok(None) => {
                if part.body.remaining().is_some_and(|left| drained + left > MAX_DRAINED_BYTES) {
                    return false;
                }
                if !matches!(part.reader.fill().await, Ok(n) if n > 0) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
}

impl Downstream for Server {
    fn version(&self) -> Version {
        self.current.version
    }

    fn send_continue(&mut self) {
        let line: &[u8] = match self.current.version {
            Version::HTTP_10 => b"HTTP/1.0 100 Continue\r\n\r\n",
            _ => b"HTTP/1.1 100 Continue\r\n\r\n",
        };
        self.writer.encode(|out| out.extend_from_slice(line));
    }

    fn send_informational(&mut self, head: &ResponseHead) {
        if self.current.version == Version::HTTP_11 {
            let case = self.rules.http1.header_case;
            let mut fields = 0;
            self.writer.encode(|out| {
                fields = encode::response(head, Delimit::AsIs, None, Version::HTTP_11, case, out);
            });
            self.sent_head += fields as u64;
        }
    }

    fn send_head(&mut self, head: &ResponseHead, length: BodyLength) -> Option<&'static str> {
        let answered = Answered { version: self.current.version, head_request: self.current.method == Method::HEAD };
        let (delimit, body) = Outgoing::of_response(head.status, &head.headers, length, answered);
        if body == Outgoing::Raw {
            self.current.keep_alive = false;
        }
        self.current.body = body;
        let tunnel = length == BodyLength::Tunnel;
        let close = match (tunnel, self.current.keep_alive) {
            (true, _) => None,
            (false, false) => Some(true),
            (false, true) => self.current.said_keep_alive.then_some(false),
        };
        let (version, case) = (self.current.version, self.rules.http1.header_case);
        let mut fields = 0;
        self.writer.encode(|out| fields = encode::response(head, delimit, close, version, case, out));
        self.sent_head += fields as u64;
        debug_assert!(
            !tunnel || !head.headers.contains_key(CONNECTION) || head.status == StatusCode::SWITCHING_PROTOCOLS
        );
        close.map(|close| if close { "close" } else { "keep-alive" })
    }

    fn send_data(&mut self, data: Bytes, end: bool) {
        match self.current.body.data(data, &mut self.writer) {
            Ok(sent) => self.sent_body += sent as u64,
            // More than was announced would be read as the next response.
            Err(_) => self.current.broken = true,
        }
        if end {
            self.send_end();
        }
    }

    fn send_trailers(&mut self, trailers: HeaderMap) {
        let trailers = self.rules.http1.enable_trailers.then_some(&trailers);
        self.end_body(trailers);
    }

    fn send_end(&mut self) {
        self.end_body(None);
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.writer.poll_ready(cx).map_err(|_| Gone::Closed)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.writer.poll_flush(cx).map_err(|_| Gone::Closed)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Gone::Cut);
        }
        // What is queued (100-continue, an informational response) goes out while nobody else flushes.
        if !self.writer.is_empty()
            && let Poll::Ready(Err(_)) = self.writer.poll_flush(cx)
        {
            return Poll::Ready(Gone::Closed);
        }
        if self.reader.is_none() {
            let whole = self.returned.lock().take_if(|part| part.body.is_done());
            if let Some(part) = whole {
                self.received_trailers = part.trailer_bytes;
                self.reader = Some(part.reader);
            }
        }
        // While a body is being read, its reader sees the end.
        let Some(reader) = &mut self.reader else { return Poll::Pending };
        loop {
            if reader.ended {
                return Poll::Ready(Gone::Closed);
            }
            if reader.buffer.len() >= MAX_AHEAD_BYTES {
                return Poll::Pending;
            }
            match ready!(reader.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Gone::Closed),
                Ok(_) => {}
            }
        }
    }

    fn reset(&mut self, _reason: ResetReason) {
        self.current.broken = true;
        self.current.keep_alive = false;
    }

    fn close_after(&mut self) {
        self.current.keep_alive = false;
    }

    fn received_bytes(&self) -> (u64, u64) {
        let returned = self.returned.lock();
        let reader = self.reader.as_ref().or(returned.as_ref().map(|part| &part.reader));
        let used = reader.map(|reader| reader.used_bytes().saturating_sub(self.read_before));
        let trailers = returned.as_ref().map_or(self.received_trailers, |part| part.trailer_bytes);
        (self.received_fields + trailers, used.unwrap_or(self.received_head))
    }

    fn field_bytes(&self) -> (u64, u64) {
        // Trailers that came are none of them, as in Envoy.
        (self.received_fields, self.sent_head)
    }

    fn sent_bytes(&self) -> (u64, u64, u64) {
        // What waits to be written counts: like Envoy's, the bytes of a stream are those that were made of it.
        (self.sent_body, self.sent_head, self.writer.accepted_bytes() - self.written_before)
    }
}

/// A request's body. It owns the reader while it lasts and hands it back at its end, or when it is dropped.
struct RequestBody {
    part: Option<Returned>,
    returned: Arc<Mutex<Option<Returned>>>,
    trailers: bool,
}

impl RequestBody {
    fn hand_back(&mut self) {
        if let Some(part) = self.part.take() {
            *self.returned.lock() = Some(part);
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        let Some(part) = &mut self.part else { return Poll::Ready(None) };
        loop {
            match part.body.decode(&mut part.reader.buffer) {
                Ok(Some(piece)) => {
                    if let Piece::End(Some(trailers)) = &piece {
                        part.trailer_bytes = trailer_bytes(trailers);
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(BodyError::Malformed(error.details)))),
            }
            let filled = match part.body.remaining() {
                Some(left) if left < 16 << 10 => part.reader.poll_fill(cx),
                _ => part.reader.poll_fill_bulk(cx),
            };
            match ready!(filled) {
                Ok(n) if n > 0 => {}
                _ if part.body.end_of_input() => return Poll::Ready(None),
                _ => return Poll::Ready(Some(Err(BodyError::Closed))),
            }
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        let piece = ready!(self.poll_piece(cx));
        let frame = match piece {
            Some(Ok(Piece::Data(data))) => Some(Ok(http_body::Frame::data(data))),
            Some(Ok(Piece::End(Some(trailers)))) if self.trailers => Some(Ok(http_body::Frame::trailers(trailers))),
            Some(Ok(Piece::End(_))) | None => None,
            Some(Err(error)) => {
                // Whoever answers that gives the client time to hear it.
                self.hand_back();
                return Poll::Ready(Some(Err(error)));
            }
        };
        if self.part.as_ref().is_none_or(|part| part.body.is_done()) || frame.is_none() {
            self.hand_back();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.part.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self.part.as_ref().and_then(|part| part.body.remaining()) {
            Some(left) => http_body::SizeHint::with_exact(left),
            None => http_body::SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.hand_back();
    }
}
