//! Listeners: taken, warmed, published.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tidegate_filters::context::Needs;
use tidegate_xds::pb::envoy::config::listener::v3::Listener as ListenerProto;
use tidegate_xds::{FieldError, FieldPath};

use super::lined::Tables;
use super::{Kind, Owner, Placed, Store, Warming};
use crate::config::{inline_routes, listener};
use crate::listener::{ListenAddress, Listener};

impl Store {
    /// Adds or changes listeners.
    pub(crate) fn update_listeners(&mut self, listeners: Vec<Placed<ListenerProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut ready = Vec::new();
        let mut seen = HashSet::new();
        for placed in listeners {
            let given = placed.resource.name.clone();
            if self.started && !given.is_empty() && !seen.insert(given.clone()) {
                let reason = format!("duplicate listener {given} found: only the first of one name is taken");
                errors.push(FieldError::new(placed.path.field("name"), reason).in_resource(&given));
                continue;
            }
            if !given.is_empty() && self.ledger.is_latest(Kind::Listener, &given, &placed.text.bytes) {
                self.ledger.is_good(Kind::Listener, &given);
                continue;
            }
            if !self.started && self.ledger.has(Kind::Listener, &given) {
                tracing::warn!(listener = %given, "left out: there is one of this name already");
                continue;
            }
            match self.compile_listener(&placed, &ready) {
                Ok((warming, lined)) => {
                    self.take_lined(lined);
                    ready.extend(self.take_listener(warming, placed));
                }
                Err(error) => {
                    self.refuse(Kind::Listener, &given, placed, &error);
                    errors.push(error);
                }
            }
        }
        self.publish_listeners(ready);
        errors
    }

    fn compile_listener(
        &mut self,
        placed: &Placed<ListenerProto>,
        ready: &[Arc<Listener>],
    ) -> Result<(Warming<Listener>, Tables), FieldError> {
        let Placed { resource, path, .. } = placed;
        let mut needs = Needs::default();
        let previous = self.shared.snapshot().listeners.get(resource.name.as_str()).cloned();
        let mut compiled = {
            let shown = if resource.name.is_empty() { "(unnamed)" } else { &resource.name };
            let mut context = self.compiler.context(shown, path.clone(), &mut needs);
            listener::compile(&self.compiler, resource, previous.as_deref(), &mut context)?
        };
        if let Some(error) = self.unknown_cluster(&needs) {
            return Err(error.in_resource(&resource.name));
        }
        self.check_sources(&resource.name, &needs)?;
        if let Some(address) = self.duplicate_address(&compiled, ready) {
            let name = &compiled.name;
            let reason = format!("listener '{name}' has duplicate address '{address}' as existing listener");
            return Err(FieldError::new(path.clone().field("address"), reason).in_resource(&resource.name));
        }
        self.extend(&needs)?;
        let lined = self.compile_lined(&compiled.name, &needs)?;
        if compiled.position == 0 {
            self.last_position += 1;
            compiled.position = self.last_position;
        }
        Ok((Warming { compiled: Arc::new(compiled), needs }, lined))
    }

    /// What another listener has under the same name from another source would be taken for what this one means.
    fn check_sources(&self, listener: &str, needs: &Needs) -> Result<(), FieldError> {
        let name: Arc<str> = listener.into();
        let owners = [Owner::Listener(Arc::clone(&name)), Owner::NextListener(name)];
        let routes = self.route_needs.had_from_elsewhere(&needs.route_configurations, &owners);
        let extensions = self.extension_needs.had_from_elsewhere(&needs.extensions, &owners);
        let shared = routes.map(|name| ("route configuration", name)).or(extensions.map(|name| ("filter", name)));
        let Some((what, name)) = shared else { return Ok(()) };
        let reason = format!("not supported yet: a {what} of one name, '{name}', from two sources");
        Err(FieldError::new(FieldPath::root(), reason).in_resource(listener))
    }

