//! Serves one HTTP/2 connection: an exchange for each stream, and the ways in which the connection ends.
//! It must not know what an exchange does.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, SendResponse};
use tidegate_filters::http::Request;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::codec::LAST_BYTES;
use super::codec::h2 as codec;
use super::codec::h2_frames::Flood;
use super::codec::keepalive;
use super::codec::metered::{Active, Meter, Metered};
use super::connection_manager::{DRAINED, Ended, sleep_or_never, until_or_never};
use super::exchange::{self, Connection};
use super::options::HttpConnectionManager;
use crate::io::{CountBytes, Transport};

type Server = h2::server::Connection<Metered<Transport>, Bytes>;

/// Into `downstream_cx_rx_bytes_total` and `downstream_cx_tx_bytes_total`.
struct DownstreamBytes(Arc<HttpConnectionManager>);

impl CountBytes for DownstreamBytes {
    fn read(&mut self, bytes: usize) {
        self.0.stats.downstream_cx_rx_bytes_total().add(bytes as u64);
    }

    fn wrote(&mut self, bytes: usize, _: usize) {
        self.0.stats.downstream_cx_tx_bytes_total().add(bytes as u64);
    }
}

impl std::fmt::Debug for DownstreamBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DownstreamBytes")
    }
}

/// One connection while it is served.
struct Serving<'a> {
    connection: &'a Arc<Connection>,
    server: Server,
    rules: codec::HeadRules,
    /// Told by a stream whose response says that the connection is to end.
    leave: Arc<Notify>,
    /// Told of a stream that was opened after long idleness.
    opened: Arc<Notify>,
    meter: Arc<Meter>,
    streams: JoinSet<()>,
    /// Those that ended with the connection are counted.
    ended: bool,
    served: u32,
    idle_since: Instant,
    leaving: bool,
    /// How long it may stay once it was told to leave.
    drain_time: Duration,
    /// When that is over.
    drained: Option<Instant>,
}

/// Serves a connection, whose time is over at `end`, to its end: who made it one, and why if it was the proxy.
pub(super) async fn serve(
    connection: &Arc<Connection>,
    transport: Transport,
    end: Option<Instant>,
) -> (Ended, Option<&'static str>) {
    let hcm = &connection.hcm;
    let transport = transport.counted(Box::new(DownstreamBytes(Arc::clone(hcm))));
    let (transport, meter) = Metered::new(transport, hcm.http2.floods, true, hcm.timeouts.delayed_close);
    let Ok(mut server) = Box::pin(builder(hcm).handshake::<_, Bytes>(transport)).await else {
        hcm.stats.downstream_cx_protocol_error().inc();
        return (Ended::Local, Some(DRAINED));
    };
    hcm.codec_stats.http2().nghttp2_downstream_connections().inc();
    let opened = Arc::<Notify>::default();
    let alive = keepalive::watch(server.ping_pong(), hcm.http2.keepalive, &opened);
    let mut alive = std::pin::pin!(alive);
    let mut over = std::pin::pin!(until_or_never(end));
    let mut serving = Serving {
        connection,
        server,
        rules: head_rules(hcm),
        leave: Arc::default(),
        opened: Arc::clone(&opened),
        meter: Arc::clone(&meter),
        streams: JoinSet::new(),
        ended: false,
        served: 0,
        idle_since: Instant::now(),
        leaving: false,
        drain_time: hcm.timeouts.of_drain(),
        drained: None,
    };
    let mut duration_reached = false;
    let mut reason = DRAINED;
    loop {
        let idle = serving.idle_limit();
        tokio::select! {
            accepted = accept(&mut serving.server, &meter, &mut serving.ended, hcm) => match accepted {
                Some(Ok((request, respond))) => serving.begin(request, respond),
                Some(Err(error)) => {
                    if is_broken(&error) {
                        hcm.stats.downstream_cx_protocol_error().inc();
                    }
                    break;
                }
                None => break,
            },
            Some(_) = serving.streams.join_next() => {
                if serving.streams.is_empty() {
                    serving.idle_since = Instant::now();
                }
            }
            () = serving.leave.notified(), if !serving.leaving => serving.leave_gracefully(),
            flood = meter.flooded() => {
                hcm.codec_stats.http2().count_flood(flood);
                let error = if flood == Flood::Resets {
                    hcm.stats.downstream_cx_protocol_error().inc();
                    Reason::INTERNAL_ERROR
                } else {
                    Reason::ENHANCE_YOUR_CALM
                };
                serving.close(error).await;
                break;
            }
            () = meter.late_head(hcm.timeouts.request_headers) => {
                exchange::note_late_head(connection);
                // The codec has no stream to answer on, and reads no other before the rest of this head.
                serving.close(Reason::NO_ERROR).await;
                break;
            }
            () = &mut alive => {
                hcm.codec_stats.http2().keepalive_timeout().inc();
                reason = "http2_ping_timeout";
                meter.hurry();
                serving.close(Reason::NO_ERROR).await;
                break;
            }
            () = connection.chain.drain.until_cut() => {
                meter.hurry();
                serving.close(Reason::NO_ERROR).await;
                break;
            }
            () = &mut over, if !duration_reached => {
                duration_reached = true;
                hcm.stats.downstream_cx_max_duration_reached().inc();
                serving.leave_gracefully();
            }
            () = sleep_or_never(idle.unwrap_or(Duration::MAX)) => {
                if serving.leaving {
                    serving.close(Reason::NO_ERROR).await;
                    break;
                }
                if !meter.is_closing() {
                    hcm.stats.downstream_cx_idle_timeout().inc();
                    serving.leave_gracefully();
                }
            }
        }
    }
    if serving.drained.is_some() && !meter.is_left() || meter.is_late() {
        hcm.codec_stats.http2().goaway_sent().inc();
    }
    let ended = Box::pin(serving.end()).await;
    if meter.is_late() {
        hcm.stats.downstream_cx_delayed_close_timeout().inc();
        reason = "triggered_delayed_close_timeout";
    }
    (ended, (ended == Ended::Local).then_some(reason))
}

