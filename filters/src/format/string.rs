//! `SubstitutionFormatString`: text or JSON, with the content type that a body of it has.
//! It must not know what is done with the result.

use std::path::Path;

use tidegate_xds::pb::envoy::config::core::v3 as pb;
use tidegate_xds::pb::envoy::extensions::formatter::cel::v3::Cel;
use tidegate_xds::pb::google::protobuf as wkt;
use tidegate_xds::{Coverage, FieldError};

use super::json::JsonTemplate;
use super::{Extensions, Format, FormatContext};
use crate::context::CompileContext;
use crate::matching::cel::Functions;

/// The fields that act in the messages compiled here.
pub const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.config.core.v3.SubstitutionFormatString",
        enforced: &[
            "text_format",
            "json_format",
            "text_format_source",
            "omit_empty_values",
            "content_type",
            "formatters",
        ],
        listed: &[("json_format_options", "it can only ask for sorted keys, which they are")],
    },
    Coverage {
        message: "envoy.config.core.v3.JsonFormatOptions",
        enforced: &[],
        listed: &[("sort_properties", "keys are always sorted, as in Envoy")],
    },
    Coverage {
        message: "envoy.config.core.v3.DataSource",
        enforced: &["filename", "inline_bytes", "inline_string", "environment_variable"],
        listed: &[],
    },
    Coverage { message: "envoy.extensions.formatter.cel.v3.Cel", enforced: &["cel_config"], listed: &[] },
    Coverage { message: "envoy.extensions.formatter.metadata.v3.Metadata", enforced: &[], listed: &[] },
    Coverage { message: "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery", enforced: &[], listed: &[] },
];

/// A compiled `SubstitutionFormatString`.
#[derive(Debug, Clone)]
pub struct SubstitutionFormat {
    form: Form,
    content_type: String,
}

#[derive(Debug, Clone)]
enum Form {
    Text(Format),
    Json(JsonTemplate),
}

impl SubstitutionFormat {
    /// # Errors
    /// A format that is none, a file or environment variable that cannot be read, or a formatter extension that is not
    /// supported.
    pub fn compile(
        format: &pb::SubstitutionFormatString,
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        use pb::substitution_format_string::Format as Kind;
        let extensions = Extensions::compile(&format.formatters, context)?;
        let empty = if format.omit_empty_values { "" } else { "-" };
        let text = |text: &str, field: &str, context: &CompileContext<'_>| {
            Format::with(text, extensions, empty)
                .map(Form::Text)
                .map_err(|error| context.error_at(field, error.to_string()))
        };
        let form = match &format.format {
            #[expect(deprecated, reason = "Envoy takes it")]
            Some(Kind::TextFormat(format)) => text(format, "text_format", context)?,
            Some(Kind::TextFormatSource(source)) => {
                let format = context.within("text_format_source", |context| read_source(source, context))?;
                text(&format, "text_format_source", context)?
            }
            Some(Kind::JsonFormat(template)) => Form::Json(
                JsonTemplate::compile(template, format.omit_empty_values, extensions)
                    .map_err(|error| context.error_at("json_format", error.to_string()))?,
            ),
            None => return Err(context.error("a format is required")),
        };
        let content_type = match (format.content_type.as_str(), &form) {
            ("", Form::Text(_)) => "text/plain",
            ("", Form::Json(_)) => "application/json",
            (content_type, _) => content_type,
        };
        Ok(Self { content_type: content_type.to_owned(), form })
    }

    /// A format string by itself.
    pub fn text(format: Format) -> Self {
        Self { form: Form::Text(format), content_type: "text/plain".to_owned() }
    }

    /// A JSON object whose strings are formats.
    ///
    /// # Errors
    /// A string that is no format.
    pub fn json(template: &wkt::Struct) -> Result<Self, super::FormatError> {
        let form = Form::Json(JsonTemplate::compile(template, false, Extensions::default())?);
        Ok(Self { form, content_type: "application/json".to_owned() })
    }

    /// The content type of a body of this format.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// Appends the text, or the JSON object and a newline.
    pub fn render(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        match &self.form {
            Form::Text(format) => format.render(context, out),
            Form::Json(template) => {
                template.render(context, out);
                out.push(b'\n');
            }
        }
    }
}

impl Extensions {
    /// They are found by the type of their configuration. Metadata is built in by now.
    pub(crate) fn compile(
        formatters: &[pb::TypedExtensionConfig],
        context: &mut CompileContext<'_>,
    ) -> Result<Self, FieldError> {
        let mut extensions = Self::default();
        for (index, formatter) in formatters.iter().enumerate() {
            let url = formatter.typed_config.as_ref().map_or("", |config| &config.type_url);
            match tidegate_xds::any::type_name(url) {
                Some("envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery") => {
                    extensions.req_without_query = true;
                }
                Some("envoy.extensions.formatter.cel.v3.Cel") => {
                    let config = formatter.typed_config.clone().unwrap_or_default();
                    let cel: Cel = context.within_item("formatters", index, |context| {
                        context.within("typed_config", |context| tidegate_xds::any::unpack(&config, &context.path))
                    })?;
                    extensions.functions = Functions::compile(cel.cel_config.as_ref());
                }
                // Built in by now.
                Some("envoy.extensions.formatter.metadata.v3.Metadata") => {}
                _ => {
                    return context.within_item("formatters", index, |context| {
                        Err(context.error(format!("not supported yet: {url}")))
                    });
                }
            }
        }
        Ok(extensions)
    }
}

/// The text of a `DataSource`, read once, when the configuration is compiled.
fn read_source(source: &pb::DataSource, context: &CompileContext<'_>) -> Result<String, FieldError> {
    use pb::data_source::Specifier;
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone())
            .map_err(|_| context.error_at("inline_bytes", "not supported yet: a format string that is not UTF-8")),
        Some(Specifier::Filename(path)) => std::fs::read_to_string(Path::new(path))
            .map_err(|error| context.error_at("filename", format!("unable to read file: {path}: {error}"))),
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name).map_err(|_| {
            context.error_at("environment_variable", format!("Environment variable doesn't exist: {name}"))
        }),
        None => Err(context.error("a data source is required")),
    }
}
