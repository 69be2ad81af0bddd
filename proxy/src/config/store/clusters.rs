//! Clusters: taken, warmed, published, retired.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use tidegate_filters::context::Needs;
use tidegate_xds::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use tidegate_xds::{FieldError, FieldPath};

use super::secrets::Unsecured;
use super::{Kind, Owner, Placed, Store};
use crate::cluster::Cluster;
use crate::cluster::options::Discovery;

impl Store {
    /// Adds or changes clusters; the good ones are taken, the others reported.
    pub(crate) fn update_clusters(&mut self, clusters: Vec<Placed<ClusterProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut ready = Vec::new();
        let mut seen: HashSet<Arc<str>> = HashSet::new();
        for placed in clusters {
            let name: Arc<str> = placed.resource.name.as_str().into();
            if !seen.insert(Arc::clone(&name)) {
                let reason = format!("duplicate cluster '{name}': only the first of one name is taken");
                errors.push(FieldError::new(placed.path.field("name"), reason).in_resource(&name));
                continue;
            }
            if self.ledger.is_latest(Kind::Cluster, &name, &placed.text.bytes) {
                self.ledger.is_good(Kind::Cluster, &name);
                continue;
            }
            let mut needs = Needs::default();
            match self.compile_cluster(&placed.resource, placed.path.clone(), &mut needs) {
                Ok(cluster) => ready.extend(self.take_cluster(cluster, &needs, placed)),
                Err(error) => {
                    self.refuse(Kind::Cluster, &name, placed, &error);
                    errors.push(error);
                }
            }
        }
        self.publish_clusters(ready);
        errors
    }

    /// The cluster itself when it need not wait.
    fn take_cluster(
        &mut self,
        cluster: Arc<Cluster>,
        needs: &Needs,
        placed: Placed<ClusterProto>,
    ) -> Option<Arc<Cluster>> {
        let name = Arc::clone(cluster.name());
        if self.ledger.has(Kind::Cluster, &name) {
            self.stats.cluster_modified().inc();
        } else {
            self.stats.cluster_added().inc();
        }
        tracing::debug!("add/update cluster '{name}'");
        self.ledger.takes(Kind::Cluster, &name, placed.text, !self.started);
        // Whatever warmed under this name is of the past.
        if let Some(superseded) = self.warming_clusters.remove(&name) {
            self.retire(&superseded);
        }
        let secrets = self.secret_needs.set(&Owner::NextCluster(Arc::clone(&name)), &needs.secrets);
        self.forget_secrets(secrets);
        self.unsecured.remove(&name);
        let has_secrets = self.has_secrets(needs.secrets.keys());
        let has_hosts = self.is_warm(&cluster);
        if has_hosts && has_secrets {
            return Some(cluster);
        }
        if !cluster.config().wait_for_warm_on_init {
            self.unwaited.push(Arc::clone(&cluster));
            return Some(cluster);
        }
        if !has_secrets {
            let secrets = needs.secrets.keys().cloned().collect();
            self.unsecured.insert(Arc::clone(&name), Unsecured { secrets, has_hosts });
        }
        if let Discovery::Eds(eds) = &cluster.config().discovery {
            self.services.begin_again(&eds.service_name);
        }
        tracing::debug!("warming cluster '{name}'");
        cluster.stats().updates.warming_state().set(1);
        self.warming_clusters.insert(name, cluster);
        None
    }

    /// The gauges of the cluster manager.
    fn show_clusters(&self) {
        self.stats.active_clusters().set(self.shared.snapshot().clusters.len() as u64);
        self.stats.warming_clusters().set(self.warming_clusters.len() as u64);
    }

    fn compile_cluster(
        &mut self,
        resource: &ClusterProto,
        path: FieldPath,
        needs: &mut Needs,
    ) -> Result<Arc<Cluster>, FieldError> {
        let mut context = self.compiler.context(&resource.name, path, needs);
        let mut compiled = crate::config::cluster::compile(resource, &self.compiler.cluster_defaults, &mut context)?;
        compiled.config.added_via_api = self.started;
        context.stats = context.stats.scope(&compiled.config.stats_prefix());
        compiled.config.upstream_filters = self.compiler.upstream_filters(
            "typed_extension_protocol_options.http_filters",
            &compiled.http_filters,
            &mut context,
        )?;
        let service = match (&compiled.config.discovery, &compiled.eds) {
            (Discovery::Eds(eds), Some(source)) => {
                let source = context.within("eds_cluster_config", |context| {
                    context.within("eds_config", |context| {
                        crate::config::sources::config_source(source, &self.compiler.known, context)
                    })
                })?;
                if self.services.is_from_elsewhere(&eds.service_name, &source, &resource.name) {
                    let service = &eds.service_name;
                    let reason = format!("not supported yet: endpoints of one name, '{service}', from two sources");
                    return Err(context.error_at("eds_cluster_config", reason));
                }
                Some((Arc::clone(&eds.service_name), source))
            }
            _ => None,
        };
        let last = match &service {
            Some((service, _)) => self.last_assignment(service)?,
            None => None,
        };
        let previous = self.shared.snapshot().clusters.get(resource.name.as_str()).cloned();
        let runtime = self.shared.runtime();
        let cluster = Cluster::new(compiled.config, previous.as_deref(), &self.compiler.stats, runtime, rand::random());
        if let Some(last) = &last {
            cluster.update_hosts(last, runtime);
            cluster.stats().updates.update_success().inc();
        }
        if let Some((service, source)) = service {
            self.services.enter(&service, source, &cluster);
        }
        Ok(cluster)
    }

