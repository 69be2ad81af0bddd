//! Configurations of filters that are discovered (ECDS), by name.

use prost::Message;
use tidegate_filters::context::Needs;
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::{FieldError, FieldPath};

use super::{Kind, Placed, Store};
use crate::config::discovered_filter::other_kind;

impl Store {
    /// New configurations.
    pub(crate) fn update_extensions(&mut self, extensions: Vec<Placed<TypedExtensionConfig>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for placed in extensions {
            let name = placed.resource.name.clone();
            match self.compiler.discovered.set(&placed.resource) {
                Ok(()) => {
                    self.ledger.takes(Kind::Extension, &self.ledger.name(Kind::Extension, &name), placed.text, false);
                    self.ledger.acts(Kind::Extension, &name);
                }
                Err(error) => {
                    self.refuse(Kind::Extension, &name, placed, &error);
                    errors.push(error);
                }
            }
        }
        self.publish_warm_listeners();
        errors
    }

    /// Its source took it away.
    pub(super) fn remove_extension(&mut self, name: &str) {
        self.compiler.discovered.remove(name);
        self.go_on_without_extension(name);
    }

    /// It does not come: listeners that wait for it serve with its default, or answer 500.
    pub(super) fn go_on_without_extension(&mut self, name: &str) {
        self.compiler.discovered.fall_back(name);
        self.extension_needs.give_up(name);
        self.publish_warm_listeners();
    }

    /// What acts already under names that a new listener needs acts for it, too.
    ///
    /// # Errors
    /// What is wrong with it there.
    pub(super) fn extend(&self, needs: &Needs) -> Result<(), FieldError> {
        for (name, wanted) in &needs.extensions {
            if let Some(known) = self.extension_needs.subscription(name).filter(|known| known.kind != wanted.kind) {
                return Err(FieldError::new(FieldPath::root(), other_kind(name, known.kind, wanted.kind)));
            }
            if let Some(bytes) = self.ledger.acting(Kind::Extension, name)
                && let Ok(config) = TypedExtensionConfig::decode(&*bytes)
            {
                self.compiler.discovered.set(&config)?;
            } else if self.extension_needs.is_given_up(name) {
                self.compiler.discovered.fall_back(name);
            }
        }
        Ok(())
    }

    pub(super) fn has_extensions(&self, needs: &Needs) -> bool {
        let waits = needs.extensions.iter().filter(|(_, extension)| extension.waits);
        waits
            .map(|(name, _)| name)
            .all(|name| self.ledger.has(Kind::Extension, name) || self.extension_needs.is_given_up(name))
    }
}
