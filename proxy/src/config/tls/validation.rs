//! `CertificateValidationContext` -> [`Validation`]. It must not know whose certificates are looked at.

use std::sync::Arc;

use aws_lc_rs::digest::{Context as Digest, SHA256};
use base64::Engine as _;
use prost::Message;
use tidegate_filters::context::CompileContext;
use tidegate_filters::matching::StringMatcher;
use tidegate_tls::Validation;
use tidegate_tls::certificate::SanKind;
use tidegate_tls::validation::{Roots, SanMatcher, SanPattern, Spiffe, TextMatch, Trust};
use tidegate_xds::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use tidegate_xds::pb::envoy::r#type::matcher::v3::StringMatcher as StringMatcherProto;
use tidegate_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use tidegate_xds::{FieldError, any};

use super::certificate::{path_of, read};

const SPIFFE: &str = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Where systems keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// A validation, and what tells it from others.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub(super) validation: Arc<Validation>,
    pub(super) digest: [u8; 32],
}

impl Compiled {
    /// Nothing is asked.
    pub(super) fn none() -> Self {
        Self { validation: Arc::default(), digest: [0; 32] }
    }
}

#[derive(Debug)]
struct Text(StringMatcher);

impl TextMatch for Text {
    fn matches(&self, text: &[u8]) -> bool {
        self.0.matches(text)
    }
}

/// Compiles a validation context; `name`: of the secret that it is, empty where it is none.
///
/// # Errors
/// What cannot be read, is malformed, or would verify nothing.
pub(super) fn compile(
    proto: &proto::CertificateValidationContext,
    name: &str,
    context: &mut CompileContext<'_>,
) -> Result<Compiled, FieldError> {
    let mut digest = Digest::new(&SHA256);
    digest.update(&proto.encode_to_vec());
    let spiffe = match &proto.custom_validator_config {
        Some(custom) => {
            Some(context.within("custom_validator_config", |context| spiffe(custom, &mut digest, context))?)
        }
        None => None,
    };
    let mut trust = trust(proto, &mut digest, context)?;
    if let Some(trust) = &mut trust {
        name.clone_into(&mut trust.name);
    }
    let sans = sans(proto, context)?;
    if !sans.is_empty() && trust.is_none() && spiffe.is_none() {
        let reason = "SAN-based verification of peer certificates without trusted CA is insecure and not allowed";
        return Err(context.error(reason));
    }
    let validation = Validation {
        trust: trust.filter(|_| spiffe.is_none()),
        spiffe,
        sans,
        hashes: list("verify_certificate_hash", &proto.verify_certificate_hash, hash, context)?,
        spki: list("verify_certificate_spki", &proto.verify_certificate_spki, spki, context)?,
        accept_untrusted: proto.trust_chain_verification() == TrustChainVerification::AcceptUntrusted,
        hides_roots: proto.suppress_client_ca_list,
    };
    let digest = digest.finish().as_ref().try_into().unwrap_or_default();
    Ok(Compiled { validation: Arc::new(validation), digest })
}

fn trust(
    proto: &proto::CertificateValidationContext,
    digest: &mut Digest,
    context: &mut CompileContext<'_>,
) -> Result<Option<Trust>, FieldError> {
    let given = read("trusted_ca", proto.trusted_ca.as_ref(), context)?;
    let roots = match given {
        Some(text) => {
            digest.update(&text);
            let roots = Roots::shared(&text, path_of(proto.trusted_ca.as_ref()));
            roots.map_err(|refused| context.error_at("trusted_ca", refused.0))?
        }
        None if proto.system_root_certs.is_some() => system_roots(context)?,
        None => {
            if proto.crl.is_some() {
                return Err(context.error_at("crl", "Failed to load CRL without trusted CA"));
            }
            return Ok(None);
        }
    };
    let mut trust = Trust::new(roots);
    if let Some(text) = read("crl", proto.crl.as_ref(), context)? {
        digest.update(&text);
        trust.revoke(&text, path_of(proto.crl.as_ref())).map_err(|refused| context.error_at("crl", refused.0))?;
    }
    trust.leaf_crl_only = proto.only_verify_leaf_cert_crl;
    trust.allow_expired = proto.allow_expired_certificate;
    trust.max_depth = proto.max_verify_depth.map(|depth| depth.value as usize);
    Ok(Some(trust))
}

fn system_roots(context: &CompileContext<'_>) -> Result<Arc<Roots>, FieldError> {
    for path in SYSTEM_ROOTS {
        if let Ok(text) = std::fs::read(path) {
            return Roots::shared(&text, path).map_err(|refused| context.error_at("system_root_certs", refused.0));
        }
    }
    Err(context.error_at("system_root_certs", format!("there are none at {}", SYSTEM_ROOTS.join(", "))))
}

