//! CEL expressions over Envoy's attributes (`request.path`, `response.code`, ...), parsed once, asked for each stream.
//! They must not know who asks; what an attribute is comes from `attributes`.
//!
//! As in Envoy, string conversion, concatenation and manipulation are not there unless `cel_config` allows them, and there
//! are no loops (`all`, `exists`, `map`, …); an expression that fails has no value.

mod attributes;
pub(super) mod functions;
mod syntax;

use std::sync::Arc;

pub use attributes::Facts;
use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::{Context, Value};
pub use functions::Functions;
use prost::Message as _;
use serde_json::Value as Json;
use tidegate_xds::pb::cel::expr as cel_expr;
use tidegate_xds::pb::google::api::expr::v1alpha1 as pb;
use tidegate_xds::pb::xds::r#type::v3::CelExpression;

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("failed to parse the CEL expression: {0}")]
    Syntax(String),
    #[error("the CEL expression {0}")]
    Malformed(&'static str),
    #[error("CEL expression not set.")]
    NotSet,
    #[error("Comprehension support is disabled")]
    Loop,
    #[error("No overloads provided for FunctionExpr: {0}")]
    Function(String),
    #[error("not supported yet: the attribute {0}")]
    Attribute(String),
    #[error("not supported yet: a time zone other than UTC or an offset as \"+01:00\" in {0}()")]
    TimeZone(String),
}

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Expression {
    tree: Arc<IdedExpr>,
    /// Whether a function of ours is called.
    prepared: bool,
    /// The first words of the attributes that it asks for.
    roots: Vec<&'static str>,
}

/// Messages whose every field acts: expressions that are held parsed.
pub const OPAQUE: &[&str] = &[
    "cel.expr.CheckedExpr",
    "cel.expr.ParsedExpr",
    "google.api.expr.v1alpha1.CheckedExpr",
    "google.api.expr.v1alpha1.Expr",
    "google.api.expr.v1alpha1.ParsedExpr",
];

/// What an expression may hold at most.
const MAX_BYTES: usize = 8 << 10;
const MAX_NESTING: usize = 64;
/// How many parts may stand in one another, brackets or not: an expression is evaluated as deep, on the stack of who asks.
const MAX_DEPTH: usize = 32;

/// Enough for what may nest, also in a build without optimisation.
const PARSER_STACK_BYTES: usize = 16 << 20;

impl Expression {
    /// # Errors
    /// What is no expression, or asks for a function or attribute that is not there.
    pub fn compile(text: &str, functions: Functions) -> Result<Self, ExpressionError> {
        Self::checked(parse(text).map_err(ExpressionError::Syntax)?, functions)
    }

    /// One that the configuration holds parsed.
    ///
    /// # Errors
    /// What is not whole, or asks for a function or attribute that is not there.
    pub fn compile_parsed(expression: &pb::Expr, functions: Functions) -> Result<Self, ExpressionError> {
        let tree = syntax::convert(expression).map_err(|fault| match fault {
            syntax::Fault::Missing => ExpressionError::Malformed("lacks a part"),
            syntax::Fault::TooDeep => ExpressionError::Malformed("is nested too deeply"),
        })?;
        Self::checked(tree, functions)
    }

    /// What a matcher's message holds: a checked expression before a parsed one, and never a text, as in Envoy.
    ///
    /// # Errors
    /// As [`Expression::compile_parsed`].
    pub fn compile_held(held: &CelExpression, functions: Functions) -> Result<Self, ExpressionError> {
        use tidegate_xds::pb::xds::r#type::v3::cel_expression::ExprSpecifier;
        // Both packages say the same in the same numbers.
        let same = |expression: &cel_expr::Expr| pb::Expr::decode(&*expression.encode_to_vec());
        #[expect(deprecated, reason = "Envoy takes the deprecated kinds too")]
        let expression = match (&held.cel_expr_checked, &held.cel_expr_parsed, &held.expr_specifier) {
            (Some(checked), _, _) => checked.expr.as_ref().map(same),
            (None, Some(parsed), _) => parsed.expr.as_ref().map(same),
            (None, None, Some(ExprSpecifier::ParsedExpr(parsed))) => parsed.expr.clone().map(Ok),
            (None, None, Some(ExprSpecifier::CheckedExpr(checked))) => checked.expr.clone().map(Ok),
            (None, None, None) => return Err(ExpressionError::NotSet),
        };
        let expression = expression.transpose().map_err(|_| ExpressionError::Malformed("is nested too deeply"))?;
        Self::compile_parsed(&expression.unwrap_or_default(), functions)
    }

