//! Serves one HTTP connection: finds its protocol, then runs an exchange for each request until either side leaves.
//! It must not know what an exchange does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::Version;
use tidegate_filters::http::{Body, LocalReply, Request};
use tidegate_filters::stream_info::ResponseFlags;
use tokio::io::AsyncReadExt;

use super::codec::CodecError;
use super::codec::h1::fields::HeadLimits;
use super::codec::h1::request::{DecodedRequest, RequestRules};
use super::codec::h1::server::{Closed, ReadError, Server};
use super::exchange::{self, Connection, Finished};
use super::lifetime::{Lifetime, Passed};
use super::options::{CodecType, HttpConnectionManager};
use super::stats::{HttpStats, ListenerHttpStats};
use crate::io::Transport;
use crate::listener::accept::Chosen;
use crate::tcp::Seen;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A filter before this one has closed a connection that never came here.
pub(crate) fn count_refused(hcm: &HttpConnectionManager, received: u64, lasted: Duration) {
    let stats = &hcm.stats;
    stats.downstream_cx_total().inc();
    stats.downstream_cx_rx_bytes_total().add(received);
    stats.downstream_cx_destroy().inc();
    Ended::Local.count(stats);
    stats.downstream_cx_length_ms().record(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX));
}

/// Counts a connection whose handshake failed, after so long; whether the client ended it.
pub(crate) fn count_unsecured(hcm: &HttpConnectionManager, remote: bool, lasted: Duration) {
    let stats = &hcm.stats;
    stats.downstream_cx_total().inc();
    stats.downstream_cx_ssl_total().inc();
    stats.downstream_cx_destroy().inc();
    if remote { Ended::Remote } else { Ended::Local }.count(stats);
    stats.downstream_cx_length_ms().record(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX));
}

/// Serves a connection to its end; returns what it spoke, and why the proxy closed it.
pub(crate) async fn serve(
    chosen: Chosen,
    hcm: Arc<HttpConnectionManager>,
    listener_stats: ListenerHttpStats,
) -> (Option<Version>, Option<&'static str>) {
    let Chosen { shared, chain, info, transport, seen } = chosen;
    let started = Instant::now();
    let connection = Arc::new(Connection { shared, hcm: Arc::clone(&hcm), info, listener_stats, chain });
    let stats = &hcm.stats;
    stats.downstream_cx_total().inc();
    stats.downstream_cx_active().inc();
    let secured = connection.info.tls.is_some();
    if secured {
        stats.downstream_cx_ssl_total().inc();
        stats.downstream_cx_ssl_active().inc();
    }
    let lifetime = Lifetime::begin(&hcm);
    let version = match detect(&connection, lifetime.end(), transport).await {
        Ok((Protocol::Http1, transport)) => {
            stats.downstream_cx_http1_total().inc();
            stats.downstream_cx_http1_active().inc();
            let (ended, reason) = serve_http1(&connection, transport, lifetime).await;
            stats.downstream_cx_http1_active().dec();
            settle(ended, seen.as_ref(), stats);
            (Some(Version::HTTP_11), reason)
        }
        Ok((Protocol::Http2, transport)) => {
            stats.downstream_cx_http2_total().inc();
            stats.downstream_cx_http2_active().inc();
            let serving = super::http2_connection::serve(&connection, transport, lifetime.end());
            let (ended, reason) = Box::pin(serving).await;
            stats.downstream_cx_http2_active().dec();
            settle(ended, seen.as_ref(), stats);
            (Some(Version::HTTP_2), reason)
        }
        Err((ended, reason)) => {
            settle(ended, seen.as_ref(), stats);
            (None, reason)
        }
    };
    stats.downstream_cx_active().dec();
    if secured {
        stats.downstream_cx_ssl_active().dec();
    }
    stats.downstream_cx_destroy().inc();
    stats.downstream_cx_length_ms().record(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    version
}

/// Counts who ended a connection: a filter's closing looks like the client's here.
fn settle(ended: Ended, seen: Option<&Seen>, stats: &HttpStats) {
    match seen.and_then(Seen::refused) {
        Some(bytes) => {
            stats.downstream_cx_rx_bytes_total().add(bytes);
            Ended::Local.count(stats);
        }
        None => ended.count(stats),
    }
}

enum Protocol {
    Http1,
    Http2,
}

/// Why the proxy closes a connection whose time is over, once nothing runs on it.
pub(super) const DRAINED: &str = "deferred_close_on_drained_connection";

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Remote,
    Local,
}

