//! The way of an accepted connection: listener filters, hand-off to another listener, the filter chain, network
//! filters, and the last filter, read from top to bottom. It must not know what the last filter does with it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::format::{AccessLogType, FormatContext};
use tidegate_filters::listener::{AcceptedSocket, Inspect};
use tidegate_filters::network::{Closing, NetworkStep, NetworkVerdict};
use tidegate_filters::stream_info::{Address, ResponseFlags, StreamInfo};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::Listener;
use super::filter_chain::{FilterChain, Terminal};
use super::load::Place;
use crate::app::Shared;
use crate::application_log::levels::CONNECTION;
use crate::application_log::shown::Tags;
use crate::io::Transport;
use crate::tls::{NoHandshake, ServerTls};

/// A socket that was just accepted.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A connection that has its filter chain.
pub(crate) struct Chosen {
    pub shared: Arc<Shared>,
    pub chain: Arc<FilterChain>,
    pub info: Arc<ConnectionInfo>,
    pub transport: Transport,
    /// What is seen of its bytes before the last filter, where somebody looks.
    pub seen: Option<crate::tcp::Seen>,
}

/// Serves one accepted connection to its end; `place` is its place among the listener's.
pub(crate) async fn serve(shared: Arc<Shared>, mut listener: Arc<Listener>, mut accepted: Accepted, place: Place) {
    let Some(mut info) = describe(&accepted, &listener) else { return };
    let tags = Tags::connection(info.id);
    tracing::debug!("{tags} new connection from {}", info.remote);
    let times = (Instant::now(), SystemTime::now());
    listener.stats.downstream_pre_cx_active().inc();
    let before_chain = scopeguard(|| listener.stats.downstream_pre_cx_active().dec());
    let filtered = match listener.filters.is_empty() {
        true => Ok(()),
        false => Box::pin(run_listener_filters(&listener, &mut accepted, &mut info)).await,
    };
    drop(before_chain);
    if let Err(reason) = filtered {
        tracing::debug!("{tags} closing connection: listener filters: {reason}");
        return log_end(&listener, &shared, StreamInfo::new(info.into(), times.0, times.1));
    }
    if info.transport_protocol.is_empty() {
        info.transport_protocol = "raw_buffer".into();
    }
    let mut worker_stats = place.stats();
    if listener.use_original_dst
        && info.local_restored
        && let Some(target) = shared.listener_for_original_destination(&info.local)
        && !Arc::ptr_eq(&target, &listener)
    {
        listener = target;
        belongs_to(&mut info, &listener);
        worker_stats = None;
    }
    let chain = listener.chains.find(&info).cloned();
    let Some(chain) = chain else {
        tracing::debug!("{tags} closing connection from {}: no matching filter chain found", info.remote);
        listener.stats.downstream_cx_total().inc();
        listener.stats.downstream_cx_destroy().inc();
        listener.stats.no_filter_chain_match().inc();
        let mut stream = StreamInfo::new(info.into(), times.0, times.1);
        stream.flags |= ResponseFlags::NO_ROUTE_FOUND;
        stream.details = Some("filter_chain_not_found".into());
        return log_end(&listener, &shared, stream);
    };
    info.filter_chain_name = Arc::clone(&chain.name);
    info.filter_chain_metadata.clone_from(&chain.metadata);
    let stats = &listener.stats;
    stats.downstream_cx_total().inc();
    stats.downstream_cx_active().inc();
    if let Some(stats) = worker_stats {
        stats.downstream_cx_total().inc();
        stats.downstream_cx_active().inc();
    }
    tracing::trace!("{tags} filter chain '{}'", chain.name);
    let stream = run_chain(&shared, &listener, chain, info, times, transport(accepted)).await;
    let reason = stream.local_close_reason.as_deref().unwrap_or_default();
    tracing::debug!(target: CONNECTION, "{tags} closed {reason}");
    stats.downstream_cx_active().dec();
    stats.downstream_cx_destroy().inc();
    stats.downstream_cx_length_ms().record(millis(times.0));
    if let Some(stats) = worker_stats {
        stats.downstream_cx_active().dec();
    }
    log_end(&listener, &shared, stream);
}

