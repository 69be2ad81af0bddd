//! Capsules (RFC 9297) with HTTP datagrams that carry UDP payloads (RFC 9298): what a CONNECT-UDP tunnel says.
//! It must not know sockets, nor who reads what it finds.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Capsules of this type hold datagrams (RFC 9297 §3.5).
const DATAGRAM: u64 = 0;
/// Datagrams of this context are UDP payloads (RFC 9298 §4).
const UDP_PAYLOAD: u64 = 0;
/// The longest variable-length integer (RFC 9000 §16).
const MAX_INTEGER_BYTES: usize = 8;
/// A datagram that is longer fits in no UDP packet.
const MAX_DATAGRAM_BYTES: u64 = MAX_INTEGER_BYTES as u64 + 65_535;
/// More of one capsule than this without its end is refused, as by Envoy.
const MAX_CAPSULE_BYTES: u64 = 1 << 20;

/// Why a stream of capsules cannot be read on; the texts are Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CapsuleError {
    /// A datagram without a context.
    #[error("Visitor_failed_to_process_capsule")]
    Datagram,
    #[error("Refusing_to_buffer_too_much_capsule_data")]
    TooLong,
}

/// Finds the UDP payloads in a stream of capsules. Others are passed over unseen, those of other contexts too; Envoy also
/// refuses capsules of its other protocols that are malformed. At most one datagram is held.
#[derive(Debug, Default)]
pub(crate) struct CapsuleReader {
    buffer: BytesMut,
    /// Of a capsule that is passed over: what has come, and what is still to come.
    passed: u64,
    left: u64,
}

impl CapsuleReader {
    /// Takes a piece of the stream; what is in it comes from `next` until that has nothing more.
    pub(crate) fn push(&mut self, mut piece: Bytes) {
        if self.buffer.is_empty() {
            let over = self.left.min(piece.len() as u64);
            piece.advance(usize::try_from(over).unwrap_or(piece.len()));
            self.left -= over;
            self.passed += over;
        }
        self.buffer.extend_from_slice(&piece);
    }

    /// The next UDP payload; `None` when more of the stream is needed.
    ///
    /// # Errors
    /// The stream is broken; nothing after this is to be read.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, CapsuleError> {
        loop {
            self.pass_over();
            if self.left > 0 {
                return if self.passed > MAX_CAPSULE_BYTES { Err(CapsuleError::TooLong) } else { Ok(None) };
            }
            let mut rest = &self.buffer[..];
            let (Some(kind), Some(length)) = (take_integer(&mut rest), take_integer(&mut rest)) else {
                return Ok(None);
            };
            let head = self.buffer.len() - rest.len();
            if kind != DATAGRAM || length > MAX_DATAGRAM_BYTES {
                self.buffer.advance(head);
                (self.passed, self.left) = (head as u64, length);
                continue;
            }
            let length = usize::try_from(length).map_err(|_| CapsuleError::TooLong)?;
            if rest.len() < length {
                return Ok(None);
            }
            self.buffer.advance(head);
            let mut datagram = self.buffer.split_to(length);
            let mut rest = &datagram[..];
            let context = take_integer(&mut rest).ok_or(CapsuleError::Datagram)?;
            if context == UDP_PAYLOAD {
                datagram.advance(datagram.len() - rest.len());
                return Ok(Some(datagram.freeze()));
            }
        }
    }

    fn pass_over(&mut self) {
        let over = self.left.min(self.buffer.len() as u64);
        self.buffer.advance(usize::try_from(over).unwrap_or(self.buffer.len()));
        self.left -= over;
        self.passed += over;
    }
}

/// A UDP payload as a capsule.
pub(crate) fn datagram(payload: &[u8]) -> Bytes {
    let mut capsule = BytesMut::with_capacity(3 + MAX_INTEGER_BYTES + payload.len());
    put_integer(DATAGRAM, &mut capsule);
    put_integer(1 + payload.len() as u64, &mut capsule);
    put_integer(UDP_PAYLOAD, &mut capsule);
    capsule.extend_from_slice(payload);
    capsule.freeze()
}

