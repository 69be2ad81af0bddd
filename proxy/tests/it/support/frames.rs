//! HTTP/2 as frames on a socket, for what no library would send or show.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

/// END_STREAM and END_HEADERS.
pub const WHOLE: u8 = 5;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

/// GET / of http://a, in HPACK without Huffman.
pub const GET: &[u8] = b"\x82\x86\x84\x01\x01a";

/// The same with POST.
pub const POST: &[u8] = b"\x83\x86\x84\x01\x01a";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self { kind, flags, stream, payload: payload.to_vec() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[self.kind, self.flags], &self.stream.to_be_bytes(), &self.payload].concat()
    }

    /// The last stream and the code of a GOAWAY.
    pub fn goaway(&self) -> (u32, u32) {
        assert_eq!(self.kind, GOAWAY, "{self:?}");
        let number = |at: usize| u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
        (number(0), number(4))
    }
}

/// One side of a connection.
pub struct Peer {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    /// A client: the preface and empty SETTINGS go out first.
    pub fn client(port: u16) -> Self {
        let mut peer = Self { stream: super::gateway::connect(port), buffer: Vec::new() };
        peer.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        peer.send(&Frame::new(SETTINGS, 0, 0, &[]));
        peer
    }

    /// A connection on which nothing has been said.
    pub fn raw(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// A server on an accepted connection: the client's preface is read away, and empty SETTINGS go out.
    pub fn server(stream: TcpStream) -> Self {
        let mut peer = Self { stream, buffer: Vec::new() };
        let mut preface = [0; 24];
        peer.stream.read_exact(&mut preface).unwrap();
        peer.send(&Frame::new(SETTINGS, 0, 0, &[]));
        peer
    }

    pub fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.bytes()).unwrap();
    }

    /// The next frame; `None` at the end, or where the other side reset the connection.
    pub fn next(&mut self) -> Option<Frame> {
        match self.read() {
            Ok(frame) => frame,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no frame in time: {error}"),
        }
    }

    /// The same; `None` also where nothing comes.
    pub fn try_next(&mut self) -> Option<Frame> {
        self.read().unwrap_or(None)
    }

    fn read(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take() {
                return Ok(Some(frame));
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece)? {
                0 => return Ok(None),
                n => self.buffer.extend_from_slice(&piece[..n]),
            }
        }
    }

    /// The next frame of a kind; others are read away.
    pub fn next_of(&mut self, kind: u8) -> Option<Frame> {
        std::iter::from_fn(|| self.next()).find(|frame| frame.kind == kind)
    }

    fn take(&mut self) -> Option<Frame> {
        let header: [u8; 9] = self.buffer.get(..9)?.try_into().unwrap();
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        let stream = u32::from_be_bytes(header[5..9].try_into().unwrap());
        Some(Frame { kind: header[3], flags: header[4], stream, payload })
    }
}
