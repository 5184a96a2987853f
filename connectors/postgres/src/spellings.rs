//! What the server prints of old rows without any of them being written: `ALTER TYPE … RENAME VALUE` gives an enum's label
//! another name in all rows at once, and an attribute that a composite type gains or loses is in all its values. No change in
//! the log tells of either.

use std::{collections::BTreeMap, sync::Arc};

use millrace_core::{Result, Table, TableName};
use serde::{Deserialize, Serialize};

use crate::{discover::CatalogRow, wire::Connection};

/// Types below were made with the database.
const FIRST_USER_OID: u32 = 16_384;

/// How the values of a table's types are spelled.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Spelling {
    /// The labels of enums by their own OIDs, which they keep over renames.
    labels: BTreeMap<u32, String>,
    /// The attributes of composite types.
    composites: BTreeMap<u32, String>,
}

/// How the values of these tables' own types are spelled, as text; nothing for tables that have none such.
pub async fn read(connection: &mut Connection, tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, String>> {
    if tables.is_empty() {
        return Ok(BTreeMap::new());
    }
    let oids: Vec<String> = tables.iter().map(|table| table.source_id.to_string()).collect();
    let rows = connection
        .query(&format!(
            "WITH RECURSIVE used(rel, typ) AS (SELECT attrelid, atttypid FROM pg_attribute WHERE attrelid IN ({}) \
             AND attnum > 0 AND NOT attisdropped AND atttypid >= {FIRST_USER_OID} \
             UNION SELECT u.rel, n.typ FROM used u JOIN pg_type t ON t.oid = u.typ, LATERAL (\
             SELECT t.typelem AS typ UNION ALL SELECT t.typbasetype UNION ALL SELECT c.atttypid FROM pg_attribute c \
             WHERE t.typtype = 'c' AND c.attrelid = t.typrelid AND c.attnum > 0 AND NOT c.attisdropped) n \
             WHERE n.typ >= {FIRST_USER_OID}) \
             SELECT u.rel, e.oid, e.enumlabel::pg_catalog.text, NULL FROM used u JOIN pg_enum e ON e.enumtypid = u.typ \
             UNION ALL SELECT u.rel, u.typ, NULL, string_agg(concat_ws(' ', a.attnum, a.atttypid, a.atttypmod), ', ' \
             ORDER BY a.attnum) FROM used u JOIN pg_type t ON t.oid = u.typ AND t.typtype = 'c' \
             JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1, 2",
            oids.join(",")
        ))
        .await?;
    let mut found: BTreeMap<u64, Spelling> = BTreeMap::new();
    for row in &rows {
        let row = CatalogRow(row);
        let (spelling, oid) = (found.entry(row.number(0)?).or_default(), row.number(1)?);
        if let Some(label) = row.text(2) {
            spelling.labels.insert(oid, label.into());
        }
        if let Some(attributes) = row.text(3) {
            spelling.composites.insert(oid, attributes.into());
        }
    }
    let text = |table: &Arc<Table>| {
        let spelling = found.get(&table.source_id)?;
        Some((table.name.clone(), serde_json::to_string(spelling).ok()?))
    };
    Ok(tables.iter().filter_map(text).collect())
}

/// Whether old rows are spelled otherwise: labels that only came are in none of them, and what becomes of a column's own
/// type the log tells.
pub fn differ(before: &str, now: &str) -> bool {
    let parse = |text| serde_json::from_str::<Spelling>(text).ok();
    let (Some(before), Some(now)) = (parse(before), parse(now)) else { return false };
    let is_other =
        |now: &BTreeMap<u32, String>, (oid, text): (&u32, &String)| now.get(oid).is_some_and(|there| there != text);
    before.labels.iter().any(|label| is_other(&now.labels, label))
        || before.composites.iter().any(|composite| is_other(&now.composites, composite))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_came_change_nothing() {
        let before = r#"{"labels": {"20000": "sad", "20002": "happy"}, "composites": {"20001": "1 23 -1"}}"#;
        assert!(!differ(before, before));
        assert!(!differ(before, &before.replace("\"happy\"", "\"happy\", \"20003\": \"ok\"")));
        // The old name may be another label's by now.
        let renamed = before.replace("sad", "blue").replace("\"happy\"", "\"happy\", \"20003\": \"sad\"");
        assert!(differ(before, &renamed));
        assert!(differ(before, &before.replace("sad", "blue")));
        assert!(differ(before, &before.replace("1 23 -1", "1 23 -1, 2 25 -1")));
        assert!(!differ(before, r#"{"labels": {}, "composites": {}}"#));
    }
}