/// The next stream. When the connection ends with this, it counts the requests that end with it.
async fn accept(
    server: &mut Server,
    meter: &Meter,
    ended: &mut bool,
    hcm: &HttpConnectionManager,
) -> Option<Result<(http::Request<h2::RecvStream>, SendResponse<Bytes>), h2::Error>> {
    std::future::poll_fn(|cx| {
        let polled = server.poll_accept(cx);
        // The codec says its last while requests are under way and the client is there: it has found a mistake of the client's.
        if meter.is_closing() && !meter.is_left() && meter.is_active() {
            meter.note_broken();
        }
        if meter.is_closing() || matches!(&polled, Poll::Ready(None | Some(Err(_)))) {
            count_cut(meter, ended, hcm);
        }
        polled
    })
    .await
}

/// Whether a connection ends because its client broke the protocol.
fn is_broken(error: &h2::Error) -> bool {
    error.is_library() || error.reason() == Some(Reason::PROTOCOL_ERROR)
}

/// Who ends a connection.
fn by(meter: &Meter) -> Ended {
    if meter.is_left() { Ended::Remote } else { Ended::Local }
}

fn count_cut(meter: &Meter, ended: &mut bool, hcm: &HttpConnectionManager) {
    if !std::mem::replace(ended, true) && meter.is_active() {
        by(meter).count_cut(&hcm.stats);
    }
}