/// The listener's own access log: a line a connection.
fn log_end(listener: &Listener, shared: &Shared, mut stream: StreamInfo) {
    if listener.access_logs.is_empty() {
        return;
    }
    stream.end.get_or_insert_with(Instant::now);
    let context = FormatContext { runtime: shared.runtime(), ..FormatContext::of(&stream) };
    for log in &listener.access_logs {
        log.log(&context);
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn describe(accepted: &Accepted, listener: &Listener) -> Option<Box<ConnectionInfo>> {
    let (remote, local) = match accepted {
        // A peer that is gone before anyone looked has no address any more.
        Accepted::Tcp(stream, remote) => {
            (Address::Ip(unmapped(*remote)), Address::Ip(unmapped(stream.local_addr().ok()?)))
        }
        Accepted::Unix(_) => {
            let path: Arc<str> = listener.main_address().into();
            (Address::Pipe("".into()), Address::Pipe(path))
        }
    };
    let mut info = Box::new(ConnectionInfo::new(crate::io::next_connection_id(), remote, local, Instant::now()));
    belongs_to(&mut info, listener);
    Some(info)
}

fn belongs_to(info: &mut ConnectionInfo, listener: &Listener) {
    info.listener_name = Arc::clone(&listener.name);
    info.listener_metadata.clone_from(&listener.metadata);
}

/// An IPv4 peer of a dual-stack socket is an IPv4 peer.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn transport(accepted: Accepted) -> Transport {
    match accepted {
        Accepted::Tcp(stream, _) => Transport::Tcp(stream),
        Accepted::Unix(stream) => Transport::Unix(stream),
    }
}

async fn run_listener_filters(
    listener: &Listener,
    accepted: &mut Accepted,
    info: &mut ConnectionInfo,
) -> Result<(), &'static str> {
    if !listener.filters.iter().all(|filter| filter.is_there()) {
        listener.stats.extension_config_missing().inc();
        return Err("the configuration of a listener filter is missing");
    }
    let run = inspect(listener, accepted, info);
    let Some(limit) = listener.filters_timeout else { return run.await };
    match tokio::time::timeout(limit, run).await {
        Ok(result) => result,
        Err(_) => {
            listener.stats.downstream_pre_cx_timeout().inc();
            if !listener.continue_on_filters_timeout {
                return Err("listener filters timed out");
            }
            accepted.forget_peeking().map_err(|_| PEER_CLOSED)
        }
    }
}

async fn inspect(listener: &Listener, accepted: &Accepted, info: &mut ConnectionInfo) -> Result<(), &'static str> {
    let mut peeked = BytesMut::new();
    for config in &listener.filters {
        let Some(mut filter) = config.new_connection(info) else { continue };
        let mut end = false;
        loop {
            match filter.on_data(&peeked, end, info, accepted) {
                Inspect::Done { consume } => {
                    accepted.discard(consume).await.map_err(|error| gone(listener, &error))?;
                    let _ = peeked.split_to(consume);
                    break;
                }
                Inspect::Reject(reason) => return Err(reason),
                Inspect::NeedMore if end => {
                    // What came before a reset can still be read: only the socket tells it from an end.
                    let error = accepted.take_error().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into());
                    return Err(gone(listener, &error));
                }
                Inspect::NeedMore => {
                    let before = peeked.len();
                    peeked =
                        accepted.peek(filter.max_read_bytes(), before).await.map_err(|error| gone(listener, &error))?;
                    end = peeked.len() == before;
                }
            }
        }
    }
    Ok(())
}

const PEER_CLOSED: &str = "the peer closed";

/// Nothing more can be read of a socket that listener filters look at.
fn gone(listener: &Listener, error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => listener.stats.downstream_listener_filter_remote_close().inc(),
        // Envoy learns of a reset only when the filters' time is over, and counts it as neither.
        std::io::ErrorKind::ConnectionReset => {}
        _ => listener.stats.downstream_listener_filter_error().inc(),
    }
    PEER_CLOSED
}

/// Runs a closure when dropped.
fn scopeguard(run: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(run)
}

