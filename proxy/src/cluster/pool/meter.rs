//! The bytes of a cluster's connections in its stats. It must not know protocols.

use std::sync::Arc;

use tidegate_stats::Gauge;

use crate::cluster::Cluster;
use crate::io::CountBytes;

/// Counts the bytes of one connection. What is buffered is, as in Envoy, what the last read brought, and what the last write
/// left behind.
pub(super) struct ConnectionBytes {
    cluster: Arc<Cluster>,
    came: usize,
    left: usize,
}

impl ConnectionBytes {
    pub(super) fn of(cluster: &Arc<Cluster>) -> Box<Self> {
        Box::new(Self { cluster: Arc::clone(cluster), came: 0, left: 0 })
    }
}

impl CountBytes for ConnectionBytes {
    fn read(&mut self, bytes: usize) {
        let traffic = &self.cluster.stats().traffic;
        traffic.upstream_cx_rx_bytes_total().add(bytes as u64);
        shift(traffic.upstream_cx_rx_bytes_buffered(), &mut self.came, bytes);
    }

    fn wrote(&mut self, bytes: usize, left: usize) {
        let traffic = &self.cluster.stats().traffic;
        traffic.upstream_cx_tx_bytes_total().add(bytes as u64);
        shift(traffic.upstream_cx_tx_bytes_buffered(), &mut self.left, left);
    }
}

impl Drop for ConnectionBytes {
    fn drop(&mut self) {
        let traffic = &self.cluster.stats().traffic;
        shift(traffic.upstream_cx_rx_bytes_buffered(), &mut self.came, 0);
        shift(traffic.upstream_cx_tx_bytes_buffered(), &mut self.left, 0);
    }
}

impl std::fmt::Debug for ConnectionBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionBytes").field("came", &self.came).field("left", &self.left).finish_non_exhaustive()
    }
}

/// Moves this connection's part of a gauge.
fn shift(gauge: Gauge<'_>, shown: &mut usize, now: usize) {
    if *shown != now {
        gauge.add(now as i64 - *shown as i64);
        *shown = now;
    }
}
