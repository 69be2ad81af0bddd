//! The way of an accepted connection: listener filters, hand-off to another listener, the filter chain, network
//! filters, and the last filter, read from top to bottom. It must not know what the last filter does with it.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::BytesMut;
use tidegate_filters::connection::ConnectionInfo;
use tidegate_filters::listener::{AcceptedSocket, Inspect};
use tidegate_filters::network::{NetworkStep, NetworkVerdict};
use tidegate_filters::stream_info::Address;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::Listener;
use super::filter_chain::{FilterChain, Terminal};
use crate::app::Shared;
use crate::io::Transport;

/// A socket that was just accepted.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A connection that has its filter chain.
pub(crate) struct Chosen {
    pub shared: Arc<Shared>,
    pub chain: Arc<FilterChain>,
    pub info: ConnectionInfo,
    pub transport: Transport,
}

fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, mut listener: Arc<Listener>, accepted: Accepted) {
    let Some(mut info) = describe(&accepted, &listener) else { return };
    let transport = match run_listener_filters(&listener, &accepted, &mut info).await {
        Ok(()) => transport(accepted),
        Err(reason) => {
            tracing::debug!(reason, "listener filter closed a connection");
            return;
        }
    };
    if listener.use_original_dst
        && info.local_restored
        && let Some(target) = shared.listener_for_original_destination(&info.local)
    {
        listener = target;
        info.listener_name = Arc::clone(&listener.name);
    }
    let stats = listener.stats.clone();
    stats.downstream_cx_total().inc();
    stats.downstream_cx_active().inc();
    let started = Instant::now();
    match listener.chains.find(&info).cloned() {
        Some(chain) => {
            info.filter_chain_name = Arc::clone(&chain.name);
            run_chain(Chosen { shared, chain, info, transport }).await;
        }
        None => {
            stats.no_filter_chain_match().inc();
            log_unmatched(&listener, info, started);
        }
    }
    stats.downstream_cx_active().dec();
    stats.downstream_cx_destroy().inc();
    stats.downstream_cx_length_ms().record(millis(started));
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn describe(accepted: &Accepted, listener: &Listener) -> Option<ConnectionInfo> {
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
    let mut info = ConnectionInfo::new(next_connection_id(), remote, local, Instant::now());
    info.listener_name = Arc::clone(&listener.name);
    Some(info)
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
    accepted: &Accepted,
    info: &mut ConnectionInfo,
) -> Result<(), &'static str> {
    if listener.filters.is_empty() {
        return Ok(());
    }
    let run = inspect(listener, accepted, info);
    let Some(limit) = listener.filters_timeout else { return run.await };
    match tokio::time::timeout(limit, run).await {
        Ok(result) => result,
        Err(_) => {
            listener.stats.downstream_pre_cx_timeout().inc();
            if listener.continue_on_filters_timeout { Ok(()) } else { Err("listener filters timed out") }
        }
    }
}

async fn inspect(listener: &Listener, accepted: &Accepted, info: &mut ConnectionInfo) -> Result<(), &'static str> {
    listener.stats.downstream_pre_cx_active().inc();
    let _active = scopeguard(|| listener.stats.downstream_pre_cx_active().dec());
    let mut peeked = BytesMut::new();
    for config in &listener.filters {
        let Some(mut filter) = config.new_connection(info) else { continue };
        let mut end = false;
        loop {
            match filter.on_data(&peeked, end, info, accepted) {
                Inspect::Done { consume } => {
                    accepted.discard(consume).await.map_err(|_| "the peer closed")?;
                    let _ = peeked.split_to(consume);
                    break;
                }
                Inspect::Reject(reason) => return Err(reason),
                Inspect::NeedMore if end => return Err("the peer closed"),
                Inspect::NeedMore => {
                    let before = peeked.len();
                    peeked = accepted.peek(filter.max_read_bytes(), before).await.map_err(|_| "the peer closed")?;
                    end = peeked.len() == before;
                }
            }
        }
    }
    Ok(())
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
            let (ready, socket) = match self {
                Self::Tcp(stream, _) => (stream.ready(Interest::READABLE).await?, socket2::SockRef::from(stream)),
                Self::Unix(stream) => (stream.ready(Interest::READABLE).await?, socket2::SockRef::from(stream)),
            };
            let n = match peek_now(&socket, &mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            if n > seen || n == seen && ready.is_read_closed() {
                buffer.truncate(n);
                return Ok(buffer);
            }
            // Peeking leaves the bytes in the socket, which stays readable: look again soon, but do not spin.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
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

/// From the chain on: network filters, then the last one.
async fn run_chain(mut chosen: Chosen) {
    let chain = Arc::clone(&chosen.chain);
    let _active = chain.drain.enter();
    let mut filters: Vec<_> = chain.filters.iter().filter_map(|config| Arc::clone(config).new_connection()).collect();
    let shared = Arc::clone(&chosen.shared);
    for filter in &mut filters {
        let verdict = match filter.on_connection(&mut chosen.info, shared.runtime()) {
            NetworkStep::Continue => NetworkVerdict::Continue,
            NetworkStep::Wait(wait) => wait.await,
            NetworkStep::Close(details) => NetworkVerdict::Close(details),
        };
        if let NetworkVerdict::Close(details) = verdict {
            tracing::debug!(%details, "network filter closed a connection");
            return;
        }
    }
    if filters.iter().any(|filter| filter.reads_data()) {
        chosen.transport = crate::tcp::filtered(chosen.transport, std::mem::take(&mut filters), &chosen.info, &shared);
    }
    match chain.terminal.clone() {
        Terminal::Http(hcm, listener_stats) => crate::http::serve(chosen, hcm, listener_stats).await,
        Terminal::Tcp(proxy) => crate::tcp::serve(chosen, proxy).await,
        Terminal::Echo => crate::tcp::echo(chosen).await,
        Terminal::DirectResponse(bytes) => crate::tcp::direct_response(chosen, bytes).await,
        Terminal::Close => {}
    }
    // Connection filters (limits) hold their share until here.
    drop(filters);
}

fn log_unmatched(listener: &Listener, info: ConnectionInfo, started: Instant) {
    if listener.access_logs.is_empty() {
        return;
    }
    let mut stream =
        tidegate_filters::stream_info::StreamInfo::new(Arc::new(info), started, std::time::SystemTime::now());
    stream.flags |= tidegate_filters::stream_info::ResponseFlags::NO_ROUTE_FOUND;
    stream.details = Some("filter_chain_not_found".into());
    stream.end = Some(Instant::now());
    for log in &listener.access_logs {
        log.log(&tidegate_filters::format::FormatContext::of(&stream));
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
