//! `RateLimit`: what a request is counted under. Its actions each give an entry of one descriptor, and one that gives none
//! drops the whole descriptor. It must not know who counts, nor how many are too many.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;
use tidegate_xds::pb::envoy::config::route::v3 as pb;
use tidegate_xds::pb::envoy::config::route::v3::rate_limit::action as pb_action;
use tidegate_xds::pb::envoy::r#type::metadata::v3 as pb_metadata;
use tidegate_xds::{Coverage, FieldError};

use super::{HeaderKey, Headers, RequestHead, StreamContext};
use crate::context::CompileContext;
use crate::matching::{AddressMatcher, Cidr, HeaderMatcher, QueryParameterMatcher};
use crate::runtime;

/// The fields that act in the messages compiled here.
pub const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.route.v3.RateLimit",
        enforced: &["stage", "disable_key", "actions", "hits_addend", "x_ratelimit_option"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.HitsAddend",
        enforced: &["number", "is_negative_hits"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.route.v3.RateLimit.Action",
        enforced: &[
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
        ],
        listed: &[],
    },
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
        enforced: &["descriptor_key", "metadata_key", "default_value", "source=DYNAMIC|ROUTE_ENTRY", "skip_if_absent"],
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
        enforced: &["descriptor_value", "descriptor_key", "address_matcher"],
        listed: &[(DEFAULT_VALUE, DEFAULT_VALUE_REASON)],
    },
    Coverage { message: "envoy.type.metadata.v3.MetadataKey", enforced: &["key", "path"], listed: &[] },
    Coverage { message: "envoy.type.metadata.v3.MetadataKey.PathSegment", enforced: &["key"], listed: &[] },
];

const DEFAULT_VALUE: &str = "default_value";
const DEFAULT_VALUE_REASON: &str = "acts only on values with commands, which Envoy takes literally by default";

/// One entry of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Box<[u8]>,
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub entries: Vec<Entry>,
    pub hits: Hits,
    /// Whether the answer says how much is left; `None` leaves it to the filter.
    pub x_ratelimit: Option<bool>,
}

/// How much a request counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    Take(u64),
    GiveBack(u64),
}

/// A compiled `RateLimit`.
#[derive(Debug)]
pub struct RateLimit {
    /// Which filter of a chain it is for.
    pub stage: u32,
    /// A runtime key that may turn it off; local limits never count one that has a key, as in Envoy.
    pub disable_key: Option<Arc<str>>,
    actions: Vec<Action>,
    hits: Hits,
    x_ratelimit: Option<bool>,
}

#[derive(Debug)]
enum Action {
    DestinationCluster { key: Arc<str> },
    RemoteAddress { key: Arc<str> },
    MaskedRemoteAddress { key: Arc<str>, v4: u8, v6: u8 },
    RequestHeader { header: HeaderKey, key: Arc<str>, skip_if_absent: bool },
    QueryParameter { name: Box<[u8]>, key: Arc<str>, skip_if_absent: bool },
    Fixed(Entry),
    Headers { entry: Entry, expect: bool, headers: Vec<HeaderMatcher> },
    Query { entry: Entry, expect: bool, parameters: Vec<QueryParameterMatcher> },
    RemoteAddressMatch { entry: Entry, matcher: AddressMatcher },
    Metadata(Metadata),
}

#[derive(Debug)]
struct Metadata {
    key: Arc<str>,
    of_route: bool,
    namespace: String,
    path: Vec<String>,
    default: String,
    skip_if_absent: bool,
}

impl RateLimit {
    pub fn compile(limit: &pb::RateLimit, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::rate_limit::XRateLimitOption;
        let compile = |(index, action)| context.within_item("actions", index, |c| Action::compile(action, c));
        let actions = limit.actions.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        let hits = match &limit.hits_addend {
            None => Hits::Take(1),
            Some(hits) => match &hits.number {
                Some(number) if hits.is_negative_hits => Hits::GiveBack(number.value),
                Some(number) => Hits::Take(number.value),
                None => return Err(context.error_at("hits_addend", "must contain either a format or a number")),
            },
        };
        let x_ratelimit = match XRateLimitOption::try_from(limit.x_ratelimit_option) {
            Ok(XRateLimitOption::Off) => Some(false),
            Ok(XRateLimitOption::DraftVersion03) => Some(true),
            Ok(XRateLimitOption::Unspecified) | Err(_) => None,
        };
        let stage = limit.stage.map_or(0, |stage| stage.value);
        Ok(Self { stage, disable_key: runtime::key(&limit.disable_key), actions, hits, x_ratelimit })
    }

