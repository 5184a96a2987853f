//! A consistent view of the database at an exact position, and the lock and the segments of one table in it.
//!
//! The pair of snapshot and position comes from `CREATE_REPLICATION_SLOT … TEMPORARY … (SNAPSHOT 'export')` and from
//! nowhere else: a transaction that waits for a synchronous standby is in the log, at a position below
//! `pg_current_wal_lsn()`, and not yet visible. The slot's snapshot is built from the log itself.
//!
//! A temporary slot makes the server keep its log for as long as it lives, which for a large table may be hours. So one
//! ordinary transaction takes the snapshot over and exports it again, and the slot is dropped at once.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use millrace_core::{
    Capture, Error, Kind, Position, Result, TableName,
    error::Context,
    source::{LoadPlan, Segment, Snapshot, TableLoad},
};

use crate::{
    Shared,
    discover::{self, CatalogRow, Shape, quote_literal, quote_table},
    load::PostgresLoad,
    partitions::Storage,
    slot, waiting,
    wire::{Connection, Mode, sqlstate},
};

/// Blocks that a segment has at least, unless it is the only one: 8 MiB with the usual block size.
const SEGMENT_BLOCKS_MIN: u64 = 1_024;

/// A snapshot that is held open.
#[derive(Debug)]
pub struct PostgresSnapshot {
    shared: Arc<Shared>,
    exact: bool,
    position: Position,
    /// What `SET TRANSACTION SNAPSHOT` takes.
    id: String,
    /// The tables as they were before the snapshot.
    before: HashMap<TableName, Shape>,
    /// Its open transaction exports the snapshot.
    _holder: Connection,
}

impl PostgresSnapshot {
    /// Takes a snapshot; `exact` as in [`millrace_core::source::Source::snapshot`].
    pub async fn take(shared: Arc<Shared>, tables: &[TableName], exact: bool) -> Result<Self> {
        let mut catalog = shared.catalog().await?;
        let before = discover::by_name(discover::named(&mut catalog, tables).await?);
        shared.give_back(catalog);
        let (holder, id, position) =
            if exact { Self::export_exact(&shared).await? } else { Self::export(&shared).await? };
        tracing::info!(%position, exact, tables = before.len(), "snapshot was taken");
        Ok(Self { shared, exact, position, id, before, _holder: holder })
    }

    async fn export_exact(shared: &Shared) -> Result<(Connection, String, Position)> {
        let mut walsender = Connection::connect(&shared.config, Mode::Replication, "millrace snapshot").await?;
        // At most 63 bytes: the names leave room for 9.
        let slot = format!("{}_l{}", shared.names.slot, walsender.process_id());
        let options = ("SNAPSHOT 'export'", "EXPORT_SNAPSHOT");
        let made = slot::create_with(&shared.config, &mut walsender, &slot, "TEMPORARY", options.0, options.1).await?;
        let (position, Some(exported)) = made else {
            return Err(Error::new(Kind::Protocol, "exporting a snapshot").with("the server gave no snapshot's name"));
        };
        let mut holder = Connection::connect(&shared.config, Mode::Plain, "millrace snapshot").await?;
        holder.execute(&begin_in(&exported)).await?;
        let id = export_snapshot(&mut holder).await?;
        walsender.close().await;
        Ok((holder, id, position))
    }

    async fn export(shared: &Shared) -> Result<(Connection, String, Position)> {
        let mut holder = Connection::connect(&shared.config, Mode::Plain, "millrace snapshot").await?;
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let id = export_snapshot(&mut holder).await?;
        let end = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";
        let rows = holder.query(end).await?;
        let position = slot::parse_lsn(CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default()).word(0)?)?;
        Ok((holder, id, position))
    }

    /// Only a table whose every later change reaches the log may be put together from two snapshots: a row that an
    /// uncaptured update moved from an unread segment to one that was read would be in neither.
    fn may_resume(&self, shape: &Shape) -> bool {
        self.exact && shape.table.is_keyed() && shape.table.capture == Capture::All
    }
}

#[async_trait]
impl Snapshot for PostgresSnapshot {
    fn position(&self) -> Position {
        self.position
    }

