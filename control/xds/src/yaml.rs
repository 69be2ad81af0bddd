//! YAML text to a `Document`, with the scalar rules of Envoy's loader (yaml-cpp: YAML 1.1).
//! It must not know the schema.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::{
    FieldError, FieldPath, Location,
    document::{Document, Key, MAX_DEPTH, NodeId, Value},
};

/// Reads the first document of a text; Envoy ignores the others.
pub(crate) fn parse(text: &str) -> Result<Document, FieldError> {
    // Each tab needs the text to be read again up to it.
    const MOST_CHARACTERS_AGAIN: usize = 4 << 20;
    // A byte order mark at the start is not part of the text.
    let mut text = Cow::Borrowed(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut again = 0;
    loop {
        match read(&text) {
            Err(error) if error.info().contains(TAB_AFTER_COLON) && again < MOST_CHARACTERS_AGAIN => {
                again += error.marker().index();
                text = Cow::Owned(without_tab(&text, error.marker()).ok_or_else(|| syntax_error(&error))?);
            }
            Err(error) => return Err(syntax_error(&error)),
            Ok(document) => return document,
        }
    }
}

/// The parser refuses a tab between `key:` and its value, which yaml-cpp takes for a space.
const TAB_AFTER_COLON: &str = "':' must be followed by a valid YAML whitespace";

/// The text with spaces for the tabs that end at `marker`.
fn without_tab(text: &str, marker: &Marker) -> Option<String> {
    let end = text.char_indices().nth(marker.index()).map_or(text.len(), |(at, _)| at);
    let (before, after) = text.split_at_checked(end)?;
    let kept = before.trim_end_matches(['\t', ' ']);
    let blanks = before.len() - kept.len();
    (before.contains('\t') && blanks > 0).then(|| format!("{kept}{}{after}", " ".repeat(blanks)))
}

fn syntax_error(error: &ScanError) -> FieldError {
    let info = error.info();
    let hint = HINTS.iter().find(|(part, _)| info.contains(part)).map(|(_, hint)| format!("; {hint}"));
    failure(location(error.marker()), &format!("{info}{}", hint.unwrap_or_default()))
}

/// What is most likely wrong, by what the parser says of it.
const HINTS: &[(&str, &str)] = &[
    ("indentation in quoted scalar", "is the quote that begins here closed?"),
    ("indentation in flow construct", "is each `{` and `[` before closed?"),
    ("did not find expected ',' or", "is each `{` and `[` before closed?"),
    ("did not find expected node content", "is each `{` and `[` before closed?"),
    (
        "mapping values are not allowed",
        "is the line indented as those around it, and is text that holds `: ` in quotes?",
    ),
    ("did not find expected key", "is the line indented as those around it?"),
    ("tab", "indent with spaces"),
    ("unexpected character", "text that begins so must be in quotes"),
];

/// The outer result is the syntax, the inner one what is made of it.
fn read(text: &str) -> Result<Result<Document, FieldError>, ScanError> {
    let mut builder =
        Builder { document: Document::new(text.len()), open: Vec::new(), anchors: HashMap::new(), root: None };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        if matches!(event, Event::DocumentEnd | Event::StreamEnd) {
            builder.doubt_what_follows(&mut parser);
            break;
        }
        if let Err(error) = builder.event(event, location(&span.start)) {
            return Ok(Err(error));
        }
    }
    let Builder { mut document, root, .. } = builder;
    let root = root.unwrap_or_else(|| document.add(Location { line: 1, column: 1 }, Value::Null));
    document.set_root(root);
    Ok(Ok(document))
}

fn failure(at: Location, reason: &str) -> FieldError {
    FieldError::new(FieldPath::root(), format!("not valid YAML: {reason}")).at(Some(at))
}

