//! Secrets by name, static and discovered, and the contexts that are made of them: whenever one comes, those that name it are made
//! anew. It must not know where secrets come from.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_filters::context::CompileContext;
use tidegate_tls::Identity;
use tidegate_tls::tickets::TicketKeys;
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::config::core::v3::DataSource;
use tidegate_xds::pb::envoy::config::core::v3::data_source::Specifier;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3 as proto;

use super::{certificate, validation};
use crate::config::data_source;
use crate::config::origin::name_of;

/// A secret that was read and found good.
#[derive(Debug, Clone)]
pub(crate) enum Secret {
    Certificate(Arc<Identity>),
    /// As it came: it may be merged with what else is said.
    Validation(Box<proto::CertificateValidationContext>),
    Tickets(TicketKeys),
    Generic,
}

impl Secret {
    /// Reads a secret.
    ///
    /// # Errors
    /// What is wrong with it; never what is in it.
    pub(crate) fn compile(proto: &proto::Secret, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use proto::secret::Type;
        match &proto.r#type {
            Some(Type::TlsCertificate(certificate)) => context
                .within("tls_certificate", |context| certificate::identity(certificate, name_of(&proto.name), context))
                .map(Self::Certificate),
            Some(Type::ValidationContext(validation)) => {
                context.within("validation_context", |context| validation::compile(validation, "", context))?;
                Ok(Self::Validation(Box::new(validation.clone())))
            }
            Some(Type::SessionTicketKeys(keys)) => context
                .within("session_ticket_keys", |context| certificate::ticket_keys(keys, context))
                .map(Self::Tickets),
            Some(Type::GenericSecret(generic)) => context.within("generic_secret", |context| {
                let sources = generic.secret.iter().chain(generic.secrets.values());
                sources.map(|source| data_source(source, context)).collect::<Result<Vec<_>, _>>()?;
                Ok(Self::Generic)
            }),
            None => {
                Err(context.error("a secret needs a tls_certificate, a validation_context, keys or a generic secret"))
            }
        }
    }

    /// As its field is called.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "tls_certificate",
            Self::Validation(_) => "validation_context",
            Self::Tickets(_) => "session_ticket_keys",
            Self::Generic => "generic_secret",
        }
    }
}

/// The files that a secret's parts are in: it is read again when another file stands there.
pub(crate) fn files(proto: &proto::Secret) -> Vec<PathBuf> {
    use proto::secret::Type;
    let sources: Vec<&DataSource> = match &proto.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            let parts = [&certificate.certificate_chain, &certificate.private_key, &certificate.ocsp_staple];
            parts.into_iter().flatten().collect()
        }
        Some(Type::ValidationContext(validation)) => {
            [&validation.trusted_ca, &validation.crl].into_iter().flatten().collect()
        }
        Some(Type::SessionTicketKeys(keys)) => keys.keys.iter().collect(),
        Some(Type::GenericSecret(generic)) => generic.secret.iter().chain(generic.secrets.values()).collect(),
        None => Vec::new(),
    };
    let path = |source: &DataSource| match &source.specifier {
        Some(Specifier::Filename(path)) => Some(PathBuf::from(path)),
        _ => None,
    };
    sources.into_iter().filter_map(path).collect()
}

/// A context that names secrets.
pub(super) trait Place: Send + Sync {
    /// Whether anybody still serves with it.
    fn is_live(&self) -> bool;

    fn names(&self, secret: &str) -> bool;

    /// Makes the context of what there is now; `Ok(None)` where something has not come.
    ///
    /// # Errors
    /// What is wrong with what there is.
    fn prepare(&self, secrets: &Given<'_>) -> Result<Option<Act>, String>;
}

/// Puts a context that was made in its place; whether a secret that came is the reason.
pub(super) type Act = Box<dyn FnOnce(bool) + Send>;

/// Secrets of a process, and where they act.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    fixed: HashMap<String, Secret>,
    discovered: HashMap<String, Secret>,
    places: Vec<Arc<dyn Place>>,
    /// As soon as there are so many places, those that are gone are forgotten.
    sweep_at: usize,
}

