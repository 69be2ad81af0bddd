//! `CommonTlsContext` -> what both sides' contexts are made of, with the names of secrets that are still to come.
//! It must not know either side.

use std::sync::Arc;

use aws_lc_rs::digest::{Context as Digest, SHA256};
use prost::Message;
use tidegate_filters::context::{CompileContext, Needs};
use tidegate_tls::{Identity, Parameters};
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use tidegate_xds::{FieldError, FieldPath};

use super::secrets::{Given, Secret};
use super::values::{Side, parameters};
use super::{Around, certificate, validation};
use crate::config::origin;
use crate::config::sources::config_source;

/// A context but for secrets that are discovered.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) parameters: Parameters,
    pub(super) alpn: Vec<Vec<u8>>,
    certificates: Certificates,
    validation: ValidationSource,
}

#[derive(Debug)]
enum Certificates {
    Given(Vec<Arc<Identity>>),
    Named(Vec<String>),
}

#[derive(Debug)]
enum ValidationSource {
    Given(validation::Compiled),
    Named(String),
    /// What is discovered is merged over what is given.
    Combined(Box<proto::CertificateValidationContext>, String),
}

/// What a recipe gives with its secrets.
pub(super) struct Made {
    pub(super) identities: Vec<Arc<Identity>>,
    pub(super) validation: validation::Compiled,
    /// Tells it from others.
    pub(super) digest: [u8; 32],
}

impl Recipe {
    pub(super) fn compile(
        proto: &proto::CommonTlsContext,
        side: Side,
        around: &Around,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        Ok(Self {
            parameters: parameters(proto.tls_params.as_ref(), side, context)?,
            alpn: proto.alpn_protocols.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
            certificates: certificates(proto, around, context)?,
            validation: validation_source(proto, around, context)?,
        })
    }

    /// Whether it is made of this secret.
    pub(super) fn names(&self, secret: &str) -> bool {
        let certificates = match &self.certificates {
            Certificates::Given(_) => false,
            Certificates::Named(names) => names.iter().any(|name| name == secret),
        };
        let validation = match &self.validation {
            ValidationSource::Given(_) => false,
            ValidationSource::Named(name) | ValidationSource::Combined(_, name) => name == secret,
        };
        certificates || validation
    }

    /// Puts the secrets in; `Ok(None)` where one has not come.
    ///
    /// # Errors
    /// What is wrong with one.
    pub(super) fn make(&self, secrets: &Given<'_>) -> Result<Option<Made>, String> {
        let identities = match &self.certificates {
            Certificates::Given(identities) => identities.clone(),
            Certificates::Named(names) => {
                let mut identities = Vec::with_capacity(names.len());
                for name in names {
                    match secrets.certificate(name)? {
                        Some(identity) => identities.push(identity),
                        None => return Ok(None),
                    }
                }
                identities
            }
        };
        let validation = match &self.validation {
            ValidationSource::Given(validation) => validation.clone(),
            ValidationSource::Named(name) => match secrets.validation(name)? {
                Some(proto) => compile_late(name, proto)?,
                None => return Ok(None),
            },
            ValidationSource::Combined(default, name) => match secrets.validation(name)? {
                Some(proto) => {
                    // What protobuf makes of one message behind another is Envoy's merge.
                    let mut merged = (**default).clone();
                    merged.merge(&*proto.encode_to_vec()).map_err(|error| error.to_string())?;
                    compile_late(name, &merged)?
                }
                None => return Ok(None),
            },
        };
        let mut digest = Digest::new(&SHA256);
        digest.update(&validation.digest);
        identities.iter().for_each(|identity| digest.update(identity.leaf().sha256.as_bytes()));
        let digest = digest.finish().as_ref().try_into().unwrap_or_default();
        Ok(Some(Made { identities, validation, digest }))
    }
}

/// Compiles outside of any resource's own compiling.
fn compile_late(name: &str, proto: &proto::CertificateValidationContext) -> Result<validation::Compiled, String> {
    let mut needs = Needs::default();
    let mut context = CompileContext {
        resource: origin::name_of(name),
        path: FieldPath::root().field("validation_context"),
        defaults: tidegate_filters::context::Defaults::Safe,
        stats: tidegate_stats::Store::new().root(),
        needs: &mut needs,
    };
    validation::compile(proto, origin::name_of(name), &mut context).map_err(|error| error.to_string())
}

