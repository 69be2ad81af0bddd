//! The bytes of one stream on the wire, counted by whoever moves them and read by logs (Envoy's `BytesMeter`).
//! It must not know protocols, nor which side of the proxy it counts for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tidegate_filters::stream_info::ByteCounts;

/// What went one way.
#[derive(Debug, Default)]
struct Way {
    header: AtomicU64,
    wire: AtomicU64,
    fields: AtomicU64,
}

impl Way {
    fn add(&self, header: u64, wire: u64) {
        self.header.fetch_add(header, Relaxed);
        self.wire.fetch_add(wire, Relaxed);
    }
}

/// The counts of one stream; those of an upstream go on over all tries of a request.
#[derive(Debug, Default)]
pub(crate) struct WireBytes {
    received: Way,
    sent: Way,
    end: Mutex<End>,
}

/// Whether anything is still to be sent, and who waits for that.
#[derive(Debug, Default)]
struct End {
    sent: bool,
    waker: Option<Waker>,
}

impl WireBytes {
    /// `header` is what of `wire` belongs to fields.
    pub(crate) fn add_received(&self, header: u64, wire: u64) {
        self.received.add(header, wire);
    }

    /// `header` is what of `wire` belongs to fields.
    pub(crate) fn add_sent(&self, header: u64, wire: u64) {
        self.sent.add(header, wire);
    }

    /// Fields as they were before compression.
    pub(crate) fn add_received_fields(&self, bytes: u64) {
        self.received.fields.fetch_add(bytes, Relaxed);
    }

    /// Fields as they are before compression.
    pub(crate) fn add_sent_fields(&self, bytes: u64) {
        self.sent.fields.fetch_add(bytes, Relaxed);
    }

    /// Nothing more goes out.
    pub(crate) fn end_sending(&self) {
        let mut end = self.end.lock();
        end.sent = true;
        if let Some(waker) = end.waker.take() {
            waker.wake();
        }
    }

    /// Ready when all that there was to send has gone out, or never will.
    pub(crate) fn poll_sent(&self, cx: &Context<'_>) -> Poll<()> {
        let mut end = self.end.lock();
        if end.sent {
            return Poll::Ready(());
        }
        end.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What was received so far: of fields, and all.
    pub(crate) fn received(&self) -> (u64, u64) {
        (self.received.header.load(Relaxed), self.received.wire.load(Relaxed))
    }

    /// What was sent so far: of fields, and all.
    pub(crate) fn sent(&self) -> (u64, u64) {
        (self.sent.header.load(Relaxed), self.sent.wire.load(Relaxed))
    }

    /// Fields before compression: received and sent so far.
    pub(crate) fn fields(&self) -> (u64, u64) {
        (self.received.fields.load(Relaxed), self.sent.fields.load(Relaxed))
    }

    /// All of it into a stream's facts.
    pub(crate) fn note(&self, counts: &mut ByteCounts) {
        (counts.header_received, counts.wire_received) = self.received();
        (counts.header_sent, counts.wire_sent) = self.sent();
        (counts.fields_received, counts.fields_sent) = self.fields();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_the_end_is_told_of_it() {
        let bytes = WireBytes::default();
        let cx = Context::from_waker(Waker::noop());
        bytes.add_sent(20, 30);
        assert!(bytes.poll_sent(&cx).is_pending());
        bytes.end_sending();
        assert!(bytes.poll_sent(&cx).is_ready());
        bytes.add_received(3, 5);
        bytes.add_received_fields(7);
        bytes.add_sent_fields(9);
        let mut counts = ByteCounts::default();
        bytes.note(&mut counts);
        let all = (counts.header_received, counts.wire_received, counts.header_sent, counts.wire_sent);
        assert_eq!(all, (3, 5, 20, 30));
        assert_eq!((counts.fields_received, counts.fields_sent), (7, 9));
    }
}