/// Reads a variable-length integer off the front; `None` leaves an unfinished one where it is.
fn take_integer(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let (integer, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(integer[1..].iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)))
}

/// In as few bytes as it takes; `value` is the length of something in memory, so below 2⁶².
#[expect(clippy::cast_possible_truncation, reason = "each arm has the bits that it writes")]
fn put_integer(value: u64, out: &mut BytesMut) {
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(0x4000 | value as u16),
        0x4000..0x4000_0000 => out.put_u32(0x8000_0000 | value as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | value),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capsule(kind: u64, value: &[u8]) -> Vec<u8> {
        let mut capsule = BytesMut::new();
        put_integer(kind, &mut capsule);
        put_integer(value.len() as u64, &mut capsule);
        capsule.extend_from_slice(value);
        capsule.to_vec()
    }

    /// What is found in a stream that comes in these pieces.
    fn read(pieces: &[&[u8]]) -> Result<Vec<Bytes>, CapsuleError> {
        let (mut reader, mut found) = (CapsuleReader::default(), Vec::new());
        for piece in pieces {
            reader.push(Bytes::copy_from_slice(piece));
            while let Some(payload) = reader.next()? {
                found.push(payload);
            }
            assert!(reader.buffer.len() as u64 <= MAX_DATAGRAM_BYTES + 16);
        }
        Ok(found)
    }

    #[test]
    fn integers_have_four_lengths() {
        for (bytes, value) in [
            (&[0x25][..], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
        ] {
            let mut rest = bytes;
            assert_eq!((take_integer(&mut rest), rest), (Some(value), &[][..]));
            let mut out = BytesMut::new();
            put_integer(value, &mut out);
            assert_eq!(out, bytes);
            let mut part = &bytes[..bytes.len() - 1];
            assert_eq!(take_integer(&mut part), None);
        }
    }

    #[test]
    fn payloads_of_context_0_are_found() {
        let hello = datagram(b"hello");
        assert_eq!(&hello[..], b"\0\x06\0hello");
        assert_eq!(read(&[&hello, &datagram(b"")]).unwrap(), ["hello", ""]);
        // Integers may be longer than they need to be.
        assert_eq!(read(&[b"\x40\0\x40\x07\x40\0hello"]).unwrap(), ["hello"]);
        assert_eq!(read(&[&datagram(&[b'x'; 65_535])]).unwrap()[0].len(), 65_535);
    }

    #[test]
    fn what_is_not_known_is_passed_over() {
        let after = datagram(b"after");
        for other in [
            capsule(0x1234, b"zzz"),
            capsule(DATAGRAM, b"\x01other context"),
            capsule(0x1234, b""),
            capsule(0x1234, &[0; 300_000]),
            capsule(DATAGRAM, &[0; 70_000]),
        ] {
            assert_eq!(read(&[&other, &after]).unwrap(), ["after"]);
            assert_eq!(read(&[&[&other[..], &after].concat()]).unwrap(), ["after"]);
        }
    }

    #[test]
    fn a_datagram_without_a_context_and_a_capsule_without_an_end_are_refused() {
        assert_eq!(read(&[&capsule(DATAGRAM, b""), &datagram(b"after")]), Err(CapsuleError::Datagram));
        assert_eq!(read(&[&capsule(DATAGRAM, b"\x40")]), Err(CapsuleError::Datagram));
        let endless = b"\x3f\xff\xff\xff\xff\xff\xff\xff\xff";
        let piece = [0; 1 << 18];
        assert_eq!(read(&[endless, &piece, &piece, &piece]), Ok(vec![]));
        assert_eq!(read(&[endless, &piece, &piece, &piece, &piece]), Err(CapsuleError::TooLong));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            capsules in prop::collection::vec((0..3_u64, prop::collection::vec(any::<u8>(), 1..90)), 0..8),
            cuts in prop::collection::vec(1..40_usize, 1..6),
        ) {
            let stream: Vec<u8> = capsules.iter().flat_map(|(kind, value)| capsule(*kind, value)).collect();
            let mut pieces = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            prop_assert_eq!(read(&pieces), read(&[&stream]));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(stream in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&[&stream]);
        }
    }
}
