//! What people ask a control plane: what it serves, whom, and who refused what. It must not know how anything is served.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use prost::Message;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tonic::body::Body;
use tower_service::Service;

use super::{Plane, resources};
use crate::server::connections::{Asked, Incoming, Limits};
use crate::server::{Client, Counts, Refusal, ResourceSet, ResourceType, Sets, TypeStatus};
use crate::source::Link;

const HELP: &str = "tidegate control

/ready       200 while it serves
/status      what is served, what the source has, how it stands with etcd, who is connected and how far, what was refused
/resources   names, versions and origins of all resources, by group; /resources/TYPE/NAME is one of them (?group=NAME: as that
             group has it), which PUT and DELETE change where there is a store; POST changes several together (?dry_run only
             says what it would do).
             Bodies are application/json or application/yaml
/loads       what clients reported of their load last

Where there are tokens, all but /ready needs one (authorization: Bearer TOKEN). Pages of a browser may not ask.
";

/// What people's connections may do.
const CONNECTIONS: Limits = Limits { most: 256, head: Duration::from_secs(10), idle: Duration::from_secs(60) };

/// Answers until `end` is there.
pub(super) async fn serve(
    plane: Arc<Plane>,
    listener: TcpListener,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let incoming = Incoming::new(listener, CONNECTIONS, None);
    tonic::transport::Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(CONNECTIONS.idle))
        .max_concurrent_streams(64)
        .serve_with_incoming_shutdown(Admin(plane), incoming, end)
        .await
}

#[derive(Clone)]
struct Admin(Arc<Plane>);

impl Service<Request<Body>> for Admin {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (plane, asked) = (self.0.clone(), Asked::new(&request));
        Box::pin(async move { Ok(asked.answered(respond(&plane, request).await)) })
    }
}

async fn respond(plane: &Plane, request: Request<Body>) -> Response<Body> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if is_of_a_page(request.headers()) {
        return text(StatusCode::FORBIDDEN, "pages of a browser may not ask here\n");
    }
    if request.uri().path() != "/ready" && !plane.tokens.admit(request.headers()) {
        return text(StatusCode::UNAUTHORIZED, "a token is needed\n");
    }
    match request.uri().path() {
        path if path == "/resources" || path.starts_with("/resources/") => resources::respond(plane, request).await,
        _ if !reads => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        "/" => text(StatusCode::OK, HELP),
        "/ready" => text(StatusCode::OK, "LIVE\n"),
        "/status" => as_json(&status(plane)),
        "/loads" => as_json(&loads(plane)),
        _ => text(StatusCode::NOT_FOUND, HELP),
    }
}

/// Whether a browser asks on behalf of a page. No page is served here, so it is another's: whoever visits that must not change or
/// read what is here with it, nor by a name that its site points to this address.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    let from_elsewhere = |site: &HeaderValue| site != "none" && site != "same-origin";
    headers.contains_key(header::ORIGIN) || headers.get("sec-fetch-site").is_some_and(from_elsewhere)
}

fn status(plane: &Plane) -> Value {
    let source = plane.source.lock().clone();
    let refused = source.refused.map(|(refused, at)| json!({"faults": refused.faults, "since_seconds": seconds(at)}));
    let sets = plane.sets.borrow().clone();
    let clients: Vec<Value> = plane.server.clients().all().iter().map(|one| client(one, &sets)).collect();
    json!({
        "uptime_seconds": seconds(plane.started),
        "source": {"taken_seconds_ago": seconds(source.taken), "refused": refused},
        "store": plane.store.as_ref().and_then(|store| store.link()).map(link),
        "groups": groups(&sets),
        "clients": clients,
    })
}

fn link(link: Link) -> Value {
    let fault = link.fault.map(|(reason, at)| json!({"reason": reason, "since_seconds": seconds(at)}));
    json!({"etcd": link.member, "revision": link.revision, "fault": fault})
}

fn groups(sets: &Sets) -> Value {
    let of = |(name, set): (&str, &Arc<ResourceSet>)| {
        let kinds = ResourceType::all().filter(|kind| !set.kind(*kind).is_empty());
        let kinds: Map<String, Value> =
            kinds.map(|kind| (kind.short().to_owned(), json!(set.kind(kind).len()))).collect();
        json!({"name": name, "version": set.version(), "resources": kinds})
    };
    sets.all().map(of).collect()
}

fn client(client: &Client, sets: &Sets) -> Value {
    let types = client.types();
    let count = |of: fn(&Counts) -> usize| types.iter().map(|kind| of(&kind.counts)).sum::<usize>();
    json!({
        "node": client.node.id,
        "cluster": client.node.cluster,
        "peer": client.peer.map(|peer| peer.to_string()),
        "service": client.service.trim_start_matches('/'),
        "group": sets.of(&client.node).0,
        "connected_seconds": seconds(client.since),
        "resources": {
            "synced": count(|counts| counts.synced),
            "not_sent": count(|counts| counts.not_sent),
            "unanswered": count(|counts| counts.unanswered),
            "refused": count(|counts| counts.refused),
        },
        "types": types.iter().map(kind).collect::<Vec<_>>(),
    })
}

fn kind(status: &TypeStatus) -> Value {
    json!({
        "type": status.kind.short(),
        "version": status.version,
        "wildcard": status.wildcard,
        "names": status.names,
        "refused": status.refused.iter().map(|name| &**name).collect::<Vec<&str>>(),
        "refusal": status.refusal.as_ref().map(refusal),
    })
}

fn refusal(refusal: &Refusal) -> Value {
    json!({
        "version": refusal.version,
        "code": refusal.code,
        "reason": refusal.reason,
        "since_seconds": seconds(refusal.at),
    })
}

fn loads(plane: &Plane) -> Value {
    let all = plane.server.loads().all();
    let of = |load: &crate::server::Load| {
        let stats = tidegate_xds::to_json("envoy.config.endpoint.v3.ClusterStats", &load.stats.encode_to_vec());
        json!({"node": load.node, "cluster": load.cluster, "seconds_ago": seconds(load.at), "stats": stats})
    };
    all.iter().map(of).collect()
}

fn seconds(since: Instant) -> u64 {
    since.elapsed().as_secs()
}

pub(super) fn as_json(value: &Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, &format!("{value:#}\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = http_body_util::Full::new(bytes::Bytes::copy_from_slice(text.as_bytes()));
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    response
}
