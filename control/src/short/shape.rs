//! What a value of the short form may look like: one description from which it is read, its JSON Schema and its documentation
//! are made. It must not know which values there are.

use serde_json::{Map as Object, Value, json};
use tidegate_xds::{FieldError, FieldPath, nearest};

/// More faults than this are not worth a line each, nor the search for the names that were meant.
pub(super) const MOST_FAULTS: usize = 100;

/// How much of what is slow to read a file may hold, in bytes of plain text.
const MOST_COST: usize = 512 << 10;

/// What is wrong with a file, and what reading it has cost.
#[derive(Debug, Default)]
pub(super) struct Faults {
    errors: Vec<FieldError>,
    spent: usize,
}

impl Faults {
    pub(super) fn push(&mut self, path: &FieldPath, reason: impl Into<String>) {
        if self.errors.len() < MOST_FAULTS {
            self.errors.push(FieldError::new(path.clone(), reason));
        }
    }

    /// Whether something that costs so much may still be read.
    pub(super) fn spend(&mut self, cost: usize) -> bool {
        self.spent = self.spent.saturating_add(cost);
        self.spent <= MOST_COST
    }

    pub(super) fn into_errors(self) -> Vec<FieldError> {
        self.errors
    }
}

/// JSON Schemas of records, by name.
pub(super) type Definitions = Object<String, Value>;

/// A type of values.
pub(super) trait Shape: Sized {
    /// Reads a value that stands at `path`; nothing where it has been told what is wrong.
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self>;

    /// What acts where it is left out; nothing: it may not be.
    fn absent() -> Option<Self> {
        None
    }

    /// Its JSON Schema; records put theirs among the definitions.
    fn schema(definitions: &mut Definitions) -> Value;
}

/// What a person would call a value, for an error.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(text) if text.chars().count() > 60 => {
            format!("{:?}", text.chars().take(60).chain(['…']).collect::<String>())
        }
        Value::String(text) => format!("{text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Text, as YAML has it: what looks like a number or a boolean must be in quotes.
pub(super) fn text<'a>(value: &'a Value, what: &str, path: &FieldPath, faults: &mut Faults) -> Option<&'a str> {
    let quotes = if matches!(value, Value::Bool(_) | Value::Number(_)) { "; put it in quotes" } else { "" };
    if !value.is_string() {
        faults.push(path, format!("expected {what}, found {}{quotes}", describe(value)));
    }
    value.as_str()
}

// ---- Records ----

/// The rules of a record beside the shapes of its fields.
pub(super) struct Rules {
    pub(super) fields: &'static [&'static str],
    /// Fields that one may look for, and that no data plane would enforce.
    pub(super) not_yet: &'static [&'static str],
    /// Of these there must be one.
    pub(super) exactly_one: &'static [&'static str],
    /// Of each of these there may be one.
    pub(super) at_most_one: &'static [&'static [&'static str]],
    /// Fields that act only beside another.
    pub(super) only_with: &'static [(&'static str, &'static [&'static str])],
}

/// What is so where a field is not there. With neither a default nor words for it, the field is required.
pub(super) struct Absence {
    pub(super) name: &'static str,
    pub(super) default: Option<Value>,
    /// In words.
    pub(super) without: Option<&'static str>,
}

/// A field as documentation shows it.
pub(super) struct Field {
    pub(super) about: String,
    pub(super) schema: Value,
    pub(super) absence: Absence,
}

/// A field's name as it is written: `match` is a word of Rust, too.
pub(super) const fn plain_name(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', rest @ ..] => match str::from_utf8(rest) {
            Ok(rest) => rest,
            Err(_) => name,
        },
        _ => name,
    }
}