/// Secrets while a context is made of them.
pub(super) struct Given<'a> {
    inner: &'a Inner,
    /// One that is to be among them.
    new: Option<(&'a str, &'a Secret)>,
}

impl Given<'_> {
    fn find(&self, name: &str) -> Option<&Secret> {
        match self.new {
            Some((new, secret)) if new == name => Some(secret),
            _ => self.inner.discovered.get(name),
        }
    }

    pub(super) fn certificate(&self, name: &str) -> Result<Option<Arc<Identity>>, String> {
        match self.find(name) {
            Some(Secret::Certificate(identity)) => Ok(Some(Arc::clone(identity))),
            Some(other) => Err(wrong(name, other, "tls_certificate")),
            None => Ok(None),
        }
    }

    pub(super) fn validation(&self, name: &str) -> Result<Option<&proto::CertificateValidationContext>, String> {
        match self.find(name) {
            Some(Secret::Validation(validation)) => Ok(Some(validation)),
            Some(other) => Err(wrong(name, other, "validation_context")),
            None => Ok(None),
        }
    }

    pub(super) fn tickets(&self, name: &str) -> Result<Option<TicketKeys>, String> {
        match self.find(name) {
            Some(Secret::Tickets(keys)) => Ok(Some(keys.clone())),
            Some(other) => Err(wrong(name, other, "session_ticket_keys")),
            None => Ok(None),
        }
    }
}

fn wrong(name: &str, secret: &Secret, wanted: &str) -> String {
    let name = name_of(name);
    format!("secret '{name}' is a {}, but a {wanted} is needed", secret.kind())
}

impl Secrets {
    /// Takes a static secret; false where there is one of this name and kind already.
    pub(crate) fn fix(&self, name: &str, secret: Secret) -> bool {
        let key = fixed_key(name, secret.kind());
        self.0.lock().fixed.insert(key, secret).is_none()
    }

    /// The static secret of this name and kind.
    pub(super) fn fixed(&self, name: &str, kind: &str) -> Option<Secret> {
        self.0.lock().fixed.get(&fixed_key(name, kind)).cloned()
    }

    /// Makes a context of what there is, and again whenever a secret comes that it names.
    pub(super) fn place(&self, place: Arc<dyn Place>) -> Result<(), String> {
        let mut inner = self.0.lock();
        let prepared = place.prepare(&Given { inner: &inner, new: None })?;
        // Those that are gone are looked for only as often as they may have doubled.
        if inner.places.len() >= inner.sweep_at {
            inner.places.retain(|place| place.is_live());
            inner.sweep_at = 2 * inner.places.len().max(16);
        }
        inner.places.push(place);
        drop(inner);
        if let Some(act) = prepared {
            act(false);
        }
        Ok(())
    }

    /// Takes a discovered secret: in every context that names it, or in none.
    ///
    /// # Errors
    /// One of them cannot be made with it.
    pub(crate) fn set(&self, name: &str, secret: Secret) -> Result<(), String> {
        let mut inner = self.0.lock();
        inner.places.retain(|place| place.is_live());
        let given = Given { inner: &inner, new: Some((name, &secret)) };
        let naming = inner.places.iter().filter(|place| place.names(name));
        let prepared: Vec<_> = naming.map(|place| place.prepare(&given)).collect::<Result<_, _>>()?;
        inner.discovered.insert(name.to_owned(), secret);
        drop(inner);
        prepared.into_iter().flatten().for_each(|act| act(true));
        Ok(())
    }

    /// Its source took it away, or nobody names it any more: contexts that were made of it stay.
    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().discovered.remove(name);
    }
}

fn fixed_key(name: &str, kind: &str) -> String {
    format!("{kind} {name}")
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.0.lock();
        f.debug_struct("Secrets")
            .field("fixed", &inner.fixed.len())
            .field("discovered", &inner.discovered.len())
            .field("places", &inner.places.len())
            .finish()
    }
}
