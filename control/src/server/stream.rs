//! One stream of a client: requests in, responses out, one at a time, so that a slow client is told the newest state once it
//! listens again and nothing piles up for it. It must not know a dialect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tidegate_xds::pb::envoy::config::core::v3::{ControlPlane, Node};
use tidegate_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tidegate_xds::pb::google::rpc::Status as Error;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::clients::{Client, Clients};
use super::groups::Sets;
use super::resource_set::ResourceType;
use super::{Dialect, refusal};

/// More names than this a stream may not ask for: what a client may make us hold.
const MOST_NAMES: usize = 1_000_000;

/// What all streams share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) sets: watch::Receiver<Arc<Sets>>,
    pub(super) clients: Arc<Clients>,
    pub(super) control_plane: ControlPlane,
    /// True once the server ends.
    pub(super) ending: watch::Receiver<bool>,
}

/// What requests of both dialects have in common.
pub(super) trait Request {
    fn node(&self) -> Option<&Node>;
    fn type_url(&mut self) -> &mut String;
    fn refusal(&self) -> Option<(&str, &Error)>;
}

macro_rules! request {
    ($($name:ident),*) => {$(
        impl Request for $name {
            fn node(&self) -> Option<&Node> {
                self.node.as_ref()
            }

            fn type_url(&mut self) -> &mut String {
                &mut self.type_url
            }

            fn refusal(&self) -> Option<(&str, &Error)> {
                self.error_detail.as_ref().map(|error| (&*self.response_nonce, error))
            }
        }
    )*};
}
request!(DiscoveryRequest, DeltaDiscoveryRequest);

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
    let mut sets = context.sets.clone();
    let (group, mut set) = {
        let sets = sets.borrow_and_update();
        let (group, set) = sets.of(&node);
        (group.to_owned(), set.clone())
    };
    tracing::info!(node = node.id, group, service = call.service, peer = ?call.peer, "a client came");
    let dialect = D::new(set.clone(), call.kind.is_none(), context.control_plane.clone());
    let dialect = Arc::new(Mutex::new(dialect));
    let client = Client::new(node.clone(), call.peer, call.service, dialect.clone());
    let _listed = context.clients.add(client);
    note_refusal(&mut first, &node, &*dialect.lock());
    dialect.lock().receive(first, Instant::now());
    let mut may_be_due = true;
    loop {
        let deadline = dialect.lock().deadline();
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(mut request)) => {
                    check(&mut request, call)?;
                    let mut dialect = dialect.lock();
                    note_refusal(&mut request, &node, &*dialect);
                    dialect.receive(request, Instant::now());
                    if dialect.names() > MOST_NAMES {
                        return Err(Status::resource_exhausted("one stream may ask for so many names only"));
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => {
                    tracing::debug!(node = node.id, %status, "a stream broke");
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

fn note_refusal<D: Dialect>(request: &mut D::Request, node: &Node, dialect: &D)
where
    D::Request: Request,
{
    let type_url = std::mem::take(request.type_url());
    if let Some((nonce, error)) = request.refusal() {
        let resources = refusal::meant(&dialect.said(&type_url, nonce), &error.message);
        tracing::warn!(
            node = node.id,
            nonce,
            code = error.code,
            reason = error.message,
            resources,
            "a client refused a response"
        );
    }
    *request.type_url() = type_url;
}
