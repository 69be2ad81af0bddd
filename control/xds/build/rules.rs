//! Turns `validate.rules` into constants of `schema::rules`, each different set once.
//! It must not know how a rule is checked.

use std::{collections::HashMap, error::Error};

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, OneofDescriptor, ReflectMessage, Value,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The different rule sets; 0 is the empty one.
pub(crate) struct RuleSets {
    rules: ExtensionDescriptor,
    required: ExtensionDescriptor,
    sets: Vec<String>,
    patterns: Vec<String>,
    seen: HashMap<String, usize>,
}

impl RuleSets {
    pub(crate) fn new(pool: &DescriptorPool) -> Result<Self> {
        let find = |name: &str| pool.get_extension_by_name(name).ok_or_else(|| format!("no extension {name}"));
        for message in pool.all_messages() {
            let options = message.options();
            for name in ["validate.disabled", "validate.ignored"] {
                if options.get_extension(&find(name)?).as_bool() == Some(true) {
                    return Err(format!("{}: {name} is not supported", message.full_name()).into());
                }
            }
        }
        let nothing = "FieldRules{required:false,skip:false,check:Check::None}".to_owned();
        Ok(Self {
            rules: find("validate.rules")?,
            required: find("validate.required")?,
            seen: HashMap::from([(nothing.clone(), 0)]),
            sets: vec![nothing],
            patterns: Vec::new(),
        })
    }

    pub(crate) fn oneof_required(&self, oneof: &OneofDescriptor) -> bool {
        oneof.options().get_extension(&self.required).as_bool() == Some(true)
    }

    /// The position of a field's rules.
    pub(crate) fn of(&mut self, field: &FieldDescriptor) -> Result<usize> {
        let options = field.options();
        if !options.has_extension(&self.rules) {
            return Ok(0);
        }
        let value = options.get_extension(&self.rules);
        let message = value.as_message().ok_or("validate.rules is no message")?;
        let text =
            field_rules(message, &mut self.patterns).map_err(|error| format!("{}: {error}", field.full_name()))?;
        Ok(*self.seen.entry(text.clone()).or_insert_with(|| {
            self.sets.push(text);
            self.sets.len() - 1
        }))
    }

    pub(crate) fn write(&self) -> String {
        let patterns: Vec<_> = self.patterns.iter().map(|source| format!("Pattern::new({source:?})")).collect();
        format!(
            "pub(crate) static RULES: [FieldRules; {}] = [\n{},\n];\nstatic PATTERNS: [Pattern; {}] = [{}];\n",
            self.sets.len(),
            self.sets.join(",\n"),
            patterns.len(),
            patterns.join(","),
        )
    }
}

fn field_rules(rules: &DynamicMessage, patterns: &mut Vec<String>) -> Result<String> {
    let message = get(rules, "message");
    let message = message.as_ref().and_then(Value::as_message);
    let mut required = message.is_some_and(|rules| flag(rules, "required"));
    let skip = message.is_some_and(|rules| flag(rules, "skip"));
    let mut check = "Check::None".to_owned();
    for field in rules.descriptor().fields().filter(|field| field.name() != "message" && rules.has_field(field)) {
        let value = rules.get_field(&field);
        let inner = value.as_message().ok_or("rules of a type are no message")?;
        required |= inner.descriptor().get_field_by_name("required").is_some() && flag(inner, "required");
        check = one_check(field.name(), inner, patterns)?;
    }
    Ok(format!("FieldRules{{required:{required},skip:{skip},check:{check}}}"))
}

