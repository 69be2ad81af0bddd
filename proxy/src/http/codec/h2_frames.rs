//! Counts an HTTP/2 peer's frames in front of the codec (Envoy's `ProtocolConstraints`), for the `h2` crate bounds what a
//! frame may hold, not how many of the cheap ones come. It must not know what frames mean beyond that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::stream_bytes::StreamBytes;
use crate::http::protocol::FloodLimits;

const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
/// Of a WINDOW_UPDATE.
const INCREMENT_BYTES: usize = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK_OR_END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// The most that a window may hold (RFC 9113 §6.9.1).
const MAX_WINDOW: i64 = (1 << 31) - 1;
/// Of how many streams the windows are followed; beyond that the oldest is forgotten.
const WINDOWS: usize = 256;

/// How fast the budget for control frames comes back, beside what is sent.
const CONTROL_FRAMES_PER_SECOND: u64 = 100;

/// What there was too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flood {
    /// Consecutive frames that say nothing.
    EmptyFrames,
    Priority,
    WindowUpdate,
    /// Frames that ask for an answer, or undo what was asked: PING, SETTINGS, RST_STREAM, unknown ones.
    Control,
    /// Streams that their client has reset.
    Resets,
    /// More than a stream's window holds.
    Window,
}

/// One frame, as its header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub length: u32,
    /// Without padding.
    pub payload: u32,
    /// Of a WINDOW_UPDATE.
    pub increment: u32,
}

impl Frame {
    pub(super) fn wire_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.length)
    }

    pub(super) fn is_headers(&self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }

    pub(super) fn is_data(&self) -> bool {
        self.kind == DATA
    }

    pub(super) fn is_reset(&self) -> bool {
        self.kind == RST_STREAM
    }

    /// Whether its sender sends no more on the stream.
    pub(super) fn ends_stream(&self) -> bool {
        self.is_reset() || matches!(self.kind, DATA | HEADERS) && self.flags & ACK_OR_END_STREAM != 0
    }
}

/// Finds frames in a stream of bytes that comes in pieces.
#[derive(Debug, Default)]
struct Parser {
    /// Bytes that are no frame's, or of a payload that nobody looks at.
    skip: usize,
    header: [u8; HEADER_BYTES + INCREMENT_BYTES],
    have: usize,
}

impl Parser {
    /// Calls `each` for every frame whose header ends within `bytes`; the first error ends it.
    fn feed<E>(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame) -> Result<(), E>) -> Result<(), E> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let Some((frame, rest)) = self.header(bytes) else { return Ok(()) };
            bytes = rest;
            each(frame)?;
        }
    }

    /// A frame's header, once it is whole: with the padding's length or the window's increment, where there is one.
    fn header<'a>(&mut self, mut bytes: &'a [u8]) -> Option<(Frame, &'a [u8])> {
        loop {
            let wanted = HEADER_BYTES + self.wanted_of_payload();
            if self.have >= wanted {
                break;
            }
            let n = (wanted - self.have).min(bytes.len());
            if n == 0 {
                return None;
            }
            self.header[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
        }
        let [a, b, c, kind, flags, s1, s2, s3, s4, p1, p2, p3, p4] = self.header;
        let length = u32::from_be_bytes([0, a, b, c]);
        let looked_at = self.have - HEADER_BYTES;
        self.skip = (length as usize).saturating_sub(looked_at);
        let padding = if looked_at == 1 { u32::from(p1) + 1 } else { 0 };
        let increment =
            if looked_at == INCREMENT_BYTES { u32::from_be_bytes([p1, p2, p3, p4]) & 0x7fff_ffff } else { 0 };
        self.have = 0;
        let stream = u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff;
        Some((Frame { kind, flags, stream, length, payload: length.saturating_sub(padding), increment }, bytes))
    }

    /// How much of a frame's payload is looked at; nothing before its header is whole.
    fn wanted_of_payload(&self) -> usize {
        let [a, b, c, kind, flags, ..] = self.header;
        match (kind, u32::from_be_bytes([0, a, b, c]) as usize) {
            _ if self.have < HEADER_BYTES => 0,
            (DATA, 1..) if flags & PADDED != 0 => 1,
            (WINDOW_UPDATE, INCREMENT_BYTES) => INCREMENT_BYTES,
            _ => 0,
        }
    }
}

