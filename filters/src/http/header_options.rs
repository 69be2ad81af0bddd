//! `HeaderValueOption` and `HeaderMutation`: configured header changes as the mutations that act.
//! It must not know when they act.

use http::{HeaderName, HeaderValue};
use tidegate_xds::pb::envoy::config::common::mutation_rules::v3 as rules;
use tidegate_xds::pb::envoy::config::core::v3 as pb;
use tidegate_xds::{Coverage, FieldError};

use super::header_mutations::{AppendAction, HeaderAddition, HeaderEdit, HeaderEdits, HeaderMutations, HeaderText};
use crate::context::CompileContext;
use crate::format::{Extensions, Format};
use crate::matching::StringMatcher;

/// The fields that act in the messages compiled here.
pub const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.core.v3.HeaderValueOption",
        enforced: &["header", "append", "append_action", "keep_empty_value"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.core.v3.HeaderValue",
        enforced: &["key", "value"],
        listed: &[("raw_value", "Envoy ignores it here")],
    },
    Coverage {
        message: "envoy.config.common.mutation_rules.v3.HeaderMutation",
        enforced: &["remove", "append", "remove_on_match"],
        listed: &[],
    },
    Coverage {
        message: "envoy.config.common.mutation_rules.v3.HeaderMutation.RemoveOnMatch",
        enforced: &["key_matcher"],
        listed: &[],
    },
];

impl HeaderMutations {
    /// Compiles a pair of fields, `…_to_add` and `…_to_remove`.
    pub fn compile(
        (add_field, add): (&str, &[pb::HeaderValueOption]),
        (remove_field, remove): (&str, &[String]),
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let add = add.iter().enumerate().map(|(index, option)| {
            context.within_item(add_field, index, |context| HeaderAddition::compile(option, context))
        });
        let add = add.collect::<Result<_, _>>()?;
        let remove = remove
            .iter()
            .enumerate()
            .map(|(index, name)| context.within_item(remove_field, index, |context| modifiable(name, context)));
        Ok(Self::new(remove.collect::<Result<_, _>>()?, add))
    }

    /// Compiles a field that only adds, with extensions of the format.
    pub fn compile_formatted(
        field: &str,
        add: &[pb::HeaderValueOption],
        formatters: &[pb::TypedExtensionConfig],
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let extensions = Extensions::compile(formatters, context)?;
        let add = add.iter().enumerate().map(|(index, option)| {
            context.within_item(field, index, |context| HeaderAddition::compile_with(option, extensions, context))
        });
        Ok(Self::new(Vec::new(), add.collect::<Result<_, _>>()?))
    }

    /// Compiles a field that only adds.
    pub fn compile_additions(
        field: &str,
        add: &[pb::HeaderValueOption],
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        Self::compile((field, add), ("", &[]), context)
    }
}

impl HeaderEdits {
    /// Compiles a repeated field of `HeaderMutation`.
    pub fn compile(
        field: &str,
        edits: &[rules::HeaderMutation],
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        use rules::header_mutation::Action;
        let compile = |(index, edit): (usize, &rules::HeaderMutation)| {
            context.within_item(field, index, |context| match &edit.action {
                Some(Action::Append(option)) => {
                    context.within("append", |context| HeaderAddition::compile(option, context)).map(HeaderEdit::Add)
                }
                Some(Action::Remove(name)) => {
                    context.within("remove", |context| modifiable(name, context)).map(HeaderEdit::Remove)
                }
                Some(Action::RemoveOnMatch(remove)) => {
                    let matcher = remove.key_matcher.clone().unwrap_or_default();
                    let field = "remove_on_match.key_matcher";
                    context
                        .within(field, |context| StringMatcher::compile(&matcher, context))
                        .map(HeaderEdit::RemoveMatching)
                }
                None => Err(context.error("an action is required")),
            })
        };
        edits.iter().enumerate().map(compile).collect::<Result<_, _>>().map(Self)
    }
}

impl HeaderAddition {
    pub fn compile(option: &pb::HeaderValueOption, context: &mut CompileContext<'_>) -> Result<Self, FieldError> {
        Self::compile_with(option, Extensions::default(), context)
    }

    fn compile_with(
        option: &pb::HeaderValueOption,
        extensions: Extensions,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let Some(header) = &option.header else { return Err(context.error_at("header", "a header is required")) };
        let (name, value) = context.within("header", |context| {
            let name = context.within("key", |context| modifiable(&header.key, context))?;
            Ok((name, context.within("value", |context| HeaderText::compile_with(&header.value, extensions, context))?))
        })?;
        Ok(Self { name, value, action: action(option, context)?, keep_empty: option.keep_empty_value })
    }
}

#[expect(deprecated, reason = "Envoy takes `append` too")]
fn action(option: &pb::HeaderValueOption, context: &CompileContext<'_>) -> Result<AppendAction, FieldError> {
    use pb::header_value_option::HeaderAppendAction as Action;
    let action = match Action::try_from(option.append_action) {
        Ok(Action::AddIfAbsent) => AppendAction::AddIfAbsent,
        Ok(Action::OverwriteIfExistsOrAdd) => AppendAction::Overwrite,
        Ok(Action::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        Ok(Action::AppendIfExistsOrAdd) | Err(_) => AppendAction::Append,
    };
    match &option.append {
        Some(_) if action != AppendAction::Append => {
            Err(context.error_at("append", "both append and append_action are set and it's not allowed"))
        }
        Some(append) if !append.value => Ok(AppendAction::Overwrite),
        _ => Ok(action),
    }
}

impl HeaderText {
    /// A format string, in which a value that is not there is empty.
    pub fn compile(value: &str, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        Self::compile_with(value, Extensions::default(), context)
    }

    fn compile_with(value: &str, extensions: Extensions, context: &CompileContext<'_>) -> Result<Self, FieldError> {
        let format = Format::with(value, extensions, "").map_err(|error| context.error(error.to_string()))?;
        match format.constant() {
            Some(text) => {
                HeaderValue::from_str(text).map(Self::Fixed).map_err(|_| context.error("not a header's value"))
            }
            None => Ok(Self::Format(format)),
        }
    }
}

/// A header that may be changed: neither Host nor a pseudo-header, as in Envoy.
fn modifiable(name: &str, context: &CompileContext<'_>) -> Result<HeaderName, FieldError> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(context.error(":-prefixed or host headers may not be modified"));
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| context.error("not a header's name"))
}