/// Doc comments as one text.
pub(super) fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// The object that a record is read from, once its rules hold.
pub(super) fn object<'a>(
    value: &'a Value,
    rules: &Rules,
    path: &mut FieldPath,
    faults: &mut Faults,
) -> Option<&'a Object<String, Value>> {
    let Value::Object(object) = value else {
        faults.push(path, format!("expected an object, found {}", describe(value)));
        return None;
    };
    let before = faults.errors.len();
    let has = |name: &str| object.get(name).is_some_and(|value| !value.is_null());
    for name in object.keys().filter(|name| !rules.fields.contains(&name.as_str())) {
        let at = path.push_field(name);
        if rules.not_yet.contains(&name.as_str()) {
            faults.push(path, format!("not supported yet: {path}"));
        } else {
            let near = nearest(name, rules.fields.iter().copied());
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            faults.push(path, format!("unknown field `{name}`{near}"));
        }
        path.truncate(at);
    }
    // A name that is not known may be the one that is missing.
    let all_known = faults.errors.len() == before;
    if all_known && !rules.exactly_one.is_empty() && !rules.exactly_one.iter().any(|name| has(name)) {
        faults.push(path, format!("needs one of {}", list(rules.exactly_one)));
    }
    for group in rules.at_most_one.iter().chain([&rules.exactly_one]) {
        let both: Vec<_> = group.iter().copied().filter(|name| has(name)).collect();
        if let [_, more, ..] = both[..] {
            let at = path.push_field(more);
            faults.push(path, format!("only one of {} may be there", list(&both)));
            path.truncate(at);
        }
    }
    for (with, fields) in rules.only_with.iter().filter(|(with, _)| !has(with)) {
        for name in fields.iter().filter(|name| has(name)) {
            let at = path.push_field(name);
            faults.push(path, format!("acts only beside `{with}`, which is not there"));
            path.truncate(at);
        }
    }
    (faults.errors.len() == before).then_some(object)
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// One field of a record.
pub(super) fn field<T: Shape>(
    object: &Object<String, Value>,
    absence: Absence,
    path: &mut FieldPath,
    faults: &mut Faults,
) -> Option<T> {
    let at = path.push_field(absence.name);
    let read = match object.get(absence.name).filter(|value| !value.is_null()) {
        Some(value) => T::read(value, path, faults),
        None => match (absence.default, absence.without) {
            (Some(default), _) => T::read(&default, path, faults),
            (None, Some(_)) => T::absent(),
            (None, None) => {
                faults.push(path, "is required");
                None
            }
        },
    };
    path.truncate(at);
    read
}

/// Puts a record's schema among the definitions; what refers to it.
pub(super) fn define(
    definitions: &mut Definitions,
    name: &'static str,
    about: &str,
    rules: &Rules,
    fields: impl FnOnce(&mut Definitions) -> Vec<Field>,
) -> Value {
    let reference = json!({"$ref": format!("#/$defs/{name}")});
    if definitions.contains_key(name) {
        return reference;
    }
    let fields = fields(definitions);
    let is_required = |field: &&Absence| field.default.is_none() && field.without.is_none();
    let absences = fields.iter().map(|field| &field.absence);
    let required: Vec<&str> = absences.filter(is_required).map(|absence| absence.name).collect();
    let mut schema = json!({"description": about, "type": "object", "additionalProperties": false});
    let properties = fields.into_iter().map(|Field { about, schema, absence }| {
        let mut described = json!({"description": about});
        if let (Some(described), Value::Object(mut shape)) = (described.as_object_mut(), schema) {
            described.append(&mut shape);
            described.extend(absence.default.map(|default| ("default".to_owned(), default)));
            described.extend(absence.without.map(|without| ("x-without".to_owned(), json!(without))));
        }
        (absence.name.to_owned(), described)
    });
    schema["properties"] = Value::Object(properties.collect());
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    let one = |name: &&str| json!({"required": [name]});
    if !rules.exactly_one.is_empty() {
        schema["oneOf"] = rules.exactly_one.iter().map(one).collect();
    }
    if !rules.at_most_one.is_empty() {
        let group = |group: &&[&str]| {
            let none = json!({"not": {"anyOf": group.iter().map(one).collect::<Vec<_>>()}});
            json!({"oneOf": group.iter().map(one).chain([none]).collect::<Vec<_>>()})
        };
        schema["allOf"] = rules.at_most_one.iter().map(group).collect();
    }
    if !rules.only_with.is_empty() {
        let needs = rules.only_with.iter().flat_map(|(with, fields)| fields.iter().map(move |name| (name, with)));
        schema["dependentRequired"] =
            Value::Object(needs.map(|(name, with)| ((*name).to_owned(), json!([with]))).collect());
    }
    definitions.insert(name.to_owned(), schema);
    reference
}