    /// A cluster that must be there and is not.
    pub(super) fn unknown_cluster(&self, needs: &Needs) -> Option<FieldError> {
        // At the start a cluster that is wrong itself is the mistake, not what names it.
        let known = |name: &str| {
            self.ledger.has(Kind::Cluster, name) || !self.started && self.ledger.has_refused(Kind::Cluster, name)
        };
        let (name, path) = needs.clusters.iter().find(|(name, _)| !known(name))?;
        let clusters = self.ledger.of_kind(Kind::Cluster);
        let near = tidegate_xds::nearest(name, clusters.iter().map(|(name, _)| &**name));
        let hint = near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
        Some(FieldError::new(path.clone(), format!("route: unknown cluster '{name}'{hint}")))
    }

    /// The listener itself when it need not wait.
    fn take_listener(&mut self, warming: Warming<Listener>, placed: Placed<ListenerProto>) -> Option<Arc<Listener>> {
        let name = Arc::clone(&warming.compiled.name);
        tracing::debug!("add/update listener '{name}'");
        self.ledger.takes(Kind::Listener, &name, placed.text, !self.started);
        self.ledger.inline_routes(&name, &inline_routes::of(&placed.resource));
        self.ledger.inline_scopes(&name, inline_routes::scopes_of(&placed.resource));
        self.need_next(&name, &warming.needs);
        self.warming_listeners.remove(&name);
        if self.has_all(&warming.needs) {
            return Some(self.take_over(warming));
        }
        tracing::debug!("warming listener '{name}'");
        self.warming_listeners.insert(name, warming);
        None
    }

    /// An address of the listener that one of another name has, whether or not either is bound.
    fn duplicate_address(&self, listener: &Listener, ready: &[Arc<Listener>]) -> Option<ListenAddress> {
        let snapshot = self.shared.snapshot();
        let warming = self.warming_listeners.values().map(|warming| &warming.compiled);
        let others = snapshot.listeners.values().chain(warming).chain(ready);
        let mut taken = others.filter(|other| other.name != listener.name).flat_map(|other| &other.sockets);
        let given =
            |address: &ListenAddress| !matches!(address, ListenAddress::Ip { address, .. } if address.port() == 0);
        let own = |address: &ListenAddress| listener.sockets.iter().any(|socket| socket.address == *address);
        taken.find(|socket| given(&socket.address) && own(&socket.address)).map(|socket| socket.address.clone())
    }

    fn has_routes(&self, needs: &Needs) -> bool {
        let there = |name: &String| self.has_route(name) || self.route_needs.is_given_up(name);
        needs.route_configurations.keys().all(there) && needs.routes_in_line.keys().all(|name| self.has_route(name))
    }

    fn has_all(&self, needs: &Needs) -> bool {
        self.has_routes(needs)
            && self.has_scopes(needs)
            && self.has_extensions(needs)
            && self.has_secrets(needs.secrets.keys())
    }

    /// What a listener needs that is to come, beside what the one that serves under its name needs.
    fn need_next(&mut self, listener: &Arc<str>, needs: &Needs) {
        let next = Owner::NextListener(Arc::clone(listener));
        self.lined.add(listener, needs);
        self.open_scopes(needs);
        let routes = self.route_needs.set(&next, &needs.route_configurations);
        let scopes = self.scope_needs.set(&next, &needs.scopes);
        let extensions = self.extension_needs.set(&next, &needs.extensions);
        let secrets = self.secret_needs.set(&next, &needs.secrets);
        self.forget_secrets(secrets);
        self.let_go(listener, Vec::new(), routes, scopes, extensions);
    }

    /// A listener has what it needs and serves from now on; what only the one before it needed is let go of.
    pub(super) fn take_over(&mut self, warm: Warming<Listener>) -> Arc<Listener> {
        self.settle_scopes(&warm.needs);
        let listener = &warm.compiled.name;
        let lined = self.lined.set(listener, &warm.needs);
        self.pass_needs(listener, lined);
        warm.compiled
    }