impl Accepted {
    /// Waits for more than `seen` bytes, at most `limit`, and returns all of them; as many as `seen` at the end.
    async fn peek(&self, limit: usize, seen: usize) -> std::io::Result<BytesMut> {
        let mut buffer = BytesMut::zeroed(limit.max(seen + 1));
        loop {
            let ready = match self {
                Self::Tcp(stream, _) => stream.ready(Interest::READABLE).await?,
                Self::Unix(stream) => stream.ready(Interest::READABLE).await?,
            };
            let ended = ready.is_read_closed();
            // Nothing new is "would block": the runtime then waits for news, though the bytes stay in the socket.
            let mut look = |socket: socket2::SockRef<'_>| match peek_now(&socket, &mut buffer)? {
                n if n > seen || ended => Ok(n),
                _ => Err(std::io::ErrorKind::WouldBlock.into()),
            };
            let looked = match self {
                Self::Tcp(stream, _) => stream.try_io(Interest::READABLE, || look(stream.into())),
                Self::Unix(stream) => stream.try_io(Interest::READABLE, || look(stream.into())),
            };
            match looked {
                Ok(n) => {
                    buffer.truncate(n);
                    return Ok(buffer);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !ended => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What went wrong with the socket, if anything did.
    fn take_error(&self) -> Option<std::io::Error> {
        match self {
            Self::Tcp(stream, _) => stream.take_error().ok().flatten(),
            Self::Unix(stream) => stream.take_error().ok().flatten(),
        }
    }

    /// Makes the runtime look at the socket anew: what was peeked and waits is news again.
    fn forget_peeking(&mut self) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream, _) => {
                let fresh = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
                *stream = TcpStream::from_std(fresh)?;
            }
            Self::Unix(stream) => {
                let fresh = std::os::unix::net::UnixStream::from(stream.as_fd().try_clone_to_owned()?);
                *stream = UnixStream::from_std(fresh)?;
            }
        }
        Ok(())
    }

    /// Reads and drops bytes that were peeked.
    async fn discard(&self, mut count: usize) -> std::io::Result<()> {
        let mut scratch = [0; 256];
        while count > 0 {
            let want = count.min(scratch.len());
            let result = match self {
                Self::Tcp(stream, _) => {
                    stream.readable().await?;
                    stream.try_read(&mut scratch[..want])
                }
                Self::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(&mut scratch[..want])
                }
            };
            match result {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => count -= n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "socket2 peeks into uninitialised memory only")]
fn peek_now(socket: &socket2::SockRef<'_>, buffer: &mut [u8]) -> std::io::Result<usize> {
    // SAFETY: initialised bytes are valid as possibly uninitialised ones, and recv only ever writes initialised bytes.
    let uninit = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [std::mem::MaybeUninit<u8>]) };
    socket.peek(uninit)
}

impl AcceptedSocket for Accepted {
    fn original_destination(&self) -> Option<SocketAddr> {
        let Self::Tcp(stream, remote) = self else { return None };
        let socket = socket2::SockRef::from(stream);
        let address =
            if remote.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
        address.ok()?.as_socket()
    }
}

/// From the chain on: network filters, then the last one. What is known at the end comes back.
async fn run_chain(
    shared: &Arc<Shared>,
    listener: &Listener,
    chain: Arc<FilterChain>,
    mut info: Box<ConnectionInfo>,
    times: Times,
    transport: Transport,
) -> StreamInfo {
    let _active = chain.drain.enter();
    if !chain.filters.iter().all(|filter| filter.is_there()) {
        listener.stats.network_extension_config_missing().inc();
        let mut stream = stream_of(&info.into(), times);
        crate::tcp::note_closing(&mut stream, Closing::new("no_filters"));
        return stream;
    }
    let mut filters: Vec<_> = chain.filters.iter().filter_map(|config| Arc::clone(config).new_connection()).collect();
    let secured = match &chain.tls {
        // What a handshake needs is gone after it.
        Some(tls) => Box::pin(secure(tls, &chain, listener, &mut filters, &mut info, shared, transport)).await,
        None => Ok(transport),
    };
    let mut transport = match secured.map_err(Box::new) {
        Ok(transport) => transport,
        Err(stopped) => return (*stopped).settle(&chain, shared, info, times),
    };
    let closing = admit(&mut filters, Turn::Rest, &mut info, shared).await;
    let info: Arc<ConnectionInfo> = info.into();
    if let Some(closing) = closing {
        return closed(&chain, shared, &info, times, closing, transport);
    }
    let watched = filters.iter().any(|filter| filter.reads_data())
        || !listener.access_logs.is_empty() && !matches!(chain.terminal, Terminal::Tcp(_));
    let seen = if watched {
        let (filtered, seen) = crate::tcp::filtered(transport, std::mem::take(&mut filters), &info, shared);
        transport = filtered;
        Some(seen)
    } else {
        None
    };
    let (shared_by, chain_of) = (Arc::clone(shared), Arc::clone(&chain));
    let chosen = Chosen { shared: shared_by, chain: chain_of, info, transport, seen: seen.clone() };
    let mut stream = serve_chosen(chosen, times).await;
    if let Some(seen) = seen {
        if let (Terminal::Tcp(proxy), Some(bytes)) = (&chain.terminal, seen.refused()) {
            crate::tcp::count_refused(proxy, bytes, false);
        }
        seen.note(&mut stream);
    }
    finish(&chain, shared, &mut stream);
    // Connection filters (limits) hold their share until here.
    drop(filters);
    stream
}

