//! Layers of the runtime that are discovered (RTDS), by the name of their resource.

use tidegate_filters::context::Needs;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::service::runtime::v3::Runtime as RuntimeProto;

use super::{Kind, Placed, Store};

impl Store {
    /// New values of layers.
    pub(crate) fn update_runtime(&mut self, layers: Vec<Placed<RuntimeProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for placed in layers {
            let name = placed.resource.name.clone();
            let mut needs = Needs::default();
            let context = self.compiler.context(&name, placed.path.clone(), &mut needs);
            match crate::config::runtime::discovered(&placed.resource, &context) {
                Ok(values) => {
                    self.ledger.takes(Kind::Runtime, &self.ledger.name(Kind::Runtime, &name), placed.text, false);
                    self.ledger.acts(Kind::Runtime, &name);
                    self.layers.discover(&name, values);
                }
                Err(error) => {
                    self.refuse(Kind::Runtime, &name, placed, &error);
                    errors.push(error);
                }
            }
        }
        errors
    }

    /// Its source says that there is no such layer: it has no values.
    pub(crate) fn remove_runtime(&mut self, name: &str) {
        self.layers.discover(name, Default::default());
    }
}
