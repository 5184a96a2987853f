//! Tables that were altered, as the event trigger says at that place of the log (see [`crate::ddl_trigger`]).

use millrace_core::Result;

use crate::{
    ddl_trigger::{Announced, EVENT_TRIGGER, fingerprint},
    discover::{CatalogRow, quote_literal},
    wire::{
        Connection,
        relation::{Relation, RelationColumn},
    },
};

/// Whether the trigger is there: messages are asked for only then, because applications write theirs too.
pub async fn is_installed(session: &mut Connection) -> Result<bool> {
    let name = quote_literal(EVENT_TRIGGER);
    let sql = format!("SELECT FROM pg_event_trigger WHERE evtname = {name} AND evtenabled <> 'D'");
    Ok(!session.query(&sql).await?.is_empty())
}

/// The table as the log would show it now, if its columns are those of the message.
pub async fn read_relation(connection: &mut Connection, announced: &Announced) -> Result<Option<Relation>> {
    let rows = connection
        .query(&format!(
            "SELECT n.nspname, c.relname, c.relreplident, a.attname, a.atttypid, a.atttypmod, \
             EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND CASE c.relreplident \
             WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident AND i.indisvalid \
             ELSE false END AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
             WHERE c.oid = {} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND {} = {} \
             ORDER BY a.attnum",
            announced.oid,
            fingerprint("c.oid"),
            quote_literal(&announced.fingerprint),
        ))
        .await?;
    let Some(first) = rows.first().map(|row| CatalogRow(row)) else { return Ok(None) };
    let column = |row: CatalogRow<'_>| {
        Ok(RelationColumn {
            is_key: row.text(6) == Some("t"),
            name: row.word(3)?.into(),
            type_oid: row.number(4)?,
            type_modifier: row.number(5)?,
        })
    };
    Ok(Some(Relation {
        oid: announced.oid,
        schema: first.word(0)?.into(),
        name: first.word(1)?.into(),
        replica_identity: first.word(2)?.bytes().next().unwrap_or(b'd'),
        columns: rows.iter().map(|row| column(CatalogRow(row))).collect::<Result<_>>()?,
    }))
}