    fn checked(mut tree: IdedExpr, functions: Functions) -> Result<Self, ExpressionError> {
        let mut roots = Vec::new();
        check(&tree, functions, &mut roots)?;
        let prepared = functions.bind(&mut tree);
        Ok(Self { tree: Arc::new(tree), prepared, roots })
    }

    fn evaluate(&self, facts: &Facts<'_>) -> Option<Value> {
        let mut context = Context::with_env(functions::environment());
        if self.prepared {
            functions::prepare(&mut context);
        }
        for root in &self.roots {
            context.add_variable_from_value(*root, facts.value(root));
        }
        Value::resolve(&self.tree, &context).ok()
    }

    /// Whether it says `true`; what cannot be evaluated does not.
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        matches!(self.evaluate(facts), Some(Value::Bool(true)))
    }

    /// The value in plain words; `None` when it has none.
    pub fn text(&self, facts: &Facts<'_>) -> Option<String> {
        self.json(facts).map(|value| match value {
            Json::String(text) => text,
            other => other.to_string(),
        })
    }

    /// The value as JSON; `None` when it cannot be evaluated or JSON has no such type.
    pub fn json(&self, facts: &Facts<'_>) -> Option<Json> {
        to_json(self.evaluate(facts)?)
    }
}

/// The crate's parser recurses as deep as an expression nests, and may panic: what it is given is bounded, and it runs on a
/// thread of its own.
fn parse(text: &str) -> Result<IdedExpr, String> {
    if text.len() > MAX_BYTES || nesting(text) > MAX_NESTING {
        return Err("too long, or nested too deeply".to_owned());
    }
    let owned = text.to_owned();
    let parse = move || match functions::environment().compile(&owned) {
        Ok(program) if is_deeper(program.expression(), MAX_DEPTH) => Err("nested too deeply".to_owned()),
        Ok(program) => Ok(program.expression().clone()),
        Err(errors) => Err(first_line(&errors.to_string())),
    };
    let parser = std::thread::Builder::new().name("cel".to_owned()).stack_size(PARSER_STACK_BYTES).spawn(parse);
    let parser = parser.map_err(|error| error.to_string())?;
    parser.join().unwrap_or_else(|_| Err("the parser failed".to_owned()))
}

/// Whether parts stand in one another more than `most` times: `1 + 1 + 1` does so without a bracket, and is evaluated as deep.
fn is_deeper(expression: &IdedExpr, most: usize) -> bool {
    let mut open = vec![(expression, 1)];
    while let Some((expression, depth)) = open.pop() {
        if depth > most {
            return true;
        }
        open.extend(parts(expression).into_iter().map(|part| (part, depth + 1)));
    }
    false
}

fn parts(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => Vec::new(),
        Expr::Select(select) => vec![&*select.operand],
        Expr::Call(call) => call.target.iter().map(|target| &**target).chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Struct(message) => message.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Comprehension(loop_) => {
            vec![&loop_.iter_range, &loop_.accu_init, &loop_.loop_cond, &loop_.loop_step, &loop_.result]
        }
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// How deep brackets nest, and how many choices may nest in one another; those in strings count too.
fn nesting(text: &str) -> usize {
    let (mut open, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                open += 1;
                deepest = deepest.max(open);
            }
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest + text.bytes().filter(|byte| *byte == b'?').count()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Looks at every part: attributes must be known, functions be there.
fn check(expression: &IdedExpr, functions: Functions, roots: &mut Vec<&'static str>) -> Result<(), ExpressionError> {
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) => {
            if let Some(root) = attributes::root(name)
                && !roots.contains(&root)
            {
                roots.push(root);
            }
            Ok(())
        }
        Expr::Select(select) => {
            if let Expr::Ident(name) = &select.operand.expr
                && attributes::root(name).is_some()
                && !attributes::is_known(name, &select.field)
            {
                return Err(ExpressionError::Attribute(format!("{name}.{}", select.field)));
            }
            check(&select.operand, functions, roots)
        }
        Expr::Call(call) => {
            let name = call.func_name.as_str();
            if !functions.has(name) {
                return Err(ExpressionError::Function(name.to_owned()));
            }
            if name.starts_with("get") && !call.args.iter().all(is_known_zone) {
                return Err(ExpressionError::TimeZone(name.to_owned()));
            }
            call.target
                .iter()
                .map(|target| &**target)
                .chain(&call.args)
                .try_for_each(|part| check(part, functions, roots))
        }
        Expr::List(list) => list.elements.iter().try_for_each(|part| check(part, functions, roots)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| check_entry(&entry.expr, functions, roots)),
        Expr::Struct(message) => {
            message.entries.iter().try_for_each(|entry| check_entry(&entry.expr, functions, roots))
        }
        // As in Envoy: an expression costs what it is long.
        Expr::Comprehension(_) => Err(ExpressionError::Loop),
    }
}

