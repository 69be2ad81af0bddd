//! The end of a CONNECT: its payload goes to a host as plain bytes, and the host's bytes are the response's body.
//! It must not know who asked, nor over which protocol.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use parking_lot::Mutex;
use tidegate_filters::http::{Body, BodyError, Frame, ResponseHead};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};

use super::{Begun, Held, TcpLease};
use crate::http::wire_bytes::WireBytes;
use crate::io::Transport;

/// Begins the exchange: the host has said nothing yet, but the tunnel stands. `first` goes up before the payload; `bytes`
/// counts.
pub(super) fn send(lease: TcpLease, first: Option<Bytes>, bytes: Option<&Arc<WireBytes>>, payload: Body) -> Begun {
    let (transport, held) = lease.split();
    let (read, write) = tokio::io::split(transport);
    let held = Arc::new(Mutex::new(held));
    let body = FromHost { read, held: Arc::clone(&held), bytes: bytes.cloned(), ended: false };
    let pump = Box::pin(upward(write, held, first, bytes.cloned(), payload));
    Begun::new(ResponseHead::new(StatusCode::OK), Body::stream(body), Some(pump))
}

/// Moves the payload up until it ends; the host then learns of the end. `_held` counts the connection meanwhile.
async fn upward(
    mut write: WriteHalf<Transport>,
    _held: Arc<Mutex<Held>>,
    first: Option<Bytes>,
    bytes: Option<Arc<WireBytes>>,
    mut payload: Body,
) {
    if let Some(first) = first
        && write.write_all(&first).await.is_err()
    {
        return;
    }
    while let Some(Ok(frame)) = payload.frame().await {
        let Ok(data) = frame.into_data() else { break };
        if write.write_all(&data).await.is_err() {
            return;
        }
        if let Some(bytes) = &bytes {
            bytes.add_sent(0, data.len() as u64);
        }
    }
    // The host may be gone already: then there is nobody left to tell.
    let _ = write.shutdown().await;
}

const READ_BYTES: usize = 16 << 10;

/// What the host says.
struct FromHost {
    read: ReadHalf<Transport>,
    held: Arc<Mutex<Held>>,
    bytes: Option<Arc<WireBytes>>,
    ended: bool,
}

impl http_body::Body for FromHost {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut space = [std::mem::MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        let read = ready!(Pin::new(&mut this.read).poll_read(cx, &mut buffer));
        this.ended = read.is_err() || buffer.filled().is_empty();
        if this.ended {
            this.held.lock().closed_by_host();
        }
        if let Some(bytes) = &this.bytes {
            bytes.add_received(0, buffer.filled().len() as u64);
        }
        match read {
            Err(_) => Poll::Ready(Some(Err(BodyError::Closed))),
            Ok(()) if this.ended => Poll::Ready(None),
            Ok(()) => Poll::Ready(Some(Ok(Frame::data(BytesMut::from(buffer.filled()).freeze())))),
        }
    }
}