/// The last filter counts also what it never gets.
fn count_refused(terminal: &Terminal, received: u64, lasted: Duration) {
    match terminal {
        Terminal::Http(hcm, _) => crate::http::count_refused(hcm, received, lasted),
        Terminal::Tcp(proxy) => crate::tcp::count_refused(proxy, received, true),
        Terminal::Echo | Terminal::DirectResponse(_) | Terminal::Close => {}
    }
}

type Times = (Instant, SystemTime);

/// What is known of a connection before its last filter sees it.
fn stream_of(info: &Arc<ConnectionInfo>, times: Times) -> StreamInfo {
    let mut stream = StreamInfo::new(Arc::clone(info), times.0, times.1);
    stream.dynamic_metadata = info.metadata.clone();
    stream
}

/// Why a connection ended before its last filter could see it.
enum Stopped {
    /// A network filter closes it.
    Closed(Closing, Transport),
    /// There was no handshake.
    Unsecured(Unsecured),
}

/// How a handshake failed.
enum Unsecured {
    Failed(NoHandshake),
    /// It took too long.
    Late,
    /// Its listener drains.
    Cut,
}

impl Stopped {
    /// Writes the connection's end down.
    fn settle(self, chain: &FilterChain, shared: &Shared, mut info: Box<ConnectionInfo>, times: Times) -> StreamInfo {
        match self {
            Self::Closed(closing, transport) => closed(chain, shared, &info.into(), times, closing, transport),
            Self::Unsecured(unsecured) => {
                let tags = Tags::connection(info.id);
                let (reason, remote) = match unsecured {
                    Unsecured::Failed(NoHandshake(reason)) => (reason, true),
                    Unsecured::Late => ("transport socket timeout was reached".into(), false),
                    Unsecured::Cut => ("".into(), false),
                };
                tracing::debug!(target: CONNECTION, "{tags} remote address:{},{reason}", info.remote);
                info.transport_failure_reason = Some(Arc::clone(&reason)).filter(|reason| !reason.is_empty());
                let mut stream = stream_of(&info.into(), times);
                match &chain.terminal {
                    Terminal::Http(hcm, _) => crate::http::count_unsecured(hcm, remote, times.0.elapsed()),
                    Terminal::Tcp(proxy) => crate::tcp::count_refused(proxy, 0, true),
                    Terminal::Echo | Terminal::DirectResponse(_) | Terminal::Close => {}
                }
                if !remote && !reason.is_empty() {
                    stream.local_close_reason = Some(reason.to_string().into());
                }
                finish(chain, shared, &mut stream);
                stream
            }
        }
    }
}

