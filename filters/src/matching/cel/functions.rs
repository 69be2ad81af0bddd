//! Which functions an expression may call, and `+` where it must not join strings.
//! They must not know what attributes there are.

use std::sync::{Arc, OnceLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, ExecutionError, Value, extensions};
use tidegate_xds::Coverage;
use tidegate_xds::pb::envoy::config::core::v3::CelExpressionConfig;

/// The fields that act in the message compiled here.
pub(in crate::matching) const COVERAGE: &[Coverage] = &[Coverage {
    message: "envoy.config.core.v3.CelExpressionConfig",
    enforced: &["enable_string_conversion", "enable_string_concat", "enable_string_functions"],
    listed: &[],
}];

/// What `cel_config` adds to the functions that are always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Functions {
    conversion: bool,
    concatenation: bool,
    manipulation: bool,
}

/// Functions that are there without `cel_config`, operators and macros' helpers aside.
const ALWAYS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "bytes",
    "bool",
    "dyn",
    "type",
    "duration",
    "timestamp",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
];
const MANIPULATION: &[&str] = &["replace", "split", "lowerAscii", "upperAscii"];

const PLUS: &str = "_+_";
/// What stands for it where strings are not joined.
const PLUS_OF_NUMBERS: &str = "plus_of_numbers";

impl Functions {
    pub fn compile(config: Option<&CelExpressionConfig>) -> Self {
        let Some(config) = config else { return Self::default() };
        Self {
            conversion: config.enable_string_conversion,
            concatenation: config.enable_string_concat,
            manipulation: config.enable_string_functions,
        }
    }

    /// Operators are always there.
    pub(super) fn has(self, name: &str) -> bool {
        !name.starts_with(|c: char| c.is_ascii_alphabetic())
            || ALWAYS.contains(&name)
            || self.conversion && name == "string"
            || self.manipulation && MANIPULATION.contains(&name)
    }

    /// Binds each `+` of a checked expression; whether [`prepare`] is needed for it.
    pub(super) fn bind(self, tree: &mut IdedExpr) -> bool {
        !self.concatenation && rename(tree)
    }
}

/// The functions themselves, for all expressions: who may call which was checked before.
pub(super) fn environment() -> Arc<Env> {
    static ENVIRONMENT: OnceLock<Arc<Env>> = OnceLock::new();
    Arc::clone(ENVIRONMENT.get_or_init(|| {
        let mut env = Env::stdlib();
        // It is declared once, so that no name can be taken; a test calls each function.
        let _ = env.add_extension(extensions::strings);
        Arc::new(env)
    }))
}

/// Makes the `+` known that joins no strings.
pub(super) fn prepare(context: &mut Context<'_, '_>) {
    let plus = |left: Value, right: Value| match left {
        Value::String(_) | Value::Bytes(_) => Err(ExecutionError::function_error(PLUS, "strings are not joined")),
        left => left + right,
    };
    // The name is nobody else's.
    let _ = context.add_function(PLUS_OF_NUMBERS, plus);
}

/// Whether there was a `+`.
fn rename(tree: &mut IdedExpr) -> bool {
    let mut parts: Vec<&mut IdedExpr> = Vec::new();
    let mut renamed = false;
    match &mut tree.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) | Expr::Comprehension(_) => {}
        Expr::Call(call) => {
            if call.func_name == PLUS {
                PLUS_OF_NUMBERS.clone_into(&mut call.func_name);
                renamed = true;
            }
            parts.extend(call.target.as_deref_mut());
            parts.extend(&mut call.args);
        }
        Expr::Select(select) => parts.push(&mut select.operand),
        Expr::List(list) => parts.extend(&mut list.elements),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| parts_of(&mut entry.expr, &mut parts)),
        Expr::Struct(message) => message.entries.iter_mut().for_each(|entry| parts_of(&mut entry.expr, &mut parts)),
    }
    for part in parts {
        renamed |= rename(part);
    }
    renamed
}

fn parts_of<'a>(entry: &'a mut EntryExpr, parts: &mut Vec<&'a mut IdedExpr>) {
    match entry {
        EntryExpr::StructField(field) => parts.push(&mut field.value),
        EntryExpr::MapEntry(entry) => parts.extend([&mut entry.key, &mut entry.value]),
    }
}
