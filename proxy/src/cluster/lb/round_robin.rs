//! `ROUND_ROBIN` (`envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin`): one host after the other, as often
//! as their weights say. Envoy keeps an earliest-deadline-first queue for each worker; here the order is a function of
//! the cluster's sequence number: the shares are the same, and exact over all workers together.

use std::sync::Arc;

use super::Candidates;
use crate::cluster::host::Host;

pub(super) fn pick<'a>(candidates: &Candidates<'a>) -> Option<&'a Arc<Host>> {
    let group = candidates.group;
    let index = match &group.order {
        Some(order) => order.index(candidates.sequence),
        None if group.is_empty() => return None,
        None => (candidates.sequence % group.len() as u64) as usize,
    };
    group.hosts.get(index)
}