impl Ended {
    fn count(self, stats: &HttpStats) {
        match self {
            Self::Remote => stats.downstream_cx_destroy_remote().inc(),
            Self::Local => stats.downstream_cx_destroy_local().inc(),
        }
    }

    /// It ends requests that were being answered. Who closes the connection after that counts for itself.
    pub(super) fn count_cut(self, stats: &HttpStats) {
        stats.downstream_cx_destroy_active_rq().inc();
        match self {
            Self::Remote => stats.downstream_cx_destroy_remote_active_rq().inc(),
            Self::Local => stats.downstream_cx_destroy_local_active_rq().inc(),
        }
    }
}

/// By configuration, ALPN, or the first bytes. An error is the end: who made it one, and why if it was the proxy.
async fn detect(
    connection: &Connection,
    end: Option<Instant>,
    mut transport: Transport,
) -> Result<(Protocol, Transport), (Ended, Option<&'static str>)> {
    match connection.hcm.codec {
        CodecType::Http1 => return Ok((Protocol::Http1, transport)),
        CodecType::Http2 => return Ok((Protocol::Http2, transport)),
        CodecType::Auto => {}
    }
    match connection.info.application_protocols.first().map(|alpn| &**alpn) {
        Some("h2" | "h2c") => return Ok((Protocol::Http2, transport)),
        Some("http/1.1" | "http/1.0") => return Ok((Protocol::Http1, transport)),
        _ => {}
    }
    let mut first = BytesMut::new();
    let reading = async {
        while PREFACE.starts_with(&first) && first.len() < PREFACE.len() {
            if !matches!(transport.read_buf(&mut first).await, Ok(n) if n > 0) {
                break;
            }
        }
    };
    let idle = connection.hcm.timeouts.connection_idle.unwrap_or(Duration::MAX);
    tokio::select! {
        () = reading => {}
        () = connection.chain.drain.until_cut() => return Err((Ended::Local, None)),
        () = sleep_or_never(idle) => {
            connection.hcm.stats.downstream_cx_idle_timeout().inc();
            return Err((Ended::Local, Some("on_idle_timeout")));
        }
        () = until_or_never(end) => {
            connection.hcm.stats.downstream_cx_max_duration_reached().inc();
            return Err((Ended::Local, Some("max_connection_duration")));
        }
    }
    // Who leaves with a part of a preface has begun a request, and says so no more.
    if first.is_empty() {
        return Err((Ended::Remote, None));
    }
    let protocol = if first.starts_with(PREFACE) { Protocol::Http2 } else { Protocol::Http1 };
    Ok((protocol, transport.rewind(first.freeze())))
}

fn rules(hcm: &HttpConnectionManager) -> Arc<RequestRules> {
    Arc::new(RequestRules {
        limits: HeadLimits {
            max_bytes: hcm.max_request_headers_bytes,
            max_headers: hcm.max_headers_count,
            underscores: hcm.underscores,
            allow_chunked_length: hcm.http1.allow_chunked_length,
            keep_spelling: hcm.http1.header_case.preserved(),
        },
        http1: hcm.http1,
        default_host: hcm.default_host_for_http_10.clone(),
        keep_expect: hcm.proxy_100_continue,
        ignored_upgrades: Arc::clone(&hcm.ignored_upgrades),
    })
}

