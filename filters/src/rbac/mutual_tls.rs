//! `envoy.extensions.rbac.principals.mtls_authenticated.v3.Config`: clients whose certificate was found good.
//! It must not know connections.

use tidegate_tls::certificate::{San, SanKind};
use tidegate_tls::validation::{SanMatcher, SanPattern};
use tidegate_xds::FieldError;
use tidegate_xds::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::SubjectAltNameMatcher;
use tidegate_xds::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use tidegate_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use super::rule::Rule;
use crate::context::CompileContext;
use crate::matching::StringMatcher;

/// A name that a certificate must have.
#[derive(Debug)]
pub(super) enum SanRule {
    /// A DNS name, which one with a wildcard stands for too.
    Dns(SanMatcher),
    Text(SanKind, StringMatcher),
}

impl SanRule {
    pub(super) fn matches(&self, san: &San) -> bool {
        match self {
            Self::Dns(matcher) => matcher.matches(san),
            Self::Text(kind, matcher) => *kind == san.kind && matcher.matches(&san.value),
        }
    }

    fn compile(matcher: &SubjectAltNameMatcher, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let kind = match matcher.san_type() {
            SanType::Email => SanKind::Email,
            SanType::Dns => SanKind::Dns,
            SanType::Uri => SanKind::Uri,
            SanType::IpAddress => SanKind::Ip,
            SanType::OtherName if matcher.oid.is_empty() => {
                return Err(context.error_at("oid", "Failed to create SAN matcher for OTHER_NAME with OID: "));
            }
            SanType::OtherName => SanKind::Other(matcher.oid.clone()),
            SanType::Unspecified => return Err(context.error_at("san_type", "unsupported san_type")),
        };
        let Some(pattern) = &matcher.matcher else { return Err(context.error_at("matcher", "must be set")) };
        match (&kind, &pattern.match_pattern) {
            (SanKind::Dns, Some(MatchPattern::Exact(name))) => {
                Ok(Self::Dns(SanMatcher { kind, pattern: SanPattern::DnsExact(name.clone()) }))
            }
            _ => Ok(Self::Text(kind, context.within("matcher", |context| StringMatcher::compile(pattern, context))?)),
        }
    }
}

/// That any good certificate will do has to be said.
pub(super) fn compile(config: &Config, context: &mut CompileContext<'_>) -> Result<Rule, FieldError> {
    match &config.san_matcher {
        Some(matcher) => {
            let name = context.within("san_matcher", |context| SanRule::compile(matcher, context))?;
            Ok(Rule::MutualTls(Some(name)))
        }
        None if config.any_validated_client_certificate => Ok(Rule::MutualTls(None)),
        None => Err(context.error(
            "envoy.rbac.principals.mtls_authenticated did not have any configured validation. At least one configuration \
             field must be set.",
        )),
    }
}
