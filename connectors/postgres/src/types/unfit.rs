//! Values that their columns cannot hold: what becomes of them, by the task's `values` rules, and which columns get
//! another type by them. One place for COPY and pgoutput, so that both ways give the same.

use millrace_core::{Becomes, Column, ColumnType, Columns, Table, TableName, Unfit, ValueRules};

use super::{PgType, Scalar, text};

/// What becomes of the values of each column of the table. A key's values are never clamped: two rows would become one.
pub fn policies(rules: &ValueRules, table: &Table) -> Vec<Unfit> {
    let policy = |(index, column)| match rule(rules, &table.name, column).0 {
        Unfit::Clamp if table.key.contains(&index) => Unfit::Companion,
        policy => policy,
    };
    table.columns.iter().enumerate().map(policy).collect()
}

fn rule(rules: &ValueRules, table: &TableName, column: &Column) -> (Unfit, Option<Becomes>) {
    let source_type = canonical(&column.source_type);
    rules.of(table, &column.name, |name| canonical(name) == source_type)
}

/// Gives the columns the types that the rules say.
pub fn retype(rules: &ValueRules, table: &mut Table) {
    let name = table.name.clone();
    for column in &mut table.columns {
        if let Some(ty) = retyped(rule(rules, &name, column), column) {
            column.ty = ty;
        }
    }
}

/// The same with the types that values are read by.
pub fn retype_with(rules: &ValueRules, table: &mut Table, types: &mut [PgType]) {
    retype(rules, table);
    for (column, ty) in table.columns.iter().zip(types) {
        if column.ty == ty.column_type() {
            continue;
        }
        *ty = match (&column.ty, *ty) {
            (ColumnType::Decimal { precision, scale }, PgType::Scalar(_)) => {
                PgType::Scalar(Scalar::Decimal { precision: *precision, scale: *scale })
            }
            (ColumnType::List(item), PgType::Array(_)) => match **item {
                ColumnType::Decimal { precision, scale } => PgType::Array(Scalar::Decimal { precision, scale }),
                _ => PgType::Scalar(Scalar::Other),
            },
            _ => PgType::Scalar(Scalar::Other),
        };
    }
}

/// The column's other type, if it gets one.
fn retyped((unfit, becomes): (Unfit, Option<Becomes>), column: &Column) -> Option<ColumnType> {
    match becomes {
        Some(Becomes::Text) => Some(ColumnType::Text),
        Some(Becomes::Decimal { precision, scale }) => {
            let decimal = ColumnType::Decimal { precision, scale };
            match (&column.ty, canonical(&column.source_type).as_str()) {
                (ColumnType::Decimal { .. }, _) | (_, "numeric") => Some(decimal),
                (ColumnType::List(item), _) if matches!(**item, ColumnType::Decimal { .. }) => {
                    Some(ColumnType::List(Box::new(decimal)))
                }
                (_, "numeric[]") => Some(ColumnType::List(Box::new(decimal))),
                _ => None,
            }
        }
        None => (unfit == Unfit::Text && has_unfit_values(&column.ty)).then_some(ColumnType::Text),
    }
}

/// Whether the server has values of such columns that the type cannot hold.
pub fn has_unfit_values(ty: &ColumnType) -> bool {
    match ty {
        ColumnType::Decimal { .. }
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Timestamp
        | ColumnType::TimestampTz
        | ColumnType::List(_) => true,
        ColumnType::Boolean
        | ColumnType::Int16
        | ColumnType::Int32
        | ColumnType::Int64
        | ColumnType::Float32
        | ColumnType::Float64
        | ColumnType::Text
        | ColumnType::Binary => false,
    }
}

/// Whether a column that the log shows with this type may be one that a rule gave another.
pub fn may_be_retyped(shown: &ColumnType, column: &ColumnType) -> bool {
    let is_number = |ty: &ColumnType| matches!(ty, ColumnType::Text | ColumnType::Decimal { .. });
    match (shown, column) {
        (_, ColumnType::Text) => true,
        (ColumnType::List(shown), ColumnType::List(item)) => is_number(shown) && is_number(item),
        (shown, ColumnType::Decimal { .. }) => is_number(shown),
        _ => false,
    }
}

