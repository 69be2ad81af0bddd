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
use super::codec::h1::server::{ReadError, Server};
use super::exchange::{self, Connection, Finished};
use super::options::{CodecType, HttpConnectionManager};
use super::stats::{HttpStats, ListenerHttpStats};
use crate::io::Transport;
use crate::listener::accept::Chosen;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end; returns what it spoke, and why the proxy closed it.
pub(crate) async fn serve(
    chosen: Chosen,
    hcm: Arc<HttpConnectionManager>,
    listener_stats: ListenerHttpStats,
) -> (Option<Version>, Option<&'static str>) {
    let Chosen { shared, chain, info, transport } = chosen;
    let started = Instant::now();
    let connection =
        Arc::new(Connection { shared, hcm: Arc::clone(&hcm), info, listener_stats, drain: Arc::clone(&chain.drain) });
    let stats = &hcm.stats;
    stats.downstream_cx_total().inc();
    stats.downstream_cx_active().inc();
    let version = match detect(&connection, transport).await {
        Ok((Protocol::Http1, transport)) => {
            stats.downstream_cx_http1_total().inc();
            stats.downstream_cx_http1_active().inc();
            let (ended, reason) = serve_http1(&connection, transport).await;
            stats.downstream_cx_http1_active().dec();
            count_end(stats, ended);
            (Some(Version::HTTP_11), reason)
        }
        Ok((Protocol::Http2, transport)) => {
            stats.downstream_cx_http2_total().inc();
            stats.downstream_cx_http2_active().inc();
            let (ended, reason) = super::http2_connection::serve(&connection, transport).await;
            stats.downstream_cx_http2_active().dec();
            count_end(stats, ended);
            (Some(Version::HTTP_2), reason)
        }
        Err(reason) => (None, reason),
    };
    stats.downstream_cx_active().dec();
    stats.downstream_cx_destroy().inc();
    stats.downstream_cx_length_ms().record(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    version
}

enum Protocol {
    Http1,
    Http2,
}

/// Why the proxy closes a connection whose time is over, once nothing runs on it.
pub(super) const DRAINED: &str = "deferred_close_on_drained_connection";

/// Who ended a connection.
pub(super) enum Ended {
    Remote,
    /// The client, while a request was being answered.
    RemoteActive,
    Local,
    /// The proxy, while a request was being answered.
    LocalActive,
}

fn count_end(stats: &HttpStats, ended: Ended) {
    match ended {
        Ended::Remote => stats.downstream_cx_destroy_remote().inc(),
        Ended::RemoteActive => {
            stats.downstream_cx_destroy_remote().inc();
            stats.downstream_cx_destroy_active_rq().inc();
            stats.downstream_cx_destroy_remote_active_rq().inc();
        }
        Ended::Local => stats.downstream_cx_destroy_local().inc(),
        Ended::LocalActive => {
            stats.downstream_cx_destroy_local().inc();
            stats.downstream_cx_destroy_active_rq().inc();
            stats.downstream_cx_destroy_local_active_rq().inc();
        }
    }
}

/// By configuration, ALPN, or the first bytes. An error is the end, and why the proxy made it one.
async fn detect(
    connection: &Connection,
    mut transport: Transport,
) -> Result<(Protocol, Transport), Option<&'static str>> {
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
                return false;
            }
        }
        !first.is_empty()
    };
    let idle = connection.hcm.timeouts.connection_idle.unwrap_or(Duration::MAX);
    let came = tokio::select! {
        came = reading => came,
        () = connection.drain.until_cut() => false,
        () = sleep_or_never(idle) => {
            connection.hcm.stats.downstream_cx_idle_timeout().inc();
            return Err(Some("on_idle_timeout"));
        }
    };
    if !came {
        return Err(None);
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

async fn serve_http1(connection: &Arc<Connection>, transport: Transport) -> (Ended, Option<&'static str>) {
    let hcm = &connection.hcm;
    let mut server =
        Server::new(transport, rules(hcm), hcm.buffer_limit_bytes, Arc::clone(&connection.drain).when_cut());
    let mut served = 0;
    let mut lifetime = Lifetime::begin(hcm);
    let (mut counted_read, mut counted_written) = (0, 0);
    let mut count_bytes = |server: &Server| {
        let (read, written) = (server.read_bytes(), server.written_bytes());
        hcm.stats.downstream_cx_rx_bytes_total().add(read.saturating_sub(counted_read));
        hcm.stats.downstream_cx_tx_bytes_total().add(written.saturating_sub(counted_written));
        (counted_read, counted_written) = (counted_read.max(read), written);
    };
    let (delayed, ended) = loop {
        match wait_for_request(connection, &mut server, &mut lifetime).await {
            Wait::Request => {}
            Wait::Closed => break (None, Ended::Remote),
            Wait::Close => break (hcm.timeouts.delayed_close, Ended::Local),
        }
        let (decoded, body) = match read_request(connection, &mut server).await {
            Ok(request) => request,
            Err(Some(reply)) => {
                hcm.stats.downstream_rq_http1_total().inc();
                if reply.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
                    hcm.stats.downstream_cx_protocol_error().inc();
                }
                exchange::reply_to_bad_request(connection, reply, &mut server).await;
                break (hcm.timeouts.delayed_close, Ended::Local);
            }
            Err(None) if server.has_part_of_head() => {
                hcm.stats.downstream_rq_http1_total().inc();
                exchange::note_part_of_head(connection);
                break (None, Ended::RemoteActive);
            }
            Err(None) => break (None, Ended::Remote),
        };
        served += 1;
        hcm.stats.downstream_rq_http1_total().inc();
        hcm.codec_stats.http1().dropped_headers_with_underscores().add(u64::from(decoded.underscored));
        let worn = hcm.max_requests_per_connection.is_some_and(|most| served >= most);
        if worn {
            hcm.stats.downstream_cx_max_requests_reached().inc();
        }
        lifetime.check();
        let last = worn || hcm.timeouts.closes_http1_safely && lifetime.over;
        let finished = run_http1(connection, &mut server, decoded, body, last).await;
        match finished {
            Finished::Complete => {}
            Finished::Left => break (None, Ended::RemoteActive),
            Finished::Cut if connection.drain.is_cut() => break (None, Ended::LocalActive),
            Finished::Cut => break (None, Ended::Local),
        }
        if !server.finish_exchange().await {
            break (hcm.timeouts.delayed_close, Ended::Local);
        }
        count_bytes(&server);
    };
    lifetime.check();
    count_bytes(&server);
    match (delayed, server.close(delayed).await) {
        (None, _) => {
            let reason = matches!(ended, Ended::Local | Ended::LocalActive).then_some(DRAINED);
            (ended, reason)
        }
        (Some(_), true) => {
            hcm.stats.downstream_cx_delayed_close_timeout().inc();
            (Ended::Local, Some("triggered_delayed_close_timeout"))
        }
        // Who is given the time to close does so himself.
        (Some(_), false) => (Ended::Remote, Some(DRAINED)),
    }
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
    } else if expects_continue {
        exchange::count_informational(connection);
        server.send_continue();
    }
    let request = Request { head, body };
    exchange::run(connection, request, server).await
}

