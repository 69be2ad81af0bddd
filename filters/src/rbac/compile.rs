//! From `envoy.config.rbac.v3.RBAC` to an engine. It must not know which filter holds it.

use tidegate_xds::pb::envoy::config::core::v3 as core;
use tidegate_xds::pb::envoy::config::rbac::v3 as pb;
use tidegate_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use tidegate_xds::pb::envoy::extensions::rbac::matchers::upstream_ip_port::v3::UpstreamIpPortMatcher;
use tidegate_xds::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3::Config as MutualTlsConfig;
use tidegate_xds::pb::envoy::r#type::matcher::v3 as matcher;
use tidegate_xds::pb::envoy::r#type::v3::Int64Range;
use tidegate_xds::pb::xds::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::xds::r#type::matcher::v3::Matcher;
use tidegate_xds::{Coverage, FieldError, any};

use super::mutual_tls;
use super::rule::{Rule, State, UpstreamRange, Whose};
use super::{Action, Engine, Leaf, Policy};
use crate::context::CompileContext;
use crate::matching::cel::{Expression, Functions};
use crate::matching::uri_template::UriTemplate;
use crate::matching::{AddressMatcher, Cidr, HeaderMatcher, Inputs, MetadataMatcher, StringMatcher};

/// Rules nested deeper than this are refused.
const MAX_DEPTH: usize = 32;

