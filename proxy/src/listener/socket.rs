//! Makes listening sockets. It must not know who accepts on them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{ListenAddress, SocketOption, SocketSettings, SocketState};

/// Binds and listens; one call a worker when ports are shared.
pub(crate) fn listen(address: &ListenAddress, settings: &SocketSettings) -> io::Result<Socket> {
    match address {
        ListenAddress::Ip { address, ipv4_compat } => {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(!ipv4_compat)?;
            }
            if settings.reuse_port {
                socket.set_reuse_port(true)?;
            }
            apply_ip_settings(&socket, address.is_ipv6(), settings)?;
            apply(&socket, settings, SocketState::BeforeBind)?;
            socket.bind(&SockAddr::from(*address))?;
            apply(&socket, settings, SocketState::Bound)?;
            socket.listen(settings.backlog)?;
            apply(&socket, settings, SocketState::Listening)?;
            Ok(socket)
        }
        ListenAddress::Pipe { path, mode } => listen_pipe(path, *mode, settings),
    }
}

fn listen_pipe(path: &Path, mode: u32, settings: &SocketSettings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    apply(&socket, settings, SocketState::BeforeBind)?;
    let text = path.to_string_lossy();
    if let Some(name) = text.strip_prefix('@') {
        socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
    } else {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        socket.bind(&SockAddr::unix(path)?)?;
        if mode != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
    }
    apply(&socket, settings, SocketState::Bound)?;
    socket.listen(settings.backlog)?;
    apply(&socket, settings, SocketState::Listening)?;
    Ok(socket)
}

fn apply_ip_settings(socket: &Socket, ipv6: bool, settings: &SocketSettings) -> io::Result<()> {
    if settings.transparent {
        if ipv6 {
            set_raw(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, &1i32.to_ne_bytes())?;
        } else {
            socket.set_ip_transparent_v4(true)?;
        }
    }
    if settings.freebind {
        if ipv6 { socket.set_freebind_v6(true)? } else { socket.set_freebind_v4(true)? }
    }
    if let Some(queue) = settings.tcp_fast_open {
        set_raw(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &queue.to_ne_bytes())?;
    }
    if let Some(keepalive) = &settings.keepalive {
        socket.set_tcp_keepalive(&keepalive.to_socket2())?;
    }
    Ok(())
}

impl super::Keepalive {
    /// For `SO_KEEPALIVE` and what goes with it.
    pub(crate) fn to_socket2(self) -> socket2::TcpKeepalive {
        let mut keepalive = socket2::TcpKeepalive::new();
        if let Some(time) = self.time {
            keepalive = keepalive.with_time(time);
        }
        if let Some(interval) = self.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(probes) = self.probes {
            keepalive = keepalive.with_retries(probes);
        }
        keepalive
    }
}

fn apply(socket: &Socket, settings: &SocketSettings, state: SocketState) -> io::Result<()> {
    let ipv6 = socket.domain()? == Domain::IPV6;
    let wanted = |option: &&SocketOption| option.state == state && option.only_v6.is_none_or(|only| only == ipv6);
    for option in settings.options.iter().filter(wanted) {
        set_option(socket, option)?;
    }
    Ok(())
}

/// Sets one configured option.
pub(crate) fn set_option(socket: &impl AsRawFd, option: &SocketOption) -> io::Result<()> {
    set_raw(socket, option.level, option.name, &option.value)
}

#[expect(unsafe_code, reason = "setsockopt with a level and name from the configuration has no safe wrapper")]
fn set_raw(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is readable for `length` bytes during the call, and the descriptor is open as long as `socket`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
