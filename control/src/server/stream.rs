//! One stream of a client: requests in, responses out, one at a time, so that a slow client is told the newest state once it
//! listens again and nothing piles up for it. It must not know a dialect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prost::Message;
use tidegate_xds::pb::envoy::config::core::v3::{ControlPlane, Node};
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::clients::{Client, Clients};
use super::groups::Sets;
use super::resource_set::{LONGEST_NAME, ResourceType};
use super::status::{News, Refusal, shown};
use super::{Dialect, Past, refusal};

/// More names than this a stream may not ask for: what a client may make us hold.
const MOST_NAMES: usize = 1_000_000;

/// How long these names may be together, in bytes.
const MOST_NAME_BYTES: usize = 8 << 20;

/// As much a client may say of itself, in bytes: it is kept as long as its stream.
const LARGEST_NODE: usize = 1 << 20;

/// What all streams share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) sets: watch::Receiver<Arc<Sets>>,
    pub(super) clients: Arc<Clients>,
    pub(super) control_plane: ControlPlane,
    pub(super) past: Arc<Past>,
    /// True once the server ends.
    pub(super) ending: watch::Receiver<bool>,
}

/// What requests of both dialects have in common.
pub(super) trait Request {
    fn node(&self) -> Option<&Node>;
    fn type_url(&mut self) -> &mut String;
    /// The names that are asked for anew.
    fn names(&self) -> &[String];
}

macro_rules! request {
    ($($name:ident: $names:ident),*) => {$(
        impl Request for $name {
            fn node(&self) -> Option<&Node> {
                self.node.as_ref()
            }

            fn type_url(&mut self) -> &mut String {
                &mut self.type_url
            }

            fn names(&self) -> &[String] {
                &self.$names
            }
        }
    )*};
}
request!(DiscoveryRequest: resource_names, DeltaDiscoveryRequest: resource_names_subscribe);

/// Who calls, and what.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) peer: Option<SocketAddr>,
    pub(super) service: &'static str,
    /// The only type of this service; none: aggregated.
    pub(super) kind: Option<ResourceType>,
}

/// Serves a stream to its end.
pub(super) async fn serve<D: Dialect>(
    context: Arc<Context>,
    call: Call,
    mut requests: Streaming<D::Request>,
    responses: mpsc::Sender<Result<D::Response, Status>>,
) where
    D::Request: Request,
{
    let mut ending = context.ending.clone();
    let ended = tokio::select! {
        ended = converse::<D>(&context, &call, &mut requests, &responses) => ended,
        // An error means that the server is gone already.
        _ = ending.wait_for(|ending| *ending) => Err(Status::unavailable("the control plane ends")),
    };
    if let Err(status) = ended {
        // A client that listens no longer needs no reason.
        let _ = responses.send(Err(status)).await;
    }
}

async fn converse<D: Dialect>(
    context: &Context,
    call: &Call,
    requests: &mut Streaming<D::Request>,
    responses: &mpsc::Sender<Result<D::Response, Status>>,
) -> Result<(), Status>
where
    D::Request: Request,
{
    let Some(mut first) = requests.message().await? else { return Ok(()) };
    check(&mut first, call)?;
    let node = first.node().cloned().unwrap_or_default();
    if node.encoded_len() > LARGEST_NODE {
        return Err(Status::resource_exhausted(format!("a node may have {LARGEST_NODE} bytes")));
    }
    let mut sets = context.sets.clone();
    let (group, mut set) = {
        let sets = sets.borrow_and_update();
        let (group, set) = sets.of(&node);
        (group.to_owned(), set.clone())
    };
    tracing::info!(node = shown(&node.id), group, service = call.service, peer = ?call.peer, "a client came");
    let dialect = D::new(set.clone(), call.kind.is_none(), context.control_plane.clone(), context.past.clone());
    let dialect = Arc::new(Mutex::new(dialect));
    let client = Client::new(node.clone(), call.peer, call.service, dialect.clone());
    let _listed = context.clients.add(client);
    receive(&mut *dialect.lock(), first, &node)?;
    let mut may_be_due = true;
    loop {
        let deadline = dialect.lock().deadline();
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(mut request)) => {
                    check(&mut request, call)?;
                    receive(&mut *dialect.lock(), request, &node)?;
                }
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::debug!(node = shown(&node.id), %status, "a stream broke");
                    return Ok(());
                }
            },
            changed = sets.changed() => {
                if changed.is_err() {
                    return Err(Status::unavailable("the source is gone"));
                }
                let newest = sets.borrow_and_update().of(&node).1.clone();
                if Arc::ptr_eq(&newest, &set) {
                    continue;
                }
                set = newest;
                dialect.lock().update(&set);
            }
            permit = responses.reserve(), if may_be_due => {
                let Ok(permit) = permit else { return Ok(()) };
                let response = dialect.lock().next_response(Instant::now());
                may_be_due = response.is_some();
                if let Some(response) = response {
                    permit.send(Ok(response));
                }
                continue;
            }
            () = sleep_until(deadline), if !may_be_due => {}
        }
        may_be_due = true;
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// A stream of one type may leave its type out.
fn check(request: &mut impl Request, call: &Call) -> Result<(), Status> {
    let url = request.type_url();
    match call.kind {
        None if url.is_empty() => Err(Status::invalid_argument("type URL is required for ADS")),
        None => Ok(()),
        Some(kind) if url.is_empty() => {
            *url = kind.url();
            Ok(())
        }
        Some(kind) if ResourceType::of_url(url) == Some(kind) => Ok(()),
        Some(kind) => Err(Status::invalid_argument(format!("this service has no {url}, only {}", kind.url()))),
    }
}

/// Takes a request within its bounds, and tells of a refusal.
fn receive<D: Dialect>(dialect: &mut D, request: D::Request, node: &Node) -> Result<(), Status>
where
    D::Request: Request,
{
    if request.names().iter().any(|name| name.len() > LONGEST_NAME) {
        return Err(Status::resource_exhausted(format!("a name may have {LONGEST_NAME} bytes")));
    }
    if let Some(News { refusal, said }) = dialect.receive(request, Instant::now()) {
        let Refusal { version, code, reason, .. } = refusal;
        let resources = refusal::meant(&said, &reason);
        tracing::warn!(node = shown(&node.id), version, code, reason, resources, "a client refused a response");
    }
    if dialect.names() > MOST_NAMES {
        return Err(Status::resource_exhausted(format!("one stream may ask for {MOST_NAMES} names")));
    }
    if dialect.name_bytes() > MOST_NAME_BYTES {
        return Err(Status::resource_exhausted(format!(
            "the names that one stream asks for may have {MOST_NAME_BYTES} bytes together"
        )));
    }
    Ok(())
}