/// The fields that act in the messages compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.rbac.v3.RBAC",
        enforced: &["action", "policies"],
        listed: &[("audit_logging_options", "Envoy has no audit loggers; only gRPC's servers do")],
    },
    Coverage { message: "envoy.config.rbac.v3.Action", enforced: &["name", "action"], listed: &[] },
    Coverage {
        message: "envoy.config.rbac.v3.Policy",
        enforced: &["permissions", "principals", "condition", "checked_condition", "cel_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        enforced: &["path_template"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher",
        enforced: &["upstream_ip", "upstream_port_range"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.Int64Range", enforced: &["start", "end"], listed: &[] },
    Coverage {
        message: "envoy.config.rbac.v3.Permission",
        enforced: &[
            "and_rules",
            "or_rules",
            "any",
            "header",
            "url_path",
            "destination_ip",
            "destination_port",
            "destination_port_range",
            "metadata",
            "not_rule",
            "requested_server_name",
            "sourced_metadata",
            "matcher",
            "uri_template",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.config.rbac.v3.Permission.Set", enforced: &["rules"], listed: &[] },
    Coverage {
        message: "envoy.config.rbac.v3.Principal",
        enforced: &[
            "and_ids",
            "or_ids",
            "any",
            "authenticated",
            "source_ip",
            "direct_remote_ip",
            "remote_ip",
            "header",
            "url_path",
            "metadata",
            "filter_state",
            "not_id",
            "sourced_metadata",
            "custom",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config",
        enforced: &["san_matcher", "any_validated_client_certificate"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        enforced: &["san_type", "matcher", "oid"],
        listed: &[],
    },
    Coverage { message: "envoy.config.rbac.v3.Principal.Set", enforced: &["ids"], listed: &[] },
    Coverage { message: "envoy.config.rbac.v3.Principal.Authenticated", enforced: &["principal_name"], listed: &[] },
    Coverage {
        message: "envoy.config.rbac.v3.SourcedMetadata",
        enforced: &["metadata_matcher", "metadata_source"],
        listed: &[],
    },
    Coverage { message: "envoy.type.matcher.v3.PathMatcher", enforced: &["path"], listed: &[] },
    Coverage {
        message: "envoy.type.matcher.v3.FilterStateMatcher",
        enforced: &["key", "string_match", "address_match"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.Int32Range", enforced: &["start", "end"], listed: &[] },
];

type Compiled = Result<Rule, FieldError>;

impl Engine {
    fn compile(rules: &pb::Rbac, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let action = action(rules.action, context)?;
        let mut sorted: Vec<_> = rules.policies.iter().collect();
        sorted.sort_by_key(|(name, _)| *name);
        let compile = |(name, policy): (&String, &pb::Policy)| {
            context.within(&format!("policies[{name:?}]"), |context| Policy::compile(name, policy, context))
        };
        Ok(Self::Policies(action, sorted.into_iter().map(compile).collect::<Result<_, _>>()?))
    }

    /// Of rules and a matcher tree the tree acts, as in Envoy; `fields` are where they stand.
    pub(crate) fn compile_either(
        fields: (&str, &str),
        given: (Option<&pb::Rbac>, Option<&Matcher>),
        inputs: Inputs,
        context: &mut CompileContext<'_>,
    ) -> Result<Option<Self>, FieldError> {
        match given {
            (_, Some(matcher)) => {
                context.within(fields.1, |context| Self::compile_matcher(matcher, inputs, context)).map(Some)
            }
            (Some(rules), None) => context.within(fields.0, |context| Self::compile(rules, context)).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// A matcher tree; `inputs` says what it may look at.
    fn compile_matcher(
        matcher: &Matcher,
        inputs: Inputs,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let tree = crate::matching::Matcher::compile(matcher, inputs, context, &mut leaf)?;
        let logs = tree.actions().iter().any(|leaf| leaf.action == Action::Log);
        Ok(Self::Matcher { tree, logs })
    }
}

fn action(action: i32, context: &CompileContext<'_>) -> Result<Action, FieldError> {
    match pb::rbac::Action::try_from(action) {
        Ok(pb::rbac::Action::Allow) => Ok(Action::Allow),
        Ok(pb::rbac::Action::Deny) => Ok(Action::Deny),
        Ok(pb::rbac::Action::Log) => Ok(Action::Log),
        Err(_) => Err(context.error_at("action", "no such action")),
    }
}

fn leaf(extension: &TypedExtensionConfig, context: &mut CompileContext<'_>) -> Result<Leaf, FieldError> {
    context.within("typed_config", |context| {
        let config = extension.typed_config.clone().unwrap_or_default();
        let config: pb::Action = any::unpack(&config, &context.path)?;
        Ok(Leaf { action: action(config.action, context)?, name: config.name })
    })
}

impl Policy {
    fn compile(name: &str, policy: &pb::Policy, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        Ok(Self {
            name: name.to_owned(),
            permissions: Rule::Or(permissions("permissions", &policy.permissions, context, 0)?),
            principals: Rule::Or(principals("principals", &policy.principals, context, 0)?),
            condition: condition(policy, context)?,
        })
    }
}

/// A checked expression goes for its expression: what the checker found is not looked at, as in Envoy.
fn condition(policy: &pb::Policy, context: &CompileContext<'_>) -> Result<Option<Expression>, FieldError> {
    let checked = policy.checked_condition.as_ref().map(|checked| checked.expr.clone().unwrap_or_default());
    let (field, expression) = match (&policy.condition, &checked) {
        (Some(condition), _) => ("condition", condition),
        (None, Some(checked)) => ("checked_condition", checked),
        (None, None) => return Ok(None),
    };
    let compiled = Expression::compile_parsed(expression, Functions::compile(policy.cel_config.as_ref()));
    compiled.map(Some).map_err(|error| context.error_at(field, format!("failed to create an expression: {error}")))
}

fn permissions(
    field: &str,
    all: &[pb::Permission],
    context: &mut CompileContext<'_>,
    depth: usize,
) -> Result<Vec<Rule>, FieldError> {
    let compile = |(index, one)| context.within_item(field, index, |context| permission(one, context, depth + 1));
    all.iter().enumerate().map(compile).collect()
}

fn principals(
    field: &str,
    all: &[pb::Principal],
    context: &mut CompileContext<'_>,
    depth: usize,
) -> Result<Vec<Rule>, FieldError> {
    let compile = |(index, one)| context.within_item(field, index, |context| principal(one, context, depth + 1));
    all.iter().enumerate().map(compile).collect()
}

#[expect(deprecated, reason = "Envoy takes the deprecated kinds too")]
fn permission(message: &pb::Permission, context: &mut CompileContext<'_>, depth: usize) -> Compiled {
    use pb::permission::Rule as From;
    if depth > MAX_DEPTH {
        return Err(context.error("nested too deeply"));
    }
    Ok(match &message.rule {
        Some(From::AndRules(set)) => Rule::And(permissions("and_rules.rules", &set.rules, context, depth)?),
        Some(From::OrRules(set)) => Rule::Or(permissions("or_rules.rules", &set.rules, context, depth)?),
        Some(From::NotRule(rule)) => {
            Rule::Not(Box::new(context.within("not_rule", |context| permission(rule, context, depth + 1))?))
        }
        Some(From::Any(_)) => Rule::Any,
        Some(From::Header(header)) => Rule::Header(context.within("header", |c| HeaderMatcher::compile(header, c))?),
        Some(From::UrlPath(path)) => context.within("url_path", |context| url_path(path, context))?,
        Some(From::DestinationIp(range)) => ip("destination_ip", Whose::Destination, range, context)?,
        Some(From::DestinationPort(port)) => Rule::Ports(*port..*port + 1),
        Some(From::DestinationPortRange(range)) => match (u32::try_from(range.start), u32::try_from(range.end)) {
            (Ok(start), Ok(end)) if start < end && end <= 65_536 => Rule::Ports(start..end),
            _ => return Err(context.error_at("destination_port_range", "0 <= start < end <= 65536 is required")),
        },
        Some(From::Metadata(metadata)) => {
            Rule::Metadata(context.within("metadata", |context| MetadataMatcher::compile(metadata, context))?)
        }
        Some(From::SourcedMetadata(metadata)) => {
            context.within("sourced_metadata", |context| sourced_metadata(metadata, context))?
        }
        Some(From::RequestedServerName(name)) => {
            Rule::ServerName(context.within("requested_server_name", |c| StringMatcher::compile(name, c))?)
        }
        Some(From::Matcher(matcher)) => context.within("matcher", |context| upstream(matcher, context))?,
        Some(From::UriTemplate(template)) => {
            context.within("uri_template", |context| uri_template(template, context))?
        }
        None => return Err(context.error("a rule is required")),
    })
}

#[expect(deprecated, reason = "Envoy takes the deprecated kinds too")]
fn principal(message: &pb::Principal, context: &mut CompileContext<'_>, depth: usize) -> Compiled {
    use pb::principal::Identifier as From;
    if depth > MAX_DEPTH {
        return Err(context.error("nested too deeply"));
    }
    Ok(match &message.identifier {
        Some(From::AndIds(set)) => Rule::And(principals("and_ids.ids", &set.ids, context, depth)?),
        Some(From::OrIds(set)) => Rule::Or(principals("or_ids.ids", &set.ids, context, depth)?),
        Some(From::NotId(id)) => {
            Rule::Not(Box::new(context.within("not_id", |context| principal(id, context, depth + 1))?))
        }
        Some(From::Any(_)) => Rule::Any,
        Some(From::Authenticated(authenticated)) => {
            let compile = |name| context.within("authenticated.principal_name", |c| StringMatcher::compile(name, c));
            Rule::Authenticated(authenticated.principal_name.as_ref().map(compile).transpose()?)
        }
        Some(From::SourceIp(range)) => ip("source_ip", Whose::Source, range, context)?,
        Some(From::DirectRemoteIp(range)) => ip("direct_remote_ip", Whose::DirectRemote, range, context)?,
        Some(From::RemoteIp(range)) => ip("remote_ip", Whose::Remote, range, context)?,
        Some(From::Header(header)) => Rule::Header(context.within("header", |c| HeaderMatcher::compile(header, c))?),
        Some(From::UrlPath(path)) => context.within("url_path", |context| url_path(path, context))?,
        Some(From::Metadata(metadata)) => {
            Rule::Metadata(context.within("metadata", |context| MetadataMatcher::compile(metadata, context))?)
        }
        Some(From::SourcedMetadata(metadata)) => {
            context.within("sourced_metadata", |context| sourced_metadata(metadata, context))?
        }
        Some(From::FilterState(state)) => context.within("filter_state", |context| filter_state(state, context))?,
        Some(From::Custom(config)) => context.within("custom", |context| {
            let config: MutualTlsConfig = extension(config, context)?;
            context.within("typed_config", |context| mutual_tls::compile(&config, context))
        })?,
        None => return Err(context.error("an identifier is required")),
    })
}

fn ip(field: &str, whose: Whose, range: &core::CidrRange, context: &mut CompileContext<'_>) -> Compiled {
    context.within(field, |context| Cidr::compile(range, context)).map(|range| Rule::Ip(whose, range))
}

fn url_path(path: &matcher::PathMatcher, context: &mut CompileContext<'_>) -> Compiled {
    match &path.rule {
        Some(matcher::path_matcher::Rule::Path(path)) => {
            context.within("path", |context| StringMatcher::compile(path, context)).map(Rule::Path)
        }
        None => Err(context.error("a rule is required")),
    }
}

fn sourced_metadata(metadata: &pb::SourcedMetadata, context: &mut CompileContext<'_>) -> Compiled {
    let Some(matcher) = &metadata.metadata_matcher else {
        return Err(context.error_at("metadata_matcher", "must be set"));
    };
    let compiled = context.within("metadata_matcher", |context| MetadataMatcher::compile(matcher, context))?;
    Ok(match pb::MetadataSource::try_from(metadata.metadata_source) {
        Ok(pb::MetadataSource::Route) => Rule::RouteMetadata(compiled),
        Ok(pb::MetadataSource::Dynamic) | Err(_) => Rule::Metadata(compiled),
    })
}

/// The one extension that may stand at a place.
fn extension<M: prost::Message + prost::Name + Default>(
    config: &core::TypedExtensionConfig,
    context: &CompileContext<'_>,
) -> Result<M, FieldError> {
    let config = config.typed_config.clone().unwrap_or_default();
    if any::type_name(&config.type_url) != Some(&M::full_name()) {
        return Err(context.error_at("typed_config", format!("not supported yet: {}", config.type_url)));
    }
    any::unpack(&config, &context.path.clone().field("typed_config"))
}

fn uri_template(config: &core::TypedExtensionConfig, context: &CompileContext<'_>) -> Compiled {
    let config: UriTemplateMatchConfig = extension(config, context)?;
    let compiled = UriTemplate::new(&config.path_template);
    compiled.map(Rule::Template).map_err(|error| context.error_at("typed_config.path_template", error.to_string()))
}

fn upstream(config: &core::TypedExtensionConfig, context: &mut CompileContext<'_>) -> Compiled {
    let config: UpstreamIpPortMatcher = extension(config, context)?;
    context.within("typed_config", |context| {
        if config.upstream_ip.is_none() && config.upstream_port_range.is_none() {
            let reason =
                "Invalid UpstreamIpPortMatcher configuration - missing `upstream_ip` and/or `upstream_port_range`";
            return Err(context.error(reason));
        }
        let ip = config.upstream_ip.as_ref();
        let ip = ip.map(|ip| context.within("upstream_ip", |context| Cidr::compile(ip, context))).transpose()?;
        let port = |port: i64| u32::try_from(port.clamp(0, 65_536)).unwrap_or(0);
        let ports = config.upstream_port_range.as_ref();
        let ports = ports.map(|Int64Range { start, end }| port(*start)..port(*end));
        Ok(Rule::Upstream(UpstreamRange { ip, ports }))
    })
}

fn filter_state(state: &matcher::FilterStateMatcher, context: &mut CompileContext<'_>) -> Compiled {
    use matcher::filter_state_matcher::Matcher;
    let compiled = match &state.matcher {
        Some(Matcher::StringMatch(text)) => {
            State::Text(context.within("string_match", |context| StringMatcher::compile(text, context))?)
        }
        Some(Matcher::AddressMatch(address)) => {
            State::Address(context.within("address_match", |context| AddressMatcher::compile(address, context))?)
        }
        None => return Err(context.error("a matcher is required")),
    };
    Ok(Rule::FilterState(state.key.as_str().into(), compiled))
}