/// A record: fields, each with its default (`=`), or in words what happens without it (`|`), or required. One whose fields may
/// all be left out and mean nothing then may derive `Default`.
macro_rules! record {
    (
        $(#[doc = $about:literal])+
        $(#[derive($($also:ident),+)])?
        $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty $(= $default:tt)? $(| $without:literal)?,)+
        }
        $(not_yet: $($later:ident),+;)?
        $(exactly_one: $($one:ident),+;)?
        $(at_most_one: $($few:ident),+;)*
        $(only_with $with:ident: $($dependent:ident),+;)*
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone $($(, $also)+)?)]
        pub(in crate::short) struct $name {
            $($(#[doc = $doc])+ pub(in crate::short) $field: $type,)+
        }

        impl $name {
            const RULES: $crate::short::shape::Rules = $crate::short::shape::Rules {
                fields: &[$($crate::short::shape::plain_name(stringify!($field))),+],
                not_yet: &[$($(stringify!($later)),+)?],
                exactly_one: &[$($(stringify!($one)),+)?],
                at_most_one: &[$(&[$(stringify!($few)),+]),*],
                only_with: &[$((stringify!($with), &[$(stringify!($dependent)),+])),*],
            };
        }

        impl $crate::short::shape::Shape for $name {
            fn read(
                value: &serde_json::Value,
                path: &mut tidegate_xds::FieldPath,
                faults: &mut $crate::short::shape::Faults,
            ) -> Option<Self> {
                let object = $crate::short::shape::object(value, &Self::RULES, path, faults)?;
                $(
                    let absence = $crate::short::shape::absence!($field $(= $default)? $(| $without)?);
                    let $field = $crate::short::shape::field::<$type>(object, absence, path, faults);
                )+
                Some(Self { $($field: $field?),+ })
            }

            fn schema(definitions: &mut $crate::short::shape::Definitions) -> serde_json::Value {
                let about = $crate::short::shape::joined(&[$($about),+]);
                $crate::short::shape::define(definitions, stringify!($name), &about, &Self::RULES, |definitions| {
                    vec![$($crate::short::shape::Field {
                        about: $crate::short::shape::joined(&[$($doc),+]),
                        schema: <$type>::schema(definitions),
                        absence: $crate::short::shape::absence!($field $(= $default)? $(| $without)?),
                    }),+]
                })
            }
        }
    };
}
pub(super) use record;

/// What is so without a field of a record.
macro_rules! absence {
    ($field:ident) => {
        $crate::short::shape::absence!($field, None, None)
    };
    ($field:ident = $default:tt) => {
        $crate::short::shape::absence!($field, Some(serde_json::json!($default)), None)
    };
    ($field:ident | $without:literal) => {
        $crate::short::shape::absence!($field, None, Some($without))
    };
    ($field:ident, $default:expr, $without:expr) => {
        $crate::short::shape::Absence {
            name: $crate::short::shape::plain_name(stringify!($field)),
            default: $default,
            without: $without,
        }
    };
}
pub(super) use absence;

/// One of a choice of words.
pub(super) trait Word {
    /// As it is written.
    fn word(self) -> &'static str;
}

