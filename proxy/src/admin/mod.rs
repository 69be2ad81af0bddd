//! The admin interface: what a process tells about itself over HTTP, and what operators may ask of it. One list of
//! endpoints is the help text, the home page and the dispatch. It must not know how the process does what it is asked.
//!
//! See <https://www.envoyproxy.io/docs/envoy/latest/operations/admin>.

mod access_log;
mod certificates;
mod clusters;
mod commands;
mod config_dump;
mod endpoints;
mod field_mask;
mod help;
mod json;
mod listeners;
mod logging;
mod lookups;
mod number;
mod profiling;
mod query;
mod reply;
mod runtime;
mod server_info;
pub mod state;
mod stats;
mod status;
#[cfg(test)]
mod testing;
mod traffic;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::IntoResponse;
use axum::serve::IncomingStream;
use http::{HeaderMap, Method, StatusCode, Uri, header};

pub use access_log::Peers;
pub use state::AdminState;
pub use traffic::Traffic;

use endpoints::ENDPOINTS;
use query::Query;
use reply::Reply;
use traffic::Counting;

/// The most that a request's body may hold, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Serves the admin interface until the future is dropped. Answers are made off the runtime's thread: a scrape of a million
/// stats must not hold up what else runs there.
///
/// # Errors
/// Does not end by itself; the result is the listener's.
#[expect(private_bounds, reason = "which sockets there are is no concern of who calls this")]
pub async fn serve<L>(listener: L, state: Arc<dyn AdminState>, traffic: Arc<Traffic>) -> io::Result<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
    Peers: for<'a> Connected<IncomingStream<'a, Counting<L>>>,
{
    let listener = Counting { inner: listener, traffic: Arc::clone(&traffic) };
    let router = axum::Router::new().fallback(handle).with_state((state, traffic));
    axum::serve(listener, router.into_make_service_with_connect_info::<Peers>()).await
}

type Served = (Arc<dyn AdminState>, Arc<Traffic>);

async fn handle(State((state, traffic)): State<Served>, request: Request) -> axum::response::Response {
    let started = Instant::now();
    let counted = traffic.request(request.version());
    let response = respond(state, request, started).await;
    counted.answered(response.status());
    response
}

async fn respond(state: Arc<dyn AdminState>, request: Request, started: Instant) -> axum::response::Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY_BYTES).await else {
        return Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n").into_response();
    };
    let asked = Arc::clone(&state);
    let answered = tokio::task::spawn_blocking(move || {
        let call = Call::new(&*asked, &parts.method, &parts.uri, &parts.headers, body);
        let reply = answer(&call);
        (reply, parts)
    });
    let Ok((reply, parts)) = answered.await else {
        // The task panicked; the panic is logged where it happened.
        return Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response();
    };
    let peers = parts.extensions.get::<ConnectInfo<Peers>>().map(|info| &info.0);
    access_log::write(&*state, peers, &parts, &reply, started);
    reply.into_response()
}

/// One request to the admin interface.
struct Call<'a> {
    state: &'a dyn AdminState,
    method: &'a Method,
    path: String,
    /// The path as it came, with its query.
    target: String,
    query: Query,
    /// The fields of a form that was sent as the body.
    form: Option<Query>,
}

impl<'a> Call<'a> {
    fn new(state: &'a dyn AdminState, method: &'a Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Self {
        let is_form = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        let form = is_form.then(|| Query::parse(&String::from_utf8_lossy(&body)));
        let mut path = uri.path().to_owned();
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        let target = uri.path_and_query().map_or_else(|| path.clone(), |target| target.as_str().to_owned());
        Self { state, method, path, target, query: Query::parse(uri.query().unwrap_or_default()), form }
    }
}

fn answer(call: &Call<'_>) -> Reply {
    if !call.state.allows(&call.target) {
        return Reply::error(StatusCode::FORBIDDEN, format!("request to path {} not allowed", call.target));
    }
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == call.path) else {
        return Reply::error(StatusCode::NOT_FOUND, format!("invalid path. {}", help::text()));
    };
    if endpoint.changes && call.method != Method::POST {
        let reason = format!("Method {} not allowed, POST required.", call.method);
        return Reply::error(StatusCode::METHOD_NOT_ALLOWED, reason);
    }
    (endpoint.act)(call)
}

#[cfg(test)]
mod tests {
    use super::testing::{Fake, get, post};
    use super::*;

    #[test]
    fn an_unknown_path_is_answered_with_help() {
        let reply = get(&Fake::default(), "/nope");
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        assert!(reply.text().starts_with("invalid path. admin commands are:\n  /: Admin home page\n"));
        assert!(get(&Fake::default(), "/ready/").text().starts_with("invalid path."));
    }

    #[test]
    fn what_changes_something_must_be_posted() {
        let state = Fake::default();
        let reply = get(&state, "/quitquitquit");
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(reply.text(), "Method GET not allowed, POST required.");
        assert!(state.asked.lock().is_empty());
        assert_eq!(post(&state, "/quitquitquit").text(), "OK\n");
        assert_eq!(*state.asked.lock(), ["quit"]);
    }

    #[test]
    fn json_is_that_of_envoys_messages() {
        for (path, message) in [
            ("/certs", "envoy.admin.v3.Certificates"),
            ("/clusters?format=json", "envoy.admin.v3.Clusters"),
            ("/config_dump?include_eds", "envoy.admin.v3.ConfigDump"),
            ("/listeners?format=json", "envoy.admin.v3.Listeners"),
            ("/memory", "envoy.admin.v3.Memory"),
            ("/server_info", "envoy.admin.v3.ServerInfo"),
        ] {
            let reply = get(&Fake::default(), path);
            let json = tidegate_xds::Format::Json;
            let read = tidegate_xds::decode(message, reply.body.as_bytes(), json, tidegate_xds::UnknownFields::Reject);
            assert!(read.is_ok(), "{path}: {:?}", read.err());
            assert_eq!(reply.content_type, "application/json");
        }
    }

    #[test]
    fn slashes_are_merged() {
        assert_eq!(get(&Fake::default(), "//ready?x").text(), "LIVE\n");
    }

    #[test]
    fn what_is_not_there_says_so() {
        let reply = post(&Fake::default(), "/heapprofiler?enable=y");
        assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED);
        assert_eq!(reply.text(), "The current build does not support heap profiler");
        assert_eq!(get(&Fake::default(), "/tap").status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn it_is_served_over_http() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stats = tidegate_stats::Store::new();
        let serving = tokio::spawn(serve(listener, Arc::new(Fake::default()), Traffic::new(&stats.root())));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        for part in [
            "HTTP/1.1 200 OK\r\n",
            "content-type: text/plain; charset=UTF-8\r\n",
            "cache-control: no-cache, max-age=0\r\n",
            "x-content-type-options: nosniff\r\n",
            "server: envoy\r\n",
            "\r\n\r\nLIVE\n",
        ] {
            assert!(answer.contains(part), "{answer}");
        }
        let counted: Vec<_> = stats.counters_if(|name, used| used && !name.contains("bytes"));
        let names: Vec<_> = counted.iter().map(|counter| counter.name.as_str()).collect();
        for name in [
            "http.admin.downstream_cx_http1_total",
            "http.admin.downstream_cx_total",
            "http.admin.downstream_rq_2xx",
            "http.admin.downstream_rq_completed",
            "http.admin.downstream_rq_total",
            "listener.admin.downstream_cx_total",
            "listener.admin.http.admin.downstream_rq_2xx",
            "listener.admin.main_thread.downstream_cx_total",
        ] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        serving.abort();
    }
}
