//! HTTP/2 by prior knowledge, both sides.

use bytes::Bytes;

use crate::support::gateway::free_port;
use crate::support::{Gateway, Upstream, http_bootstrap, http_bootstrap_with};

const ROUTES: &str = "[{ match: { prefix: / }, route: { cluster: up } }]";

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(20), future).await.expect("in time") })
}

async fn client(port: u16) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn body_of(mut body: h2::RecvStream) -> (Vec<u8>, Option<http::HeaderMap>) {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    (all, body.trailers().await.unwrap())
}

#[test]
fn many_streams_share_a_connection_to_an_http1_upstream() {
    let upstream = Upstream::text("hello");
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream.port)]));
    run(async {
        let sender = client(port).await;
        let requests = (0..20).map(|n| {
            let sender = sender.clone();
            async move {
                let mut sender = sender.ready().await.unwrap();
                let request = http::Request::get(format!("http://test/{n}")).body(()).unwrap();
                let (response, _) = sender.send_request(request, true).unwrap();
                let response = response.await.unwrap();
                assert_eq!(response.status(), 200);
                body_of(response.into_body()).await.0
            }
        });
        for body in futures_util::future::join_all(requests).await {
            assert_eq!(body, b"hello");
        }
    });
    assert_eq!(upstream.next().header("host"), Some("test"));
}

#[test]
fn trailers_pass_from_an_http2_upstream_to_an_http2_client() {
    let port = free_port();
    let upstream = free_port();
    let options = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { http2_protocol_options: {} } } }";
    let _gateway = Gateway::start(&http_bootstrap_with(port, "", ROUTES, &[("up", upstream)], options));
    run(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", upstream)).await.unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let (body, trailers) = body_of(request.into_body()).await;
                    let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
                    sending.send_data(Bytes::from(body), false).unwrap();
                    let mut answer = http::HeaderMap::new();
                    answer.insert("grpc-status", "0".parse().unwrap());
                    if let Some(asked) = trailers.and_then(|trailers| trailers.get("x-asked").cloned()) {
                        answer.insert("x-asked", asked);
                    }
                    sending.send_trailers(answer).unwrap();
                });
            }
        });
        let mut sender = client(port).await.ready().await.unwrap();
        let request = http::Request::post("http://test/a").body(()).unwrap();
        let (response, mut sending) = sender.send_request(request, false).unwrap();
        sending.send_data(Bytes::from_static(b"ping"), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-asked", "yes".parse().unwrap());
        sending.send_trailers(trailers).unwrap();
        let response = response.await.unwrap();
        let (body, trailers) = body_of(response.into_body()).await;
        assert_eq!(body, b"ping");
        let trailers = trailers.unwrap();
        assert_eq!((&trailers["grpc-status"], &trailers["x-asked"]), (&"0".parse().unwrap(), &"yes".parse().unwrap()));
    });
}

#[test]
fn a_reset_by_the_client_reaches_the_upstream() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap().port();
    let port = free_port();
    let _gateway = Gateway::start(&http_bootstrap(port, ROUTES, &[("up", upstream)]));
    run(async {
        let mut sender = client(port).await.ready().await.unwrap();
        let request = http::Request::get("http://test/slow").body(()).unwrap();
        let (response, mut sending) = sender.send_request(request, false).unwrap();
        let (asked, is_asked) = tokio::sync::oneshot::channel();
        let closed = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = vec![0; 9];
            stream.read_exact(&mut all).unwrap();
            asked.send(()).unwrap();
            let _ = stream.read_to_end(&mut all);
            all
        });
        is_asked.await.unwrap();
        sending.send_reset(h2::Reason::CANCEL);
        drop(response);
        assert!(closed.await.unwrap().starts_with(b"GET /slow"));
    });
}