    /// Compiles a repeated field of them.
    pub fn compile_all(
        field: &str,
        limits: &[pb::RateLimit],
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let compile = |(index, limit)| context.within_item(field, index, |c| Self::compile(limit, c));
        limits.iter().enumerate().map(compile).collect()
    }

    /// Compiles a filter's own ones: Envoy takes neither stage nor key to disable there.
    pub fn compile_own(
        field: &str,
        limits: &[pb::RateLimit],
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let staged = |limit: &pb::RateLimit| limit.stage.is_some() || !limit.disable_key.is_empty();
        match limits.iter().position(staged) {
            Some(index) => {
                let reason = "'stage' field and 'disable_key' field are not supported";
                Err(context.within_item(field, index, |context| context.error(reason)))
            }
            None => Self::compile_all(field, limits, context),
        }
    }

    /// The descriptor of a request; `None` when an action gives no entry and may not be skipped.
    pub fn descriptor(&self, head: &RequestHead, stream: &StreamContext) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(head, stream) {
                Found::Entry(entry) => entries.push(entry),
                Found::Skipped => {}
                Found::Dropped => return None,
            }
        }
        Some(Descriptor { entries, hits: self.hits, x_ratelimit: self.x_ratelimit })
    }
}

/// What one action gives.
enum Found {
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
    fn compile(action: &pb::rate_limit::Action, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb_action::ActionSpecifier as Specifier;
        let refused = |field: &str| Err(context.error_at(field, format!("not supported yet: {field}")));
        Ok(match &action.action_specifier {
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
            Some(Specifier::RemoteAddressMatch(of)) => Self::RemoteAddressMatch {
                entry: entry(&of.descriptor_key, "remote_address_match", &of.descriptor_value),
                matcher: AddressMatcher::compile(&of.address_matcher.clone().unwrap_or_default(), context)?,
            },
            Some(Specifier::Metadata(metadata)) => {
                Self::Metadata(context.within("metadata", |context| Metadata::compile(metadata, context))?)
            }
            Some(Specifier::SourceCluster(_)) => return refused("source_cluster"),
            Some(Specifier::Extension(_)) => return refused("extension"),
            #[expect(deprecated, reason = "named to be refused, as Envoy does by default")]
            Some(Specifier::DynamicMetadata(_)) => return refused("dynamic_metadata"),
            None => return Err(context.error("an action is required")),
        })
    }

    fn entry(&self, head: &RequestHead, stream: &StreamContext) -> Found {
        match self {
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
            Self::RemoteAddressMatch { entry, matcher } => {
                Found::when(remote(stream).is_some_and(|address| matcher.matches(address)), entry)
            }
            Self::Metadata(metadata) => metadata.entry(stream),
        }
    }
}

impl Metadata {
    fn compile(metadata: &pb_action::MetaData, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        use pb_metadata::metadata_key::path_segment::Segment;
        let key = metadata.metadata_key.clone().unwrap_or_default();
        let segment = |segment: pb_metadata::metadata_key::PathSegment| match segment.segment {
            Some(Segment::Key(key)) => Ok(key),
            _ => Err(context.error_at("metadata_key.path", "not supported yet: a position in a list")),
        };
        Ok(Self {
            key: metadata.descriptor_key.as_str().into(),
            of_route: metadata.source == i32::from(pb_action::meta_data::Source::RouteEntry),
            namespace: key.key,
            path: key.path.into_iter().map(segment).collect::<Result<_, _>>()?,
            default: metadata.default_value.clone(),
            skip_if_absent: metadata.skip_if_absent,
        })
    }

    fn entry(&self, stream: &StreamContext) -> Found {
        let path = || self.path.iter().map(String::as_str);
        let value: Option<Cow<'_, str>> = match (&stream.route, self.of_route) {
            (_, false) => text(stream.info.dynamic_metadata.get(&self.namespace, path())).map(Cow::Borrowed),
            (Some(route), true) => {
                let mut segments = path();
                let first = segments.next().and_then(|key| route.metadata(&self.namespace)?.get(key));
                text(segments.try_fold(first, |value, key| Some(value?.as_object()?.get(key))).flatten())
                    .map(|text| Cow::Owned(text.to_owned()))
            }
            (None, true) => None,
        };
        let value = value.filter(|value| !value.is_empty());
        let value = value.or_else(|| Some(Cow::Borrowed(self.default.as_str())).filter(|value| !value.is_empty()));
        Found::or_absent(&self.key, value.as_deref().map(str::as_bytes), self.skip_if_absent)
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    value?.as_str()
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