fn one_check(kind: &str, rules: &DynamicMessage, patterns: &mut Vec<String>) -> Result<String> {
    Ok(match kind {
        "float" | "double" => format!("Check::Float({})", limits(rules, "f64")?),
        "string" => format!("Check::Text(&{})", text(rules, patterns)?),
        "bytes" => bytes(rules)?,
        "bool" => match get(rules, "const") {
            Some(value) => format!("Check::Bool({})", value.as_bool().ok_or("const is no bool")?),
            None => "Check::None".to_owned(),
        },
        "enum" => format!(
            "Check::Enum{{defined_only:{},equal:{},any_of:&[{}],none_of:&[{}]}}",
            flag(rules, "defined_only"),
            option(get(rules, "const").map(|value| literal(&value, "i32")).transpose()?),
            list(rules, "in", "i32")?,
            list(rules, "not_in", "i32")?,
        ),
        "repeated" => format!(
            "Check::Repeated{{min:{},max:{},unique:{},ignore_empty:{},items:&{}}}",
            number(rules, "min_items", 0),
            number(rules, "max_items", u64::MAX),
            flag(rules, "unique"),
            flag(rules, "ignore_empty"),
            nested(rules, "items", patterns)?,
        ),
        "map" => format!(
            "Check::Map{{min:{},max:{},ignore_empty:{},keys:&{},values:&{}}}",
            number(rules, "min_pairs", 0),
            number(rules, "max_pairs", u64::MAX),
            flag(rules, "ignore_empty"),
            nested(rules, "keys", patterns)?,
            nested(rules, "values", patterns)?,
        ),
        "any" => {
            format!("Check::Any{{any_of:&[{}],none_of:&[{}]}}", list(rules, "in", "")?, list(rules, "not_in", "")?)
        }
        "duration" => format!("Check::Duration({})", limits(rules, "i128")?),
        // Envoy's C++ has no checks of timestamps but `required`.
        "timestamp" => "Check::None".to_owned(),
        _ => format!("Check::Integer({})", limits(rules, "i128")?),
    })
}

/// `Limits<T>` of numbers, or of durations in nanoseconds.
fn limits(rules: &DynamicMessage, of: &str) -> Result<String> {
    let bound = |open: &str, closed: &str| -> Result<String> {
        for (name, inclusive) in [(open, false), (closed, true)] {
            if let Some(value) = get(rules, name) {
                return Ok(format!("Some(({},{inclusive}))", literal(&value, of)?));
            }
        }
        Ok("None".to_owned())
    };
    let ignore_empty = rules.descriptor().get_field_by_name("ignore_empty").is_some() && flag(rules, "ignore_empty");
    Ok(format!(
        "Limits{{equal:{},lower:{},upper:{},any_of:&[{}],none_of:&[{}],ignore_empty:{ignore_empty}}}",
        option(get(rules, "const").map(|value| literal(&value, of)).transpose()?),
        bound("gt", "gte")?,
        bound("lt", "lte")?,
        list(rules, "in", of)?,
        list(rules, "not_in", of)?,
    ))
}

fn text(rules: &DynamicMessage, patterns: &mut Vec<String>) -> Result<String> {
    let strict = get(rules, "strict").and_then(|value| value.as_bool()) != Some(false);
    // Envoy's C++ cannot check these either, so its API does not use them.
    if let Some(name) = ["email", "uri", "uri_ref"].iter().find(|name| flag(rules, name)) {
        return Err(format!("rule string.{name} is not supported").into());
    }
    let well_known = ["hostname", "ip", "ipv4", "ipv6", "address", "uuid"];
    let mut form = "None".to_owned();
    if let Some(name) = well_known.iter().find(|name| flag(rules, name)) {
        form = format!("Some(Form::{})", camel(name));
    }
    match get(rules, "well_known_regex").and_then(|value| value.as_enum_number()) {
        Some(1) if strict => form = "Some(Form::HeaderName)".to_owned(),
        Some(2) if strict => form = "Some(Form::HeaderValue)".to_owned(),
        Some(1 | 2) => form = "Some(Form::HeaderString)".to_owned(),
        _ => {}
    }
    let quoted = |name: &str| option(get(rules, name).and_then(|value| value.as_str().map(|text| format!("{text:?}"))));
    let exact = get(rules, "len").and_then(|value| value.as_u64());
    let exact_bytes = get(rules, "len_bytes").and_then(|value| value.as_u64());
    let pattern = get(rules, "pattern").and_then(|value| value.as_str().map(|text| pattern(text, patterns)));
    Ok(format!(
        "TextRules{{equal:{},characters:({},{}),bytes:({},{}),pattern:{},prefix:{},suffix:{},contains:{},\
         not_contains:{},any_of:&[{}],none_of:&[{}],form:{form},ignore_empty:{}}}",
        quoted("const"),
        exact.unwrap_or(number(rules, "min_len", 0)),
        exact.unwrap_or(number(rules, "max_len", u64::MAX)),
        exact_bytes.unwrap_or(number(rules, "min_bytes", 0)),
        exact_bytes.unwrap_or(number(rules, "max_bytes", u64::MAX)),
        option(pattern),
        quoted("prefix"),
        quoted("suffix"),
        quoted("contains"),
        quoted("not_contains"),
        list(rules, "in", "")?,
        list(rules, "not_in", "")?,
        flag(rules, "ignore_empty"),
    ))
}