    fn is_warm(&self, cluster: &Cluster) -> bool {
        match &cluster.config().discovery {
            Discovery::Static(_) => true,
            Discovery::Eds(eds) => self.ledger.has(Kind::Endpoints, &eds.service_name),
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => false,
        }
    }

    /// Its place was taken, or it is gone.
    fn retire(&mut self, cluster: &Arc<Cluster>) {
        cluster.retire();
        if let Discovery::Eds(eds) = &cluster.config().discovery
            && self.services.leave(&eds.service_name, cluster)
        {
            self.ledger.remove(Kind::Endpoints, &eds.service_name);
        }
    }

    /// Removes clusters that a source no longer names.
    pub(crate) fn remove_clusters(&mut self, names: &[Arc<str>]) {
        if names.is_empty() {
            return;
        }
        let mut gone = Vec::new();
        for name in names {
            if self.ledger.has(Kind::Cluster, name) {
                self.stats.cluster_removed().inc();
            }
            tracing::debug!("removing cluster '{name}'");
            self.ledger.remove(Kind::Cluster, name);
            self.unsecured.remove(name);
            // None is to come, and what is not there needs nothing.
            let next = Owner::NextCluster(Arc::clone(name));
            let mut secrets = self.secret_needs.set(&next, &BTreeMap::new());
            secrets.extend(self.secret_needs.pass(&next, Owner::Cluster(Arc::clone(name))));
            self.forget_secrets(secrets);
            gone.extend(self.warming_clusters.remove(name));
        }
        self.publish(|snapshot| gone.extend(names.iter().filter_map(|name| snapshot.clusters.remove(name))));
        gone.iter().for_each(|cluster| self.retire(cluster));
        self.show_clusters();
    }

    /// Clusters whose first hosts are to come from DNS. Those that nothing waits for are named once.
    pub(crate) fn resolving(&mut self) -> Vec<Arc<Cluster>> {
        let dns = |cluster: &&Arc<Cluster>| {
            matches!(cluster.config().discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_))
        };
        self.warming_clusters.values().chain(&std::mem::take(&mut self.unwaited)).filter(dns).cloned().collect()
    }

    /// A cluster has its first hosts, or waited long enough.
    pub(crate) fn cluster_is_warm(&mut self, name: &str) {
        self.clusters_are_warm([name]);
    }

    pub(super) fn clusters_are_warm<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let names = names.into_iter().filter(|name| !self.waits_for_secrets(name)).collect::<Vec<_>>();
        let warm = names.into_iter().filter_map(|name| self.warming_clusters.remove(name)).collect();
        self.publish_clusters(warm);
    }

    pub(crate) fn is_warming_clusters(&self) -> bool {
        !self.warming_clusters.is_empty()
    }

    pub(super) fn publish_clusters(&mut self, clusters: Vec<Arc<Cluster>>) {
        if clusters.is_empty() {
            return self.show_clusters();
        }
        for cluster in &clusters {
            tracing::debug!("cluster '{}' serves", cluster.name());
            let next = Owner::NextCluster(Arc::clone(cluster.name()));
            let secrets = self.secret_needs.pass(&next, Owner::Cluster(Arc::clone(cluster.name())));
            self.forget_secrets(secrets);
            let warming = cluster.stats().updates.warming_state();
            if warming.value() != 0 {
                warming.set(0);
            }
            self.ledger.acts(Kind::Cluster, cluster.name());
        }
        let mut replaced = Vec::new();
        self.publish(|snapshot| {
            for cluster in clusters {
                replaced.extend(snapshot.clusters.insert(Arc::clone(cluster.name()), cluster));
            }
        });
        replaced.iter().for_each(|cluster| self.retire(cluster));
        self.show_clusters();
    }
}