    /// What the next listener of a name needs, the one that serves needs; nothing where there is none.
    fn pass_needs(&mut self, listener: &Arc<str>, lined: Vec<Arc<str>>) {
        let (next, now) = (Owner::NextListener(Arc::clone(listener)), Owner::Listener(Arc::clone(listener)));
        let routes = self.route_needs.pass(&next, now.clone());
        let scopes = self.scope_needs.pass(&next, now.clone());
        let extensions = self.extension_needs.pass(&next, now.clone());
        let secrets = self.secret_needs.pass(&next, now);
        self.forget_secrets(secrets);
        self.let_go(listener, lined, routes, scopes, extensions);
    }

    /// What nobody names any more acts on for chains that drain; what never came for a listener that never served is forgotten.
    fn let_go(
        &mut self,
        listener: &str,
        lined: Vec<Arc<str>>,
        routes: Vec<Arc<str>>,
        scopes: Vec<Arc<str>>,
        extensions: Vec<Arc<str>>,
    ) {
        let of = |kind: Kind, names: Vec<Arc<str>>| names.into_iter().map(move |name| (kind, name));
        let ended = of(Kind::Route, lined).chain(of(Kind::Route, routes));
        let ended = ended.chain(of(Kind::Scope, scopes)).chain(of(Kind::Extension, extensions));
        let ended: Vec<(Kind, Arc<str>)> = ended.collect();
        let serves = self.shared.snapshot().listeners.get(listener).cloned();
        let chains = || serves.iter().flat_map(|serves| serves.chains.all.iter().chain(&serves.chains.default));
        let is_named = |name: &str| {
            chains().any(|chain| chain.needs.iter().any(|needs| needs.route_configurations.contains_key(name)))
        };
        let is_used = |(kind, name): &(Kind, Arc<str>)| match kind {
            Kind::Route => self.has_route(name) || self.lined.has(name) || is_named(name),
            Kind::Extension => serves.is_some() || self.ledger.has(Kind::Extension, name),
            _ => true,
        };
        let (used, unused): (Vec<_>, Vec<_>) = ended.into_iter().partition(is_used);
        let now = Instant::now();
        self.leaving.extend(used.into_iter().map(|(kind, name)| (now, kind, name)));
        self.forget(unused);
    }

    pub(crate) fn remove_listeners(&mut self, names: &[Arc<str>]) {
        for name in names {
            tracing::debug!("removing listener '{name}'");
            self.ledger.drains(name, Instant::now());
            self.ledger.remove(Kind::Listener, name);
            self.ledger.inline_routes(name, &[]);
            self.ledger.inline_scopes(name, Vec::new());
            self.warming_listeners.remove(name);
            // None is to come, and what is not there needs nothing.
            self.need_next(name, &Needs::default());
            let lined = self.lined.set(name, &Needs::default());
            self.pass_needs(name, lined);
        }
        if names.is_empty() {
            return;
        }
        self.publish(|snapshot| {
            for name in names {
                snapshot.listeners.remove(name);
            }
        });
    }

    /// Listeners that have what they need serve.
    pub(super) fn publish_warm_listeners(&mut self) {
        let has_all = |(_, warming): &(&Arc<str>, &Warming<Listener>)| self.has_all(&warming.needs);
        let warm: Vec<_> = self.warming_listeners.iter().filter(has_all).map(|(name, _)| Arc::clone(name)).collect();
        let warm: Vec<_> = warm.iter().filter_map(|name| self.warming_listeners.remove(name)).collect();
        let warm = warm.into_iter().map(|warming| self.take_over(warming)).collect();
        self.publish_listeners(warm);
    }

