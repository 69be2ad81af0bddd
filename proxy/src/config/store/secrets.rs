//! Secrets that are discovered (SDS), by name, and who waits for them.

use std::sync::Arc;

use tidegate_filters::context::Needs;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;

use super::{Kind, Placed, Store};
use crate::config::files::Watched;
use crate::config::origin;
use crate::config::tls::{self, Secret};

/// A secret whose parts are in files.
pub(super) struct InFiles {
    files: Vec<Watched>,
    placed: Placed<SecretProto>,
}

impl InFiles {
    fn again(&self) -> Placed<SecretProto> {
        let Placed { resource, path, text } = &self.placed;
        Placed { resource: resource.clone(), path: path.clone(), text: text.clone() }
    }
}

/// What a cluster that warms waits for.
pub(super) struct Unsecured {
    pub(super) secrets: Vec<String>,
    /// Its hosts are there: nothing else is waited for.
    pub(super) has_hosts: bool,
}

impl Store {
    /// New secrets. What was made of one before serves on where the new one is not good.
    pub(crate) fn update_secrets(&mut self, secrets: Vec<Placed<SecretProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for placed in secrets {
            let name = placed.resource.name.clone();
            self.follow_files(&name, &placed);
            let mut needs = Needs::default();
            let mut context = self.compiler.context(origin::name_of(&name), placed.path.clone(), &mut needs);
            let compiled = Secret::compile(&placed.resource, &mut context);
            let error_at = |reason: String| context.error(reason);
            let set = compiled.and_then(|secret| self.compiler.secrets().set(&name, secret).map_err(error_at));
            match set {
                Ok(()) => {
                    self.ledger.takes(Kind::Secret, &self.ledger.name(Kind::Secret, &name), placed.text, false);
                    self.ledger.acts(Kind::Secret, &name);
                }
                Err(error) => {
                    self.refuse(Kind::Secret, &name, placed, &error);
                    errors.push(error);
                }
            }
        }
        self.publish_secured();
        errors
    }

    /// Whatever becomes of it, its files are looked at from now on.
    fn follow_files(&mut self, name: &str, placed: &Placed<SecretProto>) {
        let mut files: Vec<Watched> = tls::files(&placed.resource).into_iter().map(Watched::new).collect();
        for file in &mut files {
            file.changed();
        }
        if files.is_empty() {
            self.secret_files.remove(name);
            return;
        }
        let (resource, path, text) = (placed.resource.clone(), placed.path.clone(), placed.text.clone());
        self.secret_files.insert(name.to_owned(), InFiles { files, placed: Placed { resource, path, text } });
    }

    /// Reads secrets again whose files others have taken the place of; true where there was one.
    pub(crate) fn reread_secrets(&mut self) -> bool {
        let changed = |secret: &mut InFiles| {
            // Every one is looked at.
            secret.files.iter_mut().fold(false, |any, file| file.changed() | any)
        };
        let again: Vec<Placed<SecretProto>> =
            self.secret_files.values_mut().filter_map(|secret| changed(secret).then(|| secret.again())).collect();
        let any = !again.is_empty();
        for error in self.update_secrets(again) {
            tracing::warn!(%error, "the files of a secret are not good: what they held before serves on");
        }
        any
    }

    /// Takes the bootstrap's static secrets.
    pub(crate) fn fix_secrets(&mut self, secrets: Vec<Placed<SecretProto>>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for placed in secrets {
            let name = placed.resource.name.clone();
            let mut needs = Needs::default();
            let mut context = self.compiler.context(&name, placed.path.clone(), &mut needs);
            let fixed = Secret::compile(&placed.resource, &mut context).and_then(|secret| {
                let kind = secret.kind();
                let is_new = self.compiler.secrets().fix(&name, secret);
                let duplicate = || context.error_at("name", format!("Duplicate static {kind} secret name {name}"));
                if is_new { Ok(kind) } else { Err(duplicate()) }
            });
            match fixed {
                Ok(kind) => {
                    let called: Arc<str> = origin::fixed(&name, kind).into();
                    self.ledger.takes(Kind::Secret, &called, placed.text, true);
                    self.ledger.acts(Kind::Secret, &called);
                }
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// It does not come: whoever waits for it goes on, and turns connections away until it comes.
    pub(super) fn go_on_without_secret(&mut self, name: &str) {
        self.secret_needs.give_up(name);
        self.publish_secured();
    }

    /// Its source took it away: what was made of it serves on.
    pub(super) fn remove_secret(&mut self, name: &str) {
        self.compiler.secrets().forget(name);
    }

    /// Forgets secrets that nobody names any more, at once: contexts keep what they were made of.
    pub(super) fn forget_secrets(&mut self, names: Vec<Arc<str>>) {
        for name in names {
            if self.secret_needs.forget(&name) {
                self.compiler.secrets().forget(&name);
                self.secret_files.remove(&*name);
                self.ledger.remove(Kind::Secret, &name);
            }
        }
    }

    pub(super) fn has_secrets<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> bool {
        names.into_iter().all(|name| self.ledger.has(Kind::Secret, name) || self.secret_needs.is_given_up(name))
    }

    /// Whether a cluster that has its hosts now still waits for secrets.
    pub(super) fn waits_for_secrets(&mut self, name: &str) -> bool {
        let has_secrets = self.unsecured.get(name).is_none_or(|cluster| self.has_secrets(&cluster.secrets));
        if has_secrets {
            self.unsecured.remove(name);
        } else if let Some(cluster) = self.unsecured.get_mut(name) {
            cluster.has_hosts = true;
        }
        !has_secrets
    }

    /// Clusters and listeners that waited for nothing but secrets serve once these are there.
    fn publish_secured(&mut self) {
        let has_all = |(_, cluster): &(&Arc<str>, &Unsecured)| cluster.has_hosts && self.has_secrets(&cluster.secrets);
        let ready: Vec<Arc<str>> = self.unsecured.iter().filter(has_all).map(|(name, _)| Arc::clone(name)).collect();
        if !ready.is_empty() {
            self.clusters_are_warm(ready.iter().map(|name| &**name));
        }
        self.publish_warm_listeners();
    }
}
