//! `FilterStateValue`: filter state objects made from formatted text. It must not know whose state they are put into.

use std::sync::Arc;

use tidegate_xds::pb::envoy::extensions::filters::common::set_filter_state::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use crate::context::CompileContext;
use crate::format::{FormatContext, SubstitutionFormat};
use crate::metadata::{FilterState, HashableText, Ip, Sharing, StateObject, Text};

/// The fields that act in the message compiled here.
pub const COVERAGE: &[Coverage] = &[Coverage {
    message: "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue",
    enforced: &["object_key", "factory_key", "format_string", "read_only", "shared_with_upstream", "skip_if_empty"],
    listed: &[],
}];

/// Makes an object of its text; `None` where the text is none.
type Make = fn(String) -> Option<Arc<dyn StateObject>>;

/// What makes which objects (Envoy's `ObjectFactory`), sorted; a key that bears such a name needs no `factory_key`.
const FACTORIES: &[(&str, Make)] = &[
    ("envoy.hashable_string", |text| Some(Arc::new(HashableText(text)))),
    ("envoy.network.ip", |text| Some(Arc::new(Ip(text.parse().ok()?)))),
    ("envoy.string", |text| Some(Arc::new(Text(text)))),
    (tcp_proxy::CLUSTER, |text| Some(Arc::new(Text(text)))),
    (tcp_proxy::DISABLE_TUNNELING, |text| Some(Arc::new(Text((text == "true").to_string())))),
    (tcp_proxy::IDLE_TIMEOUT_MILLIS, |text| Some(Arc::new(Text(text.parse::<u64>().ok()?.to_string())))),
];

/// Objects that a TCP proxy obeys.
pub mod tcp_proxy {
    pub const CLUSTER: &str = "envoy.tcp_proxy.cluster";
    pub const DISABLE_TUNNELING: &str = "envoy.tcp_proxy.disable_tunneling";
    pub const IDLE_TIMEOUT_MILLIS: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";
}

/// A compiled `FilterStateValue`.
pub struct FilterStateValue {
    key: String,
    make: Make,
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
        let make = FACTORIES.iter().find(|(name, _)| name == factory).map(|(_, make)| *make);
        let Some(make) = make else {
            return Err(context.error_at("factory_key", format!("not supported yet: objects of '{factory}'")));
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
        if let Some(object) = (self.make)(text) {
            state.set(&self.key, object, self.read_only, self.sharing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_made_of_fitting_text() {
        assert!(FACTORIES.is_sorted_by_key(|(name, _)| name));
        let make = |factory: &str, text: &str| {
            let (_, make) = FACTORIES.iter().find(|(name, _)| *name == factory).unwrap();
            make(text.to_owned()).and_then(|object| object.text())
        };
        for (factory, text, expected) in [
            ("envoy.network.ip", "1.2.3.4", Some("1.2.3.4:0")),
            ("envoy.network.ip", "1.2.3.4:5", None),
            (tcp_proxy::DISABLE_TUNNELING, "yes", Some("false")),
            (tcp_proxy::IDLE_TIMEOUT_MILLIS, "20", Some("20")),
            (tcp_proxy::IDLE_TIMEOUT_MILLIS, "-1", None),
        ] {
            assert_eq!(make(factory, text).as_deref(), expected, "{factory} of {text}");
        }
    }
}
