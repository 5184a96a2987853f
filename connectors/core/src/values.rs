//! What becomes of values that their columns cannot hold, and which columns get another type: a task's `values`.

use std::collections::BTreeMap;

use crate::table::{TableName, TablePattern};

/// What becomes of a value that its column cannot hold (infinity in a timestamp, NaN in a decimal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unfit {
    /// The column is null there, and the value stands as the source prints it in a text column beside it.
    #[default]
    Companion,
    /// The whole column is exact text from the first row on.
    Text,
    /// The row goes to the dead letters.
    DeadLetter,
    /// The nearest value that the column can hold; where there is none, as [`Unfit::Companion`].
    Clamp,
}

/// The type that a column gets instead of the one that its source type has by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// The source's text.
    Text,
    /// A decimal; for columns of numbers without a bound of their own.
    Decimal {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits behind the point, at most `precision`.
        scale: u8,
    },
}

/// What is set for one column or one type; what is left out is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ValueRule {
    /// What becomes of a value that does not fit.
    pub unfit: Option<Unfit>,
    /// The column's type.
    pub becomes: Option<Becomes>,
}

/// A task's rules: a column's own rule goes before that of its type, and that before the task's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValueRules {
    /// For all values.
    pub unfit: Unfit,
    /// By the source's name of a type, without modifiers.
    pub types: BTreeMap<String, ValueRule>,
    /// By table and column; the first pattern that matches a table applies.
    pub tables: Vec<(TablePattern, BTreeMap<String, ValueRule>)>,
}

impl ValueRules {
    /// What holds for a column whose type is one of those that `is_type` says yes to.
    pub fn of(&self, table: &TableName, column: &str, is_type: impl Fn(&str) -> bool) -> (Unfit, Option<Becomes>) {
        let of_table = self.tables.iter().find(|(pattern, _)| pattern.matches(table));
        let own = of_table.and_then(|(_, columns)| columns.get(column)).copied().unwrap_or_default();
        let typed = self.types.iter().find(|(name, _)| is_type(name)).map(|(_, rule)| *rule).unwrap_or_default();
        (own.unfit.or(typed.unfit).unwrap_or(self.unfit), own.becomes.or(typed.becomes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rule_decides() {
        let rule = |unfit, becomes| ValueRule { unfit, becomes };
        let rules = ValueRules {
            unfit: Unfit::DeadLetter,
            types: BTreeMap::from([("numeric".into(), rule(Some(Unfit::Clamp), Some(Becomes::Text)))]),
            tables: vec![
                (
                    TablePattern::parse("public.*").unwrap(),
                    BTreeMap::from([("a".into(), rule(Some(Unfit::Companion), None))]),
                ),
                (TablePattern::parse("public.t").unwrap(), BTreeMap::from([("b".into(), rule(None, None))])),
            ],
        };
        let of =
            |schema: &str, column: &str, ty: &str| rules.of(&TableName::new(schema, "t"), column, |name| name == ty);
        assert_eq!(of("public", "a", "numeric"), (Unfit::Companion, Some(Becomes::Text)));
        assert_eq!(of("public", "b", "numeric"), (Unfit::Clamp, Some(Becomes::Text)));
        assert_eq!(of("other", "a", "date"), (Unfit::DeadLetter, None));
    }
}
