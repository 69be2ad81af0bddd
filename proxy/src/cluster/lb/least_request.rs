//! `LEAST_REQUEST` (`envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest`): of some random hosts the one
//! with the fewest requests under way. When weights differ it is another algorithm, as in Envoy: earliest deadline first by
//! `weight / (requests + 1)^active_request_bias`.

use std::sync::Arc;

use tidegate_filters::runtime::Keyed;

use super::{Candidates, Draws, Loads, Scheduler};
use crate::cluster::host::Host;

/// Options of the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct LeastRequest {
    /// How many random hosts are compared; `None` compares all (`FULL_SCAN`).
    pub choices: Option<u32>,
    /// `active_request_bias`: how strongly requests under way lower a weight. Runtime is asked when the host set is built.
    pub bias: Keyed<f64>,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self { choices: Some(2), bias: Keyed { key: None, default: 1.0 } }
    }
}

impl LeastRequest {
    pub(super) fn pick<'a>(
        &self,
        candidates: &Candidates<'a>,
        loads: &dyn Loads,
        draws: &mut Draws,
        scheduler: &mut Scheduler,
    ) -> Option<&'a Arc<Host>> {
        let hosts = &candidates.group.hosts;
        if !candidates.group.equal {
            let weight = |index: usize| weight(&hosts[index], loads, candidates.active_request_bias);
            let offset = draws.next();
            let index = scheduler.pick(candidates.generation, candidates.group_id, hosts.len(), offset, weight)?;
            return hosts.get(index);
        }
        match self.choices {
            Some(choices) if !hosts.is_empty() => {
                let chosen = (0..choices).map(|_| &hosts[draws.below(hosts.len())]);
                chosen.min_by_key(|host| loads.requests(host))
            }
            Some(_) => None,
            None => scan(hosts, loads, draws),
        }
    }
}

fn weight(host: &Host, loads: &dyn Loads, bias: f64) -> f64 {
    let weight = f64::from(host.weight);
    let requests = f64::from(loads.requests(host)) + 1.0;
    if bias == 1.0 { weight / requests } else { weight / requests.powf(bias) }
}

/// The least loaded of all; among equals, any.
fn scan<'a>(hosts: &'a [Arc<Host>], loads: &dyn Loads, draws: &mut Draws) -> Option<&'a Arc<Host>> {
    let mut best: Option<(&Arc<Host>, u32)> = None;
    let mut equals = 0;
    for host in hosts {
        let requests = loads.requests(host);
        match best {
            Some((_, least)) if requests > least => {}
            Some((_, least)) if requests == least => {
                equals += 1;
                if draws.below(equals) == 0 {
                    best = Some((host, requests));
                }
            }
            _ => {
                best = Some((host, requests));
                equals = 1;
            }
        }
    }
    best.map(|(host, _)| host)
}
