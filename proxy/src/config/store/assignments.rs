//! Endpoints of EDS clusters, by service name.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use tidegate_filters::context::Needs;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::{FieldError, FieldPath};

use super::{Kind, Placed, Store};
use crate::cluster::endpoint::Assignment;
use crate::stats::subscription::Update;

impl Store {
    /// New endpoints.
    pub(crate) fn update_assignments(&mut self, assignments: Vec<Placed<ClusterLoadAssignment>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut ready = Vec::new();
        for placed in assignments {
            let name = placed.resource.cluster_name.clone();
            let assignment = match self.compile_assignment(&placed.resource) {
                Ok(assignment) => assignment,
                Err(error) => {
                    self.refuse(Kind::Endpoints, &name, placed, &error);
                    errors.push(error);
                    continue;
                }
            };
            for cluster in self.services.users(&name) {
                cluster.update_hosts(&assignment, self.shared.runtime());
                cluster.stats().updates.update_success().inc();
                ready.push(Arc::clone(cluster.name()));
            }
            self.ledger.takes(Kind::Endpoints, &self.ledger.name(Kind::Endpoints, &name), placed.text, false);
            self.ledger.acts(Kind::Endpoints, &name);
        }
        self.clusters_are_warm(ready.iter().map(|name| &**name));
        errors
    }

    /// The same endpoints came again; false where they are not the same, or somebody waits for them.
    pub(super) fn keeps_assignment(&self, service: &str, bytes: &[u8]) -> bool {
        let users = self.services.users(service);
        if users.iter().any(|cluster| self.warming_clusters.contains_key(cluster.name()))
            || !self.ledger.is_latest(Kind::Endpoints, service, bytes)
        {
            return false;
        }
        self.ledger.is_good(Kind::Endpoints, service);
        for cluster in users {
            cluster.stats().updates.update_no_rebuild().inc();
            cluster.stats().updates.update_success().inc();
        }
        true
    }

    fn compile_assignment(&self, assignment: &ClusterLoadAssignment) -> Result<Assignment, FieldError> {
        let mut needs = Needs::default();
        let mut context = self.compiler.context(&assignment.cluster_name, FieldPath::root(), &mut needs);
        crate::config::cluster::compile_assignment(assignment, &mut context)
    }

    /// What acts for a service.
    pub(super) fn last_assignment(&self, service: &str) -> Result<Option<Assignment>, FieldError> {
        let Some(bytes) = self.ledger.acting(Kind::Endpoints, service) else { return Ok(None) };
        let assignment = ClusterLoadAssignment::decode(&*bytes)
            .map_err(|error| FieldError::new(FieldPath::root(), error.to_string()).in_resource(service))?;
        self.compile_assignment(&assignment).map(Some)
    }

    /// Clusters that wait for the endpoints of this service go on without.
    pub(super) fn go_on_without_assignment(&mut self, service: &str) {
        let users = self.services.users(service);
        let waiting: Vec<_> = users.iter().map(|cluster| Arc::clone(cluster.name())).collect();
        self.clusters_are_warm(waiting.iter().map(|name| &**name));
    }

    /// The endpoints of this service are not there: clusters that wait for them go on without.
    pub(super) fn missing_assignment(&mut self, service: &str) {
        self.go_on_without_assignment(service);
        for cluster in self.services.users(service) {
            cluster.stats().updates.update_empty().inc();
            cluster.stats().updates.update_success().inc();
        }
    }

    /// Counts what became of an update of this service's endpoints.
    pub(crate) fn count_assignment(&self, service: &str, update: &Update, now: SystemTime) {
        self.services.users(service).iter().for_each(|cluster| cluster.stats().count_update(update, now));
    }

    /// An update of this service's endpoints took so long to take in.
    pub(crate) fn assignment_took(&self, service: &str, time: Duration) {
        self.services.users(service).iter().for_each(|cluster| cluster.stats().update_took(time));
    }

    /// The endpoints of this service are asked for.
    pub(crate) fn asked_assignment(&self, service: &str) {
        self.services.users(service).iter().for_each(|cluster| cluster.stats().updates.update_attempt().inc());
    }

    /// The endpoints of this service did not come in time.
    pub(crate) fn assignment_timed_out(&self, service: &str) {
        self.services.users(service).iter().for_each(|cluster| cluster.stats().fetch_timed_out());
    }
}
