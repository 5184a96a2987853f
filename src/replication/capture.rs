//! Change data capture: pulls the source's log, fills, applies the rules, appends to the stream, and confirms what is
//! durable. Nothing is pushed at it; back-pressure, pausing and stopping are all "do not pull".
//!
//! Position, fsync and confirmation: `Log::confirm` takes what `Stream::append` gave back after its fsync. After any
//! error the stream is cut back to its last mark and the log opened anew from there, so that what was appended without
//! a mark is neither kept nor counted twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use millrace_core::{
    Change, ChangeBatch, Changes, Ddl, Durable, Error, Kind, Order, Position, Reject, Result, Table, TableName,
    error::Action,
    source::{Budget, Identity, Log, Resume, Source},
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    fill::Filling,
    rules::{Known, Mapped, Rules},
    tables::{Cause, Tables},
    unfit,
};
use crate::{
    config::{OnChange, Truncate},
    state::keys::table::{TableRecord, TableState},
    stream::{Append, Stream},
    telemetry::metrics::{Metrics, task_label},
};

/// Appends that may wait for their fsync at once; with the pull's budget it bounds what capture holds in memory.
const APPENDS_IN_FLIGHT_MAX: usize = 4;
/// How long the end of a capture waits for the appends in flight.
const APPENDS_PATIENCE: Duration = Duration::from_secs(5);
/// A piece is appended at this size.
const PIECE_BYTES: usize = 16 << 20;
const BUDGET: Budget = Budget { rows: 65_536, bytes: 8 << 20, wait: Duration::from_secs(1) };

/// What others ask of a running capture.
pub enum Ask {
    /// From now on take this table with whatever shape the log shows; answered when that holds. Finished segments of an
    /// earlier try are kept that were read from the position on.
    AddTable(Arc<Table>, Option<Position>, oneshot::Sender<()>),
    /// Its load reads it in this shape, and keeps it so until it is done.
    SettleTable(Arc<Table>),
    /// From now on leave this table out.
    RemoveTable(TableName),
}

/// What is known of the capture, for status and metrics.
#[derive(Debug, Default)]
pub struct Progress {
    /// Commit time of the newest captured transaction (microseconds since 1970-01-01 UTC); 0 for none.
    pub newest_commit_us: AtomicI64,
    /// Whether everything that the source has told us of is in the stream.
    pub caught_up: AtomicU64,
    /// Where the source's log ends, as far as it told us (low 64 bits).
    pub source_end: AtomicU64,
    /// When the log was last pulled (microseconds since 1970-01-01 UTC); the task's, over all its runs.
    pub pulled_us: Arc<AtomicI64>,
}

/// One run of the capture, from opening the log to an error or the end.
pub struct Capture<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// Its source.
    pub source: &'a dyn Source,
    /// Its stream.
    pub stream: &'a Stream,
    /// Its tables.
    pub tables: &'a Tables,
    /// What changes that are no row changes lead to.
    pub on_change: &'a OnChange,
    /// Who the source must be.
    pub identity: &'a Identity,
    /// For status and metrics.
    pub progress: &'a Progress,
    /// The metrics.
    pub metrics: &'a Metrics,
    /// Told when the source's tables are to be looked at again.
    pub look_again: &'a Notify,
}

