//! `TlvEntry` -> what a PROXY header says beside addresses. It must not know where it stands.

use tidegate_filters::context::CompileContext;
use tidegate_filters::format::SubstitutionFormat;
use tidegate_xds::pb::envoy::config::core::v3::TlvEntry;
use tidegate_xds::{Coverage, FieldError};

use crate::cluster::proxied::{AddedTlv, TlvValue};

/// What is compiled here.
pub(super) const COVERAGE: &[Coverage] = &[Coverage {
    message: "envoy.config.core.v3.TlvEntry",
    enforced: &["type", "value", "format_string"],
    listed: &[],
}];

/// All of a list.
///
/// # Errors
/// One that has no value, or two, as Envoy says it; a format that is none.
pub(super) fn compile(
    entries: &[TlvEntry],
    field: &str,
    context: &mut CompileContext<'_>,
) -> Result<Vec<AddedTlv>, FieldError> {
    let mut added = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        added.push(context.within_item(field, index, |context| one(entry, context))?);
    }
    Ok(added)
}

fn one(entry: &TlvEntry, context: &mut CompileContext<'_>) -> Result<AddedTlv, FieldError> {
    let kind = u8::try_from(entry.r#type).map_err(|_| context.error_at("type", "must be less than 256"))?;
    let value = match (&entry.format_string, entry.value.is_empty()) {
        (None, true) => {
            return Err(context.error("Invalid TLV configuration: one of 'value' or 'format_string' must be set."));
        }
        (Some(_), false) => {
            return Err(context.error("Invalid TLV configuration: only one of 'value' or 'format_string' may be set."));
        }
        (None, false) => TlvValue::Fixed(entry.value.clone().into()),
        (Some(format), true) => {
            let format = context.within("format_string", |context| SubstitutionFormat::compile(format, context))?;
            TlvValue::Format(Box::new(format))
        }
    };
    Ok(AddedTlv { kind, value })
}
