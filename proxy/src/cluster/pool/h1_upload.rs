//! A request's body on its way up an HTTP/1 connection, framed as its head says.
//! It must not know who reads the response.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tidegate_filters::http::Body;
use tokio::io::WriteHalf;

use super::StreamRequest;
use crate::cluster::Cluster;
use crate::http::codec::h1::io::Writer;
use crate::http::codec::h1::outgoing::Outgoing;
use crate::http::protocol::Http1Options;
use crate::http::stats::HttpStats;
use crate::http::watermark::{Watch, Watermark};
use crate::http::wire_bytes::WireBytes;
use crate::io::Transport;

/// Counts when the host takes no more, and the client is not read from until it does.
pub(super) struct Backlog {
    cluster: Arc<Cluster>,
    client: Option<HttpStats>,
}

impl Backlog {
    pub(super) fn of(request: &StreamRequest<'_>) -> Watermark<Self> {
        Watermark::new(Self { cluster: Arc::clone(request.cluster), client: request.client.cloned() })
    }
}

impl Watch for Backlog {
    fn full(&self) {
        self.cluster.stats().traffic.upstream_flow_control_backed_up_total().inc();
        if let Some(client) = &self.client {
            client.downstream_flow_control_paused_reading_total().inc();
        }
    }

    fn drained(&self) {
        self.cluster.stats().traffic.upstream_flow_control_drained_total().inc();
        if let Some(client) = &self.client {
            client.downstream_flow_control_resumed_reading_total().inc();
        }
    }
}

/// The request's body on its way up.
pub(super) struct Upload {
    pub(super) body: Body,
    pub(super) outgoing: Outgoing,
    pub(super) tunnel: bool,
    /// Wait until the host has agreed to leave HTTP.
    pub(super) held: bool,
    pub(super) done: bool,
    pub(super) http1: Http1Options,
    /// Where its bytes are counted, if anybody asks.
    pub(super) bytes: Option<Arc<WireBytes>>,
    /// Absent where there is no body.
    pub(super) host: Option<Watermark<Backlog>>,
}

impl Upload {
    /// Moves what can be moved. An error means that the host takes no more.
    pub(super) fn poll(&mut self, writer: &mut Writer<WriteHalf<Transport>>, cx: &mut Context<'_>) -> Result<(), ()> {
        let before = writer.accepted_bytes();
        let moved = self.move_up(writer, cx);
        if let Some(bytes) = &self.bytes {
            bytes.add_sent(0, writer.accepted_bytes() - before);
        }
        moved
    }

    fn move_up(&mut self, writer: &mut Writer<WriteHalf<Transport>>, cx: &mut Context<'_>) -> Result<(), ()> {
        while !self.done && !self.held {
            match writer.poll_ready(cx) {
                Poll::Ready(Ok(())) => self.note_host(false),
                Poll::Ready(Err(_)) => return Err(()),
                Poll::Pending => {
                    self.note_host(true);
                    return Ok(());
                }
            }
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.write(frame, writer)?,
                Poll::Ready(Some(Err(_))) => return Err(()),
                Poll::Ready(None) => self.end(None, writer)?,
                Poll::Pending => break,
            }
            if !self.done && self.body.is_end() {
                self.end(None, writer)?;
            }
        }
        match writer.poll_flush(cx) {
            Poll::Ready(Err(_)) => Err(()),
            _ => Ok(()),
        }
    }

    fn note_host(&mut self, full: bool) {
        if let Some(host) = &mut self.host {
            host.set(full);
        }
    }

    /// An error when the body is not as long as its head says: the host must not take the rest for a request.
    fn write(&mut self, frame: http_body::Frame<Bytes>, writer: &mut Writer<WriteHalf<Transport>>) -> Result<(), ()> {
        match frame.into_data() {
            Ok(data) => self.outgoing.data(data, writer).map(drop).map_err(drop),
            Err(frame) => self.end(frame.into_trailers().ok(), writer),
        }
    }

    fn end(&mut self, trailers: Option<http::HeaderMap>, writer: &mut Writer<WriteHalf<Transport>>) -> Result<(), ()> {
        self.done = true;
        let trailers = trailers.filter(|_| self.http1.enable_trailers);
        let fields = self.outgoing.end(trailers.as_ref(), writer).map_err(drop)? as u64;
        if let Some(bytes) = &self.bytes {
            bytes.add_sent(fields, 0);
            bytes.add_sent_fields(fields);
        }
        Ok(())
    }
}
