//! Writes messages, fields and enums as static arrays of plain numbers over one string, so that they cost no start-up,
//! no heap and no relocation. It must not know what a validation rule means: `rules` writes those.

use std::{collections::HashMap, error::Error, fmt::Write};

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::rules::RuleSets;

/// Ours to read, not to configure: the descriptors' own schema and that of the validation rules.
const LEFT_OUT: [&str; 2] = ["google/protobuf/descriptor.proto", "validate/validate.proto"];

pub(crate) fn generate(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let kept = |file: &str| !LEFT_OUT.contains(&file);
    let mut messages: Vec<_> = pool.all_messages().filter(|m| kept(m.parent_file().name())).collect();
    let mut enums: Vec<_> = pool.all_enums().filter(|e| kept(e.parent_file().name())).collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));

    let mut writer = Writer {
        message_index: index(messages.iter().map(MessageDescriptor::full_name)),
        enum_index: index(enums.iter().map(EnumDescriptor::full_name)),
        names: Names::default(),
        rules: RuleSets::new(pool)?,
        deprecation: Annotations::new(pool)?,
        fields: String::new(),
        by_name: String::new(),
        oneofs: String::new(),
        field_count: 0,
        oneof_count: 0,
    };
    let mut rows = String::new();
    for message in &messages {
        writer.message(message, &mut rows)?;
    }
    let (enum_rows, value_rows, value_count) = writer.enums(&enums)?;

    let mut out = String::new();
    let (field_count, oneof_count) = (writer.field_count, writer.oneof_count);
    writeln!(out, "pub(crate) static MESSAGES: [Message; {}] = [\n{rows}];", messages.len())?;
    writeln!(out, "pub(crate) static FIELDS: [Field; {field_count}] = [\n{}];", writer.fields)?;
    writeln!(out, "/// Positions in `FIELDS`, each message's own sorted by name.")?;
    writeln!(out, "pub(crate) static BY_NAME: [u16; {field_count}] = [{}];", writer.by_name)?;
    writeln!(out, "pub(crate) static ONEOFS: [Oneof; {oneof_count}] = [\n{}];", writer.oneofs)?;
    writeln!(out, "pub(crate) static ENUMS: [Enum; {}] = [\n{enum_rows}];", enums.len())?;
    writeln!(out, "pub(crate) static VALUES: [EnumValue; {value_count}] = [\n{value_rows}];")?;
    out.push_str(&writer.rules.write());
    writeln!(out, "pub(crate) static NAMES: &str = {:?};", writer.names.text)?;
    Ok(out)
}

fn index<'a>(names: impl Iterator<Item = &'a str>) -> HashMap<String, usize> {
    names.enumerate().map(|(position, name)| (name.to_owned(), position)).collect()
}

/// All names in one string, each once.
#[derive(Default)]
struct Names {
    text: String,
    seen: HashMap<String, usize>,
}

impl Names {
    fn add(&mut self, name: &str) -> String {
        let offset = *self.seen.entry(name.to_owned()).or_insert_with(|| {
            self.text.push_str(name);
            self.text.len() - name.len()
        });
        format!("Text({offset},{})", name.len())
    }
}

/// Options that say a field or value must be hidden or refused.
struct Annotations {
    sensitive: prost_reflect::ExtensionDescriptor,
    disallowed: prost_reflect::ExtensionDescriptor,
    disallowed_value: prost_reflect::ExtensionDescriptor,
}

impl Annotations {
    fn new(pool: &DescriptorPool) -> Result<Self, Box<dyn Error>> {
        let find = |name: &str| pool.get_extension_by_name(name).ok_or_else(|| format!("no extension {name}"));
        Ok(Self {
            sensitive: find("udpa.annotations.sensitive")?,
            disallowed: find("envoy.annotations.disallowed_by_default")?,
            disallowed_value: find("envoy.annotations.disallowed_by_default_enum")?,
        })
    }
}

struct Writer {
    message_index: HashMap<String, usize>,
    enum_index: HashMap<String, usize>,
    names: Names,
    rules: RuleSets,
    deprecation: Annotations,
    fields: String,
    by_name: String,
    oneofs: String,
    field_count: usize,
    oneof_count: usize,
}

impl Writer {
    fn message(&mut self, message: &MessageDescriptor, rows: &mut String) -> Result<(), Box<dyn Error>> {
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        // Synthetic oneofs (proto3 `optional`) come last in a descriptor and are no oneofs to a reader.
        let oneofs: Vec<_> = message.oneofs().filter(|oneof| !is_synthetic(oneof)).collect();
        writeln!(
            rows,
            "Message{{name:{},fields:({},{}),oneofs:({},{}),special:Special::{}}},",
            self.names.add(message.full_name()),
            self.field_count,
            fields.len(),
            self.oneof_count,
            oneofs.len(),
            special(message),
        )?;
        for field in &fields {
            self.field(field)?;
        }
        let mut order: Vec<usize> = (0..fields.len()).collect();
        order.sort_by(|a, b| fields[*a].name().cmp(fields[*b].name()));
        for position in order {
            write!(self.by_name, "{},", self.field_count + position)?;
        }
        for oneof in &oneofs {
            let name = self.names.add(oneof.name());
            let required = self.rules.oneof_required(oneof);
            writeln!(self.oneofs, "Oneof{{name:{name},required:{required}}},")?;
        }
        self.field_count += fields.len();
        self.oneof_count += oneofs.len();
        Ok(())
    }

