//! Reads columns of rows anew by key: how values that the log leaves out (unchanged TOAST) get into a row.
//!
//! By the same binary COPY and decoder as the full load. The state that is read must contain everything that the log has
//! handed out: a commit that waits for a synchronous standby is in the log and not yet visible, so the fence comes first.
//!
//! A key of an extension's type (citext) is compared as text, which finds the same row but does not use its index.

use std::time::Duration;

use millrace_core::{ColumnType, Columns, Error, Kind, Result, Table, Unfit, source::Lookup};

use crate::Options;
use crate::{
    discover::{self, CatalogRow, Shape, quote_identifier, quote_literal, quote_table},
    types::{
        PgType, Scalar,
        binary::{Malformed, Tuple, TupleDecoder},
        copy_data::CopyData,
        render, unfit,
    },
    wire::Connection,
};

/// Keys in one statement.
const KEYS_MAX: usize = 1_000;
/// Between two looks at what is visible.
const VISIBILITY_POLL: Duration = Duration::from_millis(50);
/// What one request may hold: half of what a column's offsets can count.
const BYTES_MAX: usize = 1 << 30;
/// By the index of the key, whatever the statistics say; a table may never have been analyzed. A scan that is off all the
/// same, as of `pg_type` when the shape is read, looks dear enough for the server to compile it each time, for 200 ms.
const PLANNER: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
    SET LOCAL enable_mergejoin = off; SET LOCAL jit = off";

/// Reads `columns` of the rows with these keys; [`millrace_core::source::Source::lookup`].
pub async fn read(
    connection: &mut Connection,
    table: &Table,
    keys: &Columns,
    columns: &[usize],
    options: &Options,
) -> Result<Lookup> {
    // Outside of the transaction: pg_partition_tree locks the partitions until its end, and who alters the root would hold
    // that and wait for them while we wait for the root.
    let before = discover::by_oid(connection, table.source_id).await?.ok_or_else(|| missing(table))?;
    let lock = format!("LOCK TABLE {}{} IN ACCESS SHARE MODE", before.only(), quote_table(&before.table.name));
    // One transaction keeps the shape that is read here; its statements still see what is committed before each.
    connection.execute(&format!("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {PLANNER}")).await?;
    let result = read_locked(connection, &lock, table, keys, columns, options).await;
    // After an error this may fail as well; the session is then not used again.
    let ended = connection.execute("COMMIT").await;
    let lookup = result?;
    ended?;
    Ok(lookup)
}

async fn read_locked(
    connection: &mut Connection,
    lock: &str,
    table: &Table,
    keys: &Columns,
    columns: &[usize],
    options: &Options,
) -> Result<Lookup> {
    connection.execute(lock).await?;
    let mut shape = discover::by_oid(connection, table.source_id).await?.ok_or_else(|| missing(table))?;
    shape.retype(&options.values);
    let mut plan = Plan::new(table, &shape, columns)?;
    let policies = unfit::policies(&options.values, table);
    plan.policies.extend(columns.iter().map(|&index| policies.get(index).copied().unwrap_or_default()));
    let mut lookup = Lookup { found: vec![], columns: Columns::new(&plan.types), rejected: vec![] };
    for start in (0..keys.rows()).step_by(KEYS_MAX) {
        let end = (start + KEYS_MAX).min(keys.rows());
        plan.read(connection, keys, start..end, options.value_bytes_max, &mut lookup).await?;
    }
    Ok(lookup)
}

fn missing(table: &Table) -> Error {
    Error::new(Kind::TableMissing, format!("reading rows of table {} anew", table.name))
}

/// How the rows are read.
struct Plan {
    /// As it stands in the FROM.
    table: String,
    /// Name and type of the key columns.
    key: Vec<(String, String)>,
    /// The wanted columns as they stand in the SELECT.
    selected: Vec<String>,
    pg_types: Vec<PgType>,
    /// What becomes of values that do not fit, the key's number in front.
    policies: Vec<Unfit>,
    types: Vec<ColumnType>,
}

impl Plan {
    /// The log may be behind the catalog: columns are found by their identity, under the names they have now.
    fn new(table: &Table, shape: &Shape, columns: &[usize]) -> Result<Self> {
        let current = |index: usize| {
            let wanted = table.columns.get(index).ok_or_else(|| Error::new(Kind::Internal, "reading a row anew"))?;
            let found = shape.table.columns.iter().zip(&shape.types).find(|(column, _)| column.id == wanted.id);
            found.filter(|(column, _)| column.ty == wanted.ty).ok_or_else(|| {
                Error::new(Kind::SchemaChange, format!("reading rows of table {} anew", table.name))
                    .with(format!("column {:?} was dropped, or its type was changed, meanwhile", wanted.name))
            })
        };
        let mut plan = Self {
            table: format!("{}{}", shape.only(), quote_table(&shape.table.name)),
            key: vec![],
            selected: vec![],
            pg_types: vec![PgType::Scalar(Scalar::Int4)],
            policies: vec![Unfit::default()],
            types: vec![],
        };
        for &index in &table.key {
            let (column, _) = current(index)?;
            plan.key.push((quote_identifier(&column.name), column.source_type.clone()));
        }
        for &index in columns {
            let (column, ty) = current(index)?;
            plan.selected.push(ty.selected(&format!("t.{}", quote_identifier(&column.name))));
            plan.pg_types.push(ty.after_cast());
            plan.types.push(column.ty.clone());
        }
        Ok(plan)
    }