/// A head of which not all has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartOfHead {
    stream: u32,
    /// Its last frame has begun.
    last: bool,
}

/// The counts of one connection.
#[derive(Debug)]
pub(crate) struct FrameMeter {
    limits: FloodLimits,
    /// The peer is the connection's client.
    client: bool,
    inbound: Parser,
    outbound: Parser,
    last_stream: u32,
    streams: u64,
    /// A request's head that has begun and is not whole.
    head: Option<PartOfHead>,
    empty_run: u32,
    priority: u64,
    window_updates: u64,
    data_sent: u64,
    /// PING and SETTINGS frames that were sent and wait to be acknowledged.
    unanswered: u64,
    /// By how much a host has widened the windows of streams beyond what was sent since: at most what they hold. The codec
    /// looks at them only while it has something to send.
    widened: BTreeMap<u32, i64>,
    /// Control frames that may still come.
    control: u64,
    refilled: Instant,
    /// Streams that the client may still reset.
    resets: u64,
    resets_refilled: Instant,
}

impl FrameMeter {
    /// `client` says that the peer begins with the client's preface.
    pub(crate) fn new(limits: FloodLimits, client: bool, now: Instant) -> Self {
        let preface = |there: bool| Parser { skip: if there { PREFACE_BYTES } else { 0 }, ..Parser::default() };
        Self {
            limits,
            client,
            inbound: preface(client),
            outbound: preface(!client),
            last_stream: 0,
            streams: 0,
            head: None,
            empty_run: 0,
            priority: 0,
            window_updates: 0,
            data_sent: 0,
            unanswered: 0,
            widened: BTreeMap::new(),
            control: u64::from(limits.control_frames),
            refilled: now,
            resets: limits.reset_burst,
            resets_refilled: now,
        }
    }

    /// Counts what came, also for `streams`. The time is asked for only where a frame's budget depends on it.
    pub(super) fn received(
        &mut self,
        bytes: &[u8],
        now: impl Fn() -> Instant,
        mut streams: Option<&mut StreamBytes>,
    ) -> Result<(), Flood> {
        let mut parser = std::mem::take(&mut self.inbound);
        let outcome = parser.feed(bytes, |frame| {
            if let Some(streams) = streams.as_deref_mut().filter(|_| frame.stream > 0) {
                streams.received(&frame, self.client);
            }
            self.inbound(frame, &now)
        });
        if parser.skip == 0 && self.head.is_some_and(|head| head.last) {
            self.head = None;
        }
        self.inbound = parser;
        outcome
    }

    /// The stream that a head opens of which not all has come.
    pub(super) fn part_of_head(&self) -> Option<u32> {
        self.head.map(|head| head.stream)
    }

    /// Counts what was sent, also for `streams`: an answer pays for what was asked.
    pub(super) fn sent(&mut self, bytes: &[u8], mut streams: Option<&mut StreamBytes>) {
        let mut parser = std::mem::take(&mut self.outbound);
        let _ = parser.feed(bytes, |frame| {
            if let Some(streams) = streams.as_deref_mut().filter(|_| frame.stream > 0) {
                streams.sent(&frame);
            }
            if matches!(frame.kind, PING | SETTINGS) && frame.flags & ACK_OR_END_STREAM == 0 {
                self.unanswered += 1;
            }
            if matches!(frame.kind, DATA | HEADERS) {
                self.data_sent += u64::from(frame.kind == DATA);
                self.refill(1);
            }
            if frame.is_data()
                && let Some(widened) = self.widened.get_mut(&frame.stream)
            {
                *widened -= i64::from(frame.length);
            } else if frame.is_reset() {
                self.widened.remove(&frame.stream);
            }
            Ok::<_, Flood>(())
        });
        self.outbound = parser;
    }

    fn refill(&mut self, frames: u64) {
        self.control = self.control.saturating_add(frames).min(u64::from(self.limits.control_frames));
    }