    pub(super) fn publish_listeners(&mut self, listeners: Vec<Arc<Listener>>) {
        if listeners.is_empty() {
            return;
        }
        for listener in &listeners {
            tracing::debug!("listener '{}' serves", listener.name);
            let before = self.shared.snapshot().listeners.get(&listener.name).cloned();
            if before.is_some_and(|before| !before.shares_sockets_with(listener)) {
                self.ledger.drains(&listener.name, Instant::now());
            }
            self.ledger.acts(Kind::Listener, &listener.name);
        }
        self.publish(|snapshot| {
            for listener in listeners {
                snapshot.listeners.insert(Arc::clone(&listener.name), listener);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tidegate_xds::{Format, UnknownFields, any, decode};

    use super::*;
    use crate::config::store::testing::store;

    const HCM: &str =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

    fn listener(port: u16) -> Placed<ListenerProto> {
        listener_of("r", port)
    }

    fn listener_of(routes: &str, port: u16) -> Placed<ListenerProto> {
        let text = format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [\
             {{filters: [{{name: h, typed_config: {{'@type': {HCM}, stat_prefix: s, \
               rds: {{route_config_name: {routes}, config_source: {{resource_api_version: V3, ads: {{}}}}}}, \
               http_filters: [{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}, \
             {{filter_chain_match: {{destination_port: {port}}}, filters: [\
               {{name: e, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}}}]}}]}}"
        );
        let decoded = decode("envoy.config.listener.v3.Listener", text.as_bytes(), Format::Yaml, UnknownFields::Reject);
        let proto = any::decode(&decoded.unwrap().bytes, &FieldPath::root()).unwrap();
        Placed::encoded(proto, FieldPath::root(), &"1".into())
    }

    #[test]
    fn of_two_listeners_of_one_name_in_one_answer_the_first_is_taken() {
        let mut store = store();
        store.started = true;
        let errors = store.update_listeners(vec![listener(1), listener(2)]);
        assert!(errors.len() == 1 && errors[0].reason.starts_with("duplicate listener l found"), "{errors:?}");
    }

    /// A chain that an update does not change is the same chain, and what it needs is needed on.
    #[test]
    fn a_chain_that_stays_keeps_its_routes() {
        let mut store = store();
        store.started = true;
        for port in [1, 2] {
            assert_eq!(store.update_listeners(vec![listener(port)]), []);
            store.stop_waiting();
            assert!(store.leaving.is_empty(), "{port}");
            let serves = store.shared.snapshot().listeners.get("l").cloned().unwrap();
            assert!(serves.chains.all[0].needs.is_some() && serves.chains.all[1].needs.is_none());
        }
        store.remove_listeners(&["l".into()]);
        assert_eq!(store.leaving.len(), 1);
    }

    /// What is to come takes nothing away from what serves, however long it warms; once it serves, what is of no use goes.
    #[test]
    fn what_serves_keeps_what_it_needs_while_another_warms() {
        let mut store = store();
        store.started = true;
        assert_eq!(store.update_listeners(vec![listener_of("r", 1)]), []);
        store.stop_waiting();
        assert_eq!(store.update_listeners(vec![listener_of("other", 1)]), []);
        assert!(store.is_warming());
        let mut later = Instant::now();
        let mut drained = |store: &mut Store| {
            later += std::time::Duration::from_secs(3600);
            store.forget_drained(std::time::Duration::from_secs(600), later);
        };
        drained(&mut store);
        assert!(store.is_needed(Kind::Route, "r") && store.is_needed(Kind::Route, "other"));
        // It is replaced before it served.
        assert_eq!(store.update_listeners(vec![listener_of("third", 1)]), []);
        drained(&mut store);
        assert!(store.is_needed(Kind::Route, "r") && !store.is_needed(Kind::Route, "other"));
        store.stop_waiting();
        drained(&mut store);
        assert!(!store.is_needed(Kind::Route, "r") && store.is_needed(Kind::Route, "third"));
        store.remove_listeners(&["l".into()]);
        drained(&mut store);
        assert!(!store.is_needed(Kind::Route, "third"));
    }

    /// Routes that never came are not followed for a listener that is gone before it served.
    #[test]
    fn what_never_served_lets_go_at_once() {
        let mut store = store();
        let moved = |store: &mut Store| -> Vec<(String, bool)> {
            let moved = store.take_moved(Kind::Route).into_iter();
            moved.map(|moved| (moved.name.to_string(), moved.source.is_some())).collect()
        };
        assert_eq!(store.update_listeners(vec![listener(1)]), []);
        assert_eq!(moved(&mut store), [("r".to_owned(), true)]);
        store.remove_listeners(&["l".into()]);
        assert!(store.leaving.is_empty());
        assert_eq!(moved(&mut store), [("r".to_owned(), false)]);
    }
}