    async fn open(
        &self,
        table: &TableName,
        segments_wanted: usize,
        previous: Option<&LoadPlan>,
    ) -> Result<Box<dyn TableLoad>> {
        let missing = || Error::new(Kind::TableMissing, format!("opening table {table} for its load"));
        let before = self.before.get(table).ok_or_else(missing)?;
        let mut lock = Connection::connect(&self.shared.config, Mode::Plain, "millrace load").await?;
        let process_id = lock.process_id();
        let locking = lock_table(&mut lock, &self.id, table, &before.storages);
        let blocks = waiting::watch(&self.shared.config, process_id, "locking a table for its load", locking).await?;
        // On another session: queries of this one see the catalog as of the snapshot.
        let mut catalog = self.shared.catalog().await?;
        let mut after = discover::named(&mut catalog, std::slice::from_ref(table)).await?.pop().ok_or_else(missing)?;
        self.shared.give_back(catalog);
        if !after.reads_like(before) {
            return Err(stale(table));
        }
        after.retype(&self.shared.options.values);
        let resumable = previous.filter(|plan| plan.storage_id == after.storage_id() && self.may_resume(&after));
        let plan = match resumable {
            Some(plan) => plan.clone(),
            None => divide(&after, &blocks, segments_wanted),
        };
        let resumed = resumable.is_some();
        tracing::debug!(%table, segments = plan.segments.len(), resumed, "table is locked for its load");
        let load = PostgresLoad::new(self.shared.clone(), self.id.clone(), self.position, after, plan, resumed, lock);
        Ok(Box::new(load))
    }
}

/// The table was rewritten, or its shape changed, between the snapshot and the lock.
pub fn stale(table: &TableName) -> Error {
    Error::new(Kind::SnapshotStale, format!("opening table {table} for its load"))
        .with("it was rewritten or altered (VACUUM FULL, CLUSTER, TRUNCATE, ALTER TABLE) since the snapshot was taken")
}

/// The statements that open a transaction in the snapshot. Nothing may read before `SET TRANSACTION SNAPSHOT`.
fn begin_in(snapshot: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot).trim_start()
    )
}

async fn export_snapshot(holder: &mut Connection) -> Result<String> {
    let rows = holder.query("SELECT pg_export_snapshot()").await?;
    Ok(CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default()).word(0)?.to_string())
}

/// Opens a transaction in the snapshot, locks the table against changes of its shape, and checks that its storage is still
/// the one that the snapshot saw: without that a rewrite in between makes ranges of it come back empty, and without an
/// error. Gives the lengths in blocks. Of a partitioned table the partitions are locked, which changes of its shape and
/// DETACH need too, and it is not: CREATE TABLE … PARTITION OF would wait for the load, and everybody for that.
pub async fn lock_table(
    connection: &mut Connection,
    snapshot: &str,
    table: &TableName,
    storages: &[Storage],
) -> Result<Vec<u64>> {
    connection.execute(&begin_in(snapshot)).await.map_err(|error| match sqlstate(&error) {
        // invalid_parameter_value, undefined_object: the exporting session is gone.
        Some("22023" | "42704") => Error { kind: Kind::SnapshotStale, ..error },
        _ => error,
    })?;
    let oids: Vec<String> = storages.iter().map(|storage| storage.oid.to_string()).collect();
    let names: Vec<String> = storages.iter().map(|storage| format!("ONLY {}", quote_table(&storage.name))).collect();
    let lock = match names.is_empty() {
        true => String::new(),
        false => format!("LOCK TABLE {} IN ACCESS SHARE MODE; ", names.join(", ")),
    };
    // The lock comes after the snapshot. pg_relation_filenode reads the catalog as it is now, not as the snapshot shows
    // it. By OID, so that a table that was made anew under the name does not pass.
    let rows = connection
        .query(&format!(
            "{lock}SELECT pg_relation_filenode(oid), pg_relation_size(oid) / current_setting('block_size')::bigint \
             FROM unnest('{{{oids}}}'::oid[]) WITH ORDINALITY u(oid, number) ORDER BY number",
            oids = oids.join(","),
        ))
        .await
        .map_err(|error| match sqlstate(&error) {
            // undefined_table: of a partition only, which is one less to load.
            Some("42P01") if storages.iter().any(|storage| storage.name != *table) => stale(table),
            _ => Error { doing: format!("locking table {table} for its load"), ..error },
        })?;
    let now: Vec<Option<u64>> = rows.iter().map(|row| CatalogRow(row).text(0).and_then(|n| n.parse().ok())).collect();
    if !now.iter().eq(storages.iter().map(|storage| Some(storage.filenode)).collect::<Vec<_>>().iter()) {
        return Err(stale(table));
    }
    rows.iter().map(|row| CatalogRow(row).number(1)).collect()
}

