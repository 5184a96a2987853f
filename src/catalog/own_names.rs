//! What our own columns are called in the files of a table.

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

#[cfg(test)]
mod tests {
    use millrace_core::ColumnType;

    use super::*;

    #[test]
    fn our_names_give_way_without_regard_to_case() {
        let text = |name: &str| Column {
            id: 1,
            name: name.into(),
            ty: ColumnType::Text,
            source_type: "text".into(),
            nullable: true,
            older_rows: None,
        };
        let own = OwnNames::of(&[text("OP"), text("_op"), text("Change_Order")]);
        assert_eq!(own.op, "__Op");
        assert_eq!((own.commit_timestamp.as_str(), own.change_order.as_str()), ("commit_timestamp", "_change_order"));
    }
}