fn location(marker: &Marker) -> Location {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Location { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
}

/// A list or object whose end has not come yet.
struct Open {
    anchor: usize,
    location: Location,
    contents: Contents,
}

enum Contents {
    List(Vec<NodeId>),
    Object { entries: Vec<(Key, NodeId)>, key: Option<PendingKey> },
}

struct PendingKey {
    key: Key,
    ignored: bool,
}

struct Builder {
    document: Document,
    open: Vec<Open>,
    anchors: HashMap<usize, NodeId>,
    root: Option<NodeId>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Location) -> Result<(), FieldError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref();
                if style == ScalarStyle::Plain && text.starts_with(['|', '>', '@', '`', '%']) {
                    return Err(failure(at, "text that starts so must be in quotes"));
                }
                if let Some(key) = self.awaited_key() {
                    let ignored = tag.is_some_and(|tag| full_name(tag) == "!ignore");
                    let text = match scalar(&text, style, tag) {
                        // A key is text whatever it looks like, but yaml-cpp has only one name for null.
                        Value::Null => "null".into(),
                        _ => text,
                    };
                    *key = Some(PendingKey { key: Key { name: text.into_owned(), location: at }, ignored });
                    return Ok(());
                }
                let node = self.document.add(at, scalar(&text, style, tag));
                self.complete(node, anchor);
            }
            Event::SequenceStart(anchor, _) => self.open(anchor, at, Contents::List(Vec::new()))?,
            Event::MappingStart(anchor, _) => {
                self.open(anchor, at, Contents::Object { entries: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let target = self.anchors.get(&anchor).copied();
                let target = target.ok_or_else(|| failure(at, "an alias of something that it is part of"))?;
                if let Some(key) = self.awaited_key() {
                    *key = Some(PendingKey { key: Key { name: String::new(), location: at }, ignored: false });
                    return Err(failure(at, "an alias as a key"));
                }
                self.complete(target, 0);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
        }
        Ok(())
    }

    /// A second document is not read; it need not even be YAML.
    fn doubt_what_follows<'a>(&mut self, mut rest: impl Iterator<Item = Result<(Event<'a>, Span), ScanError>>) {
        while let Some(Ok((event, span))) = rest.next() {
            if matches!(event, Event::DocumentStart(_)) {
                self.document.doubt(location(&span.start), "only the first document of the text is read".to_owned());
                return;
            }
        }
    }

    /// The place for a key, if an object waits for one.
    fn awaited_key(&mut self) -> Option<&mut Option<PendingKey>> {
        match &mut self.open.last_mut()?.contents {
            Contents::Object { key, .. } if key.is_none() => Some(key),
            _ => None,
        }
    }

    fn open(&mut self, anchor: usize, location: Location, contents: Contents) -> Result<(), FieldError> {
        if self.awaited_key().is_some() {
            return Err(failure(location, "a list or object as a key; a template that was not filled in?"));
        }
        // Two more than a message may nest, so that `decode` names the field.
        if self.open.len() > MAX_DEPTH + 1 {
            return Err(failure(location, "nested too deeply"));
        }
        self.open.push(Open { anchor, location, contents });
        Ok(())
    }

    fn close(&mut self) {
        let Some(Open { anchor, location, contents }) = self.open.pop() else {
            return;
        };
        let value = match contents {
            Contents::List(items) => Value::List(items),
            Contents::Object { entries, .. } => Value::Object(self.last_of_each(entries)),
        };
        let node = self.document.add(location, value);
        self.complete(node, anchor);
    }

    /// Of keys that occur twice the last counts.
    fn last_of_each(&mut self, entries: Vec<(Key, NodeId)>) -> Vec<(Key, NodeId)> {
        let mut last: HashMap<&str, usize> = HashMap::with_capacity(entries.len());
        for (at, (key, _)) in entries.iter().enumerate() {
            last.insert(&key.name, at);
        }
        if last.len() == entries.len() {
            return entries;
        }
        let keep: Vec<bool> =
            entries.iter().enumerate().map(|(at, (key, _))| last.get(key.name.as_str()) == Some(&at)).collect();
        let mut kept = Vec::with_capacity(entries.len());
        for (entry, keep) in entries.into_iter().zip(keep) {
            let (key, _) = &entry;
            match keep {
                true => kept.push(entry),
                false => self.document.doubt(key.location, format!("`{}` is set again below, which counts", key.name)),
            }
        }
        kept
    }

    /// Puts a finished node where it belongs.
    fn complete(&mut self, node: NodeId, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node);
        }
        match self.open.last_mut().map(|open| &mut open.contents) {
            None => self.root = self.root.or(Some(node)),
            Some(Contents::List(items)) => items.push(node),
            Some(Contents::Object { entries, key }) => {
                if let Some(PendingKey { key, ignored: false }) = key.take() {
                    entries.push((key, node));
                }
            }
        }
    }
}

/// What a scalar is: quoted ones are text, tags but `!` say nothing.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let non_specific = tag.is_some_and(|tag| full_name(tag) == "!");
    let quoted = tag.is_none() && style != ScalarStyle::Plain;
    if non_specific || quoted {
        return Value::Text(text.to_owned());
    }
    if tag.is_none() && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(value) = boolean(text) {
        return Value::Bool(value);
    }
    match integer(text) {
        // Larger ones are text in Envoy too, which protobuf's JSON takes for any number.
        Some(value) if i32::try_from(value).is_ok() => Value::Number(value.to_string()),
        Some(value) => Value::Text(value.to_string()),
        None => Value::Text(text.to_owned()),
    }
}

fn full_name(tag: &Tag) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}

