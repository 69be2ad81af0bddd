//! What the codecs count, `http1.*` and `http2.*`: below the root for clients' connections, below its cluster for hosts'.
//! Their names exist from the first connection on, as in Envoy. It must not know when they are counted.

use std::sync::OnceLock;

use tidegate_stats::{Scope, stats_block};

use super::h2_frames::Flood;

stats_block! {
    pub struct Http1CodecStats {
        counters {
            dropped_headers_with_underscores, metadata_not_supported_error,
            requests_rejected_with_underscores_in_headers, response_flood,
        }
        gauges {}
        histograms {}
    }
}

stats_block! {
    pub struct Http2CodecStats {
        counters {
            cookies_total_bytes_too_large, dropped_headers_with_underscores, goaway_sent, header_list_size_too_large,
            header_overflow, headers_cb_no_stream, inbound_empty_frames_flood, inbound_priority_frames_flood,
            inbound_window_update_frames_flood, keepalive_timeout, metadata_empty_frames, nghttp2_downstream_connections,
            nghttp2_upstream_connections, oghttp2_downstream_connections, oghttp2_upstream_connections,
            outbound_control_flood, outbound_flood, requests_rejected_with_underscores_in_headers, rx_messaging_error,
            rx_reset, stream_refused_errors, trailers, tx_flush_timeout, tx_reset,
        }
        gauges {
            deferred_stream_close, outbound_control_frames_active, outbound_frames_active, pending_send_bytes,
            streams_active,
        }
        // Envoy records these only where its runtime asks for it.
        histograms {
            cookie_count: Unspecified, cookie_size: Unspecified, header_count: Unspecified, header_list_size: Unspecified,
        }
    }
}

impl Http2CodecStats {
    pub(crate) fn count_flood(&self, flood: Flood) {
        match flood {
            Flood::EmptyFrames => self.inbound_empty_frames_flood().inc(),
            Flood::Priority => self.inbound_priority_frames_flood().inc(),
            Flood::WindowUpdate => self.inbound_window_update_frames_flood().inc(),
            Flood::Control => self.outbound_control_flood().inc(),
            // Envoy leaves these to its library, which counts nothing.
            Flood::Resets | Flood::Window => {}
        }
    }
}

/// Both codecs' stats below one scope.
pub struct CodecStats {
    scope: Scope,
    http1: OnceLock<Http1CodecStats>,
    http2: OnceLock<Http2CodecStats>,
}

impl CodecStats {
    pub fn new(scope: &Scope) -> Self {
        Self { scope: scope.clone(), http1: OnceLock::new(), http2: OnceLock::new() }
    }

    pub(crate) fn http1(&self) -> &Http1CodecStats {
        self.http1.get_or_init(|| Http1CodecStats::new(&self.scope.scope("http1.")))
    }

    pub(crate) fn http2(&self) -> &Http2CodecStats {
        self.http2.get_or_init(|| Http2CodecStats::new(&self.scope.scope("http2.")))
    }
}
