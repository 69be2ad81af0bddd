//! `FilterStateValue`: filter state objects made from formatted text. It must not know whose state they are put into.

use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::common::set_filter_state::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use crate::context::CompileContext;
use crate::format::{FormatContext, SubstitutionFormat};
use crate::metadata::{FilterState, HashableText, Sharing, StateObject, Text};

/// The fields that act in the message compiled here.
pub const COVERAGE: &[Coverage] = &[Coverage {
    message: "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue",
    enforced: &["object_key", "factory_key", "format_string", "read_only", "shared_with_upstream", "skip_if_empty"],
    listed: &[],
}];

/// A compiled `FilterStateValue`.
pub struct FilterStateValue {
    key: String,
    make: fn(String) -> Arc<dyn StateObject>,
    format: SubstitutionFormat,
    read_only: bool,
    sharing: Sharing,
    skip_if_empty: bool,
}

impl FilterStateValue {
    #[expect(deprecated, reason = "Envoy takes `read_only` too")]
    pub fn compile(value: &pb::FilterStateValue, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        use pb::filter_state_value::{Key, SharedWithUpstream, Value};
        let Some(Key::ObjectKey(key)) = &value.key else {
            return Err(context.error_at("object_key", "an object key is required"));
        };
        let factory = if value.factory_key.is_empty() { key } else { &value.factory_key };
        let make: fn(String) -> Arc<dyn StateObject> = match factory.as_str() {
            "envoy.string" => |text| Arc::new(Text(text)),
            "envoy.hashable_string" => |text| Arc::new(HashableText(text)),
            _ => return Err(context.error_at("factory_key", format!("not supported yet: objects of '{factory}'"))),
        };
        let Some(Value::FormatString(format)) = &value.value else {
            return Err(context.error_at("format_string", "a value is required"));
        };
        Ok(Self {
            key: key.clone(),
            make,
            format: context.within("format_string", |context| SubstitutionFormat::compile(format, context))?,
            read_only: value.read_only,
            sharing: match SharedWithUpstream::try_from(value.shared_with_upstream) {
                Ok(SharedWithUpstream::Once) => Sharing::Once,
                Ok(SharedWithUpstream::Transitive) => Sharing::Transitive,
                Ok(SharedWithUpstream::None) | Err(_) => Sharing::None,
            },
            skip_if_empty: value.skip_if_empty,
        })
    }

    /// Compiles a repeated field of them.
    pub fn compile_all(
        field: &str,
        values: &[pb::FilterStateValue],
        context: &mut CompileContext<'_>,
    ) -> Result<Vec<Self>, FieldError> {
        let compile = |(index, value)| context.within_item(field, index, |context| Self::compile(value, context));
        values.iter().enumerate().map(compile).collect()
    }

    /// The text as of now; `None` when it is empty and then skipped.
    pub fn render(&self, context: &FormatContext<'_>) -> Option<String> {
        let mut text = Vec::new();
        self.format.render(context, &mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        (!text.is_empty() || !self.skip_if_empty).then_some(text)
    }

    /// Puts the object of a rendered text into a filter state.
    pub fn set(&self, text: String, state: &mut FilterState) {
        state.set(&self.key, (self.make)(text), self.read_only, self.sharing);
    }
}
