//! The two publications of a task (manual, CREATE PUBLICATION).
//!
//! One publishes everything of the tables whose replica identity can carry updates; the other only inserts and truncates,
//! because publishing updates of a table without identity makes the application's own UPDATE fail. Never `FOR ALL TABLES`.
//! A partitioned table that is in one of them sends the changes of its partitions in its own name, of those that will be
//! attached too (`publish_via_partition_root`); a partition that is in one by itself sends its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_core::{Capture, Error, Kind, Result, Table, TableName};

use crate::{
    config::Names,
    discover::{CatalogRow, quote_identifier, quote_literal, quote_table},
    wire::{Connection, sqlstate},
};

/// What the server has under a publication's name.
#[derive(Debug, Default)]
pub struct Published {
    /// Whether it exists.
    pub exists: bool,
    /// `FOR ALL TABLES`, or for a whole schema.
    is_open: bool,
    /// Of other operations than we want.
    other_options: bool,
    /// Its tables.
    pub tables: BTreeSet<TableName>,
    /// Those of them with a row filter or a column list.
    pub narrowed: BTreeSet<TableName>,
    /// Changes of partitions come under the name of the partitioned table.
    pub via_root: bool,
}

/// One of the two publications as it should be.
#[derive(Debug)]
struct Wanted<'a> {
    name: &'a str,
    operations: &'static str,
    tables: BTreeSet<TableName>,
    /// Some of them are partitioned, and only `publish_via_partition_root` sends their changes under their names.
    has_roots: bool,
}

impl<'a> Wanted<'a> {
    fn both<'t>(names: &'a Names, tables: impl Iterator<Item = &'t Table> + Clone) -> [Self; 2] {
        let wanted = |name, capture, operations| {
            let tables = tables.clone().filter(|table| table.capture == capture);
            let has_roots = tables.clone().any(|table| table.parts.is_some());
            Self { name, operations, tables: tables.map(|table| table.name.clone()).collect(), has_roots }
        };
        [
            wanted(&names.publication, Capture::All, "insert, update, delete, truncate"),
            wanted(&names.publication_inserts, Capture::InsertsOnly, "insert, truncate"),
        ]
    }

    fn has_other_options(&self, published: &Published) -> bool {
        published.other_options || (self.has_roots && !published.via_root)
    }

    fn is(&self, published: &Published) -> bool {
        published.exists
            && !published.is_open
            && !self.has_other_options(published)
            && published.narrowed.is_empty()
            && published.tables == self.tables
    }

    /// What makes it so. A publication without tables is made as well: both names go to START_REPLICATION.
    fn statements(&self, published: &Published) -> Vec<String> {
        let name = quote_identifier(self.name);
        let list = |tables: &BTreeSet<TableName>| {
            tables.iter().map(|table| format!("ONLY {}", quote_table(table))).collect::<Vec<_>>().join(", ")
        };
        let with = format!("(publish = '{}', publish_via_partition_root = true)", self.operations);
        let create = || match self.tables.is_empty() {
            true => format!("CREATE PUBLICATION {name} WITH {with};"),
            false => format!("CREATE PUBLICATION {name} FOR TABLE {} WITH {with};", list(&self.tables)),
        };
        if !published.exists {
            return vec![create()];
        }
        if published.is_open {
            // FOR ALL TABLES cannot be altered away.
            return vec![format!("DROP PUBLICATION {name};"), create()];
        }
        let mut statements = vec![];
        if self.has_other_options(published) {
            statements.push(format!("ALTER PUBLICATION {name} SET {with};"));
        }
        if published.tables != self.tables || !published.narrowed.is_empty() {
            statements.push(match self.tables.is_empty() {
                true => format!("ALTER PUBLICATION {name} DROP TABLE {};", list(&published.tables)),
                false => format!("ALTER PUBLICATION {name} SET TABLE {};", list(&self.tables)),
            });
        }
        statements
    }
}

/// The statements that are still to be run so that exactly these tables are published; empty where all is right.
pub async fn missing<'t>(
    connection: &mut Connection,
    names: &Names,
    tables: impl Iterator<Item = &'t Table> + Clone,
) -> Result<Vec<String>> {
    let mut statements = vec![];
    for wanted in Wanted::both(names, tables) {
        let published = published(connection, wanted.name, wanted.operations).await?;
        if !wanted.is(&published) {
            statements.extend(wanted.statements(&published));
        }
    }
    Ok(statements)
}

/// Makes both publications carry exactly these tables, in one transaction.
pub async fn prepare(connection: &mut Connection, names: &Names, tables: &[Arc<Table>]) -> Result<()> {
    let statements = missing(connection, names, tables.iter().map(Arc::as_ref)).await?;
    if statements.is_empty() {
        return Ok(());
    }
    let result = connection.execute(&format!("BEGIN; {} COMMIT", statements.join(" "))).await;
    match result {
        Ok(()) => {
            tracing::info!(
                publication = names.publication,
                tables = tables.len(),
                "publications were brought up to date"
            );
            Ok(())
        }
        Err(error) => {
            // The failed transaction is still open; if it cannot be ended the session is broken, and says so next.
            let _ = connection.execute("ROLLBACK").await;
            let doing = "bringing the publications up to date";
            // insufficient_privilege; read_only_sql_transaction, as a standby says.
            if matches!(sqlstate(&error), Some("42501" | "25006")) {
                let fix = format!("let the owner of the tables run at the primary:\n{}", statements.join("\n"));
                return Err(Error { kind: Kind::Permission, doing: doing.into(), ..error }.fix(fix));
            }
            Err(Error { doing: doing.into(), ..error })
        }
    }
}

