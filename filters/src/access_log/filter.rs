//! Access log filters: which streams are logged. Local reply mappers use them too.
//! They must not know where a line goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use tidegate_xds::pb::envoy::config::accesslog::v3 as pb;
use tidegate_xds::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use tidegate_xds::pb::envoy::r#type::v3 as types;
use tidegate_xds::{Coverage, FieldError, any};

use crate::context::CompileContext;
use crate::format::{self, AccessLogType, FormatContext};
use crate::matching::cel::{Expression, Functions};
use crate::matching::{HeaderMatcher, MetadataMatcher, MetadataPath, ValueMatcher};
use crate::runtime::Keyed;
use crate::stream_info::ResponseFlags;

const EXPRESSION: &str = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";

/// The fields that act in the messages compiled here.
pub(super) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.accesslog.v3.AccessLogFilter",
        enforced: &[
            "status_code_filter",
            "duration_filter",
            "not_health_check_filter",
            "traceable_filter",
            "runtime_filter",
            "and_filter",
            "or_filter",
            "header_filter",
            "response_flag_filter",
            "grpc_status_filter",
            "extension_filter",
            "metadata_filter",
            "log_type_filter",
        ],
        listed: &[],
    },
    Coverage { message: "envoy.config.accesslog.v3.ComparisonFilter", enforced: &["op", "value"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.StatusCodeFilter", enforced: &["comparison"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.DurationFilter", enforced: &["comparison"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.NotHealthCheckFilter", enforced: &[], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.TraceableFilter", enforced: &[], listed: &[] },
    Coverage {
        message: "envoy.config.accesslog.v3.RuntimeFilter",
        enforced: &["runtime_key", "percent_sampled", "use_independent_randomness"],
        listed: &[],
    },
    Coverage { message: "envoy.config.accesslog.v3.AndFilter", enforced: &["filters"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.OrFilter", enforced: &["filters"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.HeaderFilter", enforced: &["header"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.ResponseFlagFilter", enforced: &["flags"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.GrpcStatusFilter", enforced: &["statuses", "exclude"], listed: &[] },
    Coverage {
        message: "envoy.config.accesslog.v3.MetadataFilter",
        enforced: &["matcher", "match_if_key_not_found"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.accesslog.v3.ExtensionFilter",
        enforced: &["typed_config"],
        listed: &[("name", "filters are found by the type of their configuration")],
    },
    Coverage { message: EXPRESSION, enforced: &["expression", "cel_config"], listed: &[] },
    Coverage { message: "envoy.config.accesslog.v3.LogTypeFilter", enforced: &["types", "exclude"], listed: &[] },
    Coverage {
        message: "envoy.config.core.v3.RuntimeUInt32",
        enforced: &["default_value", "runtime_key"],
        listed: &[],
    },
    Coverage { message: "envoy.type.v3.FractionalPercent", enforced: &["numerator", "denominator"], listed: &[] },
];

/// A compiled `AccessLogFilter`.
#[derive(Debug, Clone)]
pub enum Filter {
    Status(Comparison),
    /// In milliseconds.
    Duration(Comparison),
    NotHealthCheck,
    /// Never without tracing.
    Traceable,
    Runtime(Sampling),
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Header(HeaderMatcher),
    /// Any of these flags.
    Flags(Vec<ResponseFlags>),
    GrpcStatus {
        statuses: BTreeSet<i64>,
        exclude: bool,
    },
    /// `None` looks for nothing, and so finds nothing.
    Metadata {
        matcher: Option<(MetadataPath, ValueMatcher)>,
        otherwise: bool,
    },
    Expression(Expression),
    LogType {
        types: Vec<AccessLogType>,
        exclude: bool,
    },
}

/// A comparison with a number that the runtime may replace.
#[derive(Debug, Clone)]
pub struct Comparison {
    op: Op,
    value: Keyed<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
}

/// A share of the streams.
#[derive(Debug, Clone)]
pub struct Sampling {
    key: Arc<str>,
    numerator: u64,
    denominator: u64,
    /// Draw anew, not by the request's id.
    independent: bool,
}

/// Filters nested deeper than this are refused.
const MAX_DEPTH: usize = 32;

impl Filter {
    /// # Errors
    /// Filters that are not supported, or a matcher in them that does not compile.
    pub fn compile(filter: &pb::AccessLogFilter, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        Self::nested(filter, context, 0)
    }

    fn nested(
        filter: &pb::AccessLogFilter,
        context: &mut CompileContext<'_>,
        depth: usize,
    ) -> Result<Self, FieldError> {
        use pb::access_log_filter::FilterSpecifier as Specifier;
        if depth > MAX_DEPTH {
            return Err(context.error("nested too deeply"));
        }
        match &filter.filter_specifier {
            Some(Specifier::StatusCodeFilter(filter)) => {
                Comparison::compile(filter.comparison.as_ref(), context).map(Self::Status)
            }
            Some(Specifier::DurationFilter(filter)) => {
                Comparison::compile(filter.comparison.as_ref(), context).map(Self::Duration)
            }
            Some(Specifier::NotHealthCheckFilter(_)) => Ok(Self::NotHealthCheck),
            Some(Specifier::TraceableFilter(_)) => Ok(Self::Traceable),
            Some(Specifier::RuntimeFilter(filter)) => Ok(Self::Runtime(Sampling::compile(filter))),
            Some(Specifier::AndFilter(filter)) => {
                many("and_filter.filters", &filter.filters, context, depth).map(Self::All)
            }
            Some(Specifier::OrFilter(filter)) => {
                many("or_filter.filters", &filter.filters, context, depth).map(Self::Any)
            }
            Some(Specifier::HeaderFilter(filter)) => {
                let header = filter.header.clone().unwrap_or_default();
                let compile = |context: &mut _| HeaderMatcher::compile(&header, context);
                context.within("header_filter.header", compile).map(Self::Header)
            }
            Some(Specifier::ResponseFlagFilter(filter)) => Ok(Self::Flags(flags(&filter.flags))),
            Some(Specifier::GrpcStatusFilter(filter)) => Ok(Self::GrpcStatus {
                statuses: filter.statuses.iter().map(|status| i64::from(*status)).collect(),
                exclude: filter.exclude,
            }),
            Some(Specifier::ExtensionFilter(filter)) => {
                context.within("extension_filter", |context| extension(filter, context))
            }
            Some(Specifier::MetadataFilter(filter)) => metadata(filter, context),
            Some(Specifier::LogTypeFilter(filter)) => Ok(Self::LogType {
                types: filter.types.iter().filter_map(|kind| log_type(*kind)).collect(),
                exclude: filter.exclude,
            }),
            None => Err(context.error("a filter is required")),
        }
    }

    /// Whether the stream is logged.
    pub fn matches(&self, context: &FormatContext<'_>) -> bool {
        let info = context.info;
        match self {
            Self::Status(comparison) => {
                comparison.holds(info.response_code.map_or(0, |code| code.as_u16().into()), context)
            }
            Self::Duration(comparison) => {
                let duration = info.end.unwrap_or_else(Instant::now).saturating_duration_since(info.start);
                comparison.holds(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), context)
            }
            Self::NotHealthCheck => !info.health_check_request,
            Self::Traceable => info.traceable && !info.health_check_request,
            Self::Runtime(sampling) => sampling.holds(context),
            Self::All(filters) => filters.iter().all(|filter| filter.matches(context)),
            Self::Any(filters) => filters.iter().any(|filter| filter.matches(context)),
            Self::Header(matcher) => match context.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches(&HeaderMap::new()),
            },
            Self::Flags(flags) if flags.is_empty() => !info.flags.is_empty(),
            Self::Flags(flags) => flags.iter().any(|flag| info.flags.contains(*flag)),
            Self::GrpcStatus { statuses, exclude } => {
                const UNKNOWN: i64 = 2;
                statuses.contains(&format::grpc_status(context).unwrap_or(UNKNOWN)) != *exclude
            }
            Self::Metadata { matcher, otherwise } => {
                let found = matcher.as_ref().map(|(path, value)| (path.find(&info.dynamic_metadata), value));
                match found {
                    Some((Some(found), matcher)) => matcher.matches(Some(found)),
                    _ => *otherwise,
                }
            }
            Self::Expression(expression) => expression.holds(&context.facts()),
            Self::LogType { types, exclude } => types.contains(&context.access_log_type) != *exclude,
        }
    }
}

/// `extension_filter`: found by the type of its configuration.
fn extension(filter: &pb::ExtensionFilter, context: &mut CompileContext<'_>) -> Result<Filter, FieldError> {
    let Some(pb::extension_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        return Err(context.error("a typed_config is required"));
    };
    context.within("typed_config", |context| {
        if any::type_name(&config.type_url) != Some(EXPRESSION) {
            return Err(context.error(format!("not supported yet: {}", config.type_url)));
        }
        let filter: ExpressionFilter = any::unpack(config, &context.path)?;
        let compiled = Expression::compile(&filter.expression, Functions::compile(filter.cel_config.as_ref()));
        compiled.map(Filter::Expression).map_err(|error| context.error_at("expression", error.to_string()))
    })
}

fn many(
    field: &str,
    filters: &[pb::AccessLogFilter],
    context: &mut CompileContext<'_>,
    depth: usize,
) -> Result<Vec<Filter>, FieldError> {
    let compile = |(index, filter)| context.within_item(field, index, |c| Filter::nested(filter, c, depth + 1));
    filters.iter().enumerate().map(compile).collect()
}

fn flags(names: &[String]) -> Vec<ResponseFlags> {
    let known = |name: &String| ResponseFlags::ALL.iter().find(|(_, short, _)| short == name).map(|(flag, ..)| *flag);
    names.iter().filter_map(known).collect()
}

/// `invert` has no part in it, as in Envoy.
fn metadata(filter: &pb::MetadataFilter, context: &mut CompileContext<'_>) -> Result<Filter, FieldError> {
    let compile = |context: &mut CompileContext<'_>| {
        let matcher = filter.matcher.as_ref().map(|matcher| MetadataMatcher::compile(matcher, context));
        matcher.transpose()
    };
    let matcher = context.within("metadata_filter.matcher", compile)?.map(MetadataMatcher::into_parts);
    Ok(Filter::Metadata { matcher, otherwise: filter.match_if_key_not_found.is_none_or(|otherwise| otherwise.value) })
}

fn log_type(kind: i32) -> Option<AccessLogType> {
    use tidegate_xds::pb::envoy::data::accesslog::v3::AccessLogType as Proto;
    Some(match Proto::try_from(kind).ok()? {
        Proto::NotSet => AccessLogType::NotSet,
        Proto::TcpUpstreamConnected => AccessLogType::TcpUpstreamConnected,
        Proto::TcpPeriodic => AccessLogType::TcpPeriodic,
        Proto::TcpConnectionStart => AccessLogType::TcpConnectionStart,
        Proto::TcpConnectionEnd => AccessLogType::TcpConnectionEnd,
        Proto::DownstreamStart => AccessLogType::DownstreamStart,
        Proto::DownstreamPeriodic => AccessLogType::DownstreamPeriodic,
        Proto::DownstreamEnd => AccessLogType::DownstreamEnd,
        Proto::UpstreamPoolReady => AccessLogType::UpstreamPoolReady,
        Proto::UpstreamPeriodic => AccessLogType::UpstreamPeriodic,
        Proto::UpstreamEnd => AccessLogType::UpstreamEnd,
        Proto::DownstreamTunnelSuccessfullyEstablished => AccessLogType::DownstreamTunnelSuccessfullyEstablished,
        Proto::UdpTunnelUpstreamConnected => AccessLogType::UdpTunnelUpstreamConnected,
        Proto::UdpPeriodic => AccessLogType::UdpPeriodic,
        Proto::UdpSessionEnd => AccessLogType::UdpSessionEnd,
    })
}

impl Comparison {
    fn compile(comparison: Option<&pb::ComparisonFilter>, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::comparison_filter::Op as Proto;
        let required = || context.error("a comparison with a value is required");
        let comparison = comparison.ok_or_else(required)?;
        let value = comparison.value.as_ref().ok_or_else(required)?;
        let op = match comparison.op() {
            Proto::Eq => Op::Equal,
            Proto::Ne => Op::NotEqual,
            Proto::Ge => Op::AtLeast,
            Proto::Le => Op::AtMost,
        };
        let key = (!value.runtime_key.is_empty()).then(|| Arc::from(value.runtime_key.as_str()));
        Ok(Self { op, value: Keyed { key, default: value.default_value.into() } })
    }

    fn holds(&self, number: u64, context: &FormatContext<'_>) -> bool {
        let value = self.value.get(context.runtime);
        match self.op {
            Op::Equal => number == value,
            Op::NotEqual => number != value,
            Op::AtLeast => number >= value,
            Op::AtMost => number <= value,
        }
    }
}

impl Sampling {
    fn compile(filter: &pb::RuntimeFilter) -> Self {
        use types::fractional_percent::DenominatorType;
        let percent = filter.percent_sampled.unwrap_or_default();
        Self {
            key: Arc::from(filter.runtime_key.as_str()),
            numerator: percent.numerator.into(),
            denominator: match percent.denominator() {
                DenominatorType::Hundred => 100,
                DenominatorType::TenThousand => 10_000,
                DenominatorType::Million => 1_000_000,
            },
            independent: filter.use_independent_randomness,
        }
    }

    /// An integer in the runtime replaces the numerator.
    fn holds(&self, context: &FormatContext<'_>) -> bool {
        let numerator = context.runtime.integer(&self.key).unwrap_or(self.numerator);
        let of_request = if self.independent { None } else { context.info.request_id.as_ref() };
        let random = of_request.and_then(|id| request_id_number(id.as_bytes())).unwrap_or_else(rand::random);
        random % self.denominator < numerator
    }
}

/// The first eight digits of a UUID as a number, so that all who sample by it agree.
fn request_id_number(id: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(id.get(..8)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests;
