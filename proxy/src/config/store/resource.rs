//! The types of resources that are asked for by name, each with its name and its way into the store: whatever brings them
//! treats them alike. It must not know what brings them.

use prost::{Message, Name};
use tidegate_stats::Scope;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use tidegate_xds::pb::envoy::service::runtime::v3::Runtime;

use super::{Kind, Placed, Store};
use crate::config::origin::name_of;
use crate::stats::subscription::Subscription;

/// A message that is a resource.
pub(crate) trait Resource: Message + Name + Default {
    const KIND: Kind;

    fn name(&self) -> &str;

    /// Gives it the name that it has here, where that is not what its source calls it.
    fn call(&mut self, called: String);

    /// Hands it to the store, which tells what is wrong.
    fn update(store: &mut Store, resources: Vec<Placed<Self>>) -> Vec<FieldError>;
}

impl Resource for ClusterLoadAssignment {
    const KIND: Kind = Kind::Endpoints;

    fn name(&self) -> &str {
        &self.cluster_name
    }

    fn call(&mut self, called: String) {
        self.cluster_name = called;
    }

    fn update(store: &mut Store, resources: Vec<Placed<Self>>) -> Vec<FieldError> {
        store.update_assignments(resources)
    }
}

impl Resource for RouteConfiguration {
    const KIND: Kind = Kind::Route;

    fn name(&self) -> &str {
        &self.name
    }

    fn call(&mut self, called: String) {
        self.name = called;
    }

    fn update(store: &mut Store, resources: Vec<Placed<Self>>) -> Vec<FieldError> {
        store.update_routes(resources)
    }
}

impl Resource for TypedExtensionConfig {
    const KIND: Kind = Kind::Extension;

    fn name(&self) -> &str {
        &self.name
    }

    fn call(&mut self, called: String) {
        self.name = called;
    }

    fn update(store: &mut Store, resources: Vec<Placed<Self>>) -> Vec<FieldError> {
        store.update_extensions(resources)
    }
}

impl Resource for Runtime {
    const KIND: Kind = Kind::Runtime;

    fn name(&self) -> &str {
        &self.name
    }

    fn call(&mut self, called: String) {
        self.name = called;
    }

    fn update(store: &mut Store, resources: Vec<Placed<Self>>) -> Vec<FieldError> {
        store.update_runtime(resources)
    }
}

impl Resource for Secret {
    const KIND: Kind = Kind::Secret;

    fn name(&self) -> &str {
        &self.name
    }

    fn call(&mut self, called: String) {
        self.name = called;
    }

    fn update(store: &mut Store, resources: Vec<Placed<Self>>) -> Vec<FieldError> {
        store.update_secrets(resources)
    }
}

impl Store {
    /// What a subscription to this resource counts; none where clusters count it themselves.
    pub(crate) fn subscription_stats(&self, kind: Kind, name: &str) -> Option<Subscription> {
        let scope = self.subscription_scope(kind, name)?;
        Some(match kind {
            Kind::Route => Subscription::with_empties(&scope),
            Kind::Extension => Subscription::of_extension(&scope),
            Kind::VirtualHost => Subscription::of_hosts(&scope),
            Kind::Runtime | Kind::Scope | Kind::Secret => Subscription::new(&scope),
            Kind::Endpoints | Kind::Cluster | Kind::Listener => return None,
        })
    }

    fn subscription_scope(&self, kind: Kind, name: &str) -> Option<Scope> {
        let root = &self.compiler.stats;
        Some(match kind {
            Kind::Route => {
                let prefix = self.route_needs.subscription(name).map_or("", |wanted| &wanted.stats_prefix);
                root.scope(prefix).scope(&format!("rds.{name}."))
            }
            Kind::Runtime => root.scope("runtime."),
            Kind::Extension => {
                let kind = self.extension_needs.subscription(name)?.kind;
                root.scope(&format!("extension_config_discovery.{kind}.{name}."))
            }
            Kind::VirtualHost => {
                let prefix = &self.host_needs.subscription(name)?.stats_prefix;
                root.scope(prefix).scope(&format!("vhds.{name}."))
            }
            Kind::Scope => {
                let wanted = self.scope_needs.subscription(name)?;
                root.scope(&wanted.stats_prefix).scope(&format!("scoped_rds.{}.", wanted.name))
            }
            Kind::Secret => root.scope(&format!("sds.{}.", name_of(name))),
            Kind::Endpoints | Kind::Cluster | Kind::Listener => return None,
        })
    }

    /// Where a subscription to this resource counts: its own place, or those of the clusters that use these endpoints.
    pub(crate) fn subscription_scopes(&self, kind: Kind, name: &str) -> Vec<Scope> {
        let root = &self.compiler.stats;
        match kind {
            Kind::Endpoints => {
                let users = self.services.users(name).iter();
                users.map(|cluster| root.scope(&cluster.config().stats_prefix())).collect()
            }
            _ => self.subscription_scope(kind, name).into_iter().collect(),
        }
    }

    /// The same came again: it acts already.
    pub(crate) fn keeps(&self, kind: Kind, name: &str, bytes: &[u8]) -> bool {
        if kind == Kind::Endpoints {
            return self.keeps_assignment(name, bytes);
        }
        let same = self.ledger.is_latest(kind, name, bytes);
        if same {
            self.ledger.is_good(kind, name);
        }
        same
    }

    /// Its source says that there is none.
    pub(crate) fn missing(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Endpoints => self.missing_assignment(name),
            Kind::Runtime => self.remove_runtime(name),
            Kind::Extension => self.remove_extension(name),
            Kind::Secret => self.remove_secret(name),
            Kind::Route | Kind::Scope | Kind::VirtualHost | Kind::Cluster | Kind::Listener => {}
        }
    }

    /// It does not come, or what came is not good: whoever waits for its first goes on, as in Envoy.
    pub(crate) fn go_on_without(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Endpoints => self.go_on_without_assignment(name),
            Kind::Route => self.go_on_without_routes(name),
            Kind::Extension => self.go_on_without_extension(name),
            Kind::Scope => self.go_on_without_scopes(name),
            Kind::VirtualHost => self.go_on_without_hosts(name),
            Kind::Secret => self.go_on_without_secret(name),
            Kind::Runtime | Kind::Cluster | Kind::Listener => {}
        }
    }
}