/// What the server has under this name, compared with the operations it should publish.
pub async fn published(connection: &mut Connection, name: &str, operations: &str) -> Result<Published> {
    let name = quote_literal(name);
    let has = |operation| operations.split(", ").any(|o| o == operation);
    let (update, delete) = (has("update"), has("delete"));
    // Row filters, column lists and FOR TABLES IN SCHEMA came with PostgreSQL 15.
    let recent = connection.major_version() >= 15;
    let narrowed = if recent { "(r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)" } else { "false" };
    let schemas =
        if recent { "EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid)" } else { "false" };
    let rows = connection
        .query(&format!(
            "SELECT NOT p.pubinsert OR NOT p.pubtruncate OR p.pubupdate <> {update} \
             OR p.pubdelete <> {delete}, p.puballtables OR {schemas}, n.nspname, c.relname, {narrowed}, p.pubviaroot \
             FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid \
             LEFT JOIN pg_class c ON c.oid = r.prrelid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE p.pubname = {name}"
        ))
        .await?;
    let mut published = Published { exists: !rows.is_empty(), ..Published::default() };
    for row in &rows {
        let row = CatalogRow(row);
        published.other_options |= row.text(0) == Some("t");
        published.via_root = row.text(5) == Some("t");
        published.is_open |= row.text(1) == Some("t");
        if let (Some(schema), Some(table)) = (row.text(2), row.text(3)) {
            let table = TableName::new(schema, table);
            if row.text(4) == Some("t") {
                published.narrowed.insert(table.clone());
            }
            published.tables.insert(table);
        }
    }
    Ok(published)
}

/// Tables whose changes do not all get into the log: in neither publication, or only some rows, columns or operations.
pub async fn unpublished(connection: &mut Connection, names: &Names, tables: &[Arc<Table>]) -> Result<Vec<TableName>> {
    // Row filters and column lists came with PostgreSQL 15.
    let whole = match connection.major_version() >= 15 {
        true => {
            "NOT EXISTS (SELECT FROM pg_publication_rel r \
             WHERE r.prpubid = p.oid AND r.prrelid = to_regclass(format('%I.%I', t.schemaname, t.tablename)) \
             AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL))"
        }
        false => "true",
    };
    let rows = connection
        .query(&format!(
            "SELECT t.schemaname, t.tablename, p.pubupdate AND p.pubdelete \
             FROM pg_publication p JOIN pg_publication_tables t USING (pubname) \
             WHERE pubname IN ({}, {}) AND p.pubinsert AND p.pubtruncate AND {whole}",
            quote_literal(&names.publication),
            quote_literal(&names.publication_inserts),
        ))
        .await?;
    let (mut all, mut inserts) = (BTreeSet::new(), BTreeSet::new());
    for row in &rows {
        let row = CatalogRow(row);
        let table = TableName::new(row.word(0)?, row.word(1)?);
        if row.text(2) == Some("t") {
            all.insert(table.clone());
        }
        inserts.insert(table);
    }
    let is_published = |table: &&Arc<Table>| match table.capture {
        Capture::All => all.contains(&table.name),
        Capture::InsertsOnly => inserts.contains(&table.name),
    };
    Ok(tables.iter().filter(|table| !is_published(table)).map(|table| table.name.clone()).collect())
}

/// For each of these tables that is in the publication that its changes need, the OID of its entry there: ALTER PUBLICATION
/// keeps the entries of tables that stay as they are, and makes a new one for a table that comes (back), or gets another
/// row filter or column list.
pub async fn ids(
    connection: &mut Connection,
    names: &Names,
    tables: &[Arc<Table>],
) -> Result<BTreeMap<TableName, u64>> {
    let rows = connection
        .query(&format!(
            "SELECT n.nspname, c.relname, p.pubname = {}, r.oid FROM pg_publication p \
             JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname IN ({0}, {})",
            quote_literal(&names.publication),
            quote_literal(&names.publication_inserts),
        ))
        .await?;
    let mut ids = BTreeMap::new();
    for row in &rows {
        let row = CatalogRow(row);
        let name = TableName::new(row.word(0)?, row.word(1)?);
        let needed = if row.text(2) == Some("t") { Capture::All } else { Capture::InsertsOnly };
        if tables.iter().any(|table| table.name == name && table.capture == needed) {
            ids.insert(name, row.number(3)?);
        }
    }
    Ok(ids)
}

/// Drops both; gives the statements that the role may not run.
pub async fn remove(connection: &mut Connection, names: &Names) -> Result<Vec<String>> {
    let mut left = vec![];
    for name in [&names.publication, &names.publication_inserts] {
        let statement = format!("DROP PUBLICATION IF EXISTS {};", quote_identifier(name));
        match connection.execute(&statement).await {
            Ok(()) => {}
            Err(error) if sqlstate(&error) == Some("42501") => left.push(statement),
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}
