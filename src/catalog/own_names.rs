//! What our own columns are called in the files of a table, and the companions of the table's columns.

use std::collections::BTreeSet;

use millrace_core::Column;

/// What our own columns are called in the files of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnNames {
    /// `I`, `U` or `D`.
    pub op: String,
    /// When the change was committed; null for loaded rows.
    pub commit_timestamp: String,
    /// Text whose byte order is that of [`millrace_core::Order`].
    pub change_order: String,
}

impl OwnNames {
    /// Their identities in the files, as `field_id`: Op, commit_timestamp, change_order. No source has as many columns.
    pub const IDS: [i32; 3] = [2_000_000_001, 2_000_000_002, 2_000_000_003];

    /// Ours give way: where a column of the table has the same name without regard to case, ours takes a leading
    /// underscore, and another while that is taken too.
    pub fn of(columns: &[Column]) -> Self {
        let taken: Vec<String> = columns.iter().map(|column| column.name.to_lowercase()).collect();
        let free = |name: &str| {
            let mut name = name.to_string();
            while taken.contains(&name.to_lowercase()) {
                name.insert(0, '_');
            }
            name
        };
        Self { op: free("Op"), commit_timestamp: free("commit_timestamp"), change_order: free("change_order") }
    }
}

/// What the companions of a table's columns are called, by the columns' order: `<column>__exact`, which gives way as our
/// own columns do. A companion holds, as text, the values that its column cannot; whether there is one is another matter,
/// so that a name does not depend on which others there are.
pub fn companion_names(columns: &[Column]) -> Vec<String> {
    let own = OwnNames::of(columns);
    let ours = [&own.op, &own.commit_timestamp, &own.change_order];
    let names = columns.iter().map(|column| &column.name).chain(ours);
    let mut taken: BTreeSet<String> = names.map(|name| name.to_lowercase()).collect();
    let free = |column: &Column| {
        let mut name = format!("{}__exact", column.name);
        while !taken.insert(name.to_lowercase()) {
            name.insert(0, '_');
        }
        name
    };
    columns.iter().map(free).collect()
}

/// Identity of a column's companion in the files, as `field_id`: apart from those of columns and of [`OwnNames::IDS`].
pub fn companion_id(column: &Column) -> i32 {
    column.id.saturating_add(1_000_000_000)
}

#[cfg(test)]
mod tests {
    use millrace_core::ColumnType;

    use super::*;

    fn text(name: &str) -> Column {
        Column {
            id: 1,
            name: name.into(),
            ty: ColumnType::Text,
            source_type: "text".into(),
            nullable: true,
            older_rows: None,
        }
    }

    #[test]
    fn companions_give_way_to_columns_and_to_each_other() {
        let columns = ["a", "A__Exact", "b"].map(text);
        assert_eq!(companion_names(&columns), ["_a__exact", "A__Exact__exact", "b__exact"]);
    }

    #[test]
    fn our_names_give_way_without_regard_to_case() {
        let own = OwnNames::of(&[text("OP"), text("_op"), text("Change_Order")]);
        assert_eq!(own.op, "__Op");
        assert_eq!((own.commit_timestamp.as_str(), own.change_order.as_str()), ("commit_timestamp", "_change_order"));
    }
}
