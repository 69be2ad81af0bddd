//! `RateLimit.Action`: what gives one entry of a descriptor. It must not know what becomes of the entries.
//!
//! Refused: `dynamic_metadata`, which Envoy refuses by default too, and extensions other than CEL and matcher inputs.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use prost::Name;
use serde_json::{Map, Value};
use tidegate_xds::pb::envoy::config::core::v3::TypedExtensionConfig;
use tidegate_xds::pb::envoy::config::route::v3 as pb;
use tidegate_xds::pb::envoy::config::route::v3::rate_limit::action as pb_action;
use tidegate_xds::pb::envoy::extensions::rate_limit_descriptors::expr::v3 as pb_expr;
use tidegate_xds::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use tidegate_xds::{Coverage, FieldError, any};

use super::rate_limit::Entry;
use super::{HeaderKey, Headers, RequestHead, StreamContext};
use crate::context::CompileContext;
use crate::format::{Format, FormatContext};
use crate::matching::cel::{self, Expression, Functions};
use crate::matching::{AddressMatcher, Cidr, HeaderMatcher, Inputs, LoneInput, MatchData, QueryParameterMatcher};

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action",
        enforced: &[
            "source_cluster",
            "destination_cluster",
            "request_headers",
            "query_parameters",
            "remote_address",
            "generic_key",
            "header_value_match",
            "metadata",
            "masked_remote_address",
            "query_parameter_value_match",
            "remote_address_match",
            "extension",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.config.route.v3.RateLimit.Action.SourceCluster", enforced: &[], listed: &[] },
    Coverage { message: "envoy.config.route.v3.RateLimit.Action.DestinationCluster", enforced: &[], listed: &[] },
    Coverage { message: "envoy.config.route.v3.RateLimit.Action.RemoteAddress", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.RequestHeaders",
        enforced: &["header_name", "descriptor_key", "skip_if_absent"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.QueryParameters",
        enforced: &["query_parameter_name", "descriptor_key", "skip_if_absent"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.GenericKey",
        enforced: &["descriptor_value", "descriptor_key"],
        listed: &[(DEFAULT_VALUE, DEFAULT_VALUE_REASON)],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.HeaderValueMatch",
        enforced: &["descriptor_value", "descriptor_key", "expect_match", "headers"],
        listed: &[(DEFAULT_VALUE, DEFAULT_VALUE_REASON)],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.MetaData",
        enforced: &["descriptor_key", "metadata_key", "default_value", "source", "skip_if_absent"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.MaskedRemoteAddress",
        enforced: &["v4_prefix_mask_len", "v6_prefix_mask_len"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch",
        enforced: &["descriptor_value", "descriptor_key", "expect_match", "query_parameters"],
        listed: &[(DEFAULT_VALUE, DEFAULT_VALUE_REASON)],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch",
        enforced: &["descriptor_value", "descriptor_key", "default_value", "address_matcher"],
        listed: &[],
    },
    Coverage { message: "envoy.type.metadata.v3.MetadataKey", enforced: &["key", "path"], listed: &[] },
    Coverage { message: "envoy.type.metadata.v3.MetadataKey.PathSegment", enforced: &["key", "index"], listed: &[] },
    Coverage {
        message: "envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor",
        enforced: &["descriptor_key", "skip_if_error", "text", "parsed"],
        listed: &[],
    },
];

const DEFAULT_VALUE: &str = "default_value";
const DEFAULT_VALUE_REASON: &str = "acts only on values with commands, which Envoy takes literally by default";

#[derive(Debug)]
pub(super) enum Action {
    SourceCluster { key: Arc<str> },
    DestinationCluster { key: Arc<str> },
    RemoteAddress { key: Arc<str> },
    MaskedRemoteAddress { key: Arc<str>, v4: u8, v6: u8 },
    RequestHeader { header: HeaderKey, key: Arc<str>, skip_if_absent: bool },
    QueryParameter { name: Box<[u8]>, key: Arc<str>, skip_if_absent: bool },
    Fixed(Entry),
    Headers { entry: Entry, expect: bool, headers: Vec<HeaderMatcher> },
    Query { entry: Entry, expect: bool, parameters: Vec<QueryParameterMatcher> },
    RemoteAddressMatch { key: Arc<str>, value: Format, default: String, matcher: AddressMatcher },
    Metadata(Metadata),
    Expression { key: Arc<str>, expression: Expression, skip_if_error: bool },
    Input { key: Arc<str>, input: LoneInput },
}

#[derive(Debug)]
pub(super) struct Metadata {
    key: Arc<str>,
    source: pb_action::meta_data::Source,
    namespace: String,
    path: Vec<Segment>,
    default: String,
    skip_if_absent: bool,
}

/// What one action gives.
pub(super) enum Found {
    Entry(Entry),
    Skipped,
    Dropped,
}

impl Found {
    fn or_absent(key: &Arc<str>, value: Option<&[u8]>, skip_if_absent: bool) -> Self {
        match value {
            Some(value) => Self::entry(key, value),
            None if skip_if_absent => Self::Skipped,
            None => Self::Dropped,
        }
    }

    fn entry(key: &Arc<str>, value: &[u8]) -> Self {
        Self::Entry(Entry { key: Arc::clone(key), value: value.into() })
    }

    fn when(holds: bool, entry: &Entry) -> Self {
        if holds { Self::Entry(entry.clone()) } else { Self::Dropped }
    }
}

impl Action {
    pub(super) fn compile(
        action: &pb::rate_limit::Action,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        use pb_action::ActionSpecifier as Specifier;
        Ok(match &action.action_specifier {
            Some(Specifier::SourceCluster(_)) => Self::SourceCluster { key: "source_cluster".into() },
            Some(Specifier::DestinationCluster(_)) => Self::DestinationCluster { key: "destination_cluster".into() },
            Some(Specifier::RemoteAddress(_)) => Self::RemoteAddress { key: "remote_address".into() },
            Some(Specifier::MaskedRemoteAddress(masked)) => Self::MaskedRemoteAddress {
                key: "masked_remote_address".into(),
                v4: mask(masked.v4_prefix_mask_len.as_ref().map(|length| length.value), 32),
                v6: mask(masked.v6_prefix_mask_len.as_ref().map(|length| length.value), 128),
            },
            Some(Specifier::RequestHeaders(header)) => Self::RequestHeader {
                header: HeaderKey::new(&header.header_name),
                key: header.descriptor_key.as_str().into(),
                skip_if_absent: header.skip_if_absent,
            },
            Some(Specifier::QueryParameters(parameter)) => Self::QueryParameter {
                name: parameter.query_parameter_name.as_bytes().into(),
                key: parameter.descriptor_key.as_str().into(),
                skip_if_absent: parameter.skip_if_absent,
            },
            Some(Specifier::GenericKey(generic)) => {
                Self::Fixed(entry(&generic.descriptor_key, "generic_key", &generic.descriptor_value))
            }
            Some(Specifier::HeaderValueMatch(of)) => Self::Headers {
                entry: entry(&of.descriptor_key, "header_match", &of.descriptor_value),
                expect: of.expect_match.as_ref().is_none_or(|expect| expect.value),
                headers: context.within("header_value_match", |context| {
                    HeaderMatcher::compile_all(&of.headers, "headers", context)
                })?,
            },
            Some(Specifier::QueryParameterValueMatch(of)) => Self::Query {
                entry: entry(&of.descriptor_key, "query_match", &of.descriptor_value),
                expect: of.expect_match.as_ref().is_none_or(|expect| expect.value),
                parameters: context
                    .within("query_parameter_value_match", |context| query_parameters(&of.query_parameters, context))?,
            },
            Some(Specifier::RemoteAddressMatch(of)) => {
                context.within("remote_address_match", |context| Self::remote_address_match(of, context))?
            }
            Some(Specifier::Metadata(metadata)) => Self::Metadata(Metadata::compile(metadata)),
            Some(Specifier::Extension(extension)) => {
                context.within("extension", |context| Self::extension(extension, context))?
            }
            #[expect(deprecated, reason = "named to be refused, as Envoy does by default")]
            Some(Specifier::DynamicMetadata(_)) => {
                return Err(context.error_at("dynamic_metadata", "not supported yet: dynamic_metadata"));
            }
            None => return Err(context.error("an action is required")),
        })
    }

    fn remote_address_match(
        of: &pb_action::RemoteAddressMatch,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let key = if of.descriptor_key.is_empty() { "remote_address_match" } else { &of.descriptor_key };
        let value = Format::compile_omitting_empty(&of.descriptor_value);
        let matcher = of.address_matcher.clone().unwrap_or_default();
        Ok(Self::RemoteAddressMatch {
            key: key.into(),
            value: value.map_err(|error| context.error_at("descriptor_value", error.to_string()))?,
            default: of.default_value.clone(),
            matcher: context.within("address_matcher", |context| AddressMatcher::compile(&matcher, context))?,
        })
    }

    /// A CEL expression, or else an input of matchers under the extension's name.
    fn extension(extension: &TypedExtensionConfig, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        let config = extension.typed_config.clone().unwrap_or_default();
        context.within("typed_config", |context| {
            if any::type_name(&config.type_url) != Some(&pb_expr::Descriptor::full_name()) {
                let input = LoneInput::compile(&config, Inputs::HttpRequest, context)?;
                return Ok(Self::Input { key: extension.name.as_str().into(), input });
            }
            use pb_expr::descriptor::ExprSpecifier;
            let descriptor: pb_expr::Descriptor = any::unpack(&config, &context.path)?;
            let (field, expression) = match &descriptor.expr_specifier {
                Some(ExprSpecifier::Text(text)) => ("text", Expression::compile(text, Functions::default())),
                Some(ExprSpecifier::Parsed(parsed)) => {
                    ("parsed", Expression::compile_parsed(parsed, Functions::default()))
                }
                None => return Err(context.error("an expression is required")),
            };
            let expression = expression.map_err(|error| context.error_at(field, error.to_string()))?;
            let (key, skip_if_error) = (descriptor.descriptor_key.as_str().into(), descriptor.skip_if_error);
            Ok(Self::Expression { key, expression, skip_if_error })
        })
    }

    pub(super) fn entry(&self, head: &RequestHead, stream: &StreamContext) -> Found {
        match self {
            Self::SourceCluster { key } => Found::entry(key, stream.services.node_cluster().as_bytes()),
            Self::DestinationCluster { key } => {
                let cluster = stream.route.as_ref().and_then(|route| route.cluster());
                Found::or_absent(key, cluster.map(str::as_bytes), false)
            }
            Self::RemoteAddress { key } => {
                let address = remote(stream).map(|address| address.to_string());
                Found::or_absent(key, address.as_deref().map(str::as_bytes), false)
            }
            Self::MaskedRemoteAddress { key, v4, v6 } => {
                let masked = remote(stream).map(|address| {
                    let length = if address.is_ipv4() { *v4 } else { *v6 };
                    Cidr::new(address, length).to_string()
                });
                Found::or_absent(key, masked.as_deref().map(str::as_bytes), false)
            }
            Self::RequestHeader { header, key, skip_if_absent } => {
                Found::or_absent(key, head.first(header), *skip_if_absent)
            }
            Self::QueryParameter { name, key, skip_if_absent } => {
                let value = head.query().and_then(|query| decoded(query).find(|(key, _)| **key == **name));
                Found::or_absent(key, value.as_ref().map(|(_, value)| &**value), *skip_if_absent)
            }
            Self::Fixed(entry) => Found::Entry(entry.clone()),
            Self::Headers { entry, expect, headers } => {
                Found::when(headers.iter().all(|matcher| matcher.matches(head)) == *expect, entry)
            }
            Self::Query { entry, expect, parameters } => {
                let query = head.query().map(decoded_query);
                Found::when(parameters.iter().all(|matcher| matcher.matches(query.as_deref())) == *expect, entry)
            }
            Self::RemoteAddressMatch { key, value, default, matcher } => {
                let matches = remote(stream).is_some_and(|address| matcher.matches(address));
                let text = matches.then(|| rendered(value, head, stream));
                let text = text.map(|text| if text.is_empty() { default.clone().into_bytes() } else { text });
                Found::or_absent(key, text.as_deref().filter(|text| !text.is_empty()), false)
            }
            Self::Metadata(metadata) => metadata.entry(stream),
            Self::Expression { key, expression, skip_if_error } => {
                let facts = cel::Facts { request: Some(head), ..cel::Facts::of(&stream.info) };
                let value = expression.text(&cel::Facts { route: stream.route.as_deref(), ..facts });
                Found::or_absent(key, value.as_deref().map(str::as_bytes), *skip_if_error)
            }
            Self::Input { key, input } => {
                let value = input.read(&MatchData::of_request(&stream.info, head));
                Found::or_absent(key, value.as_deref().filter(|value| !value.is_empty()), false)
            }
        }
    }
}

impl Metadata {
    fn compile(metadata: &pb_action::MetaData) -> Self {
        let key = metadata.metadata_key.clone().unwrap_or_default();
        Self {
            key: metadata.descriptor_key.as_str().into(),
            source: metadata.source(),
            namespace: key.key,
            path: key.path.into_iter().filter_map(|segment| segment.segment).collect(),
            default: metadata.default_value.clone(),
            skip_if_absent: metadata.skip_if_absent,
        }
    }

    fn entry(&self, stream: &StreamContext) -> Found {
        use pb_action::meta_data::Source;
        let info = &stream.info;
        let values = match self.source {
            Source::Dynamic => info.dynamic_metadata.namespace(&self.namespace),
            Source::ClusterEntry => {
                info.upstream.cluster_metadata.as_deref().and_then(|metadata| metadata.namespace(&self.namespace))
            }
            // Known once a host is chosen, which is after the filters.
            Source::ClusterLocalityEntry => None,
            Source::RouteEntry => stream.route.as_ref().and_then(|route| route.metadata(&self.namespace)),
        };
        let text = values.and_then(|values| self.find(values)).and_then(Value::as_str).filter(|text| !text.is_empty());
        let text = text.or(Some(self.default.as_str()).filter(|default| !default.is_empty()));
        Found::or_absent(&self.key, text.map(str::as_bytes), self.skip_if_absent)
    }

    fn find<'a>(&self, values: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.path.split_first()?;
        let Segment::Key(first) = first else { return None };
        rest.iter().try_fold(values.get(first)?, |value, segment| match segment {
            Segment::Key(key) => value.as_object()?.get(key),
            Segment::Index(index) => value.as_array()?.get(usize::try_from(*index).ok()?),
        })
    }
}

/// A value that may refer to the request; what is not there leaves nothing.
pub(super) fn rendered(format: &Format, head: &RequestHead, stream: &StreamContext) -> Vec<u8> {
    let mut text = Vec::new();
    format.render(&FormatContext { request: Some(head), ..FormatContext::of(&stream.info) }, &mut text);
    text
}

fn remote(stream: &StreamContext) -> Option<IpAddr> {
    stream.info.downstream_remote.ip().map(|address| address.ip())
}

/// The parameters of a query with `%XX` decoded, unlike where routes match on them (measured on Envoy 1.40).
fn decoded(query: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    crate::matching::query_parameters(query).map(|(key, value)| (percent_decode(key), percent_decode(value)))
}

/// A query of decoded parameters, for matchers that take it whole.
fn decoded_query(query: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(query.len());
    for (key, value) in decoded(query) {
        all.extend_from_slice(&key);
        all.push(b'=');
        all.extend_from_slice(&value);
        all.push(b'&');
    }
    all
}

fn percent_decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let pair = text.get(at + 1..at + 3).and_then(|pair| hex(pair[0]).zip(hex(pair[1])));
        match pair {
            Some((high, low)) if text[at] == b'%' => {
                out.push(high * 16 + low);
                at += 3;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

fn mask(length: Option<u32>, default: u8) -> u8 {
    length.and_then(|length| u8::try_from(length).ok()).unwrap_or(default)
}

fn entry(key: &str, default_key: &str, value: &str) -> Entry {
    Entry { key: if key.is_empty() { default_key } else { key }.into(), value: value.as_bytes().into() }
}

fn query_parameters(
    matchers: &[pb::QueryParameterMatcher],
    context: &mut CompileContext<'_>,
) -> Result<Vec<QueryParameterMatcher>, FieldError> {
    let compile = |(index, matcher)| {
        context.within_item("query_parameters", index, |c| QueryParameterMatcher::compile(matcher, c))
    };
    matchers.iter().enumerate().map(compile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured on Envoy 1.40.
    #[test]
    fn query_parameters_are_decoded_but_for_plus_signs() {
        let found: Vec<_> =
            decoded(b"q=%61&%71=a+b&z=%4").map(|(k, v)| [k.into_owned(), v.into_owned()].concat()).collect();
        assert_eq!(found, [b"qa".to_vec(), b"qa+b".to_vec(), b"z%4".to_vec()]);
        assert_eq!(decoded_query(b"q=%61"), b"q=a&");
    }
}
