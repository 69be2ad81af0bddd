//! Connections to hosts for TCP proxying: one a downstream connection, never shared.
//! It must not know what flows on them.

use std::sync::Arc;

use tidegate_filters::metadata::FilterState;

use super::connect;
use super::{Active, ConnectionFacts, Open, Pending, PoolError, connection_permit, count_connect_failure};
use crate::cluster::Cluster;
use crate::cluster::circuit_breaker::RoutingPriority;
use crate::cluster::host::Host;
use crate::io::Transport;
use crate::tls::Wanted;

/// A connection to a host for as long as the lease lives.
pub(crate) struct TcpLease {
    pub transport: Transport,
    pub facts: ConnectionFacts,
    _open: Open,
    _active: Active,
}

/// What counts a connection for as long as it lives.
pub(crate) struct Held {
    open: Open,
    _active: Active,
}

impl Held {
    /// The host ended the connection.
    pub(crate) fn closed_by_host(&mut self) {
        self.open.remote = true;
    }
}

impl TcpLease {
    /// Separates the bytes from what counts them; both live as long as the connection.
    pub(crate) fn split(self) -> (Transport, Held) {
        (self.transport, Held { open: self._open, _active: self._active })
    }
}

/// Connects to a host within the cluster's limits.
pub(crate) async fn connect_tcp(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    priority: RoutingPriority,
    state: &FilterState,
    wanted: &Wanted,
) -> Result<TcpLease, PoolError> {
    let permit = connection_permit(cluster, host, priority, false).ok_or(PoolError::Overflow)?;
    let pending = Pending::begin(cluster, host, priority).ok_or(PoolError::Overflow)?;
    let open = Open::new(cluster, host, permit);
    let socket = cluster.config().transport_sockets.choose(host, state);
    let connected = connect::connect(cluster, host, &Wanted { socket, ..wanted.clone() }).await;
    let connected = match connected {
        Ok(connected) => Ok((connected, open)),
        Err(error) => Err(count_connect_failure(cluster, host, &error, open)),
    };
    let ((transport, mut facts), mut open) = pending.settle(connected)?;
    facts.shared = state.shared().map(Arc::new);
    // All of a connection is one request.
    (open.busy, open.requests) = (true, 1);
    let active = Active::begin(cluster, host, priority).ok_or(PoolError::Overflow)?;
    Ok(TcpLease { transport, facts, _open: open, _active: active })
}
