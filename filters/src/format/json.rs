//! `json_format`: a template whose strings are formats. A string that is a single operator keeps the operator's type.
//! Keys are printed in order of their bytes, whatever their order in the configuration, as in Envoy.

use tidegate_xds::pb::google::protobuf as wkt;

use super::write::{double, json_string};
use super::{Extensions, Format, FormatContext, FormatError, Operator};

/// A compiled template; the root is an object.
#[derive(Debug, Clone)]
pub(super) struct JsonTemplate {
    root: Vec<Field>,
    omit_empty: bool,
}

/// A field's key stands as `"key":`.
#[derive(Debug, Clone)]
struct Field {
    key: Vec<u8>,
    value: Node,
}

#[derive(Debug, Clone)]
enum Node {
    Object(Vec<Field>),
    List(Vec<Node>),
    /// JSON that is always the same.
    Constant(Vec<u8>),
    Typed(Operator),
    Text(Format),
}

impl JsonTemplate {
    pub(super) fn compile(format: &wkt::Struct, omit_empty: bool, extensions: Extensions) -> Result<Self, FormatError> {
        let compiler = Compiler { empty: if omit_empty { "" } else { "-" }, extensions };
        Ok(Self { root: compiler.fields(format)?, omit_empty })
    }

    /// Appends the object, without a newline.
    pub(super) fn render(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        if !self.object(&self.root, context, out) {
            out.extend_from_slice(b"{}");
        }
    }

    /// `false`, and nothing written, when an object has nothing left in it and empty values are omitted.
    fn object(&self, fields: &[Field], context: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        for field in fields {
            let before = out.len();
            out.push(if before == start { b'{' } else { b',' });
            out.extend_from_slice(&field.key);
            if !self.node(&field.value, context, out) {
                out.truncate(before);
            }
        }
        if out.len() == start {
            if self.omit_empty {
                return false;
            }
            out.push(b'{');
        }
        out.push(b'}');
        true
    }

    fn node(&self, node: &Node, context: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        match node {
            Node::Object(fields) => return self.object(fields, context, out),
            Node::List(items) => self.list(items, context, out),
            Node::Constant(json) => {
                if self.omit_empty && json == b"null" {
                    return false;
                }
                out.extend_from_slice(json);
            }
            Node::Typed(operator) => {
                if !operator.value(context).write_json(out) {
                    if self.omit_empty {
                        return false;
                    }
                    out.extend_from_slice(b"null");
                }
            }
            Node::Text(format) => {
                out.push(b'"');
                let start = out.len();
                format.render(context, out);
                super::write::escape_from(out, start);
                out.push(b'"');
            }
        }
        true
    }

    fn list(&self, items: &[Node], context: &FormatContext<'_>, out: &mut Vec<u8>) {
        out.push(b'[');
        let start = out.len();
        for item in items {
            let before = out.len();
            if before != start {
                out.push(b',');
            }
            if !self.node(item, context, out) {
                out.truncate(before);
            }
        }
        out.push(b']');
    }
}

struct Compiler {
    empty: &'static str,
    extensions: Extensions,
}

impl Compiler {
    fn fields(&self, object: &wkt::Struct) -> Result<Vec<Field>, FormatError> {
        let mut fields: Vec<_> = object.fields.iter().collect();
        fields.sort_unstable_by_key(|(key, _)| *key);
        let compile = |(key, value): (&String, &wkt::Value)| {
            let mut written = Vec::new();
            json_string(&mut written, key.as_bytes());
            written.push(b':');
            Ok(Field { key: written, value: self.node(value)? })
        };
        fields.into_iter().map(compile).collect()
    }

    fn node(&self, value: &wkt::Value) -> Result<Node, FormatError> {
        use wkt::value::Kind;
        let mut json = Vec::new();
        match &value.kind {
            Some(Kind::StructValue(object)) => return self.fields(object).map(Node::Object),
            Some(Kind::ListValue(list)) => {
                return list.values.iter().map(|value| self.node(value)).collect::<Result<_, _>>().map(Node::List);
            }
            Some(Kind::StringValue(format)) => {
                let format = Format::with(format, self.extensions, self.empty)?;
                match (format.constant(), format.single()) {
                    (Some(text), _) => json_string(&mut json, text.as_bytes()),
                    (None, Some(operator)) => return Ok(Node::Typed(operator.clone())),
                    (None, None) => return Ok(Node::Text(format)),
                }
            }
            Some(Kind::NumberValue(number)) => double(&mut json, *number),
            Some(Kind::BoolValue(true)) => json.extend_from_slice(b"true"),
            Some(Kind::BoolValue(false)) => json.extend_from_slice(b"false"),
            Some(Kind::NullValue(_)) => json.extend_from_slice(b"null"),
            None => return Err(FormatError::Structure),
        }
        Ok(Node::Constant(json))
    }
}
