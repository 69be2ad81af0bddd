//! A client's connection from its first byte to its last: requests one after another, bodies read or not, responses cut.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tidegate_filters::http::{Body, BodyError, ResponseHead};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::request::rules;
use crate::http::codec::CodecError;
use crate::http::codec::h1::server::{ReadError, Server};
use crate::http::downstream::{BodyLength, Downstream, Gone};
use crate::io::Transport;

/// A client, and the server that it talks to.
fn connect() -> (UnixStream, Server) {
    let (client, server) = UnixStream::pair().unwrap();
    (client, Server::new(Transport::Unix(server), Arc::new(rules()), 1 << 20, pending()))
}

async fn read_all(mut body: Body) -> Result<Vec<u8>, BodyError> {
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            data.extend_from_slice(&piece);
        }
    }
    Ok(data)
}

/// Answers with a body of these bytes, announced as so long.
async fn answer(server: &mut Server, body: &'static [u8], length: BodyLength) {
    server.send_head(&ResponseHead::new(StatusCode::OK), length);
    server.send_data(Bytes::from_static(body), true);
    poll_fn(|cx| server.poll_flush(cx)).await.unwrap();
}

async fn received(client: &mut UnixStream) -> String {
    let mut bytes = [0; 4096];
    let n = client.read(&mut bytes).await.unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

#[tokio::test]
async fn pipelined_requests_come_one_by_one() {
    let (mut client, mut server) = connect();
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let all =
        format!("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n{post}GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    client.write_all(all.as_bytes()).await.unwrap();
    for (path, body, stays) in [("/1", &b""[..], true), ("/2", b"abc", true), ("/3", b"", false)] {
        server.readable().await.unwrap();
        let (decoded, sent) = server.read_request().await.unwrap();
        assert_eq!(decoded.head.path, path);
        assert_eq!(read_all(sent).await.unwrap(), body);
        answer(&mut server, b"ok", BodyLength::Known(2)).await;
        let response = received(&mut client).await;
        assert_eq!(response.contains("connection: close"), !stays, "{path}");
        assert_eq!(server.finish_exchange().await, stays, "{path}");
    }
}

#[tokio::test]
async fn bytes_of_the_next_request_are_kept_while_one_runs() {
    let (mut client, mut server) = connect();
    client.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HT").await.unwrap();
    server.read_request().await.unwrap();
    client.write_all(b"TP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    for _ in 0..3 {
        let gone = poll_fn(|cx| Poll::Ready(server.poll_gone(cx))).await;
        assert!(gone.is_pending());
        tokio::task::yield_now().await;
    }
    answer(&mut server, b"ok", BodyLength::Known(2)).await;
    assert!(server.finish_exchange().await);
    assert_eq!(server.read_request().await.unwrap().0.head.path, "/2");
}

#[tokio::test]
async fn a_client_that_goes_is_noticed() {
    let (mut client, mut server) = connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    server.read_request().await.unwrap();
    drop(client);
    assert_eq!(poll_fn(|cx| server.poll_gone(cx)).await, Gone::Closed);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    for (framing, sent, error) in [
        ("Content-Length: 5", "abc", "closed"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n", "closed"),
        ("Transfer-Encoding: chunked", "3\r\nabcX", "http1.codec_error"),
    ] {
        let (mut client, mut server) = connect();
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{sent}");
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let (_, body) = server.read_request().await.unwrap();
        let outcome = match read_all(body).await.unwrap_err() {
            BodyError::Closed => "closed",
            BodyError::Malformed(details) => details,
            other => panic!("{other:?}"),
        };
        assert_eq!(outcome, error, "{framing} {sent:?}");
    }
}

#[tokio::test]
async fn a_small_body_that_nobody_reads_is_read_away() {
    let (mut client, mut server) = connect();
    let request = format!("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000));
    client.write_all(request.as_bytes()).await.unwrap();
    client.write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (_, body) = server.read_request().await.unwrap();
    drop(body);
    answer(&mut server, b"ok", BodyLength::Known(2)).await;
    assert!(server.finish_exchange().await);
    assert_eq!(server.read_request().await.unwrap().0.head.path, "/2");
}

#[tokio::test(start_paused = true)]
async fn a_large_or_slow_body_that_nobody_reads_ends_the_connection() {
    for (length, sent) in [(1_000_000, 10), (100, 10)] {
        let (mut client, mut server) = connect();
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(sent));
        client.write_all(request.as_bytes()).await.unwrap();
        let (_, body) = server.read_request().await.unwrap();
        drop(body);
        answer(&mut server, b"ok", BodyLength::Known(2)).await;
        assert!(!server.finish_exchange().await, "{length}");
        client.write_all(b"more that nobody reads").await.unwrap();
        let closing = tokio::spawn(server.close(Some(Duration::from_secs(1))));
        let mut response = Vec::new();
        client.read_to_end(&mut response).await.unwrap();
        assert!(response.ends_with(b"ok"));
        drop(client);
        closing.await.unwrap();
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_can_be_answered() {
    let (mut client, mut server) = connect();
    client.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n").await.unwrap();
    server.read_request().await.unwrap();
    answer(&mut server, b"ok", BodyLength::Known(2)).await;
    received(&mut client).await;
    assert!(server.finish_exchange().await);
    assert!(matches!(server.read_request().await, Err(ReadError::Codec(CodecError::MALFORMED))));
    answer(&mut server, b"no", BodyLength::Known(2)).await;
    assert_eq!(server.sent_bytes().0, 2);
    assert!(received(&mut client).await.contains("connection: close"));
    assert!(!server.finish_exchange().await);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_can_still_be_answered() {
    let (mut client, mut server) = connect();
    client.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(10), server.read_request()).await.is_err());
    answer(&mut server, b"late", BodyLength::Known(4)).await;
    assert!(received(&mut client).await.ends_with("late"));
    client.write_all(b"st: a\r\n\r\n").await.unwrap();
    assert_eq!(server.read_request().await.unwrap().0.head.authority, "a");
}

#[tokio::test]
async fn trailers_are_bytes_of_fields() {
    let (mut client, side) = UnixStream::pair().unwrap();
    let mut rules = rules();
    rules.http1.enable_trailers = true;
    let mut server = Server::new(Transport::Unix(side), Arc::new(rules), 1 << 20, pending());
    let request = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\n\r\n";
    client.write_all(request).await.unwrap();
    let (_, mut body) = server.read_request().await.unwrap();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
    }
    // Names, values, and three bytes for each: those that came before the body, and after it.
    let (head, trailers) = (8 + 27, 9);
    assert_eq!(server.received_bytes().0, head + trailers);
    assert_eq!(server.field_bytes().0, head);
    // It looks whether the client is still there, and takes the reader back for that.
    assert!(poll_fn(|cx| Poll::Ready(server.poll_gone(cx))).await.is_pending());
    assert_eq!(server.received_bytes().0, head + trailers);
    let hint = ResponseHead::new(StatusCode::EARLY_HINTS);
    server.send_informational(&hint);
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert("x-a", HeaderValue::from_static("b"));
    server.send_head(&head, BodyLength::Unknown);
    let before = server.field_bytes().1;
    server
        .send_trailers([(http::HeaderName::from_static("x-t"), HeaderValue::from_static("12"))].into_iter().collect());
    assert_eq!(server.field_bytes().1, before + "x-t: 12\r\n".len() as u64);
}

#[tokio::test]
async fn a_response_of_another_length_ends_the_connection() {
    for (body, length, sent) in [
        (&b"toolong"[..], BodyLength::Known(3), "too"),
        (b"to", BodyLength::Known(3), "to"),
        (b"", BodyLength::Known(3), ""),
    ] {
        let (mut client, mut server) = connect();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        server.read_request().await.unwrap();
        answer(&mut server, body, length).await;
        let response = received(&mut client).await;
        assert_eq!(response.split_once("\r\n\r\n").unwrap().1, sent);
        assert!(!server.finish_exchange().await, "{body:?}");
    }
}

#[tokio::test]
async fn head_gets_no_body_whatever_is_sent() {
    for length in [BodyLength::Known(2), BodyLength::Unknown] {
        let (mut client, mut server) = connect();
        client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        server.read_request().await.unwrap();
        answer(&mut server, b"ok", length).await;
        assert!(received(&mut client).await.ends_with("\r\n\r\n"));
        assert!(server.finish_exchange().await);
    }
}

#[tokio::test]
async fn a_body_without_length_ends_with_the_connection_for_http_10() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut rules = rules();
    rules.http1.accept_http_10 = true;
    let mut server = Server::new(Transport::Unix(server), Arc::new(rules), 1 << 20, pending());
    client
        .write_all(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    let (decoded, _) = server.read_request().await.unwrap();
    assert!(decoded.expects_continue && decoded.keep_alive);
    server.send_continue();
    let mut head = ResponseHead::new(StatusCode::OK);
    head.set(http::header::SERVER, HeaderValue::from_static("envoy"));
    server.send_head(&head, BodyLength::Unknown);
    server.send_data(Bytes::from_static(b"ok"), true);
    poll_fn(|cx| server.poll_flush(cx)).await.unwrap();
    let expected = "HTTP/1.0 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nserver: envoy\r\nconnection: close\r\n\r\nok";
    assert_eq!(received(&mut client).await, expected);
    assert!(!server.finish_exchange().await);
}