/// What need not wait for a handshake, then the handshake.
async fn secure(
    tls: &ServerTls,
    chain: &FilterChain,
    listener: &Listener,
    filters: &mut [Box<dyn tidegate_filters::network::NetworkFilter>],
    info: &mut ConnectionInfo,
    shared: &Arc<Shared>,
    transport: Transport,
) -> Result<Transport, Stopped> {
    if let Some(closing) = admit(filters, Turn::BeforeHandshake, info, shared).await {
        return Err(Stopped::Closed(closing, transport));
    }
    let limit = chain.transport_connect_timeout.unwrap_or(Duration::MAX);
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(limit, tls.accept(transport)) => shaken.map_err(|_| Unsecured::Late),
        () = chain.drain.until_cut() => Err(Unsecured::Cut),
    };
    let shaken = shaken.and_then(|shaken| shaken.map_err(Unsecured::Failed));
    let (transport, tls) = shaken.map_err(|unsecured| {
        if matches!(unsecured, Unsecured::Late) {
            listener.stats.downstream_cx_transport_socket_connect_timeout().inc();
        }
        Stopped::Unsecured(unsecured)
    })?;
    info.application_protocols = tls.alpn.iter().cloned().collect();
    if tls.sni.is_some() {
        info.requested_server_name.clone_from(&tls.sni);
    }
    info.tls = Some(tls);
    Ok(transport)
}

/// A network filter closes a connection before its last filter has seen it.
fn closed(
    chain: &FilterChain,
    shared: &Shared,
    info: &Arc<ConnectionInfo>,
    times: Times,
    closing: Closing,
    mut transport: Transport,
) -> StreamInfo {
    // Like Envoy's, a TCP proxy reads nothing before it has a host.
    let read = if matches!(chain.terminal, Terminal::Tcp(_)) { 0 } else { transport.empty() };
    count_refused(&chain.terminal, read, times.0.elapsed());
    let mut stream = stream_of(info, times);
    crate::tcp::note_closing(&mut stream, closing);
    finish(chain, shared, &mut stream);
    stream
}

/// Which network filters are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Those that need not wait for a handshake that is to come.
    BeforeHandshake,
    /// All that were not asked: without a handshake, all.
    Rest,
}

/// Asks the filters whose turn it is before a byte is read; the answer of the one that closes.
async fn admit(
    filters: &mut [Box<dyn tidegate_filters::network::NetworkFilter>],
    turn: Turn,
    info: &mut ConnectionInfo,
    shared: &Arc<Shared>,
) -> Option<Closing> {
    let secured = info.tls.is_some();
    let is_asked = |first: bool| match turn {
        Turn::BeforeHandshake => first,
        Turn::Rest => !(first && secured),
    };
    for filter in filters.iter_mut().filter(|filter| is_asked(filter.goes_first())) {
        let verdict = match filter.on_connection(info, shared.runtime()) {
            NetworkStep::Continue => NetworkVerdict::Continue,
            NetworkStep::Wait(wait) => wait.await,
            NetworkStep::Close(closing) => NetworkVerdict::Close(closing),
        };
        if let NetworkVerdict::Close(closing) = verdict {
            return Some(closing);
        }
    }
    None
}

/// Hands the connection to the last filter. Only what is written to while it lives is kept meanwhile.
async fn serve_chosen(chosen: Chosen, times: Times) -> StreamInfo {
    let info = Arc::clone(&chosen.info);
    match chosen.chain.terminal.clone() {
        Terminal::Http(hcm, listener_stats) => {
            let (protocol, reason) = crate::http::serve(chosen, hcm, listener_stats).await;
            StreamInfo { protocol, local_close_reason: reason.map(Into::into), ..stream_of(&info, times) }
        }
        Terminal::Tcp(proxy) => Box::pin(crate::tcp::serve(chosen, stream_of(&info, times), &proxy)).await,
        Terminal::Echo => {
            Box::pin(crate::tcp::echo(chosen)).await;
            stream_of(&info, times)
        }
        Terminal::DirectResponse(bytes) => {
            Box::pin(crate::tcp::direct_response(chosen, bytes)).await;
            stream_of(&info, times)
        }
        Terminal::Close => stream_of(&info, times),
    }
}

/// A TCP proxy writes its line whoever ended the connection.
fn finish(chain: &FilterChain, shared: &Shared, stream: &mut StreamInfo) {
    stream.end = Some(Instant::now());
    if let Terminal::Tcp(proxy) = &chain.terminal {
        stream.timings.downstream_end = stream.end;
        proxy.log(stream, AccessLogType::TcpConnectionEnd, shared);
    }
}

impl AsRawFd for Accepted {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        match self {
            Self::Tcp(stream, _) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a function's future takes.
    fn bytes<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_holds_nothing_of_handshakes_and_requests() {
        assert!(bytes(serve) < 2560, "{}", bytes(serve));
    }
}
