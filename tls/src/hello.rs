//! What a ClientHello says that rustls does not show (RFC 8446 section 4.1.2). It must not know what is made of it.

/// `status_request` (RFC 6066 section 8).
const STATUS_REQUEST: u16 = 5;

/// Whether the client takes a stapled OCSP response. `bytes` are what it sent first, as it came; what is no hello asks nothing.
pub(crate) fn asks_for_staple(bytes: &[u8]) -> bool {
    find(bytes).unwrap_or(false)
}

fn find(bytes: &[u8]) -> Option<bool> {
    let message = unframed(bytes)?;
    let mut hello = Reader(&message);
    let kind = hello.take(1)?;
    let length = hello.number(3)?;
    if kind != [1] {
        return None;
    }
    let mut hello = Reader(hello.take(length)?);
    // Version and random; the session's id, suites, compressions.
    hello.take(2 + 32)?;
    for length_bytes in [1, 2, 1] {
        let length = hello.number(length_bytes)?;
        hello.take(length)?;
    }
    let length = hello.number(2)?;
    let mut extensions = Reader(hello.take(length)?);
    while let Some(kind) = extensions.number(2) {
        if kind == usize::from(STATUS_REQUEST) {
            return Some(true);
        }
        let length = extensions.number(2)?;
        extensions.take(length)?;
    }
    Some(false)
}

/// The handshake message that the records carry.
fn unframed(bytes: &[u8]) -> Option<Vec<u8>> {
    const HANDSHAKE: &[u8] = &[22];
    let mut records = Reader(bytes);
    let mut message = Vec::with_capacity(bytes.len());
    while let Some(kind) = records.take(1) {
        records.take(2)?;
        let length = records.number(2)?;
        if kind == HANDSHAKE {
            message.extend_from_slice(records.take(length)?);
        }
    }
    Some(message)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Of so many bytes, the highest first.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hello with these extensions, in records of at most so many bytes.
    fn hello(extensions: &[(u16, &[u8])], record_bytes: usize) -> Vec<u8> {
        let length = |bytes: &[u8], count: usize| (bytes.len() as u32).to_be_bytes()[4 - count..].to_vec();
        let mut encoded = Vec::new();
        for (kind, value) in extensions {
            encoded.extend([&kind.to_be_bytes()[..], &length(value, 2), value].concat());
        }
        let body =
            [&[3, 3][..], &[7; 32], &[2, 9, 9], &[0, 2, 0x13, 1], &[1, 0], &length(&encoded, 2), &encoded].concat();
        let message = [&[1][..], &length(&body, 3), &body].concat();
        message.chunks(record_bytes).flat_map(|part| [&[22, 3, 1][..], &length(part, 2), part].concat()).collect()
    }

    #[test]
    fn an_extension_is_found_across_records() {
        for record_bytes in [7, 50, 1000] {
            assert!(asks_for_staple(&hello(&[(0, b"name"), (5, &[1, 0, 0, 0, 0]), (16, b"x")], record_bytes)));
            assert!(!asks_for_staple(&hello(&[(0, &[0, 5, 0, 5]), (16, b"x")], record_bytes)));
        }
        assert!(!asks_for_staple(&hello(&[], 1000)));
    }

    #[test]
    fn what_is_cut_or_no_hello_asks_nothing() {
        let whole = hello(&[(0, b"name"), (5, &[1, 0, 0, 0, 0])], 20);
        for end in 0..whole.len() - 9 {
            assert!(!asks_for_staple(&whole[..end]), "{end}");
        }
        assert!(!asks_for_staple(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(!asks_for_staple(&[22, 3, 1, 0xff, 0xff, 1]));
    }
}