/// A choice of words.
macro_rules! words {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(in crate::short) enum $name {
            $($(#[doc = $doc])* $variant,)+
        }

        impl $crate::short::shape::Word for $name {
            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::short::shape::Shape for $name {
            fn read(
                value: &serde_json::Value,
                path: &mut tidegate_xds::FieldPath,
                faults: &mut $crate::short::shape::Faults,
            ) -> Option<Self> {
                match value.as_str() {
                    $(Some($word) => Some(Self::$variant),)+
                    _ => {
                        $crate::short::shape::no_such_word(value, &[$($word),+], path, faults);
                        None
                    }
                }
            }

            fn schema(_: &mut $crate::short::shape::Definitions) -> serde_json::Value {
                serde_json::json!({"enum": [$($word),+]})
            }
        }
    };
}
pub(super) use words;

/// Tells that a value is none of some words.
pub(super) fn no_such_word(value: &Value, words: &[&str], path: &FieldPath, faults: &mut Faults) {
    let near = value.as_str().and_then(|word| nearest(word, words.iter().copied()));
    let found = describe(value);
    faults.push(
        path,
        match near {
            Some(near) => format!("{found} is not one of {}; did you mean `{near}`?", list(words)),
            None => format!("expected one of {}, found {found}", list(words)),
        },
    );
}

// ---- What holds other shapes ----

impl<T: Shape> Shape for Option<T> {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        T::read(value, path, faults).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn schema(definitions: &mut Definitions) -> Value {
        T::schema(definitions)
    }
}

impl<T: Shape> Shape for Vec<T> {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        let Value::Array(items) = value else {
            faults.push(path, format!("expected a list, found {}", describe(value)));
            return None;
        };
        let mut read = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let at = path.push_index(index);
            read.push(T::read(item, path, faults));
            path.truncate(at);
        }
        read.into_iter().collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn schema(definitions: &mut Definitions) -> Value {
        json!({"type": "array", "items": T::schema(definitions)})
    }
}

/// Values by name, in the order of the file.
#[derive(Debug, Clone)]
pub(super) struct Map<K, V>(pub(super) Vec<(K, V)>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Shape, V: Shape> Shape for Map<K, V> {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        let Value::Object(object) = value else {
            faults.push(path, format!("expected an object, found {}", describe(value)));
            return None;
        };
        let mut read = Vec::with_capacity(object.len());
        for (name, value) in object {
            let at = path.push_key(name);
            let key = K::read(&Value::String(name.clone()), path, faults);
            let value = V::read(value, path, faults);
            read.push(key.zip(value));
            path.truncate(at);
        }
        read.into_iter().collect::<Option<_>>().map(Self)
    }

    fn absent() -> Option<Self> {
        Some(Self::default())
    }

    fn schema(definitions: &mut Definitions) -> Value {
        let (names, values) = (K::schema(definitions), V::schema(definitions));
        json!({"type": "object", "propertyNames": names, "additionalProperties": values})
    }
}

/// A record that is mostly one field: `x` stands for `{ field: x }`.
pub(super) trait Brief: Shape {
    const FIELD: &'static str;
    /// The record's name among the definitions.
    const NAME: &'static str;
}

/// A record, or in brief its one field.
#[derive(Debug, Clone)]
pub(super) struct Or<T>(pub(super) T);

impl<T: Brief> Shape for Or<T> {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        if matches!(value, Value::Object(_)) {
            return T::read(value, path, faults).map(Self);
        }
        let before = faults.errors.len();
        let read = T::read(&json!({ T::FIELD: value }), path, faults);
        // What stands in the file has no such field.
        for fault in faults.errors.iter_mut().skip(before) {
            fault.path = path.clone();
        }
        read.map(Self)
    }

    fn schema(definitions: &mut Definitions) -> Value {
        let whole = T::schema(definitions);
        let field = definitions.get(T::NAME).and_then(|record| record["properties"].get(T::FIELD));
        let mut brief = field.cloned().unwrap_or_default();
        if let Some(brief) = brief.as_object_mut() {
            ["x-without", "description"].iter().for_each(|word| drop(brief.remove(*word)));
        }
        json!({"anyOf": [brief, whole]})
    }
}

macro_rules! brief {
    ($($name:ident.$field:ident),+ $(,)?) => {
        $(impl $crate::short::shape::Brief for $name {
            const FIELD: &'static str = stringify!($field);
            const NAME: &'static str = stringify!($name);
        })+
    };
}
pub(super) use brief;

impl Shape for bool {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        if !value.is_boolean() {
            faults.push(path, format!("expected true or false, found {}", describe(value)));
        }
        value.as_bool()
    }

    fn schema(_: &mut Definitions) -> Value {
        json!({"type": "boolean"})
    }
}

impl Shape for String {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        text(value, "text", path, faults).map(str::to_owned)
    }

    fn schema(_: &mut Definitions) -> Value {
        json!({"type": "string"})
    }
}

/// A whole number within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole<const LEAST: u32, const MOST: u32>(pub(super) u32);

impl<const LEAST: u32, const MOST: u32> Shape for Whole<LEAST, MOST> {
    fn read(value: &Value, path: &mut FieldPath, faults: &mut Faults) -> Option<Self> {
        let fits =
            value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|it| (LEAST..=MOST).contains(it));
        if fits.is_none() {
            faults.push(path, format!("expected a whole number from {LEAST} to {MOST}, found {}", describe(value)));
        }
        fits.map(Self)
    }

    fn schema(_: &mut Definitions) -> Value {
        json!({"type": "integer", "minimum": LEAST, "maximum": MOST})
    }
}