impl Capture<'_> {
    /// Runs until cancelled (then everything that was appended is durable and confirmed) or until an error; calls
    /// `opened` when the log is open.
    pub async fn run(
        &self,
        asks: &mut mpsc::UnboundedReceiver<Ask>,
        cancel: &CancellationToken,
        opened: &(dyn Fn(Identity) -> Result<()> + Send + Sync),
    ) -> Result<()> {
        let mut log = tokio::select! {
        biased;
               () = cancel.cancelled() => return Ok(()),
               log = self.open(opened) => log?,
           };
        let mut shapes = Shapes::new(self.tables.rules().clone());
        let mut appends: Appends<'_> = FuturesOrdered::new();
        loop {
            // A pull is safe to cancel, so an append that is done need not wait for the next change.
            let changes = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(ask) = asks.recv() => {
                    self.answer(ask, &mut *log);
                    continue;
                }
                Some(done) = appends.next() => {
                    self.confirm(&mut *log, done?).await?;
                    continue;
                }
                changes = log.pull(BUDGET), if appends.len() < APPENDS_IN_FLIGHT_MAX => changes?,
            };
            // What was pulled and not appended is not confirmed either: it comes again.
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                prepared = self.prepare(changes, &mut *log, &mut shapes, &mut appends) => prepared?,
            }
        }
        let rest = async {
            while let Some(done) = appends.next().await {
                self.confirm(&mut *log, done?).await?;
            }
            Ok(())
        };
        // At the disk bound an append may wait for ever. One that is abandoned was not confirmed, and comes again.
        let ended = tokio::time::timeout(APPENDS_PATIENCE, rest).await.unwrap_or(Ok(()));
        info!(task = self.task, "capture ended");
        ended
    }

    /// Opens the log at the last mark, with nothing behind that in the stream.
    async fn open(&self, opened: &(dyn Fn(Identity) -> Result<()> + Send + Sync)) -> Result<Box<dyn Log>> {
        self.stream.rewind().await?;
        let from = self.stream.last_mark().map(|mark| mark.resume());
        let from = from.ok_or_else(|| Error::new(Kind::Internal, "opening the log: the stream has no mark"))?;
        self.tables.resume(from.position)?;
        let log = self.source.open_log(&self.tables.captured(), &from, self.identity, self.stream.spill_room()).await?;
        if let Some(begin) = log.begins_anew() {
            self.take_over(from.position, begin).await?;
        }
        // Who it is now must be known before anything of it is durable: behind the fork of a new timeline the old
        // identity would be refused.
        let identity = match log.identity() {
            Some(identity) => identity.clone(),
            None => self.source.identity().await?,
        };
        opened(identity)?;
        Ok(log)
    }

    /// Another server has everything up to the last mark, and its log goes on from there. What loads have seen behind the
    /// mark it need not have.
    async fn take_over(&self, marked: Position, begin: Resume) -> Result<()> {
        let loads = [TableState::BeforeLoad, TableState::FullLoad, TableState::Reloading];
        for record in self.tables.all().iter().filter(|record| loads.contains(&record.state)) {
            self.tables.outdate(&record.table.name)?;
        }
        let is_ahead = |record: &&TableRecord| record.read_to > marked && record.state == TableState::Completed;
        if let Some(ahead) = self.tables.all().iter().find(is_ahead) {
            let said = format!("table {} was loaded with changes that the log was not read to yet", ahead.table.name);
            return Err(Error::new(Kind::SourceChanged, "following another server that took over").with(said));
        }
        // The stream says where the history begins before anybody else does: it is the one to believe after a crash.
        warn!(task = self.task, position = %begin.position, "another server took over; its log is followed");
        let marked = self.stream.append(Append::begin(begin)).await?;
        fail::fail_point!("takeover-after-mark");
        let unmarked = || Error::new(Kind::Internal, "following another server: its beginning was not marked");
        marked.map(drop).ok_or_else(unmarked)
    }

    fn answer(&self, ask: Ask, log: &mut dyn Log) {
        match ask {
            Ask::AddTable(table, since, answered) => {
                log.add_table(table, since);
                let _ = answered.send(());
            }
            Ask::SettleTable(table) => log.settle_table(table),
            Ask::RemoveTable(table) => log.remove_table(&table),
        }
    }

    fn append(&self, prepared: Prepared) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(async move {
            let durable = self.stream.append(prepared.append).await?;
            Ok((durable, prepared.aftermath))
        })
    }

    /// The append is durable: tells the source, and keeps what it said about tables.
    async fn confirm(&self, log: &mut dyn Log, (durable, aftermath): Appended) -> Result<()> {
        for Suspension { table, why, cause } in aftermath {
            if self.tables.suspend(&table, &why, cause)? {
                warn!(task = self.task, table = %table, reason = why, "table is suspended");
            }
        }
        match durable {
            Some(position) => {
                self.tables.settle(position.get())?;
                log.confirm(position).await
            }
            None => Ok(()),
        }
    }

    /// Makes rows whole, names them as the target does, counts what is left out, and appends. What a pull becomes is
    /// appended in pieces: a row of a hundred bytes may have been sent without a megabyte that did not change.
    async fn prepare<'s>(
        &'s self,
        changes: Changes,
        log: &mut dyn Log,
        shapes: &mut Shapes,
        appends: &mut Appends<'s>,
    ) -> Result<()> {
        self.note(&changes);
        if changes.look_again {
            self.look_again.notify_one();
        }
        let captured = changes.rows();
        if captured > 0 {
            self.metrics.count_rows(self.task, "captured", captured);
        }
        let mut piece = Prepared::default();
        piece.append.captured = captured;
        for item in changes.items {
            match item {
                Change::Rows(batch) => self.rows(batch, log, shapes, &mut piece, appends).await?,
                Change::Rejected(rejects) => self.rejected(rejects, shapes, &mut piece),
                Change::Truncate { tables, order } => self.truncate(tables, order, shapes, log, &mut piece)?,
                Change::Ddl(ddl) => self.reshaped(ddl, log, shapes, &mut piece)?,
            }
        }
        piece.append.changes.upto = changes.upto;
        piece.append.changes.lineage = changes.lineage;
        piece.append.changes.newest_commit_us = changes.newest_commit_us;
        piece.append.changes.awaited = changes.awaited;
        appends.push_back(self.append(piece));
        Ok(())
    }

    /// A table changed its shape.
    fn reshaped(&self, ddl: Ddl, log: &mut dyn Log, shapes: &mut Shapes, piece: &mut Prepared) -> Result<()> {
        let (table, (what, cause), order) = match ddl {
            Ddl::Unsupported { table, what, order } => (table, (what, Cause::Shape), order),
            Ddl::Evolved { table, order } => match self.unfollowed(&table, order, shapes) {
                Some(why) => (table.name.clone(), why, order),
                None => {
                    // Before it is in the stream, so that the two agree after a crash.
                    self.tables.evolve(&table, order)?;
                    info!(task = self.task, table = %table.name, version = table.version, "table has a new shape");
                    let table = shapes.of(&table).target.clone();
                    piece.append.changes.items.push(Change::Ddl(Ddl::Evolved { table, order }));
                    return Ok(());
                }
            },
        };
        self.suspend(&table, &what, cause, log, piece)?;
        let table = shapes.rules.target(&table);
        piece.append.changes.items.push(Change::Ddl(Ddl::Unsupported { table, what, order }));
        Ok(())
    }

    /// Why a change of shape is not followed.
    fn unfollowed(&self, table: &Arc<Table>, order: Order, shapes: &Shapes) -> Option<(String, Cause)> {
        let record = self.tables.get(&table.name)?;
        if table.definition_id == 0 && record.is_loaded_behind(order, table) {
            return Some(("it was altered before its load was done".into(), Cause::Shape));
        }
        // A rule knows columns by their names, which others may have now.
        let before = record.evolving.last().map_or(&record.table, |shape| &shape.table);
        let lost = shapes.rules.lost_hold(before, table, Known::ById);
        let wrong = lost.or_else(|| shapes.rules.check_columns(table, true).into_iter().next());
        wrong.map(|finding| (unfit::reason(&finding), Cause::Rules))
    }

    /// A truncate of a table that is being loaded is as good as any other: what lies before the load's position is left
    /// out behind the stream.
    fn truncate(
        &self,
        tables: Vec<TableName>,
        order: Order,
        shapes: &Shapes,
        log: &mut dyn Log,
        piece: &mut Prepared,
    ) -> Result<()> {
        let concerned = |table: &TableName| !piece.suspended.contains(table) && self.tables.is_captured(table);
        let tables: Vec<TableName> = tables.into_iter().filter(concerned).collect();
        match self.on_change.truncate {
            Truncate::Apply => {
                let tables = tables.iter().map(|table| shapes.rules.target(table)).collect();
                piece.append.changes.items.push(Change::Truncate { tables, order });
            }
            Truncate::Ignore => {
                for table in &tables {
                    warn!(task = self.task, table = %table, "a truncate is passed over, as the config says");
                }
            }
            Truncate::Suspend => {
                for table in tables {
                    let what = "the source truncated the table".to_string();
                    self.suspend(&table, &what, Cause::Policy, log, piece)?;
                    let table = shapes.rules.target(&table);
                    piece.append.changes.items.push(Change::Ddl(Ddl::Unsupported { table, what, order }));
                }
            }
        }
        Ok(())
    }

    /// Appends what there is so far, without a mark, and waits until there is room for more.
    async fn append_piece<'s>(
        &'s self,
        log: &mut dyn Log,
        piece: &mut Prepared,
        appends: &mut Appends<'s>,
    ) -> Result<()> {
        let suspended = piece.suspended.clone();
        let full = std::mem::replace(piece, Prepared { suspended, ..Prepared::default() });
        appends.push_back(self.append(full));
        while appends.len() >= APPENDS_IN_FLIGHT_MAX {
            if let Some(done) = appends.next().await {
                self.confirm(log, done?).await?;
            }
        }
        Ok(())
    }

    /// A table that is delivered is suspended from here on. One that is being loaded begins its load again: whether this
    /// lies before the load's position is not known yet, and the log may leave out what stands behind it.
    fn suspend(
        &self,
        table: &TableName,
        why: &str,
        cause: Cause,
        log: &mut dyn Log,
        piece: &mut Prepared,
    ) -> Result<()> {
        let Some(record) = self.tables.get(table).filter(|_| self.tables.is_captured(table)) else { return Ok(()) };
        if record.state != TableState::Completed {
            info!(task = self.task, table = %table, reason = why, "table changed while it is loaded; its load begins again");
            self.tables.outdate(table)?;
            log.add_table(Arc::new(record.table), None);
            return Ok(());
        }
        log.remove_table(table);
        piece.suspended.insert(table.clone());
        piece.aftermath.push(Suspension { table: table.clone(), why: why.to_string(), cause });
        Ok(())
    }

    async fn rows<'s>(
        &'s self,
        batch: ChangeBatch,
        log: &mut dyn Log,
        shapes: &mut Shapes,
        piece: &mut Prepared,
        appends: &mut Appends<'s>,
    ) -> Result<()> {
        let name = &batch.table.name;
        if piece.suspended.contains(name) || !self.tables.is_captured(name) {
            piece.filtered("suspended", batch.rows() as u64);
            return Ok(());
        }
        let mut filling = Filling::new(batch);
        loop {
            let filled = match filling.next(self.source).await {
                Ok(Some(filled)) => filled,
                Ok(None) => break,
                // The column or the table is gone by now: what was not sent cannot be had, and that table alone stops.
                Err(error) if error.kind.action() == Action::SuspendTable => {
                    let Some((order, rows)) = filling.rest() else { break };
                    let (name, what) = (filling.table().name.clone(), error.to_string());
                    self.suspend(&name, &what, Cause::Shape, log, piece)?;
                    piece.filtered("suspended", rows);
                    let table = shapes.rules.target(&name);
                    piece.append.changes.items.push(Change::Ddl(Ddl::Unsupported { table, what, order }));
                    break;
                }
                Err(error) => return Err(error),
            };
            piece.filtered("superseded", filled.superseded);
            self.rejected(filled.rejects, shapes, piece);
            if let Some(batch) = filled.batch {
                piece.bytes += batch.byte_size();
                let batch = shapes.of(&batch.table).batch(batch);
                piece.append.changes.items.push(Change::Rows(batch));
            }
            if piece.bytes >= PIECE_BYTES {
                self.append_piece(log, piece, appends).await?;
            }
        }
        Ok(())
    }

    fn rejected(&self, rejects: Vec<Reject>, shapes: &Shapes, piece: &mut Prepared) {
        let mut by_table: BTreeMap<TableName, Vec<Reject>> = BTreeMap::new();
        for mut reject in rejects {
            if piece.suspended.contains(&reject.table) || !self.tables.is_captured(&reject.table) {
                piece.filtered("suspended", 1);
                continue;
            }
            reject.table = shapes.rules.target(&reject.table);
            by_table.entry(reject.table.clone()).or_default().push(reject);
        }
        piece.append.changes.items.extend(by_table.into_values().map(Change::Rejected));
    }

    fn note(&self, changes: &Changes) {
        if let Some(commit) = changes.newest_commit_us {
            self.progress.newest_commit_us.store(commit, Ordering::Relaxed);
        }
        if let Some(end) = changes.source_end {
            self.progress.source_end.store(end.0 as u64, Ordering::Relaxed);
        }
        self.progress.pulled_us.store(crate::telemetry::now_us(), Ordering::Relaxed);
        let caught_up = changes.items.is_empty();
        self.progress.caught_up.store(u64::from(caught_up), Ordering::Relaxed);
        let newest = self.progress.newest_commit_us.load(Ordering::Relaxed);
        let lag =
            if caught_up || newest == 0 { 0.0 } else { (crate::telemetry::now_us() - newest).max(0) as f64 / 1e6 };
        self.metrics.source_lag_seconds.get_or_create(&task_label(self.task)).set(lag);
    }
}