    /// A host may widen the window of a stream as far as it goes and no further.
    fn widen(&mut self, frame: &Frame) -> Result<(), Flood> {
        if self.client || frame.stream == 0 {
            return Ok(());
        }
        let widened = self.widened.entry(frame.stream).or_default();
        *widened += i64::from(frame.increment);
        within(*widened <= MAX_WINDOW, Flood::Window)?;
        if self.widened.len() > WINDOWS {
            self.widened.pop_first();
        }
        Ok(())
    }

    fn inbound(&mut self, frame: Frame, now: &impl Fn() -> Instant) -> Result<(), Flood> {
        let limits = self.limits;
        if frame.kind != CONTINUATION {
            // Whole, or broken by what must not stand within it.
            self.head = None;
        }
        if frame.ends_stream() {
            self.widened.remove(&frame.stream);
        }
        match frame.kind {
            DATA | HEADERS | CONTINUATION => {
                let last = frame.flags & END_HEADERS != 0;
                if frame.kind == HEADERS && frame.stream > self.last_stream {
                    self.last_stream = frame.stream;
                    self.streams += 1;
                    self.head = Some(PartOfHead { stream: frame.stream, last });
                } else if let Some(head) = &mut self.head {
                    head.last |= last;
                }
                let empty = frame.payload == 0 && frame.flags & ACK_OR_END_STREAM == 0;
                self.empty_run = if empty { self.empty_run + 1 } else { 0 };
                within(self.empty_run <= limits.empty_frames, Flood::EmptyFrames)
            }
            PRIORITY => {
                self.priority += 1;
                let most = u64::from(limits.priority_frames_per_stream).saturating_mul(1 + self.streams);
                within(self.priority <= most, Flood::Priority)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let for_data = u64::from(limits.window_updates_per_data_frame).saturating_mul(self.data_sent);
                let most = 5 + self.streams.saturating_add(for_data).saturating_mul(2);
                within(self.window_updates <= most, Flood::WindowUpdate)?;
                self.widen(&frame)
            }
            PING | SETTINGS if frame.flags & ACK_OR_END_STREAM != 0 && self.unanswered > 0 => {
                self.unanswered -= 1;
                Ok(())
            }
            // What acknowledges nothing is worth no more than what asks for an answer.
            // GOAWAY and PUSH_PROMISE are the codec's to judge.
            PING | SETTINGS => self.spend(now),
            RST_STREAM => self.spend_reset(now).and_then(|()| self.spend(now)),
            kind if kind > CONTINUATION => self.spend(now),
            _ => Ok(()),
        }
    }

    /// A client that opens streams only to reset them makes us work for nothing.
    fn spend_reset(&mut self, now: &impl Fn() -> Instant) -> Result<(), Flood> {
        if !self.client {
            return Ok(());
        }
        let now = now();
        let seconds = now.saturating_duration_since(self.resets_refilled).as_secs();
        if seconds > 0 {
            self.resets_refilled = now;
            let more = self.limits.reset_rate.saturating_mul(seconds);
            self.resets = self.resets.saturating_add(more).min(self.limits.reset_burst);
        }
        self.resets = self.resets.checked_sub(1).ok_or(Flood::Resets)?;
        Ok(())
    }

    fn spend(&mut self, now: &impl Fn() -> Instant) -> Result<(), Flood> {
        if self.control == 0 {
            let passed = now().saturating_duration_since(self.refilled);
            let frames = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX) / (1000 / CONTROL_FRAMES_PER_SECOND);
            if frames > 0 {
                self.refill(frames);
                self.refilled += Duration::from_millis(1000 / CONTROL_FRAMES_PER_SECOND)
                    .saturating_mul(u32::try_from(frames).unwrap_or(u32::MAX));
            }
        }
        self.control = self.control.checked_sub(1).ok_or(Flood::Control)?;
        Ok(())
    }
}