/// Whether an argument of `getHours()` and its like names a zone without a table: the build has no other (`.cargo/config.toml`).
fn is_known_zone(argument: &IdedExpr) -> bool {
    let Expr::Literal(LiteralValue::String(zone)) = &argument.expr else { return false };
    matches!(zone.inner(), "" | "UTC") || zone.inner().contains(':')
}

fn check_entry(entry: &EntryExpr, functions: Functions, roots: &mut Vec<&'static str>) -> Result<(), ExpressionError> {
    match entry {
        EntryExpr::StructField(field) => check(&field.value, functions, roots),
        EntryExpr::MapEntry(entry) => {
            check(&entry.key, functions, roots)?;
            check(&entry.value, functions, roots)
        }
    }
}

fn to_json(value: Value) -> Option<Json> {
    Some(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => value.into(),
        Value::Int(number) => number.into(),
        Value::UInt(number) => number.into(),
        Value::Float(number) => number.into(),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
        Value::Timestamp(time) => time.to_utc().format("%Y-%m-%dT%H:%M:%S%.f+00:00").to_string().into(),
        Value::Duration(span) => format!("{}s", span.as_seconds_f64()).into(),
        Value::List(items) => Json::Array(items.iter().cloned().map(to_json).collect::<Option<_>>()?),
        Value::Map(map) => {
            let pairs = map.map.iter().map(|(key, value)| match key {
                cel::objects::Key::String(key) => Some((key.to_string(), to_json(value.clone())?)),
                _ => None,
            });
            Json::Object(pairs.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use http::{HeaderValue, Method, StatusCode};

    use super::*;
    use crate::connection::ConnectionInfo;
    use crate::http::RequestHead;
    use crate::stream_info::{Address, StreamInfo};

    fn info() -> StreamInfo {
        let address = Address::Ip("127.0.0.1:80".parse().unwrap());
        let now = Instant::now();
        let mut info =
            StreamInfo::new(Arc::new(ConnectionInfo::new(7, address.clone(), address, now)), now, SystemTime::now());
        info.response_code = Some(StatusCode::NOT_FOUND);
        info.dynamic_metadata.set("space", serde_json::from_str(r#"{"key": [1, "two"]}"#).unwrap());
        info
    }

    fn compile(text: &str) -> Result<Expression, ExpressionError> {
        Expression::compile(text, Functions::default())
    }

    fn holds(text: &str) -> bool {
        holds_with(text, Functions::default())
    }

    fn holds_with(text: &str, functions: Functions) -> bool {
        let info = info();
        let mut head = RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/p?q=1"));
        head.headers.append("x-a", HeaderValue::from_static("1"));
        head.headers.append("x-a", HeaderValue::from_static("2"));
        Expression::compile(text, functions).unwrap().holds(&Facts { request: Some(&head), ..Facts::of(&info) })
    }

    #[test]
    fn attributes_are_envoys() {
        for text in [
            "response.code >= 400",
            "request.path == '/p?q=1' && request.url_path == '/p' && request.query == 'q=1'",
            "request.headers['x-a'] == '1,2'",
            "'x-a' in request.headers && !('x-b' in request.headers)",
            "request.headers[':method'] == request.method && request.host == 'h'",
            "source.port == 80 && source.address == '127.0.0.1:80' && connection.id == 7u",
            "!connection.mtls",
            "metadata.filter_metadata['space']['key'][1] == 'two'",
            "request.time < timestamp('2999-01-01T00:00:00Z')",
            "timestamp('2999-01-01T23:30:00Z').getHours('+01:00') == 0",
            "timestamp('2999-01-01T23:30:00Z').getHours('UTC') == 23",
            "has(request.headers) && request.path.startsWith('/p') && request.path.matches('q=.')",
            "response.grpc_status == 12",
            "size('abc') == 3 && 2 in [1, 2] && 1 + 2 == 3 && [1] + [2] == [1, 2]",
            "request.headers['x-none'] == 'a' || true",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    /// Measured on Envoy 1.40.
    #[test]
    fn strings_are_worked_on_where_they_may_be() {
        use tidegate_xds::pb::envoy::config::core::v3::CelExpressionConfig;
        let with = |conversion, concat, functions| {
            Functions::compile(Some(&CelExpressionConfig {
                enable_string_conversion: conversion,
                enable_string_concat: concat,
                enable_string_functions: functions,
            }))
        };
        for (text, functions) in [
            ("string(12) == '12'", with(true, false, false)),
            ("request.method + '!' == 'GET!'", with(false, true, false)),
            ("'Ab'.lowerAscii() == 'ab' && 'Ab'.upperAscii() == 'AB'", with(false, false, true)),
            ("'a.b'.replace('.', '-') == 'a-b' && 'a.b'.split('.')[1] == 'b'", with(false, false, true)),
        ] {
            assert!(holds_with(text, functions), "{text}");
            assert!(!compile(text).is_ok_and(|_| holds(text)), "{text}");
        }
        assert!(Expression::compile("' a '.trim() == 'a'", with(true, true, true)).is_err());
    }

    #[test]
    fn parsed_expressions_are_the_same() {
        use tidegate_xds::pb::google::api::expr::v1alpha1::expr::{Call, ExprKind, Ident, Select};
        use tidegate_xds::pb::google::api::expr::v1alpha1::{Constant, constant::ConstantKind};
        let node = |kind| pb::Expr { id: 1, expr_kind: Some(kind) };
        let text = |text: &str| {
            let constant_kind = Some(ConstantKind::StringValue(text.to_owned()));
            node(ExprKind::ConstExpr(Constant { constant_kind }))
        };
        let request = node(ExprKind::IdentExpr(Ident { name: "request".into() }));
        let select = Select { operand: Some(Box::new(request)), field: "host".into(), test_only: false };
        let host = node(ExprKind::SelectExpr(Box::new(select)));
        let call = |function: &str, args| {
            node(ExprKind::CallExpr(Box::new(Call { target: None, function: function.to_owned(), args })))
        };
        let parsed = |expression: &pb::Expr| Expression::compile_parsed(expression, Functions::default());
        let same = parsed(&call("_==_", vec![host, text("h")])).unwrap();
        let info = info();
        let head = RequestHead::new(Method::GET, HeaderValue::from_static("h"), HeaderValue::from_static("/"));
        assert!(same.holds(&Facts { request: Some(&head), ..Facts::of(&info) }));
        assert_eq!(parsed(&pb::Expr::default()).unwrap_err(), ExpressionError::Malformed("lacks a part"));
        assert_eq!(parsed(&call("f", vec![])).unwrap_err(), ExpressionError::Function("f".into()));
        let deep = (0..100).fold(text("a"), |inner, _| call("!_", vec![inner]));
        assert_eq!(parsed(&deep).unwrap_err(), ExpressionError::Malformed("is nested too deeply"));
    }

    #[test]
    fn what_cannot_be_evaluated_does_not_hold() {
        for text in ["request.headers['x-none'] != 'a'", "nonsense == 1", "1", "1/0 == 1"] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for zone in ["'Europe/Paris'", "request.host"] {
            let refused = compile(&format!("request.time.getHours({zone}) == 1")).unwrap_err();
            assert_eq!(refused, ExpressionError::TimeZone("getHours".into()));
        }
        assert_eq!(compile("[1, 2].exists(n, n == 2)").unwrap_err(), ExpressionError::Loop);
        assert!(matches!(compile("response.code >="), Err(ExpressionError::Syntax(_))));
        assert_eq!(compile("f(1)").unwrap_err(), ExpressionError::Function("f".into()));
        assert_eq!(compile("string(1) == '1'").unwrap_err(), ExpressionError::Function("string".into()));
        assert_eq!(compile("xds.node.id == ''").unwrap_err(), ExpressionError::Attribute("xds.node".into()));
        for odd in ["", "(", "'", "\"\\u{110000}\"", "a.b.", "1 +", "[", "{'a':}", "x.map(", "\u{0}", "?"] {
            assert!(compile(odd).is_err(), "{odd}");
        }
        let chain = |terms: usize| format!("{}1 == 0", "1 + ".repeat(terms));
        assert!(!holds(&chain(30)), "as deep as may be, it is evaluated on any stack");
        for terms in [100, 2_000] {
            assert!(Expression::compile(&chain(terms), Functions::default()).is_err());
        }
        for unit in ["(", "[", "{'a':", "a?", "!", "-", "a.", "a(", "1+", "a&&", "\\"] {
            assert!(compile(&unit.repeat(10_000)).is_err(), "{unit}");
            assert!(compile(&unit.repeat(1_000)).is_err(), "{unit}");
            assert!(compile(&unit.repeat(60)).is_err(), "{unit}");
        }
    }
}
