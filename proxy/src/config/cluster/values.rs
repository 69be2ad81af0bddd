//! Scalars of configuration messages as domain values. It must not know which field they stand in.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use prost::Message;
use serde_json::{Map, Value};
use tidegate_filters::context::CompileContext;
use tidegate_filters::listener::HOST_TLVS;
use tidegate_filters::metadata::Metadata;
use tidegate_filters::runtime::Fraction;
use tidegate_xds::pb::envoy::config::core::v3::Metadata as MetadataProto;
use tidegate_xds::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use tidegate_xds::pb::envoy::r#type::v3::{FractionalPercent, Percent};
use tidegate_xds::pb::google::protobuf::{Duration as DurationProto, Struct};
use tidegate_xds::{FieldError, to_json};

/// A duration to the millisecond, as Envoy reads nearly all of them; negative ones are refused.
pub(crate) fn duration(
    proto: Option<&DurationProto>,
    field: &str,
    context: &CompileContext<'_>,
) -> Result<Option<Duration>, FieldError> {
    let Some(proto) = proto else { return Ok(None) };
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(proto.seconds), u64::try_from(proto.nanos)) else {
        return Err(context.error_at(field, "expected a positive duration"));
    };
    Ok(Some(Duration::from_millis(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))))
}

/// A duration where 0 means none.
pub(crate) fn limit(
    proto: Option<&DurationProto>,
    field: &str,
    context: &CompileContext<'_>,
) -> Result<Option<Duration>, FieldError> {
    Ok(duration(proto, field, context)?.filter(|duration| !duration.is_zero()))
}

/// A percentage truncated to a whole one.
pub(crate) fn whole_percent(percent: Option<&Percent>, default: u32) -> u32 {
    percent.map_or(default, |percent| percent.value as u32)
}

/// A `FractionalPercent`.
pub(crate) fn fraction(percent: &FractionalPercent) -> Fraction {
    let denominator = match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        _ => 100,
    };
    Fraction { key: None, numerator: u64::from(percent.numerator), denominator }
}

/// A struct as JSON.
pub(crate) fn object(proto: &Struct) -> Map<String, Value> {
    match to_json("google.protobuf.Struct", &proto.encode_to_vec()) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The `filter_metadata` of a metadata message.
/// The same, to be shared: most have none.
pub(crate) fn shared_metadata(proto: Option<&MetadataProto>) -> Arc<Metadata> {
    static NONE: LazyLock<Arc<Metadata>> = LazyLock::new(Arc::default);
    if proto.is_none() {
        return Arc::clone(&NONE);
    }
    Arc::new(metadata(proto))
}

pub(crate) fn metadata(proto: Option<&MetadataProto>) -> Metadata {
    let mut metadata = Metadata::default();
    for (namespace, values) in proto.into_iter().flat_map(|proto| &proto.filter_metadata) {
        metadata.set(namespace, object(values));
    }
    // Nobody else reads any.
    let typed = proto.and_then(|proto| proto.typed_filter_metadata.get(HOST_TLVS));
    if let Some(typed) = typed {
        metadata.set_typed(HOST_TLVS, typed.clone());
    }
    metadata
}