fn sans(
    proto: &proto::CertificateValidationContext,
    context: &mut CompileContext<'_>,
) -> Result<Vec<SanMatcher>, FieldError> {
    let mut sans = Vec::new();
    for (index, matcher) in proto.match_typed_subject_alt_names.iter().enumerate() {
        sans.push(context.within_item("match_typed_subject_alt_names", index, |context| san(matcher, context))?);
    }
    #[expect(deprecated, reason = "Envoy 1.40 reads it")]
    for (index, matcher) in proto.match_subject_alt_names.iter().enumerate() {
        for kind in [SanKind::Dns, SanKind::Uri, SanKind::Email, SanKind::Ip] {
            sans.push(context.within_item("match_subject_alt_names", index, |context| {
                Ok::<_, FieldError>(SanMatcher { pattern: pattern(&kind, matcher, context)?, kind: kind.clone() })
            })?);
        }
    }
    Ok(sans)
}

fn san(proto: &proto::SubjectAltNameMatcher, context: &mut CompileContext<'_>) -> Result<SanMatcher, FieldError> {
    let kind = match proto.san_type() {
        SanType::Email => SanKind::Email,
        SanType::Dns => SanKind::Dns,
        SanType::Uri => SanKind::Uri,
        SanType::IpAddress => SanKind::Ip,
        SanType::OtherName if proto.oid.is_empty() => {
            return Err(context.error_at("oid", "Failed to create ASN1_OBJECT from an empty OID"));
        }
        SanType::OtherName => SanKind::Other(proto.oid.clone()),
        SanType::Unspecified => return Err(context.error_at("san_type", "unsupported san_type")),
    };
    let none = StringMatcherProto::default();
    let matcher = proto.matcher.as_ref().unwrap_or(&none);
    let pattern = context.within("matcher", |context| pattern(&kind, matcher, context))?;
    Ok(SanMatcher { kind, pattern })
}

fn pattern(
    kind: &SanKind,
    matcher: &StringMatcherProto,
    context: &mut CompileContext<'_>,
) -> Result<SanPattern, FieldError> {
    match (kind, &matcher.match_pattern) {
        (SanKind::Dns, Some(MatchPattern::Exact(name))) => Ok(SanPattern::DnsExact(name.clone())),
        _ => Ok(SanPattern::Text(Arc::new(Text(StringMatcher::compile(matcher, context)?)))),
    }
}

fn list(
    field: &str,
    texts: &[String],
    read: fn(&str) -> Result<[u8; 32], String>,
    context: &CompileContext<'_>,
) -> Result<Vec<[u8; 32]>, FieldError> {
    let read = |(index, text): (usize, &String)| {
        read(text).map_err(|reason| context.error_at(&format!("{field}[{index}]"), reason))
    };
    texts.iter().enumerate().map(read).collect()
}

/// Hex, with or without colons.
fn hash(text: &str) -> Result<[u8; 32], String> {
    let invalid = || format!("Invalid hex-encoded SHA-256 {text}");
    let digits: String = text.chars().filter(|character| *character != ':').collect();
    if digits.len() != 64 || !digits.is_ascii() {
        return Err(invalid());
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| invalid())?;
    }
    Ok(bytes)
}

fn spki(text: &str) -> Result<[u8; 32], String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| format!("Invalid base64-encoded SHA-256 {text}"))
}

fn spiffe(
    custom: &TypedExtensionConfig,
    digest: &mut Digest,
    context: &mut CompileContext<'_>,
) -> Result<Spiffe, FieldError> {
    let config = custom.typed_config.clone().unwrap_or_default();
    if any::type_name(&config.type_url) != Some(SPIFFE) {
        return Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url)));
    }
    let config: proto::SpiffeCertValidatorConfig = any::unpack(&config, &context.path)?;
    let mut domains: Vec<(String, Trust)> = Vec::with_capacity(config.trust_domains.len());
    for (index, domain) in config.trust_domains.iter().enumerate() {
        let name = domain.name.to_ascii_lowercase();
        let bundle = context.within_item("typed_config.trust_domains", index, |context| {
            if domains.iter().any(|(known, _)| *known == name) {
                let reason = "Multiple trust bundles are given for one trust domain for ";
                return Err(context.error_at("name", format!("{reason}{name}")));
            }
            bundle(domain.trust_bundle.as_ref(), digest, context)
        })?;
        domains.push((name, bundle));
    }
    if domains.is_empty() {
        return Err(context.error_at("typed_config.trust_domains", "at least one trust domain is required"));
    }
    Ok(Spiffe { domains })
}

fn bundle(
    source: Option<&DataSource>,
    digest: &mut Digest,
    context: &mut CompileContext<'_>,
) -> Result<Trust, FieldError> {
    let text = read("trust_bundle", source, context)?.unwrap_or_default();
    digest.update(&text);
    let roots = Roots::shared(&text, path_of(source));
    Ok(Trust::new(roots.map_err(|refused| context.error_at("trust_bundle", refused.0))?))
}