async fn serve_http1(
    connection: &Arc<Connection>,
    transport: Transport,
    mut lifetime: Lifetime<'_>,
) -> (Ended, Option<&'static str>) {
    let hcm = &connection.hcm;
    let mut server =
        Server::new(transport, rules(hcm), hcm.buffer_limit_bytes, Arc::clone(&connection.chain.drain).when_cut());
    let mut served = 0;
    let (mut counted_read, mut counted_written) = (0, 0);
    let mut count_bytes = |server: &Server| {
        let (read, written) = (server.read_bytes(), server.written_bytes());
        hcm.stats.downstream_cx_rx_bytes_total().add(read.saturating_sub(counted_read));
        hcm.stats.downstream_cx_tx_bytes_total().add(written.saturating_sub(counted_written));
        (counted_read, counted_written) = (counted_read.max(read), written);
    };
    let leave = loop {
        match wait_for_request(connection, &mut server, &mut lifetime, served == 0).await {
            Wait::Request => {}
            Wait::Closed => break Leave::Gone,
            Wait::Close(leave) => break leave,
        }
        let (decoded, body) = match read_request(connection, &mut server).await {
            Ok(request) => request,
            Err(Some(reply)) => break Leave::Refusing(Box::new(reply)),
            Err(None) if server.has_part_of_head() => {
                hcm.stats.downstream_rq_http1_total().inc();
                exchange::note_part_of_head(connection);
                Ended::Remote.count_cut(&hcm.stats);
                break Leave::Gone;
            }
            Err(None) => break Leave::Gone,
        };
        served += 1;
        hcm.stats.downstream_rq_http1_total().inc();
        hcm.codec_stats.http1().dropped_headers_with_underscores().add(u64::from(decoded.underscored));
        let worn = hcm.max_requests_per_connection.is_some_and(|most| served >= most);
        if worn {
            hcm.stats.downstream_cx_max_requests_reached().inc();
        }
        lifetime.check();
        let asked = worn || !decoded.keep_alive || lifetime.ends_safely();
        let last = asked || lifetime.drains();
        // What a request needs is there while it runs, not while its connection waits for the next.
        let finished = Box::pin(run_http1(connection, &mut server, decoded, body, last)).await;
        match finished {
            Finished::Complete => {}
            Finished::Left => {
                Ended::Remote.count_cut(&hcm.stats);
                break Leave::Gone;
            }
            Finished::Cut if connection.chain.drain.is_cut() => {
                Ended::Local.count_cut(&hcm.stats);
                break Leave::AtOnce;
            }
            Finished::Cut => break Leave::Politely,
        }
        if !server.finish_exchange().await {
            // Nobody can be on his way to say more who was asked for no more.
            break if asked && server.has_whole_request() { Leave::AtOnce } else { Leave::Politely };
        }
        count_bytes(&server);
    };
    let leave = match leave {
        Leave::Refusing(reply) => {
            hcm.stats.downstream_rq_http1_total().inc();
            if reply.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
                hcm.stats.downstream_cx_protocol_error().inc();
            }
            Box::pin(exchange::reply_to_bad_request(connection, *reply, &mut server)).await;
            Leave::Politely
        }
        other => other,
    };
    lifetime.check();
    count_bytes(&server);
    let delayed = match leave {
        Leave::Gone => return (Ended::Remote, None),
        Leave::AtOnce => None,
        Leave::Politely | Leave::Refusing(_) => hcm.timeouts.delayed_close,
    };
    match Box::pin(server.close(delayed)).await {
        Closed::ByClient => (Ended::Remote, Some(DRAINED)),
        Closed::ByProxy if delayed.is_some() => {
            hcm.stats.downstream_cx_delayed_close_timeout().inc();
            (Ended::Local, Some("triggered_delayed_close_timeout"))
        }
        Closed::ByProxy => (Ended::Local, Some(DRAINED)),
    }
}

/// How a connection is left.
enum Leave {
    /// The client has left it.
    Gone,
    AtOnce,
    /// The client is given time to leave first (`delayed_close_timeout`): what it still sends cannot cost it the response.
    Politely,
    /// The same, once it was told what is wrong with its request.
    Refusing(Box<LocalReply>),
}