fn certificates(
    proto: &proto::CommonTlsContext,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<Certificates, FieldError> {
    if !proto.tls_certificates.is_empty() {
        let mut identities = Vec::with_capacity(proto.tls_certificates.len());
        for (index, certificate) in proto.tls_certificates.iter().enumerate() {
            identities.push(
                context.within_item("tls_certificates", index, |context| {
                    certificate::identity(certificate, "", context)
                })?,
            );
        }
        return Ok(Certificates::Given(identities));
    }
    let configs = &proto.tls_certificate_sds_secret_configs;
    let (mut given, mut named) = (Vec::new(), Vec::new());
    for (index, config) in configs.iter().enumerate() {
        let found = context.within_item("tls_certificate_sds_secret_configs", index, |context| {
            secret(config, "tls_certificate", around, context)
        })?;
        match found {
            Found::Fixed(Secret::Certificate(identity)) => given.push(identity),
            Found::Fixed(_) => return Err(other_kind("tls_certificate_sds_secret_configs", context)),
            Found::Named(name) => named.push(name),
        }
    }
    match (given.is_empty(), named.is_empty()) {
        (_, true) => Ok(Certificates::Given(given)),
        (true, false) => Ok(Certificates::Named(named)),
        (false, false) => {
            let reason = "not supported yet: static and discovered certificates together";
            Err(context.error_at("tls_certificate_sds_secret_configs", reason))
        }
    }
}

fn validation_source(
    proto: &proto::CommonTlsContext,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<ValidationSource, FieldError> {
    let static_one = |found: Found, name: &str, context: &mut CompileContext<'_>| match found {
        Found::Fixed(Secret::Validation(proto)) => {
            validation::compile(&proto, name, context).map(ValidationSource::Given)
        }
        Found::Fixed(_) => Err(other_kind("name", context)),
        Found::Named(name) => Ok(ValidationSource::Named(name)),
    };
    match &proto.validation_context_type {
        None => Ok(ValidationSource::Given(validation::Compiled::none())),
        Some(ValidationContextType::ValidationContext(given)) => context
            .within("validation_context", |context| validation::compile(given, "", context))
            .map(ValidationSource::Given),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            context.within("validation_context_sds_secret_config", |context| {
                let found = secret(config, "validation_context", around, context)?;
                static_one(found, &config.name, context)
            })
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            context.within("combined_validation_context", |context| {
                let default = combined.default_validation_context.clone().unwrap_or_default();
                let Some(config) = &combined.validation_context_sds_secret_config else {
                    return Err(context.error_at("validation_context_sds_secret_config", "is required"));
                };
                let found = context.within("validation_context_sds_secret_config", |context| {
                    secret(config, "validation_context", around, context)
                })?;
                match found {
                    Found::Named(name) => Ok(ValidationSource::Combined(Box::new(default), name)),
                    Found::Fixed(Secret::Validation(fixed)) => {
                        let mut merged = default;
                        let merge = merged.merge(&*fixed.encode_to_vec());
                        merge.map_err(|error| context.error(error.to_string()))?;
                        validation::compile(&merged, &config.name, context).map(ValidationSource::Given)
                    }
                    Found::Fixed(_) => Err(other_kind("validation_context_sds_secret_config", context)),
                }
            })
        }
        Some(_) => Err(context.error("not supported yet: this source of a validation context")),
    }
}

/// Whoever looks for a secret of a kind finds none of another; nothing is left out of a context should one ever.
pub(super) fn other_kind(field: &str, context: &CompileContext<'_>) -> FieldError {
    context.error_at(field, "is a secret of another kind")
}

/// A secret that is named.
pub(super) enum Found {
    Fixed(Secret),
    /// It is to be discovered.
    Named(String),
}

/// Finds a static secret, or notes where a discovered one comes from.
pub(super) fn secret(
    config: &proto::SdsSecretConfig,
    kind: &str,
    around: &Around,
    context: &mut CompileContext<'_>,
) -> Result<Found, FieldError> {
    let Some(source) = &config.sds_config else {
        let fixed = around.secrets.fixed(&config.name, kind);
        return fixed.map(Found::Fixed).ok_or_else(|| {
            context.error_at("name", format!("Unknown static secret: {} (no {kind} of this name)", config.name))
        });
    };
    let source = context.within("sds_config", |context| config_source(source, &around.known, context))?;
    let called = origin::call(&config.name, &source, context)?;
    context.needs.secrets.insert(called.clone(), source);
    Ok(Found::Named(called))
}