/// Takes a value, given as the server prints it, that its column refused. `false` where the row must go to the dead
/// letters: by the policy, or because no column can hold the text.
pub fn settle(policy: Unfit, index: usize, ty: &ColumnType, value: &[u8], columns: &mut Columns) -> bool {
    if policy == Unfit::DeadLetter {
        return false;
    }
    if policy == Unfit::Clamp && text::clamp(ty, value, columns.column_mut(index)).is_ok() {
        return true;
    }
    let Ok(text) = std::str::from_utf8(value) else { return false };
    columns.push_exact(index, text);
    true
}

/// A type's name as `format_type` prints it, without modifiers: `timestamptz` and `timestamp(3) with time zone` are both
/// `timestamp with time zone`.
fn canonical(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut depth = 0_u32;
    for c in name.trim().chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let (item, array) = plain.strip_suffix("[]").map_or((plain.as_str(), ""), |item| (item, "[]"));
    let item = match item.trim() {
        "timestamptz" => "timestamp with time zone",
        "timestamp" => "timestamp without time zone",
        "timetz" => "time with time zone",
        "time" => "time without time zone",
        "decimal" => "numeric",
        "bool" => "boolean",
        "int2" => "smallint",
        "int" | "int4" => "integer",
        "int8" => "bigint",
        "float4" => "real",
        "float8" => "double precision",
        "varchar" => "character varying",
        "char" | "bpchar" => "character",
        "varbit" => "bit varying",
        other => other,
    };
    format!("{item}{array}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_core::ValueRule;

    use super::*;

    #[test]
    fn names_of_types_are_those_of_the_server() {
        for (name, expected) in [
            ("numeric(10,2)", "numeric"),
            ("timestamp(3) without time zone", "timestamp without time zone"),
            ("timestamptz", "timestamp with time zone"),
            ("varchar(5)[]", "character varying[]"),
            ("numeric(6,2)[]", "numeric[]"),
            ("\"char\"", "\"char\""),
            ("public.mood", "public.mood"),
        ] {
            assert_eq!(canonical(name), expected);
        }
    }

    #[test]
    fn rules_give_columns_other_types() {
        let decimal = Becomes::Decimal { precision: 20, scale: 4 };
        let retyped = |source_type: &str, ty: ColumnType, unfit, becomes| {
            let column = Column {
                id: 1,
                name: "c".into(),
                ty,
                source_type: source_type.into(),
                nullable: true,
                older_rows: None,
            };
            let types = BTreeMap::from([(canonical(source_type), ValueRule { unfit, becomes })]);
            let rules = ValueRules { types, ..ValueRules::default() };
            super::retyped(rule(&rules, &TableName::new("s", "t"), &column), &column)
        };
        let wanted = ColumnType::Decimal { precision: 20, scale: 4 };
        let list = |ty| ColumnType::List(Box::new(ty));
        let text = Some(Unfit::Text);
        assert_eq!(retyped("numeric", ColumnType::Text, None, Some(decimal)), Some(wanted.clone()));
        assert_eq!(retyped("numeric[]", list(ColumnType::Text), None, Some(decimal)), Some(list(wanted)));
        assert_eq!(retyped("text", ColumnType::Text, None, Some(decimal)), None);
        assert_eq!(retyped("integer", ColumnType::Int32, None, Some(Becomes::Text)), Some(ColumnType::Text));
        assert_eq!(retyped("integer", ColumnType::Int32, text, None), None, "every value fits");
        assert_eq!(retyped("date", ColumnType::Date, text, None), Some(ColumnType::Text));
        assert_eq!(retyped("date[]", list(ColumnType::Date), text, None), Some(ColumnType::Text));
    }
}
