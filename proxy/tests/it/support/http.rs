//! An HTTP/1 client that writes the bytes it is given and reads one response at a time.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::gateway::{connect, connect_to};

pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn new(port: u16) -> Self {
        Self { stream: connect(port), buffer: Vec::new() }
    }

    pub fn to(address: std::net::SocketAddr) -> Self {
        Self { stream: connect_to(address), buffer: Vec::new() }
    }

    /// This end's address.
    pub fn address(&self) -> std::net::SocketAddr {
        self.stream.local_addr().unwrap()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// A GET without more headers than needed.
    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"));
        self.response()
    }

    /// The next response; its body as framed.
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    pub fn response_to(&mut self, method: &str) -> Response {
        let head = self.head();
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = fields(lines);
        let mut response = Response { status, headers, body: Vec::new(), trailers: Vec::new() };
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return response;
        }
        if response.header("transfer-encoding") == Some("chunked") {
            self.chunks(&mut response);
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().unwrap();
            response.body = self.take(length);
        } else {
            response.body = self.rest();
        }
        response
    }

    /// Everything until the other side closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            self.fill();
        }
        self.buffer.drain(..length).collect()
    }

    fn head(&mut self) -> String {
        let end = self.find(b"\r\n\r\n");
        let head = String::from_utf8(self.take(end)).unwrap();
        self.take(4);
        head
    }

    fn find(&mut self, needle: &[u8]) -> usize {
        loop {
            if let Some(at) = self.buffer.windows(needle.len()).position(|window| window == needle) {
                return at;
            }
            self.fill();
        }
    }

    fn fill(&mut self) {
        let mut piece = [0; 4096];
        let n = self.stream.read(&mut piece).expect("more of a response");
        assert!(n > 0, "closed within a response: {:?}", String::from_utf8_lossy(&self.buffer));
        self.buffer.extend_from_slice(&piece[..n]);
    }

    fn chunks(&mut self, response: &mut Response) {
        loop {
            let end = self.find(b"\r\n");
            let line = String::from_utf8(self.take(end)).unwrap();
            self.take(2);
            let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                break;
            }
            let data = self.take(size);
            response.body.extend(data);
            self.take(2);
        }
        loop {
            let end = self.find(b"\r\n");
            let line = String::from_utf8(self.take(end)).unwrap();
            self.take(2);
            if line.is_empty() {
                return;
            }
            response.trailers.extend(fields([line.as_str()].into_iter()));
        }
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