/// A reference to the one static that holds this pattern; compiling it needs a place that can change.
fn pattern(source: &str, patterns: &mut Vec<String>) -> String {
    let at = patterns.iter().position(|other| other == source).unwrap_or_else(|| {
        patterns.push(source.to_owned());
        patterns.len() - 1
    });
    format!("&PATTERNS[{at}]")
}

/// Only what Envoy's schema uses: lengths. Anything else must fail the build, not be forgotten.
fn bytes(rules: &DynamicMessage) -> Result<String> {
    for field in rules.descriptor().fields().filter(|field| rules.has_field(field)) {
        if !["len", "min_len", "max_len", "ignore_empty"].contains(&field.name()) {
            return Err(format!("rule bytes.{} is not supported", field.name()).into());
        }
    }
    let exact = get(rules, "len").and_then(|value| value.as_u64());
    Ok(format!(
        "Check::Bytes{{min:{},max:{},ignore_empty:{}}}",
        exact.unwrap_or(number(rules, "min_len", 0)),
        exact.unwrap_or(number(rules, "max_len", u64::MAX)),
        flag(rules, "ignore_empty"),
    ))
}

fn nested(rules: &DynamicMessage, name: &str, patterns: &mut Vec<String>) -> Result<String> {
    match get(rules, name) {
        Some(value) => field_rules(value.as_message().ok_or("nested rules are no message")?, patterns),
        None => Ok("FieldRules{required:false,skip:false,check:Check::None}".to_owned()),
    }
}

fn list(rules: &DynamicMessage, name: &str, of: &str) -> Result<String> {
    let Some(value) = rules.descriptor().get_field_by_name(name).and_then(|_| get(rules, name)) else {
        return Ok(String::new());
    };
    let items = value.as_list().ok_or("a list of values is no list")?;
    Ok(items.iter().map(|item| literal(item, of)).collect::<Result<Vec<_>>>()?.join(","))
}

fn literal(value: &Value, of: &str) -> Result<String> {
    Ok(match value {
        Value::F32(number) => format!("{:?}_f64", f64::from(*number)),
        Value::F64(number) => format!("{number:?}_f64"),
        Value::I32(number) | Value::EnumNumber(number) => format!("{number}_{of}"),
        Value::I64(number) => format!("{number}_{of}"),
        Value::U32(number) => format!("{number}_{of}"),
        Value::U64(number) => format!("{number}_{of}"),
        Value::String(text) => format!("{text:?}"),
        Value::Message(duration) => {
            let part = |name| get(duration, name);
            let seconds = part("seconds").and_then(|value| value.as_i64()).unwrap_or(0);
            let nanos = part("nanos").and_then(|value| value.as_i32()).unwrap_or(0);
            format!("{}_i128", i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
        }
        other => return Err(format!("a rule's value {other:?} is not supported").into()),
    })
}

fn get(message: &DynamicMessage, name: &str) -> Option<Value> {
    message.has_field_by_name(name).then(|| message.get_field_by_name(name).map(|value| value.into_owned())).flatten()
}

fn flag(message: &DynamicMessage, name: &str) -> bool {
    get(message, name).and_then(|value| value.as_bool()) == Some(true)
}

fn number(message: &DynamicMessage, name: &str, otherwise: u64) -> u64 {
    get(message, name).and_then(|value| value.as_u64()).unwrap_or(otherwise)
}

fn option(value: Option<String>) -> String {
    value.map_or_else(|| "None".to_owned(), |value| format!("Some({value})"))
}

fn camel(name: &str) -> String {
    name.split('_').map(|part| part[..1].to_ascii_uppercase() + &part[1..]).collect()
}