async fn run_http1(
    connection: &Arc<Connection>,
    server: &mut Server,
    decoded: DecodedRequest,
    body: Body,
    last: bool,
) -> Finished {
    use super::downstream::Downstream;
    let hcm = &connection.hcm;
    if last {
        server.close_after();
    }
    if decoded.head.version < Version::HTTP_11 && !hcm.http1.accept_http_10 {
        let reply = LocalReply::new(http::StatusCode::UPGRADE_REQUIRED, "low_version").close();
        return exchange::reply_to_bad_request(connection, reply, server).await;
    }
    let DecodedRequest { mut head, expects_continue, .. } = decoded;
    let believed = hcm.client_address.use_remote_address && hcm.client_address.xff_num_trusted_hops == 0;
    if believed && connection.info.tls.is_none() && head.scheme == "https" {
        return exchange::reply_to_bad_request(connection, CodecError::HTTPS_ON_PLAINTEXT.into_reply(), server).await;
    }
    if expects_continue && hcm.proxy_100_continue {
        head.headers.insert(http::header::EXPECT, http::HeaderValue::from_static("100-continue"));
    }
    let continues = expects_continue && !hcm.proxy_100_continue;
    exchange::run(connection, Request { head, body }, continues, server).await
}

enum Wait {
    Request,
    /// The client has closed.
    Closed,
    /// We close.
    Close(Leave),
}

/// Between requests nothing is held but the socket. One that is idle for too long, or has lived for too long, may still be
/// used while it drains; one on which nothing ever came is closed at once.
async fn wait_for_request(
    connection: &Arc<Connection>,
    server: &mut Server,
    lifetime: &mut Lifetime<'_>,
    unused: bool,
) -> Wait {
    let timeouts = &connection.hcm.timeouts;
    let mut idle = std::pin::pin!(sleep_or_never(timeouts.connection_idle.unwrap_or(Duration::MAX)));
    let mut idled = false;
    loop {
        tokio::select! {
            biased;
            readable = server.readable() => return match readable {
                Ok(()) => Wait::Request,
                Err(_) => Wait::Closed,
            },
            () = connection.chain.drain.until_cut() => return Wait::Close(Leave::AtOnce),
            passed = lifetime.passes() => match passed {
                Passed::Over if unused => return Wait::Close(Leave::AtOnce),
                Passed::Over => {}
                Passed::Drained => return Wait::Close(Leave::Politely),
            },
            () = &mut idle, if !idled => {
                idled = true;
                connection.hcm.stats.downstream_cx_idle_timeout().inc();
                if unused {
                    return Wait::Close(Leave::AtOnce);
                }
                lifetime.drain();
            }
        }
    }
}

pub(super) async fn until_or_never(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep_or_never(limit: Duration) {
    if limit == Duration::MAX {
        std::future::pending().await
    } else {
        tokio::time::sleep(limit).await;
    }
}

/// Reads a head within the header timeout. `Err(Some)` is to be answered, `Err(None)` is over.
async fn read_request(
    connection: &Arc<Connection>,
    server: &mut Server,
) -> Result<(DecodedRequest, Body), Option<LocalReply>> {
    let result = match connection.hcm.timeouts.request_headers {
        Some(limit) => match tokio::time::timeout(limit, server.read_request()).await {
            Ok(result) => result,
            Err(_) => {
                connection.hcm.stats.downstream_rq_header_timeout().inc();
                let reply = LocalReply::new(http::StatusCode::REQUEST_TIMEOUT, "request_header_timeout");
                return Err(Some(reply.body("request header timeout").close()));
            }
        },
        None => server.read_request().await,
    };
    result.map_err(|error| match error {
        ReadError::Codec(error) => {
            if error == CodecError::UNEXPECTED_UNDERSCORE {
                connection.hcm.codec_stats.http1().requests_rejected_with_underscores_in_headers().inc();
            }
            Some(error.into_reply())
        }
        ReadError::Closed | ReadError::Cut => None,
    })
}
