//! `RANDOM` (`envoy.extensions.load_balancing_policies.random.v3.Random`): any host, whatever its weight, as in Envoy.

use std::sync::Arc;

use super::{Candidates, Draws};
use crate::cluster::host::Host;

pub(super) fn pick<'a>(candidates: &Candidates<'a>, draws: &mut Draws) -> Option<&'a Arc<Host>> {
    let hosts = &candidates.group.hosts;
    if hosts.is_empty() { None } else { hosts.get(draws.below(hosts.len())) }
}