/// Ranges of blocks of about the same size, at least one for each storage; its last one has no end, so that it may grow.
fn divide(shape: &Shape, blocks: &[u64], wanted: usize) -> LoadPlan {
    let total = blocks.iter().sum::<u64>().max(1);
    let mut segments = vec![];
    for (storage, &blocks) in shape.storages.iter().zip(blocks) {
        let share = (u128::from(wanted as u64) * u128::from(blocks)).div_ceil(u128::from(total)) as u64;
        let count = (blocks / SEGMENT_BLOCKS_MIN).clamp(1, share.max(1));
        let bound = |index: u64| (u128::from(blocks) * u128::from(index) / u128::from(count)) as u64;
        segments.extend((0..count).map(|index| {
            let end = if index + 1 == count { None } else { Some(bound(index + 1)) };
            let partition = shape.is_partitioned().then_some(storage.oid);
            let range = BlockRange { partition, start: bound(index), end };
            Segment { range: range.to_string(), estimated_rows: storage.estimated_rows / count }
        }));
    }
    LoadPlan { storage_id: shape.storage_id(), segments }
}

/// A range of a table's blocks, as a segment describes it: `0..1024`, `1024..`; of a partition, by its OID: `16390:0..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// OID of the partition; `None` for a plain table.
    pub partition: Option<u64>,
    /// First block.
    pub start: u64,
    /// First block behind it; `None` is the table's end, wherever that is.
    pub end: Option<u64>,
}

impl std::fmt::Display for BlockRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.partition.map_or(Ok(()), |partition| write!(f, "{partition}:"))?;
        write!(f, "{}..", self.start)?;
        self.end.map_or(Ok(()), |end| write!(f, "{end}"))
    }
}

impl BlockRange {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Result<Self> {
        let doing = || format!("reading the segment {text:?}");
        let number = |text: &str| text.parse::<u64>().context(Kind::Internal, doing);
        let (partition, range) = text.split_once(':').map_or((None, text), |(oid, range)| (Some(oid), range));
        let (start, end) = range.split_once("..").ok_or_else(|| Error::new(Kind::Internal, doing()))?;
        let end = (!end.is_empty()).then(|| number(end)).transpose()?;
        Ok(Self { partition: partition.map(number).transpose()?, start: number(start)?, end })
    }
}

/// Transactions that have written something and are not over, oldest first: pid, age in seconds, user, state, xid, and the
/// name of a prepared one. Age, user and state are null where the role may not see them; such a transaction, and a prepared
/// one, is taken as old enough. `pg_locks` shows
/// every transaction to everybody.
pub fn open_transactions(process_id: u32, seconds_min: u32) -> String {
    format!(
        "SELECT coalesce(l.pid::text, 'prepared'), \
         extract(epoch FROM now() - coalesce(a.xact_start, x.prepared))::bigint, coalesce(a.usename, x.owner), \
         coalesce(a.state, 'prepared in database ' || x.database), l.transactionid, x.gid \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         LEFT JOIN pg_prepared_xacts x ON l.pid IS NULL AND x.transaction = l.transactionid \
         WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
         AND coalesce(l.pid, -1) NOT IN ({process_id}, pg_backend_pid()) \
         AND coalesce(now() - a.xact_start >= interval '{seconds_min} s', true) \
         ORDER BY coalesce(a.xact_start, x.prepared) LIMIT 5"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_trip() {
        for range in [
            BlockRange { partition: None, start: 0, end: Some(7) },
            BlockRange { partition: None, start: 7, end: None },
            BlockRange { partition: Some(16_390), start: 0, end: None },
        ] {
            assert_eq!(BlockRange::parse(&range.to_string()).unwrap(), range);
        }
        assert!(BlockRange::parse("7").is_err() && BlockRange::parse("x..").is_err());
        assert!(BlockRange::parse("x:0..").is_err() && BlockRange::parse("7:").is_err());
    }
}
