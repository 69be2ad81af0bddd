//! A registry on a script: each request is told to the test, which answers it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::server::tls::{Carrier, Tls};

/// What was asked, and where the answer goes.
pub(super) struct Asked {
    /// `PATH?QUERY`
    pub(super) target: String,
    /// The whole head.
    pub(super) head: String,
    answer: tokio::sync::oneshot::Sender<String>,
}

impl Asked {
    pub(super) fn answer(self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
        // Whoever asked may have left.
        let _ = self.answer.send(text);
    }
}

/// A server whose requests come out of the receiver.
pub(super) async fn server() -> (SocketAddr, mpsc::Receiver<Asked>) {
    serve(None).await
}

/// One that speaks TLS.
pub(super) async fn secure_server(tls: Arc<Tls>) -> (SocketAddr, mpsc::Receiver<Asked>) {
    serve(Some(tls)).await
}

async fn serve(tls: Option<Arc<Tls>>) -> (SocketAddr, mpsc::Receiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, asked) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let mut stream = Carrier::new(stream, peer, tls.as_ref());
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                loop {
                    let mut some = [0; 4096];
                    let Ok(length @ 1..) = stream.read(&mut some).await else { return };
                    read.extend_from_slice(&some[..length]);
                    if !read.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let head = String::from_utf8(std::mem::take(&mut read)).unwrap();
                    let target = head.split(' ').nth(1).unwrap().to_owned();
                    let (answer, answered) = tokio::sync::oneshot::channel();
                    if sender.send(Asked { target, head, answer }).await.is_err() {
                        return;
                    }
                    let Ok(text) = answered.await else { return };
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}
