//! Which stream of an HTTP/2 connection a frame's bytes belong to (Envoy's `BytesMeter` of each stream).
//! It must not know what the frames say.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::h2_frames::Frame;
use crate::http::wire_bytes::WireBytes;

/// Streams that have begun and that nobody has taken up yet. More than these are refused by the codec long before.
const MAX_ARRIVING: usize = 4096;

/// The streams of one connection whose bytes are counted.
#[derive(Debug, Default)]
pub(super) struct StreamBytes {
    /// Begun by the peer, in the order of their numbers.
    arriving: VecDeque<(u32, Arc<WireBytes>)>,
    running: HashMap<u32, Arc<WireBytes>, ahash::RandomState>,
    /// The connection is gone.
    closed: bool,
}

impl StreamBytes {
    /// Counts a stream that the proxy has begun.
    pub(super) fn begin(&mut self, stream: u32, bytes: Arc<WireBytes>) {
        if self.closed {
            bytes.end_sending();
        }
        self.running.insert(stream, bytes);
    }

    /// Takes up a stream that the peer has begun. The codec hands them out in order: what it passed over it has refused.
    pub(super) fn adopt(&mut self, stream: u32) -> Arc<WireBytes> {
        let mut adopted = None;
        while self.arriving.front().is_some_and(|(arrived, _)| *arrived <= stream) {
            adopted = self.arriving.pop_front().filter(|(arrived, _)| *arrived == stream);
        }
        let bytes = adopted.map(|(_, bytes)| bytes).unwrap_or_default();
        self.begin(stream, Arc::clone(&bytes));
        bytes
    }

    pub(super) fn forget(&mut self, stream: u32) {
        self.running.remove(&stream);
    }

    /// Nothing more comes or goes.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.running.values().for_each(|bytes| bytes.end_sending());
    }

    /// `peer_begins` says that the peer is the connection's client.
    pub(super) fn received(&mut self, frame: &Frame, peer_begins: bool) {
        if let Some(bytes) = self.of(frame.stream) {
            // Envoy hears of no others, but counts all that it sends.
            if frame.is_reset() || frame.is_headers() || frame.is_data() {
                bytes.add_received(header_bytes(frame), frame.wire_bytes());
            }
            if frame.is_reset() {
                bytes.end_sending();
            }
            return;
        }
        if peer_begins && frame.is_headers() && self.arriving.back().is_none_or(|(last, _)| *last < frame.stream) {
            if self.arriving.len() == MAX_ARRIVING {
                self.arriving.pop_front();
            }
            let bytes = Arc::<WireBytes>::default();
            bytes.add_received(header_bytes(frame), frame.wire_bytes());
            self.arriving.push_back((frame.stream, bytes));
        }
    }

    pub(super) fn sent(&mut self, frame: &Frame) {
        if let Some(bytes) = self.of(frame.stream) {
            bytes.add_sent(header_bytes(frame), frame.wire_bytes());
            if frame.ends_stream() {
                bytes.end_sending();
            }
        }
    }

    fn of(&self, stream: u32) -> Option<&Arc<WireBytes>> {
        let arriving = || {
            let place = self.arriving.binary_search_by_key(&stream, |(arrived, _)| *arrived).ok()?;
            self.arriving.get(place).map(|(_, bytes)| bytes)
        };
        self.running.get(&stream).or_else(arriving)
    }
}

fn header_bytes(frame: &Frame) -> u64 {
    if frame.is_headers() { frame.wire_bytes() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, length: u32) -> Frame {
        Frame { kind, flags, stream, length, payload: length, increment: 0 }
    }

    const HEADERS: u8 = 1;
    const DATA: u8 = 0;
    const WINDOW_UPDATE: u8 = 8;

    #[test]
    fn each_stream_has_its_own_bytes() {
        let mut streams = StreamBytes::default();
        streams.received(&frame(HEADERS, 4, 1, 20), true);
        streams.received(&frame(HEADERS, 5, 3, 30), true);
        streams.received(&frame(DATA, 1, 1, 5), true);
        streams.received(&frame(WINDOW_UPDATE, 0, 3, 4), true);
        let (one, three) = (streams.adopt(1), streams.adopt(3));
        streams.sent(&frame(HEADERS, 4, 3, 10));
        streams.sent(&frame(DATA, 1, 3, 7));
        assert_eq!((one.received(), three.received()), ((29, 43), (39, 39)));
        assert_eq!((one.sent(), three.sent()), ((0, 0), (19, 35)));
        streams.forget(3);
        streams.sent(&frame(DATA, 1, 3, 7));
        assert_eq!(three.sent(), (19, 35));
    }

    #[test]
    fn what_the_codec_refused_is_not_kept() {
        let mut streams = StreamBytes::default();
        for stream in [1, 3, 5] {
            streams.received(&frame(HEADERS, 5, stream, stream), true);
        }
        assert_eq!(streams.adopt(5).received(), (14, 14));
        assert!(streams.arriving.is_empty() && streams.running.len() == 1);
        streams.received(&frame(HEADERS, 5, 7, 1), false);
        assert!(streams.arriving.is_empty());
        assert_eq!(streams.adopt(9).received(), (0, 0));
    }

    #[test]
    fn a_reset_and_the_connections_end_are_the_end_of_sending() {
        let cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut streams = StreamBytes::default();
        let (one, three, late) = (streams.adopt(1), streams.adopt(3), Arc::<WireBytes>::default());
        streams.received(&frame(3, 0, 1, 4), true);
        assert!(one.poll_sent(&cx).is_ready() && three.poll_sent(&cx).is_pending());
        streams.close();
        streams.begin(5, Arc::clone(&late));
        assert!(three.poll_sent(&cx).is_ready() && late.poll_sent(&cx).is_ready());
    }
}
