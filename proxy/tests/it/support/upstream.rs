//! An HTTP/1 upstream: records each request as bytes and answers as it is told.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came: head, and the body that its framing announced (chunked bodies raw).
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Seen {
    pub fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.split("\r\n").skip(1).find_map(|line| {
            let (header, value) = line.split_once(": ")?;
            (header == name).then_some(value)
        })
    }
}

/// What to do with one request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These bytes, and go on with the connection.
    Bytes(Vec<u8>),
    /// These bytes, then close.
    Close(Vec<u8>),
}

pub struct Upstream {
    pub port: u16,
    seen: Receiver<Seen>,
}

type Script = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;

impl Upstream {
    /// Answers every request with 200 and this body.
    pub fn text(body: &'static str) -> Self {
        Self::scripted(move |_| Answer::Bytes(ok(body)))
    }

    pub fn scripted(script: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, seen) = channel();
        let script: Script = Arc::new(script);
        let sender = Arc::new(Mutex::new(sender));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (Ok(stream), script) = (stream, Arc::clone(&script)) else { return };
                let sender = sender.lock().unwrap().clone();
                std::thread::spawn(move || serve(stream, connection, &script, &sender));
            }
        });
        Self { port, seen }
    }

    /// The next request that arrived.
    pub fn next(&self) -> Seen {
        self.seen.recv_timeout(Duration::from_secs(20)).expect("a request at the upstream")
    }

    /// All that has arrived and was not asked for yet.
    pub fn all(&self) -> Vec<Seen> {
        self.seen.try_iter().collect()
    }

    /// Whether nothing (more) has arrived.
    pub fn is_quiet(&self) -> bool {
        self.seen.try_recv().is_err()
    }
}

/// A 200 with a length.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn serve(mut stream: TcpStream, connection: usize, script: &Script, sender: &Sender<Seen>) {
    let mut buffer = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut buffer, connection) {
        let answer = script(&seen);
        let _ = sender.send(seen);
        match answer {
            Answer::Bytes(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Answer::Close(bytes) => {
                let _ = stream.write_all(&bytes);
                return;
            }
        }
    }
}

fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>, connection: usize) -> Option<Seen> {
    let end = fill_until(stream, buffer, |buffer| find(buffer, b"\r\n\r\n"))?;
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut seen = Seen { head, body: Vec::new(), connection };
    if let Some(length) = seen.header("content-length") {
        let length: usize = length.parse().ok()?;
        fill_until(stream, buffer, |buffer| (buffer.len() >= length).then_some(0))?;
        seen.body = buffer.drain(..length).collect();
    } else if seen.header("transfer-encoding") == Some("chunked") {
        let end = fill_until(stream, buffer, |buffer| {
            find(buffer, b"0\r\n").and_then(|at| find(&buffer[at..], b"\r\n\r\n").map(|end| at + end))
        })?;
        seen.body = buffer.drain(..end + 4).collect();
    }
    Some(seen)
}

fn find(buffer: &[u8], needle: &[u8]) -> Option<usize> {
    buffer.windows(needle.len()).position(|window| window == needle)
}

fn fill_until(stream: &mut TcpStream, buffer: &mut Vec<u8>, done: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    loop {
        if let Some(found) = done(buffer) {
            return Some(found);
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => buffer.extend_from_slice(&piece[..n]),
            _ => return None,
        }
    }
}