fn within(good: bool, flood: Flood) -> Result<(), Flood> {
    if good { Ok(()) } else { Err(flood) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: [u8; 3] = [0x82, 0x86, 0x84];
    const WHOLE: u8 = ACK_OR_END_STREAM | END_HEADERS;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn meter() -> FrameMeter {
        let mut meter = FrameMeter::new(FloodLimits::default(), true, Instant::now());
        meter.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Instant::now, None).unwrap();
        meter
    }

    fn feed(meter: &mut FrameMeter, frame: &[u8], times: usize) -> Result<(), Flood> {
        meter.received(&frame.repeat(times), Instant::now, None)
    }

    #[test]
    fn the_preface_is_no_frame_and_pieces_may_be_of_any_size() {
        let mut meter = FrameMeter::new(FloodLimits::default(), true, Instant::now());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[0; 6]));
        bytes.extend(frame(HEADERS, 5, 1, &GET));
        bytes.extend(frame(DATA, PADDED, 1, &[2, 1, 0, 0]));
        bytes.extend(frame(HEADERS, 5, 3, &GET));
        for byte in &bytes {
            meter.received(&[*byte], Instant::now, None).unwrap();
        }
        assert_eq!((meter.streams, meter.empty_run), (2, 0));
        assert_eq!(meter.control, u64::from(FloodLimits::default().control_frames) - 1);
    }

    #[test]
    fn a_head_is_whole_with_the_last_byte_of_its_last_frame() {
        let mut meter = meter();
        let parts = |meter: &mut FrameMeter, bytes: &[u8]| -> Vec<Option<u32>> {
            let part = |byte: &u8| {
                meter.received(&[*byte], Instant::now, None).unwrap();
                meter.part_of_head()
            };
            bytes.iter().map(part).collect()
        };
        let one = frame(HEADERS, WHOLE, 1, &GET);
        assert_eq!(parts(&mut meter, &one), [vec![None; 8], vec![Some(1); 3], vec![None]].concat());
        let begin = frame(HEADERS, ACK_OR_END_STREAM, 3, &GET);
        assert_eq!(parts(&mut meter, &begin), [vec![None; 8], vec![Some(3); 4]].concat());
        assert_eq!(parts(&mut meter, &frame(CONTINUATION, 0, 3, &[0x84])), vec![Some(3); 10]);
        let end = frame(CONTINUATION, END_HEADERS, 3, &[0x84]);
        assert_eq!(parts(&mut meter, &end), [vec![Some(3); 9], vec![None]].concat());
        // Trailers have the time of their stream.
        assert_eq!(parts(&mut meter, &frame(HEADERS, ACK_OR_END_STREAM, 1, &GET)), vec![None; 12]);
        // One after the other.
        let next = frame(HEADERS, ACK_OR_END_STREAM, 7, &GET);
        meter.received(&[frame(HEADERS, WHOLE, 5, &GET), next].concat(), Instant::now, None).unwrap();
        assert_eq!(meter.part_of_head(), Some(7));
    }

    #[test]
    fn one_empty_frame_is_well_two_in_a_row_are_not() {
        let empty = frame(DATA, 0, 1, &[]);
        let padded = frame(DATA, PADDED, 1, &[3, 0, 0, 0]);
        let mut meter = meter();
        feed(&mut meter, &empty, 1).unwrap();
        feed(&mut meter, &frame(DATA, 0, 1, b"a"), 1).unwrap();
        feed(&mut meter, &padded, 1).unwrap();
        feed(&mut meter, &frame(DATA, ACK_OR_END_STREAM, 1, &[]), 1).unwrap();
        feed(&mut meter, &empty, 1).unwrap();
        assert_eq!(feed(&mut meter, &padded, 1), Err(Flood::EmptyFrames));
    }

    #[test]
    fn priority_and_window_updates_are_held_against_streams_and_data() {
        let priority = frame(PRIORITY, 0, 1, &[0; 5]);
        let mut meter = meter();
        feed(&mut meter, &priority, 100).unwrap();
        feed(&mut meter, &frame(HEADERS, 4, 1, &GET), 1).unwrap();
        feed(&mut meter, &priority, 100).unwrap();
        assert_eq!(feed(&mut meter, &priority, 1), Err(Flood::Priority));

        let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        let mut meter = self::meter();
        feed(&mut meter, &update, 5).unwrap();
        meter.sent(&frame(DATA, 0, 1, b"abc"), None);
        feed(&mut meter, &update, 20).unwrap();
        assert_eq!(feed(&mut meter, &update, 1), Err(Flood::WindowUpdate));
    }

    #[test]
    fn a_host_may_widen_a_window_as_far_as_it_goes() {
        let update = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
        let limits = FloodLimits { window_updates_per_data_frame: 1000, ..FloodLimits::default() };
        let now = Instant::now();
        let mut meter = FrameMeter { outbound: Parser::default(), ..FrameMeter::new(limits, false, now) };
        meter.sent(&frame(DATA, 0, 1, b"abc"), None);
        let feed = |meter: &mut FrameMeter, bytes: &[u8]| {
            // In pieces of any size.
            bytes.iter().try_for_each(|byte| meter.received(&[*byte], || now, None))
        };
        feed(&mut meter, &update(1, 0x7fff_ffff)).unwrap();
        // What is sent makes room; what other streams have is theirs.
        meter.sent(&frame(DATA, 0, 1, b"abc"), None);
        feed(&mut meter, &[update(1, 3), update(3, 5)].concat()).unwrap();
        assert_eq!(feed(&mut meter, &update(1, 1)), Err(Flood::Window));
        // A stream that is over has no window.
        let mut meter = FrameMeter { outbound: Parser::default(), ..FrameMeter::new(limits, false, now) };
        meter.sent(&frame(DATA, 0, 1, b"abc"), None);
        feed(&mut meter, &[update(1, 0x7fff_ffff), frame(HEADERS, WHOLE, 1, &[0x88])].concat()).unwrap();
        feed(&mut meter, &update(1, 0x7fff_ffff)).unwrap();
        // However many there are, few are remembered.
        (1..2000).for_each(|n| feed(&mut meter, &update(2 * n + 1, 1)).unwrap());
        assert_eq!(meter.widened.len(), WINDOWS);
    }

    #[test]
    fn a_client_may_reset_so_many_streams_and_more_with_time() {
        let reset = frame(RST_STREAM, 0, 1, &[]);
        let limits = FloodLimits { reset_burst: 5, reset_rate: 2, ..FloodLimits::default() };
        let start = Instant::now();
        let mut meter = FrameMeter { inbound: Parser::default(), ..FrameMeter::new(limits, true, start) };
        meter.received(&reset.repeat(5), || start, None).unwrap();
        assert_eq!(meter.received(&reset, || start, None), Err(Flood::Resets));
        let later = start + Duration::from_secs(1);
        meter.received(&reset.repeat(2), || later, None).unwrap();
        assert_eq!(meter.received(&reset, || later, None), Err(Flood::Resets));
        // Hosts may take back what they were asked.
        let mut meter = FrameMeter::new(limits, false, start);
        meter.received(&reset.repeat(50), || start, None).unwrap();
    }

    #[test]
    fn control_frames_have_a_budget_that_answers_and_time_refill() {
        // What is refused has no payload here: nothing is counted after it, so what follows would not be found.
        let (ping, one_more) = (frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]));
        let mut meter = meter();
        let start = meter.refilled;
        meter.received(&ping.repeat(1000), || start, None).unwrap();
        assert_eq!(meter.received(&one_more, || start, None), Err(Flood::Control));
        meter.sent(&frame(HEADERS, 4, 1, &GET), None);
        meter.received(&frame(RST_STREAM, 0, 1, &[0; 4]), || start, None).unwrap();
        assert_eq!(meter.received(&one_more, || start, None), Err(Flood::Control));
        let later = start + Duration::from_millis(100);
        meter.received(&ping.repeat(10), || later, None).unwrap();
        assert_eq!(meter.received(&one_more, || later, None), Err(Flood::Control));
        // Answers to our own PINGs cost nothing; those to none do.
        let answer = frame(PING, 1, 0, &[0; 8]);
        meter.sent(&ping.repeat(5000), None);
        meter.received(&answer.repeat(5000), || later, None).unwrap();
        assert_eq!(meter.received(&answer, || later, None), Err(Flood::Control));
    }
}