/// A table that is suspended once the append is durable.
struct Suspension {
    table: TableName,
    why: String,
    cause: Cause,
}

/// What an append gave, and what is to be done now that it is durable.
type Appended = (Option<Durable<Position>>, Vec<Suspension>);
type Appends<'a> = FuturesOrdered<BoxFuture<'a, Result<Appended>>>;

/// An append in the making.
#[derive(Default)]
struct Prepared {
    append: Append,
    aftermath: Vec<Suspension>,
    /// Tables that this pull suspended: their later rows in it are left out.
    suspended: BTreeSet<TableName>,
    bytes: usize,
}

impl Prepared {
    fn filtered(&mut self, reason: &str, rows: u64) {
        if rows > 0 {
            *self.append.filtered.entry(reason.into()).or_default() += rows;
        }
    }
}

/// Each source shape's twin at the target, made once.
struct Shapes {
    rules: Rules,
    known: BTreeMap<TableName, (Arc<Table>, Mapped)>,
}

impl Shapes {
    fn new(rules: Rules) -> Self {
        Self { rules, known: BTreeMap::new() }
    }

    fn of(&mut self, table: &Arc<Table>) -> &Mapped {
        let fresh = self.known.get(&table.name).is_none_or(|(known, _)| !Arc::ptr_eq(known, table));
        if fresh {
            let mapped = self.rules.shape(table);
            self.known.insert(table.name.clone(), (table.clone(), mapped));
        }
        &self.known[&table.name].1
    }
}
