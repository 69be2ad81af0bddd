//! A TLS ClientHello, read as far as choosing a filter chain needs it (RFC 8446 §4.1.2, RFC 6066 §3, RFC 7301).
//! It must not know what is done with it; whether the handshake can succeed is the TLS stack's to say.

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// They may still become a ClientHello.
    Incomplete,
    NotTls,
    Hello(ClientHello),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ClientHello {
    /// The host name, as it came.
    pub server_name: Option<Vec<u8>>,
    /// The protocols that the client offers; empty when it offers none, or malformed ones.
    pub protocols: Vec<Vec<u8>>,
    /// Bytes of the records that hold it.
    pub length: usize,
    message: Vec<u8>,
}

impl ClientHello {
    /// All of it behind the message's header.
    pub(super) fn body(&self) -> &[u8] {
        self.message.get(MESSAGE_HEADER..).unwrap_or_default()
    }
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// A ClientHello of more bytes is refused, as by BoringSSL.
const LONGEST_MESSAGE: usize = 16384;
const LONGEST_RECORD: usize = 16384;
/// TLS 1.0 to TLS 1.3.
const VERSIONS: std::ops::RangeInclusive<u16> = 0x0301..=0x0304;

pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let header = &bytes[at..bytes.len().min(at + RECORD_HEADER)];
        if header.first().is_some_and(|kind| *kind != HANDSHAKE) || header.get(1).is_some_and(|major| *major != 3) {
            return Parsed::NotTls;
        }
        let [_, _, _, high, low] = *header else { return Parsed::Incomplete };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > LONGEST_RECORD || length == 0 {
            return Parsed::NotTls;
        }
        let end = at + RECORD_HEADER + length;
        let Some(fragment) = bytes.get(at + RECORD_HEADER..end) else { return Parsed::Incomplete };
        message.extend_from_slice(fragment);
        at = end;
        if message[0] != CLIENT_HELLO {
            return Parsed::NotTls;
        }
        let [_, high, middle, low, ref body @ ..] = message[..] else { continue };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if length > LONGEST_MESSAGE {
            return Parsed::NotTls;
        }
        if let Some(body) = body.get(..length) {
            let Some(hello) = hello(body) else { return Parsed::NotTls };
            message.truncate(MESSAGE_HEADER + length);
            return Parsed::Hello(ClientHello { length: at, message, ..hello });
        }
    }
}

/// Bytes that are taken from the front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector behind its length in one byte.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    /// A vector behind its length in two bytes.
    pub(super) fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut reader = Reader(body);
    let legacy_version = reader.u16()?;
    reader.take(32)?;
    let session = reader.short()?;
    let ciphers = reader.long()?;
    let compressions = reader.short()?;
    if session.len() > 32 || ciphers.is_empty() || ciphers.len() % 2 == 1 || !compressions.contains(&0) {
        return None;
    }
    let mut hello = ClientHello::default();
    let mut supported = legacy_version >= *VERSIONS.start();
    if !reader.0.is_empty() {
        let mut extensions = Reader(reader.long()?);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.long()?;
            match kind {
                0 => hello.server_name = Some(server_name(data)?),
                16 => hello.protocols = protocols(data).unwrap_or_default(),
                43 => supported = versions(data)?,
                _ => {}
            }
        }
    }
    (reader.0.is_empty() && supported).then_some(hello)
}

/// Exactly one name, a host's.
fn server_name(data: &[u8]) -> Option<Vec<u8>> {
    let mut data = Reader(data);
    let mut list = Reader(data.long()?);
    let kind = list.u8()?;
    let name = list.long()?;
    let fine = kind == 0 && list.0.is_empty() && data.0.is_empty() && (1..256).contains(&name.len());
    (fine && !name.contains(&0)).then(|| name.to_vec())
}

fn protocols(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut data = Reader(data);
    let mut list = Reader(data.long()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        protocols.push(list.short().filter(|name| !name.is_empty())?.to_vec());
    }
    data.0.is_empty().then_some(protocols)
}

/// Whether one of the versions is known.
fn versions(data: &[u8]) -> Option<bool> {
    let mut data = Reader(data);
    let list = data.short()?;
    let known = |pair: &[u8]| VERSIONS.contains(&u16::from_be_bytes([pair[0], pair[1]]));
    (data.0.is_empty() && list.len() % 2 == 0).then(|| list.chunks_exact(2).any(known))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn with_length(size: usize, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length[4 - size..], body].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(2, body)].concat()
    }

    /// A ClientHello in records of at most `record` bytes.
    pub(in super::super) fn client_hello(server_name: Option<&str>, protocols: &[&str], record: usize) -> Vec<u8> {
        let mut extensions = extension(43, &[2, 3, 4]);
        if let Some(name) = server_name {
            let entry = [&[0][..], &with_length(2, name.as_bytes())].concat();
            extensions.extend(extension(0, &with_length(2, &entry)));
        }
        if !protocols.is_empty() {
            let list: Vec<u8> = protocols.iter().flat_map(|name| with_length(1, name.as_bytes())).collect();
            extensions.extend(extension(16, &with_length(2, &list)));
        }
        let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &with_length(2, &extensions)].concat();
        let message = [&[CLIENT_HELLO][..], &with_length(3, &body)].concat();
        let records = message.chunks(record).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &with_length(2, part)].concat());
        records.collect()
    }

    #[test]
    fn a_hello_is_read_whole_in_pieces_or_in_many_records() {
        for record in [10_000, 50] {
            let bytes = client_hello(Some("a.b.c"), &["h2", "http/1.1"], record);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Parsed::Incomplete, "{end} of {}", bytes.len());
            }
            let expected = ClientHello {
                server_name: Some(b"a.b.c".to_vec()),
                protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
                length: bytes.len(),
                message: client_hello(Some("a.b.c"), &["h2", "http/1.1"], 10_000)[RECORD_HEADER..].to_vec(),
            };
            assert_eq!(parse(&[&bytes[..], b"more"].concat()), Parsed::Hello(expected));
        }
    }

    #[test]
    fn other_bytes_are_not_tls() {
        let hello = client_hello(Some("a"), &[], 10_000);
        let with = |at: usize, byte: u8| {
            let mut bytes = hello.clone();
            bytes[at] = byte;
            bytes
        };
        for bytes in [
            b"GET".to_vec(),
            with(1, 2),
            with(3, 0xff),
            with(5, 2),
            with(43, 33),
            [&[HANDSHAKE, 3, 1, 0, 32][..], &[b'x'; 32]].concat(),
        ] {
            assert_eq!(parse(&bytes), Parsed::NotTls, "{bytes:?}");
        }
        assert!(matches!(parse(&with(2, 0)), Parsed::Hello(_)), "a record may say version 3.0");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80), cut in 0..200usize) {
            parse(&bytes);
            let hello = client_hello(Some("a.b"), &["h2"], 40);
            let mut mixed = hello[..cut.min(hello.len())].to_vec();
            mixed.append(&mut bytes);
            parse(&mixed);
        }
    }
}
