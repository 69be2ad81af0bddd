//! Route configurations that stand in a listener and whose virtual hosts are discovered (VHDS): they are looked up by their names,
//! as those that are discovered themselves, for as long as the listener has them. It must not know hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_filters::context::Needs;
use tidegate_xds::pb::envoy::config::route::v3::RouteConfiguration;
use tidegate_xds::{FieldError, FieldPath};

use super::virtual_hosts::Compiled;
use super::{Placed, Store};

/// Names are one for all of them here; in Envoy each is its connection manager's.
pub(crate) const SECOND_OF_NAME: &str =
    "not supported yet: a second route configuration of this name, beside one in line that discovers virtual hosts";

/// Those of one listener, compiled.
pub(super) type Tables = Vec<(Arc<str>, Compiled)>;

/// The listener that has each; none once that has let go of it.
#[derive(Default)]
pub(super) struct Lined(BTreeMap<Arc<str>, Option<Arc<str>>>);

impl Lined {
    /// A listener that is to come has these, beside what the one that serves has.
    pub(super) fn add(&mut self, listener: &Arc<str>, needs: &Needs) {
        let more = needs.routes_in_line.keys().map(|name| (Arc::from(name.as_str()), Some(Arc::clone(listener))));
        self.0.extend(more);
    }

    /// A listener has these from now on, and no others; returns what it had before and has no more.
    pub(super) fn set(&mut self, listener: &Arc<str>, needs: &Needs) -> Vec<Arc<str>> {
        let mut over = Vec::new();
        for (name, owner) in &mut self.0 {
            if owner.as_ref() == Some(listener) && !needs.routes_in_line.contains_key(&**name) {
                *owner = None;
                over.push(Arc::clone(name));
            }
        }
        self.add(listener, needs);
        over
    }

    /// The chains that used it have drained; false where a listener has it again, and for others.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let is_over = self.0.get(name).is_some_and(Option::is_none);
        if is_over {
            self.0.remove(name);
        }
        is_over
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn is_others(&self, name: &str, listener: &str) -> bool {
        self.0.get(name).is_some_and(|owner| owner.as_deref().is_some_and(|owner| owner != listener))
    }
}

impl Store {
    /// Compiles those of a listener with the hosts that came.
    ///
    /// # Errors
    /// What is wrong with one, or with its name.
    pub(super) fn compile_lined(&self, listener: &str, needs: &Needs) -> Result<Tables, FieldError> {
        let second =
            |path: &FieldPath| FieldError::new(path.clone().field("name"), SECOND_OF_NAME).in_resource(listener);
        if let Some(name) = needs.route_configurations.keys().find(|name| self.lined.has(name)) {
            return Err(FieldError::new(FieldPath::root(), format!("'{name}': {SECOND_OF_NAME}")).in_resource(listener));
        }
        let compile = |(name, (routes, path)): (&String, &(RouteConfiguration, FieldPath))| {
            let discovered = self.route_needs.is_needed(name) || needs.route_configurations.contains_key(name);
            if discovered || self.lined.is_others(name, listener) {
                return Err(second(path));
            }
            let placed = Placed::encoded(routes.clone(), path.clone(), &"".into());
            Ok((name.as_str().into(), self.compile_lined_routes(&placed).map_err(|error| error.in_resource(listener))?))
        };
        needs.routes_in_line.iter().map(compile).collect()
    }

    /// They act from now on.
    pub(super) fn take_lined(&mut self, lined: Tables) {
        if lined.is_empty() {
            return;
        }
        let mut tables = Vec::with_capacity(lined.len());
        for (name, compiled) in lined {
            let table = self.need_hosts(&name, compiled);
            tables.push((name, Arc::new(table)));
        }
        self.publish(|snapshot| snapshot.routes.extend(tables));
    }
}