    fn field(&mut self, field: &FieldDescriptor) -> Result<(), Box<dyn Error>> {
        if json_name(field.name()) != field.json_name() {
            return Err(format!("{}: json name {} is not derived", field.full_name(), field.json_name()).into());
        }
        let kind = field.kind();
        let target = match &kind {
            Kind::Message(message) => self.message_index.get(message.full_name()),
            Kind::Enum(of) => self.enum_index.get(of.full_name()),
            _ => Some(&0),
        };
        let target = target.ok_or_else(|| format!("{}: its type is left out", field.full_name()))?;
        let oneof = field.containing_oneof().filter(|oneof| !is_synthetic(oneof)).map_or(0, |oneof| {
            field.parent_message().oneofs().position(|other| other == oneof).map_or(0, |position| position + 1)
        });
        let rules = self.rules.of(field)?;
        writeln!(
            self.fields,
            "Field{{name:{},number:{},kind:Kind::{},flags:{},target:{target},oneof:{oneof},rules:{rules}}},",
            self.names.add(field.name()),
            field.number(),
            kind_name(&kind),
            self.flags(field),
        )?;
        Ok(())
    }

    /// The bits of `Field::flags`.
    fn flags(&self, field: &FieldDescriptor) -> u8 {
        let options = field.options();
        let set = |extension| options.get_extension(extension).as_bool() == Some(true);
        let deprecated = options.get_field_by_name("deprecated").is_some_and(|value| *value == Value::Bool(true));
        let repeated = field.cardinality() == Cardinality::Repeated;
        [
            repeated,
            field.is_map(),
            !repeated && field.supports_presence(),
            repeated && field.is_packed(),
            deprecated,
            set(&self.deprecation.disallowed),
            set(&self.deprecation.sensitive),
        ]
        .iter()
        .enumerate()
        .fold(0, |flags, (bit, on)| flags | (u8::from(*on) << bit))
    }

    fn enums(&mut self, enums: &[EnumDescriptor]) -> Result<(String, String, usize), Box<dyn Error>> {
        let (mut rows, mut values, mut count) = (String::new(), String::new(), 0);
        for descriptor in enums {
            // In the order of the .proto file: of two names for a number the first is printed.
            let declared = descriptor.enum_descriptor_proto().value.iter();
            let of: Vec<_> = declared.filter_map(|value| descriptor.get_value_by_name(value.name())).collect();
            let name = self.names.add(descriptor.full_name());
            writeln!(rows, "Enum{{name:{name},values:({count},{})}},", of.len())?;
            for value in &of {
                let disallowed =
                    value.options().get_extension(&self.deprecation.disallowed_value).as_bool() == Some(true);
                let name = self.names.add(value.name());
                writeln!(values, "EnumValue{{name:{name},number:{},disallowed:{disallowed}}},", value.number())?;
            }
            count += of.len();
        }
        Ok((rows, values, count))
    }
}

fn is_synthetic(oneof: &prost_reflect::OneofDescriptor) -> bool {
    oneof.is_synthetic()
}

/// The name that protobuf's JSON derives: `foo_bar` becomes `fooBar`.
fn json_name(name: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double => "Double",
        Kind::Float => "Float",
        Kind::Int32 => "Int32",
        Kind::Int64 => "Int64",
        Kind::Uint32 => "Uint32",
        Kind::Uint64 => "Uint64",
        Kind::Sint32 => "Sint32",
        Kind::Sint64 => "Sint64",
        Kind::Fixed32 => "Fixed32",
        Kind::Fixed64 => "Fixed64",
        Kind::Sfixed32 => "Sfixed32",
        Kind::Sfixed64 => "Sfixed64",
        Kind::Bool => "Bool",
        Kind::String => "String",
        Kind::Bytes => "Bytes",
        Kind::Message(_) => "Message",
        Kind::Enum(_) => "Enum",
    }
}

/// Messages whose JSON is their own.
fn special(message: &MessageDescriptor) -> &'static str {
    if message.is_map_entry() {
        return "MapEntry";
    }
    match message.full_name() {
        "google.protobuf.Any" => "Any",
        "google.protobuf.Duration" => "Duration",
        "google.protobuf.Timestamp" => "Timestamp",
        "google.protobuf.Struct" => "Struct",
        "google.protobuf.Value" => "Value",
        "google.protobuf.ListValue" => "ListValue",
        "google.protobuf.FieldMask" => "FieldMask",
        "google.protobuf.DoubleValue"
        | "google.protobuf.FloatValue"
        | "google.protobuf.Int64Value"
        | "google.protobuf.UInt64Value"
        | "google.protobuf.Int32Value"
        | "google.protobuf.UInt32Value"
        | "google.protobuf.BoolValue"
        | "google.protobuf.StringValue"
        | "google.protobuf.BytesValue" => "Wrapper",
        _ => "No",
    }
}
