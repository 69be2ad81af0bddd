//! Follows one service in a registry for as long as somebody needs it. It must not know what becomes of what it finds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::instance::Instance;
use super::{Answer, Cursor, Registry, Told};
use crate::client::Backoff;
use crate::source::random;

/// Whatever a registry answers, it is asked no more often.
const SHORTEST: Duration = Duration::from_millis(20);

/// What there is of a service.
#[derive(Debug)]
pub(super) struct Found {
    /// With its registry's name before it.
    pub(super) name: Arc<str>,
    pub(super) instances: Vec<Instance>,
}

/// Tells of every change until nobody listens. While the registry cannot be asked, what was told last holds.
pub(super) async fn run(registry: Arc<Registry>, service: String, name: Arc<str>, found: mpsc::Sender<Found>) {
    let _followed = registry.turns.follow();
    let (mut backoff, mut cursor) = (Backoff::default(), Cursor::default());
    let mut last: Option<Vec<Instance>> = None;
    let mut failing: Option<String> = None;
    let mut oddities = Oddities::default();
    loop {
        match registry.ask(&service, &mut cursor).await {
            Ok(Answer { told, holds, ahead }) => {
                backoff.reset();
                if failing.take().is_some() {
                    tracing::info!(service = %name, "the registry answers again");
                }
                if oddities.ahead(ahead) {
                    tracing::warn!(service = %name, "the registry says that its answer is of a time to come: are the clocks right?");
                }
                if let Some(Told { mut instances, left_out }) = told {
                    match (oddities.left_out(left_out), left_out) {
                        (false, _) => {}
                        (true, 0) => tracing::info!(service = %name, "no instance is left out any more"),
                        (true, _) => {
                            let taken = instances.len();
                            tracing::warn!(service = %name, left_out, taken, "instances without an IP address and a port are left out");
                        }
                    }
                    // Registries give them in any order.
                    instances.sort();
                    if last.as_ref() != Some(&instances) {
                        let told = Found { name: Arc::clone(&name), instances: instances.clone() };
                        if found.send(told).await.is_err() {
                            return;
                        }
                        last = Some(instances);
                    }
                }
                tokio::time::sleep(holds.max(SHORTEST)).await;
            }
            Err(fault) => {
                let fault = fault.to_string();
                if failing.as_ref() != Some(&fault) {
                    let holds = last.as_ref().map_or(0, Vec::len);
                    tracing::warn!(service = %name, fault, instances = holds, "the registry does not answer: what it said last is served");
                    failing = Some(fault);
                }
                tokio::time::sleep(backoff.next(random()).max(SHORTEST)).await;
            }
        }
    }
}

/// What is odd about what a registry says, each told when it changes and not with each answer.
#[derive(Debug, Default)]
struct Oddities {
    left_out: usize,
    ahead: bool,
}

impl Oddities {
    /// Whether an answer of a time to come is news: it is told once.
    fn ahead(&mut self, ahead: bool) -> bool {
        ahead && !std::mem::replace(&mut self.ahead, true)
    }

    /// Whether it is news how many instances are left out.
    fn left_out(&mut self, count: usize) -> bool {
        std::mem::replace(&mut self.left_out, count) != count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_odd_is_told_when_it_changes() {
        let mut oddities = Oddities::default();
        assert_eq!(
            [false, true, true, false, true].map(|ahead| oddities.ahead(ahead)),
            [false, true, false, false, false]
        );
        assert_eq!(
            [0, 2, 2, 2, 1, 0, 0].map(|count| oddities.left_out(count)),
            [false, true, false, false, true, true, false]
        );
    }
}