/// `yes`, `Yes` or `YES`, but not `yEs`.
fn boolean(text: &str) -> Option<bool> {
    let (first, rest) = text.split_at_checked(1)?;
    let lower = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase());
    let upper = |text: &str| text.bytes().all(|byte| byte.is_ascii_uppercase());
    if !(lower(text) || upper(first) && (lower(rest) || upper(rest))) {
        return None;
    }
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "true" | "on" => Some(true),
        "n" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// Decimal, `0x` hexadecimal or `0` octal, as C's `strtoll` with base 0 reads it.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, text.get(1..)?),
        [b'+', ..] => (false, text.get(1..)?),
        _ => (false, text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', _, ..] => (16, digits.get(2..)?),
        [b'0', _, ..] => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, base).ok()?);
    i64::try_from(if negative { -value } else { value }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        format!("{:?}", scalar(text, ScalarStyle::Plain, None))
    }

    #[test]
    fn scalars_are_read_as_yaml_1_1() {
        for (text, expected) in [
            ("yes", "Bool(true)"),
            ("Off", "Bool(false)"),
            ("ON", "Bool(true)"),
            ("y", "Bool(true)"),
            ("yEs", "Text(\"yEs\")"),
            ("~", "Null"),
            ("", "Null"),
            ("nULL", "Text(\"nULL\")"),
            ("15", "Number(\"15\")"),
            ("+15", "Number(\"15\")"),
            ("0x10", "Number(\"16\")"),
            ("010", "Number(\"8\")"),
            ("-010", "Number(\"-8\")"),
            ("08", "Text(\"08\")"),
            ("1_000", "Text(\"1_000\")"),
            ("1e3", "Text(\"1e3\")"),
            ("1.5", "Text(\"1.5\")"),
            ("3000000000", "Text(\"3000000000\")"),
            ("0x100000000", "Text(\"4294967296\")"),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
        assert_eq!(format!("{:?}", scalar("15", ScalarStyle::DoubleQuoted, None)), "Text(\"15\")");
    }

    #[test]
    fn the_first_document_and_the_last_of_equal_keys_count() {
        let document = parse("a: 1\na: 2\n---\nb: 3\n").unwrap();
        let Value::Object(entries) = &document.node(document.root()).value else { panic!("no object") };
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].0.location, Location { line: 2, column: 1 });
    }

    #[test]
    fn what_does_not_count_is_told() {
        let mut document = parse("a: 1\nb: {c: 1, c: 2}\na: 2\n---\n[b: \n").unwrap();
        let told: Vec<_> = document.take_doubts().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "`c` is set again below, which counts (line 2, column 5)",
                "`a` is set again below, which counts (line 1, column 1)",
                "only the first document of the text is read (line 4, column 1)",
            ]
        );
        assert_eq!(parse("---\na: 1\n...\n").unwrap().take_doubts(), []);
        assert_eq!(parse(&"a: 1\n".repeat(1000)).unwrap().take_doubts().len(), 100);
    }

    #[test]
    fn what_is_likely_wrong_is_told() {
        for (text, hint) in [
            ("a: 'b\nc: d\n", "is the quote that begins here closed?"),
            ("a: {b: c\nd: e\n", "is each `{` and `[` before closed?"),
            ("a: b: c\n", "in quotes?"),
            ("a:\n  b: 1\n c: 2\n", "is the line indented as those around it?"),
            ("a:\n\tb: 1\n", "indent with spaces"),
            ("a: @b\n", "text that begins so must be in quotes"),
            ("a: {{ b }}\n", "a template that was not filled in?"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn ignored_keys_are_dropped_and_aliases_followed() {
        let document = parse("!ignore x: &a [1]\ny: *a\n").unwrap();
        let Value::Object(entries) = &document.node(document.root()).value else { panic!("no object") };
        assert_eq!(entries.len(), 1);
        assert!(matches!(&document.node(entries[0].1).value, Value::List(items) if items.len() == 1));
    }

    #[test]
    fn tabs_may_follow_a_colon() {
        let document = parse("é: 1\na:\tb\nc: \"x:\ty\"\nd:\t\t7\n").unwrap();
        let Value::Object(entries) = &document.node(document.root()).value else { panic!("no object") };
        let texts: Vec<_> = entries.iter().map(|(_, node)| document.node(*node).value.describe()).collect();
        assert_eq!(texts, ["the number 1", "\"b\"", "\"x:\\ty\"", "the number 7"]);
    }

    #[test]
    fn keys_are_text_and_indicators_need_quotes() {
        let document = parse("{~: 1, 2: 3, !<!ignore> z: 1}").unwrap();
        let Value::Object(entries) = &document.node(document.root()).value else { panic!("no object") };
        assert_eq!(entries.iter().map(|(key, _)| key.name.as_str()).collect::<Vec<_>>(), ["null", "2"]);
        assert!(parse("{a: |x}").is_err());
    }

    #[test]
    fn errors_have_a_place() {
        let error = parse("a: [1\nb: 2\n").unwrap_err();
        assert!(error.location.is_some(), "{error}");
        assert!(parse("a: &x [*x]\n").is_err(), "an alias inside its own node");
        assert!(parse(&"[".repeat(5000)).is_err());
    }
}