    fn statement(&self, keys: &Columns, rows: std::ops::Range<usize>) -> String {
        let values = rows.map(|row| {
            let cells = keys.columns().iter().enumerate().map(|(index, column)| {
                match keys.exact(row, index).map(str::to_string).or_else(|| render::cell(column, row)) {
                    Some(text) => quote_literal(&text),
                    None => "NULL".into(),
                }
            });
            let cells: Vec<String> = std::iter::once(row.to_string()).chain(cells).collect();
            format!("({})", cells.join(","))
        });
        let values: Vec<String> = values.collect();
        let names: Vec<String> = (0..self.key.len()).map(|index| format!("k{index}")).collect();
        let equal = |(index, (name, ty)): (usize, &(String, String))| format!("t.{name} = k.k{index}::{ty}");
        let condition: Vec<String> = self.key.iter().enumerate().map(equal).collect();
        let selected: String = self.selected.iter().map(|column| format!(", {column}")).collect();
        format!(
            "COPY (SELECT k.n{selected} FROM (VALUES {}) k(n, {}) JOIN {} t ON {} ORDER BY k.n) \
             TO STDOUT (FORMAT binary)",
            values.join(","),
            names.join(", "),
            self.table,
            condition.join(" AND ")
        )
    }

    async fn read(
        &self,
        connection: &mut Connection,
        keys: &Columns,
        rows: std::ops::Range<usize>,
        value_bytes_max: usize,
        lookup: &mut Lookup,
    ) -> Result<()> {
        let wrong =
            |error: Malformed| Error::new(Kind::Protocol, format!("reading rows of {} anew", self.table)).with(error);
        let mut decoder = TupleDecoder::new(self.pg_types.clone(), self.policies.clone(), value_bytes_max);
        let types: Vec<ColumnType> = std::iter::once(ColumnType::Int32).chain(self.types.iter().cloned()).collect();
        let mut read = Columns::new(&types);
        let mut copy = connection.copy_out(&self.statement(keys, rows)).await?;
        let mut data = CopyData::new();
        while let Some(payload) = copy.next().await? {
            let take = |bytes: &[u8]| {
                let tuple = decoder.decode(bytes, &mut read)?;
                if let Tuple::Unfit { reason, .. } = tuple {
                    // The first field is the key's number: 2 bytes of count, 4 of length, 4 of value.
                    let number = bytes.get(6..10).and_then(|number| number.first_chunk()).ok_or(Malformed)?;
                    lookup.rejected.push((u32::from_be_bytes(*number), decoder.explain(reason)));
                }
                Ok(tuple)
            };
            data.take(payload, take).map_err(wrong)?;
            if lookup.columns.byte_size() + read.byte_size() > BYTES_MAX {
                return Err(Error::new(Kind::Internal, format!("reading rows of {} anew", self.table))
                    .with("they are too large for one request; it must ask for fewer keys"));
            }
        }
        data.finish().map_err(wrong)?;
        let Some(millrace_core::Values::Int32(numbers)) = read.columns().first().map(|column| column.values()) else {
            return Err(wrong(Malformed));
        };
        lookup.found.extend(numbers.iter().filter_map(|&number| u32::try_from(number).ok()));
        let wanted: Vec<usize> = (1..=self.types.len()).collect();
        lookup.columns.append(&read.project(&wanted));
        Ok(())
    }
}

/// Waits until these transactions, which the log has handed out as committed, are visible to a new statement.
pub async fn wait_until_visible(connection: &mut Connection, xids: &[u32]) -> Result<()> {
    while !xids.is_empty() {
        let rows = connection.query("SELECT pg_current_snapshot()").await?;
        let snapshot = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default()).word(0)?.to_string();
        let visible = Visible::parse(&snapshot)
            .ok_or_else(|| Error::new(Kind::Protocol, format!("reading the snapshot {snapshot:?}")))?;
        if xids.iter().all(|&xid| visible.contains(xid)) {
            return Ok(());
        }
        tokio::time::sleep(VISIBILITY_POLL).await;
    }
    Ok(())
}

/// A `pg_snapshot`: `xmin:xmax:running,…`, with 64-bit transaction ids (manual, "Transaction ID and Snapshot Information
/// Functions").
#[derive(Debug, PartialEq, Eq)]
struct Visible {
    end: u64,
    running: Vec<u64>,
}

impl Visible {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (_begin, end, running) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        let running =
            running.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        Some(Self { end, running })
    }

    /// Whether a transaction that the log called committed is visible. The log has 32 bits of its id; it is less than 2^31
    /// transactions away.
    fn contains(&self, xid: u32) -> bool {
        let begun = (xid.wrapping_sub(self.end as u32) as i32) < 0;
        begun && !self.running.iter().any(|&running| running as u32 == xid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_snapshot_sees() {
        let visible = Visible::parse("10:20:10,14,15").unwrap();
        assert!(visible.contains(9) && visible.contains(11) && visible.contains(19));
        assert!(!visible.contains(10) && !visible.contains(15) && !visible.contains(20) && !visible.contains(21));
        assert!(visible.contains(u32::MAX), "one from before the counter went around");
        let around = Visible::parse("4294967290:4294967300:4294967294").unwrap();
        assert!(
            around.contains(3) && around.contains(u32::MAX) && !around.contains(4) && !around.contains(u32::MAX - 1)
        );
        assert_eq!(Visible::parse("5:5:"), Some(Visible { end: 5, running: vec![] }));
        assert!(Visible::parse("5:x:").is_none() && Visible::parse("5").is_none());
    }
}
