//! `google.api.expr.v1alpha1.Expr`: expressions that a configuration holds parsed, as the interpreter's syntax tree.
//! It must not know what functions or attributes there are.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, ListExpr, LiteralValue, MapEntryExpr,
    MapExpr, SelectExpr, StructExpr, StructFieldExpr,
};
use tidegate_xds::pb::google::api::expr::v1alpha1 as pb;
use tidegate_xds::pb::google::api::expr::v1alpha1::constant::ConstantKind;
use tidegate_xds::pb::google::api::expr::v1alpha1::expr::create_struct::{Entry, entry::KeyKind};
use tidegate_xds::pb::google::api::expr::v1alpha1::expr::{Comprehension, CreateStruct, ExprKind};

/// Why it is no expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A part that must be there is not.
    Missing,
    TooDeep,
}

type Converted<T> = Result<T, Fault>;

pub(super) fn convert(expression: &pb::Expr) -> Converted<IdedExpr> {
    node(Some(expression), 0)
}

fn node(expression: Option<&pb::Expr>, depth: usize) -> Converted<IdedExpr> {
    let expression = expression.ok_or(Fault::Missing)?;
    if depth > super::MAX_DEPTH {
        return Err(Fault::TooDeep);
    }
    let depth = depth + 1;
    let expr = match expression.expr_kind.as_ref().ok_or(Fault::Missing)? {
        ExprKind::ConstExpr(constant) => Expr::Literal(literal(constant)?),
        ExprKind::IdentExpr(identifier) => Expr::Ident(identifier.name.clone()),
        ExprKind::SelectExpr(select) => Expr::Select(SelectExpr {
            operand: Box::new(node(select.operand.as_deref(), depth)?),
            field: select.field.clone(),
            test: select.test_only,
        }),
        ExprKind::CallExpr(call) => Expr::Call(CallExpr {
            func_name: call.function.clone(),
            target: call.target.as_deref().map(|target| node(Some(target), depth).map(Box::new)).transpose()?,
            args: call.args.iter().map(|argument| node(Some(argument), depth)).collect::<Converted<_>>()?,
        }),
        ExprKind::ListExpr(list) => Expr::List(ListExpr::new_with_optionals(
            list.elements.iter().map(|element| node(Some(element), depth)).collect::<Converted<_>>()?,
            list.optional_indices.iter().filter_map(|index| usize::try_from(*index).ok()).collect(),
        )),
        ExprKind::StructExpr(structure) => entries(structure, depth)?,
        ExprKind::ComprehensionExpr(comprehension) => Expr::Comprehension(Box::new(loop_of(comprehension, depth)?)),
    };
    Ok(IdedExpr { id: id(expression.id), expr })
}

fn id(id: i64) -> u64 {
    u64::try_from(id).unwrap_or(0)
}

fn literal(constant: &pb::Constant) -> Converted<LiteralValue> {
    Ok(match constant.constant_kind.as_ref().ok_or(Fault::Missing)? {
        ConstantKind::NullValue(_) => LiteralValue::Null,
        ConstantKind::BoolValue(value) => LiteralValue::Boolean((*value).into()),
        ConstantKind::Int64Value(value) => LiteralValue::Int((*value).into()),
        ConstantKind::Uint64Value(value) => LiteralValue::UInt((*value).into()),
        ConstantKind::DoubleValue(value) => LiteralValue::Double((*value).into()),
        ConstantKind::StringValue(value) => LiteralValue::String(value.clone().into()),
        ConstantKind::BytesValue(value) => LiteralValue::Bytes(value.clone().into()),
        // CEL has no such constants any more; cel-cpp refuses them too.
        _ => return Err(Fault::Missing),
    })
}

/// A map where it names no message.
fn entries(structure: &CreateStruct, depth: usize) -> Converted<Expr> {
    let entries = structure.entries.iter().map(|entry| self::entry(entry, depth)).collect::<Converted<_>>()?;
    Ok(match structure.message_name.as_str() {
        "" => Expr::Map(MapExpr { entries }),
        name => Expr::Struct(StructExpr { type_name: name.to_owned(), entries }),
    })
}

fn entry(entry: &Entry, depth: usize) -> Converted<IdedEntryExpr> {
    let value = node(entry.value.as_ref(), depth)?;
    let optional = entry.optional_entry;
    let expr = match entry.key_kind.as_ref().ok_or(Fault::Missing)? {
        KeyKind::FieldKey(field) => EntryExpr::StructField(StructFieldExpr { field: field.clone(), value, optional }),
        KeyKind::MapKey(key) => EntryExpr::MapEntry(MapEntryExpr { key: node(Some(key), depth)?, value, optional }),
    };
    Ok(IdedEntryExpr { id: id(entry.id), expr })
}

fn loop_of(comprehension: &Comprehension, depth: usize) -> Converted<ComprehensionExpr> {
    let second = &comprehension.iter_var2;
    Ok(ComprehensionExpr {
        iter_range: node(comprehension.iter_range.as_deref(), depth)?,
        iter_var: comprehension.iter_var.clone(),
        iter_var2: (!second.is_empty()).then(|| second.clone()),
        accu_var: comprehension.accu_var.clone(),
        accu_init: node(comprehension.accu_init.as_deref(), depth)?,
        loop_cond: node(comprehension.loop_condition.as_deref(), depth)?,
        loop_step: node(comprehension.loop_step.as_deref(), depth)?,
        result: node(comprehension.result.as_deref(), depth)?,
    })
}
