//! Makes one transport connection to a host: source address, socket options, timeout.
//! It must not know pools or protocols.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use tidegate_filters::connection::TlsInfo;
use tidegate_filters::stream_info::Address;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::ConnectionFacts;
use super::meter::ConnectionBytes;
use crate::application_log::levels::CONNECTION;
use crate::application_log::shown::Tags;
use crate::cluster::Cluster;
use crate::cluster::happy_eyeballs::race;
use crate::cluster::host::Host;
use crate::cluster::options::NotPrepared;
use crate::cluster::sockets::TransportSocket;
use crate::io::Transport;
use crate::tls::{NoHandshake, Wanted};

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connection timeout")]
    Timeout,
    #[error("{0}")]
    Prepare(#[from] NotPrepared),
    /// Refused by the system at once.
    #[error("{0}")]
    Immediate(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The host cannot be asked for by the name that the connection is for: nobody has connected.
    #[error("{0}")]
    Unnameable(Arc<str>),
    /// The host did not agree to a handshake, or is not who it must be.
    #[error("{0}")]
    Tls(Arc<str>),
}

/// Envoy's transport failure reason for a failed connect.
pub(super) fn reason(error: &io::Error) -> Arc<str> {
    format!("delayed connect error: {}", system_text(error)).into()
}

/// The same where the source address was refused; of a socket's options Envoy says nothing.
pub(super) fn local_reason(error: &NotPrepared) -> Arc<str> {
    match error {
        NotPrepared::Bind(source, error) => format!("failed to bind to {source}: {}", system_text(error)).into(),
        NotPrepared::Option(_) => "".into(),
    }
}

/// The same where the system said so at once: a unix socket.
pub(super) fn immediate_reason(error: &io::Error, address: &Address) -> Arc<str> {
    format!("immediate connect error: {}|remote address:{address}", system_text(error)).into()
}

/// What the C library calls the error.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Connects within the cluster's `connect_timeout`, a handshake included.
pub(super) async fn connect(
    cluster: &Arc<Cluster>,
    host: &Host,
    wanted: &Wanted,
) -> Result<(Transport, ConnectionFacts), ConnectError> {
    let start = Instant::now();
    let limit = cluster.config().connect_timeout;
    let id = crate::io::next_connection_id();
    tracing::debug!(target: CONNECTION, "{} connecting to {}", Tags::connection(id), host.address);
    let dialed = tokio::time::timeout(limit, secured(cluster, host, wanted, id)).await;
    let Secured { transport, local, tls } = dialed.unwrap_or(Err(ConnectError::Timeout)).inspect_err(|error| {
        tracing::debug!(target: CONNECTION, "{} connect failed: {error}", Tags::connection(id));
    })?;
    tracing::debug!(target: CONNECTION, "{} connected", Tags::connection(id));
    let transport = transport.counted(ConnectionBytes::of(cluster));
    let connected = Instant::now();
    let millis = u64::try_from((connected - start).as_millis()).unwrap_or(u64::MAX);
    cluster.stats().traffic.upstream_cx_connect_ms().record(millis);
    let protocol = http::Version::HTTP_11;
    let facts = ConnectionFacts { id, local, protocol, connect_start: start, connected, shared: None, tls };
    Ok((transport, facts))
}

/// A connection within whatever its cluster wraps it in.
struct Secured {
    transport: Transport,
    local: Option<Address>,
    tls: Option<Arc<TlsInfo>>,
}

async fn secured(cluster: &Cluster, host: &Host, wanted: &Wanted, id: u64) -> Result<Secured, ConnectError> {
    let mut socket = cluster.config().transport_sockets.of(wanted.socket);
    if let Some(tls) = socket.tls() {
        tls.check_name(wanted, &host.hostname).map_err(|NoHandshake(reason)| ConnectError::Unnameable(reason))?;
    }
    let (mut transport, address) = dial(cluster, host).await?;
    let local = match &transport {
        Transport::Tcp(stream) => stream.local_addr().ok().map(Address::Ip),
        _ => None,
    };
    loop {
        match socket {
            TransportSocket::RawBuffer => return Ok(Secured { transport, local, tls: None }),
            TransportSocket::Tls(tls) => {
                let shaken = tls.connect(transport, address, wanted, &host.hostname).await;
                let (transport, info) = shaken.map_err(|NoHandshake(reason)| ConnectError::Tls(reason))?;
                return Ok(Secured { transport, local, tls: Some(info) });
            }
            TransportSocket::Proxy(proxy) => {
                let header = proxy.header(id, wanted.proxied.as_deref(), local.as_ref(), host);
                transport.write_all(&header).await?;
                socket = &proxy.inner;
            }
        }
    }
}

async fn dial(cluster: &Cluster, host: &Host) -> Result<(Transport, Option<IpAddr>), ConnectError> {
    match &host.address {
        Address::Pipe(path) => {
            let stream = match path.strip_prefix('@') {
                Some(name) => {
                    use std::os::linux::net::SocketAddrExt;
                    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                    let stream =
                        std::os::unix::net::UnixStream::connect_addr(&address).map_err(ConnectError::Immediate)?;
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream)?
                }
                None => UnixStream::connect(&**path).await.map_err(ConnectError::Immediate)?,
            };
            Ok((Transport::Unix(stream), None))
        }
        Address::Internal(name) => {
            Err(ConnectError::Io(io::Error::other(format!("not supported yet: internal address {name}"))))
        }
        Address::Ip(only) if host.more_addresses.is_empty() => {
            Ok((Transport::Tcp(dial_tcp(cluster, *only).await?), Some(only.ip())))
        }
        Address::Ip(first) => {
            let addresses: Vec<_> = std::iter::once(first).chain(&host.more_addresses).copied().collect();
            let ordered = cluster.config().connection.happy_eyeballs.order(&addresses);
            let begun = AtomicU32::new(0);
            let another = |address| {
                // Each is a connection of its own to the counter, as in Envoy; the first is counted already.
                if begun.fetch_add(1, Relaxed) > 0 {
                    cluster.stats().traffic.upstream_cx_total().inc();
                }
                dial_tcp(cluster, address)
            };
            match race(ordered, another).await {
                Some(connected) => connected.map(|stream| (Transport::Tcp(stream), Some(first.ip()))),
                None => Err(ConnectError::Io(io::ErrorKind::AddrNotAvailable.into())),
            }
        }
    }
}

async fn dial_tcp(cluster: &Cluster, address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_nodelay(true)?;
    cluster.config().connection.apply(&socket, address).map_err(ConnectError::Prepare)?;
    Ok(socket.connect(address).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_worded_as_envoys() {
        let error = io::Error::from_raw_os_error;
        assert_eq!(&*reason(&error(libc::ECONNREFUSED)), "delayed connect error: Connection refused");
        let pipe = Address::Pipe("/a.sock".into());
        let expected = "immediate connect error: No such file or directory|remote address:/a.sock";
        assert_eq!(&*immediate_reason(&error(libc::ENOENT), &pipe), expected);
    }
}