impl Serving<'_> {
    fn begin(&mut self, request: http::Request<h2::RecvStream>, respond: SendResponse<Bytes>) {
        let hcm = &self.connection.hcm;
        hcm.stats.downstream_rq_http2_total().inc();
        let rested = hcm.http2.keepalive.and_then(|rules| rules.idle_interval);
        if self.streams.is_empty() && rested.is_some_and(|rested| self.idle_since.elapsed() >= rested) {
            self.opened.notify_one();
        }
        self.served += 1;
        if hcm.max_requests_per_connection.is_some_and(|most| self.served >= most) && !self.leaving {
            hcm.stats.downstream_cx_max_requests_reached().inc();
            self.leave_gracefully();
        }
        match codec::open(request, respond, self.rules, (&self.leave, &self.meter), hcm.codec_stats.http2()) {
            Ok(opened) => {
                self.streams.spawn(run(Arc::clone(self.connection), opened, self.meter.activate()));
            }
            Err(codec::Refused::Malformed) => hcm.codec_stats.http2().rx_messaging_error().inc(),
            Err(codec::Refused::Head(details)) => exchange::note_refused_stream(self.connection, details),
        }
    }

    /// How long it may be without streams: one that was told to leave has what is left of the drain's time.
    fn idle_limit(&self) -> Option<Duration> {
        let timeouts = &self.connection.hcm.timeouts;
        if !self.streams.is_empty() {
            None
        } else if self.leaving {
            self.drained.map(|drained| drained.saturating_duration_since(Instant::now()))
        } else {
            timeouts.connection_idle
        }
    }

    /// A GOAWAY that takes all streams, then, a round trip later, one that names the last; what runs is finished.
    fn leave_gracefully(&mut self) {
        if !self.meter.is_closing() && !std::mem::replace(&mut self.leaving, true) {
            self.drained = Instant::now().checked_add(self.drain_time);
            self.server.graceful_shutdown();
        }
    }

    /// A GOAWAY with the reason, and the end; streams that run are cut.
    async fn close(&mut self, reason: Reason) {
        self.leaving = true;
        count_cut(&self.meter, &mut self.ended, &self.connection.hcm);
        self.server.abrupt_shutdown(reason);
        let last_frames = async { while let Some(Ok(_)) = self.server.accept().await {} };
        let patience = self.connection.hcm.timeouts.delayed_close.unwrap_or_default();
        // Who does not read them goes without.
        let _ = tokio::time::timeout(LAST_BYTES + patience, last_frames).await;
    }

    /// The connection is gone: what its streams still wait for is of no use to anyone, and each of them logs its end.
    async fn end(self) -> Ended {
        let Self { mut streams, server, meter, .. } = self;
        let ended = by(&meter);
        drop(server);
        while streams.join_next().await.is_some() {}
        ended
    }
}

fn builder(hcm: &HttpConnectionManager) -> Builder {
    let options = &hcm.http2;
    let mut builder = Builder::new();
    builder
        .initial_window_size(options.initial_stream_window_bytes)
        .initial_connection_window_size(options.initial_connection_window_bytes)
        .max_concurrent_streams(options.max_concurrent_streams)
        .header_table_size(options.header_table_bytes)
        .max_header_list_size(codec::list_limit(hcm.max_request_headers_bytes))
        .max_send_buffer_size(hcm.buffer_limit_bytes)
        // `stream_reset_burst` is the bound.
        .max_pending_accept_reset_streams(usize::try_from(options.floods.reset_burst).unwrap_or(usize::MAX));
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

fn head_rules(hcm: &HttpConnectionManager) -> codec::HeadRules {
    codec::HeadRules {
        max_headers: hcm.max_headers_count,
        max_bytes: hcm.max_request_headers_bytes,
        underscores: hcm.underscores,
        buffer_limit_bytes: hcm.buffer_limit_bytes,
    }
}

async fn run(connection: Arc<Connection>, opened: codec::Opened, _active: Active) {
    let codec::Opened { mut head, body, mut stream } = opened;
    let expects = head.headers.get(http::header::EXPECT);
    let expects = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let continues = expects && !connection.hcm.proxy_100_continue;
    if continues {
        head.headers.remove(http::header::EXPECT);
    }
    let stats = connection.hcm.codec_stats.http2();
    stats.streams_active().inc();
    exchange::run(&connection, Request { head, body }, continues, &mut stream).await;
    stats.streams_active().dec();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a function's future takes.
    fn bytes<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_holds_each_of_its_waits_once() {
        assert!(bytes(run) < 10 << 10, "{}", bytes(run));
    }
}