enum Wait {
    Request,
    /// The client has closed.
    Closed,
    /// We close.
    Close,
}

/// Between requests nothing is held but the socket.
async fn wait_for_request(connection: &Arc<Connection>, server: &mut Server, lifetime: &mut Lifetime<'_>) -> Wait {
    let timeouts = &connection.hcm.timeouts;
    let mut idle = std::pin::pin!(sleep_or_never(timeouts.connection_idle.unwrap_or(Duration::MAX)));
    loop {
        tokio::select! {
            biased;
            readable = server.readable() => return match readable {
                Ok(()) => Wait::Request,
                Err(_) => Wait::Closed,
            },
            () = connection.drain.until_cut() => return Wait::Close,
            () = lifetime.over() => {
                if !timeouts.closes_http1_safely {
                    return Wait::Close;
                }
            }
            () = &mut idle => {
                connection.hcm.stats.downstream_cx_idle_timeout().inc();
                return Wait::Close;
            }
        }
    }
}

/// How long a connection may live (`max_connection_duration`), and whether that is over.
struct Lifetime<'a> {
    hcm: &'a HttpConnectionManager,
    end: Option<Instant>,
    over: bool,
}

impl<'a> Lifetime<'a> {
    fn begin(hcm: &'a HttpConnectionManager) -> Self {
        let end = hcm.timeouts.of_connection().and_then(|most| Instant::now().checked_add(most));
        Self { hcm, end, over: false }
    }

    /// Waits for its end; told once.
    async fn over(&mut self) {
        match self.end.filter(|_| !self.over) {
            Some(end) => tokio::time::sleep_until(end.into()).await,
            None => std::future::pending().await,
        }
        self.check();
    }

    /// Counts its end, once it has come.
    fn check(&mut self) {
        if !self.over && self.end.is_some_and(|end| end <= Instant::now()) {
            self.over = true;
            self.hcm.stats.downstream_cx_max_duration_reached().inc();
            if self.hcm.timeouts.closes_http1_safely {
                self.hcm.stats.downstream_cx_http1_soft_drain().inc();
            }
        }
    }
}

impl Drop for Lifetime<'_> {
    fn drop(&mut self) {
        if self.over && self.hcm.timeouts.closes_http1_safely {
            self.hcm.stats.downstream_cx_http1_soft_drain().dec();
        }
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
