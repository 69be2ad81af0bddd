//! A control plane as one process: a source, the server, and an interface for people. Wiring only.

mod admin;
mod resources;
#[cfg(test)]
pub(crate) mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::server::services::token::Tokens;
use crate::server::tls::Tls;
use crate::server::{Options, Server, Sets};
use crate::source::{Refused, Source, Store};

/// How often clients are to report their load.
const LOAD_INTERVAL: Duration = Duration::from_secs(10);

/// How long clients have to take their leave.
const GRACE: Duration = Duration::from_secs(5);

/// Why a control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What there is at the start cannot be served. Nothing is served then: clients keep what they have.
    #[error(transparent)]
    Source(#[from] Refused),
    #[error(transparent)]
    Serve(#[from] tonic::transport::Error),
}

/// What has become of the source.
#[derive(Debug, Clone)]
pub(crate) struct SourceStatus {
    /// When what is served was taken.
    taken: Instant,
    /// Why something newer is not served, and since when.
    refused: Option<(Refused, Instant)>,
}

/// A running control plane, to be looked at.
#[derive(Debug)]
pub(crate) struct Plane {
    server: Server,
    sets: watch::Sender<Arc<Sets>>,
    /// Where resources are changed, if that is possible.
    store: Option<Arc<Store>>,
    tokens: Tokens,
    /// Who sends a body takes a place.
    bodies: Semaphore,
    source: Mutex<SourceStatus>,
    started: Instant,
}

/// Where a control plane is found, and by whom.
#[derive(Debug)]
pub struct Listen {
    /// Where clients come.
    pub clients: TcpListener,
    /// Where people ask.
    pub admin: Option<TcpListener>,
    /// One of these is to come with each call of a client, and with all that people ask but `/ready`; with none, anybody may call.
    pub tokens: Vec<String>,
    /// What clients shake hands with; none: they are spoken to in the clear.
    pub tls: Option<Arc<Tls>>,
    /// Where people change resources, if they may.
    pub store: Option<Arc<Store>>,
}

/// Serves what `source` gives until `end` is there.
///
/// # Errors
/// What the source has at the start cannot be served, or nothing can be accepted.
pub async fn run(mut source: impl Source, listen: Listen, end: impl Future<Output = ()>) -> Result<(), RunError> {
    let mut end = std::pin::pin!(end);
    let first = tokio::select! {
        first = source.next() => first?,
        () = &mut end => return Ok(()),
    };
    log_taken(&first);
    let (sets, receiver) = watch::channel(first);
    let identifier = concat!("tidegate/", env!("CARGO_PKG_VERSION")).to_owned();
    let started = Instant::now();
    let plane = Arc::new(Plane {
        server: Server::new(
            receiver,
            Options { identifier, load_interval: LOAD_INTERVAL, tokens: listen.tokens.clone(), tls: listen.tls },
        ),
        sets,
        store: listen.store,
        tokens: Tokens::new(listen.tokens),
        bodies: Semaphore::new(resources::MOST_BODIES),
        source: Mutex::new(SourceStatus { taken: started, refused: None }),
        started,
    });
    let (ending, ended) = watch::channel(false);
    let wait = |mut ended: watch::Receiver<bool>| async move {
        // An error means that this function has returned.
        let _ = ended.wait_for(|ended| *ended).await;
    };
    let too_late = async {
        wait(ended.clone()).await;
        tokio::time::sleep(GRACE).await;
    };
    let serving = plane.server.run(listen.clients, wait(ended.clone()));
    let administering = async {
        match listen.admin {
            Some(listener) => admin::serve(plane.clone(), listener, wait(ended.clone())).await,
            None => Ok(()),
        }
    };
    let following = async {
        tokio::select! {
            () = follow(&plane, &mut source) => {}
            () = end => {}
        }
        tracing::info!("the control plane ends");
        ending.send_replace(true);
    };
    tokio::select! {
        ended = async { tokio::join!(serving, administering, following) } => {
            ended.0?;
            ended.1?;
        }
        () = too_late => tracing::warn!("clients that do not listen are left behind"),
    }
    Ok(())
}

/// Serves each newer state; one that cannot be served changes nothing.
async fn follow(plane: &Plane, source: &mut impl Source) {
    loop {
        match source.next().await {
            Ok(sets) => {
                log_taken(&sets);
                plane.sets.send_replace(sets);
                let before =
                    std::mem::replace(&mut *plane.source.lock(), SourceStatus { taken: Instant::now(), refused: None });
                if before.refused.is_some() {
                    tracing::info!("what the source has is good again");
                }
            }
            Err(refused) => {
                for fault in &refused.faults {
                    tracing::error!("refused: {fault}");
                }
                tracing::error!(faults = refused.faults.len(), "what was served before is served on");
                plane.source.lock().refused = Some((refused, Instant::now()));
            }
        }
    }
}

fn log_taken(sets: &Sets) {
    for (group, set) in sets.all() {
        tracing::info!(group, version = set.version(), resources = set.len(), "serving");
    }
}
