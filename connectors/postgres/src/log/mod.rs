//! The log of a database: pgoutput over our own replication socket (manual, "Logical Streaming Replication Protocol").
//!
//! The slot is made without two-phase, so a transaction arrives when it commits, one after the other, unless it is large:
//! from PostgreSQL 14 on the server sends such a one in parts while it is open, and it goes to our disk until it commits.
//! Values are decoded from the receive buffer (or from that file) straight into the batches that are handed out.
//!
//! - [`open`]: the checks of every connect; [`past`]: whether it is the log that was read
//! - [`pace`]: when to read; [`status`]: keeps the session alive
//! - [`decoder`]: messages to changes; [`transaction`], [`captured`]: its parts
//! - [`streamed`]: transactions that are sent before they commit; [`spill`]: their files
//! - [`shape`], [`attributes`], [`announced`]: a table's shape in the log against ours; [`deferrable`], [`pending`]: rows that need a second look

mod announced;
mod attributes;
mod captured;
mod decoder;
mod deferrable;
#[cfg(test)]
mod fuzz;
mod open;
mod pace;
mod past;
mod pending;
mod shape;
mod spill;
mod status;
mod streamed;
#[cfg(test)]
mod tests;
mod transaction;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_core::{
    Changes, Durable, Error, Kind, Position, Result, Table, TableName, ValueRules,
    error::Context,
    source::{Budget, Identity, Log, Resume, SpillRoom},
};

pub(crate) use self::open::verify_identity;
use self::{
    decoder::{Applied, Decoder},
    pace::Pace,
    past::{Memory, Past},
    status::StatusSender,
    streamed::Streamed,
};
use crate::{
    PostgresConfig,
    config::Names,
    fence::VisibilityFence,
    lookup::wait_until_visible,
    wire::{
        Connection, LogReader, Mode,
        silence::{self, Silence},
        sqlstate,
    },
};

/// While a backlog is read in bursts, changes are collected for so long before they are handed out.
const COLLECT: Duration = Duration::from_millis(40);

/// Between two requests for room on our disk.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// The session for the catalog is closed after so long without use.
const CATALOG_IDLE: Duration = Duration::from_secs(5);

/// The storage of all tables is looked at together no more often.
const LOOK_AT_ALL_INTERVAL: Duration = Duration::from_secs(1);

/// Other tasks are let run at least so often.
const YIELD_INTERVAL: Duration = Duration::from_millis(5);

/// How the log is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// A row with a longer value is rejected; bytes.
    pub value_bytes_max: usize,
    /// After how long a silence the server gives up on us (`wal_sender_timeout` of our session).
    pub sender_timeout: Duration,
    /// What becomes of values that their columns cannot hold.
    pub values: Arc<ValueRules>,
    /// A slot that was made without `FAILOVER` gets it, where the server knows it.
    pub failover: bool,
    /// Transactions that the server took over from elsewhere are left out.
    pub own_changes_only: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            value_bytes_max: 64 << 20,
            sender_timeout: Duration::from_secs(60),
            failover: false,
            own_changes_only: false,
            values: Arc::default(),
        }
    }
}

/// What a log shares with the other parts of its source, and with the task.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Notes transactions with changes that need a lookup.
    pub fence: Arc<VisibilityFence>,
    /// Where transactions that have not committed are kept.
    pub spill: Arc<dyn SpillRoom>,
    /// The server failed while it sent transactions ahead: the next log asks for whole ones.
    pub whole: Arc<AtomicBool>,
    /// The server process of the last session that streamed; 0 for none.
    pub process: Arc<AtomicU32>,
}

/// Where decoding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decoded {
    /// With what was received.
    All,
    /// With enough to hand out.
    Enough,
    /// Before something for which there is no room on our disk yet.
    NoRoom,
}

/// An open log.
#[derive(Debug)]
pub struct PostgresLog {
    config: PostgresConfig,
    reader: LogReader,
    status: StatusSender,
    /// Until what is sent again was compared nothing is confirmed; then what we have, which is up to here.
    compares_to: Option<u64>,
    decoder: Decoder,
    streamed: Streamed,
    /// Set where the server failed; `None` where nothing is sent ahead.
    whole: Option<Arc<AtomicBool>>,
    /// The current pull has written to our disk.
    spilled: bool,
    pace: Pace,
    /// When other tasks were last let run.
    yielded: Instant,
    fence: Arc<VisibilityFence>,
    /// The server process that sends the log.
    process_id: u32,
    /// When something last came from it, or it was last looked why nothing does.
    heard: Instant,
    silence: Silence,
    /// Who answered.
    identity: Identity,
    /// For shapes that are shown.
    catalog: Option<Connection>,
    catalog_used: Instant,
    /// When the storage of all tables was last looked at.
    looked_at_all: Option<Instant>,
}

impl PostgresLog {
    /// Connects, makes sure that nothing from `from` on is lost, and starts the stream.
    pub async fn open(
        config: &PostgresConfig,
        names: &Names,
        tables: &[Arc<Table>],
        resume: &Resume,
        known: &Identity,
        options: LogOptions,
        Surroundings { fence, spill, whole, process }: Surroundings,
    ) -> Result<Self> {
        let from = resume.position;
        let start = u64::try_from(from.0).context(Kind::Internal, || format!("opening the log at {from}"))?;
        let mut session = Connection::connect(config, Mode::Replication, "millrace log").await?;
        let identity = verify_identity(&mut session, names, from, known).await?;
        let confirmed = open::verify_slot(&mut session, names, from, process.load(Ordering::Relaxed)).await?;
        let past: Option<Past> = resume.lineage.as_ref().and_then(|text| text.parse().ok());
        // What the server may send again is asked for, to be compared.
        let confirmed = u64::try_from(confirmed.0).unwrap_or(start);
        let begin = if past.is_some() { confirmed.min(start) } else { start };
        let mut decoder = Decoder::new(tables, start, options.value_bytes_max, options.values.clone(), fence.clone());
        decoder.own_changes_only = options.own_changes_only;
        if let Some(past) = past {
            decoder.remember(Memory::new(names, past, (begin, start)));
        }
        open::learn_tables(&mut session, tables, &mut decoder).await?;
        let streamed = Streamed::open(spill)?;
        // What a server without the option `origin` sends of an open transaction does not say yet where it comes from.
        let by_decoder = options.own_changes_only && session.major_version() < open::ORIGIN_VERSION_MIN;
        let ahead = !whole.swap(false, Ordering::Relaxed) && !by_decoder;
        let process_id = session.process_id();
        process.store(process_id, Ordering::Relaxed);
        let stream = open::start(session, names, begin, &options, ahead).await?;
        // A third of the server's patience, and often enough that an idle log advances.
        let interval = (options.sender_timeout / 3).min(Duration::from_secs(10));
        tracing::info!(slot = names.slot, position = %from, "the log is open");
        Ok(Self {
            config: config.clone(),
            pace: Pace::new(stream.reader.line(), Instant::now()),
            reader: stream.reader,
            status: StatusSender::spawn(stream.writer, begin, interval),
            compares_to: decoder.is_comparing().then_some(start),
            decoder,
            streamed,
            whole: ahead.then_some(whole),
            spilled: false,
            yielded: Instant::now(),
            fence,
            process_id,
            heard: Instant::now(),
            silence: Silence::of_log(),
            identity,
            catalog: None,
            catalog_used: Instant::now(),
            looked_at_all: None,
        })
    }

    /// Up to where was confirmed.
    pub fn confirmed(&self) -> Position {
        self.status.confirmed()
    }

    /// Decodes what has been received, and before that what has committed on our disk. Safe to cancel.
    async fn decode(&mut self, budget: &Budget) -> Result<Decoded> {
        loop {
            while self.decoder.unresolved().is_some() {
                self.resolve().await?;
            }
            if self.decoder.announced().is_some() {
                self.read_announced().await?;
                continue;
            }
            if self.decoder.is_full(budget) {
                return Ok(Decoded::Enough);
            }
            if self.streamed.is_replaying() {
                if self.streamed.replay(&mut self.decoder)? {
                    self.let_others_run().await;
                }
                continue;
            }
            if self.streamed.is_due() {
                if !self.streamed.write()? {
                    return Ok(Decoded::NoRoom);
                }
                self.spilled = true;
            }
            let payload = match self.reader.message() {
                Ok(Some(payload)) => payload,
                Ok(None) => return Ok(Decoded::All),
                Err(error) => {
                    ask_for_whole(self.whole.as_deref(), &error);
                    return Err(error);
                }
            };
            if let Some(source_end) = self.streamed.take(payload)? {
                self.decoder.note_source_end(source_end);
            } else if self.decoder.apply(payload)? == Applied::ReplyRequested {
                self.status.answer_now();
            }
        }
    }

    /// A backlog may keep this task busy for long, and status updates must go out meanwhile.
    async fn let_others_run(&mut self) {
        if self.yielded.elapsed() >= YIELD_INTERVAL {
            tokio::task::yield_now().await;
            self.yielded = Instant::now();
        }
    }

    /// Whether there are whole transactions to hand out.
    fn is_ready(&self) -> bool {
        self.decoder.has_changes() && !self.decoder.in_transaction()
    }

    /// A session for the catalog. It is kept while shapes are asked for now and then.
    async fn connect_catalog(&mut self) -> Result<()> {
        if self.catalog.is_none() {
            self.catalog = Some(Connection::connect(&self.config, Mode::Plain, "millrace log catalog").await?);
        }
        self.catalog_used = Instant::now();
        Ok(())
    }

    /// Looks at a table that was altered here. Safe to cancel: it is asked for again.
    async fn read_announced(&mut self) -> Result<()> {
        self.connect_catalog().await?;
        let (Some(announced), Some(catalog)) = (self.decoder.announced(), &mut self.catalog) else { return Ok(()) };
        if let Some(xid) = self.decoder.open_xid() {
            wait_until_visible(catalog, &[xid]).await?;
        }
        let relation = announced::read_relation(catalog, announced).await?;
        self.decoder.settle_announced(relation);
        Ok(())
    }

    /// Compares the shape of one table with the catalog's help. Safe to cancel: it is asked for again.
    async fn resolve(&mut self) -> Result<()> {
        self.connect_catalog().await?;
        let Some(oid) = self.decoder.unresolved().map(|(oid, _)| oid) else { return Ok(()) };
        self.look_at_storage(oid).await?;
        if self.decoder.settle_same(oid) {
            return Ok(());
        }
        let mut types = self.decoder.types.clone();
        let asked = match (self.decoder.unresolved(), &mut self.catalog) {
            (Some((oid, relation)), Some(catalog)) => {
                Some((oid, shape::read_facts(catalog, relation, &mut types).await))
            }
            _ => None,
        };
        self.decoder.types = types;
        let Some((oid, facts)) = asked else { return Ok(()) };
        self.decoder.resolve(oid, &facts?)
    }

    /// Most shapes that are shown again are as they were, which is told by a cheaper look; and one look at all tables
    /// spares others where many tables are shown at once.
    async fn look_at_storage(&mut self, oid: u32) -> Result<()> {
        let Some(catalog) = &mut self.catalog else { return Ok(()) };
        // A commit that waits for a synchronous standby is in the log before the catalog shows what it altered.
        if let Some(xid) = self.decoder.open_xid() {
            wait_until_visible(catalog, &[xid]).await?;
        }
        let all = self.looked_at_all.is_none_or(|last| last.elapsed() >= LOOK_AT_ALL_INTERVAL);
        let oids = self.decoder.oids((!all).then_some(oid));
        let upto = attributes::position(catalog).await?;
        let stored = attributes::read(catalog, &oids).await?;
        if all {
            self.looked_at_all = Some(Instant::now());
        }
        self.decoder.note_stored(&stored, upto);
        Ok(())
    }

    /// Reads more; `false` when it is time to hand out what there is. Safe to cancel.
    async fn read_more(&mut self, began: Instant, deadline: tokio::time::Instant) -> Result<bool> {
        let ready = self.is_ready();
        self.let_others_run().await;
        // Hours of an open transaction keep nobody waiting for what has committed meanwhile.
        if self.spilled && ((ready && began.elapsed() >= COLLECT) || tokio::time::Instant::now() >= deadline) {
            return Ok(false);
        }
        let count = if self.pace.is_drained() { 0 } else { self.reader.fill_now().await? };
        if count > 0 {
            self.note_read(count);
            return Ok(true);
        }
        if let Some(sleep) = self.pace.dry(Instant::now()) {
            if (ready && began.elapsed() >= COLLECT) || (!ready && tokio::time::Instant::now() >= deadline) {
                return Ok(false);
            }
            self.reader.leave_alone();
            if sleep < pace::SLEEP_MIN {
                thread::sleep(sleep);
            } else {
                tokio::time::sleep(sleep).await;
            }
            return Ok(true);
        }
        if ready {
            return Ok(false);
        }
        match tokio::time::timeout_at(deadline, self.reader.fill()).await {
            Ok(count) => {
                self.note_read(count?);
                Ok(true)
            }
            Err(_) => {
                self.look_why_silent().await?;
                Ok(false)
            }
        }
    }

    fn note_read(&mut self, count: usize) {
        self.heard = Instant::now();
        self.silence.is_over();
        self.pace.read(count, self.heard);
    }

    /// The status updates ask the server for an answer, so that something must come now and then. Safe to cancel.
    async fn look_why_silent(&mut self) -> Result<()> {
        if self.heard.elapsed() >= silence::PATIENCE {
            self.silence.look(&self.config, self.process_id).await?;
            self.heard = Instant::now();
        }
        Ok(())
    }
}

/// PostgreSQL up to 18 at least cannot send a transaction ahead in which a savepoint with a change of the catalog was rolled
/// back and the same was changed again ("could not map filenode … to relation OID"): it believes the change that rolled
/// back. The whole transaction it can send. So after any error of its own, but its shutdown (class 57), the next session
/// asks for that; the one after tries again.
fn ask_for_whole(whole: Option<&AtomicBool>, error: &Error) {
    let (Some(whole), Some(state)) = (whole, sqlstate(error)) else { return };
    if !state.starts_with("57") {
        tracing::warn!(sqlstate = state, "the server failed; next it is asked for whole transactions only");
        whole.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Log for PostgresLog {
    async fn pull(&mut self, budget: Budget) -> Result<Changes> {
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + budget.wait;
        self.spilled = false;
        loop {
            match self.decode(&budget).await? {
                Decoded::All if self.read_more(began, deadline).await? => {}
                Decoded::NoRoom if !self.is_ready() && tokio::time::Instant::now() < deadline => {
                    self.reader.leave_alone();
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                Decoded::All | Decoded::Enough | Decoded::NoRoom => break,
            }
        }
        if self.catalog_used.elapsed() >= CATALOG_IDLE {
            self.catalog = None;
        }
        if !self.decoder.is_comparing()
            && let Some(position) = self.compares_to.take()
        {
            self.status.confirm(position);
        }
        Ok(self.decoder.take())
    }

    fn identity(&self) -> Option<&Identity> {
        Some(&self.identity)
    }

    async fn confirm(&mut self, position: Durable<Position>) -> Result<()> {
        fail::fail_point!("pg-log-before-confirm");
        let position = position.get();
        let lsn = u64::try_from(position.0)
            .map_err(|_| Error::new(Kind::Internal, format!("confirming {position}, which is no LSN")))?;
        if self.compares_to.is_none() {
            self.status.confirm(lsn);
        }
        self.fence.forget_before(position);
        Ok(())
    }

    fn add_table(&mut self, table: Arc<Table>, _: Option<Position>) {
        self.decoder.add_table(table);
    }

    fn settle_table(&mut self, table: Arc<Table>) {
        self.decoder.settle_table(table);
    }

    fn remove_table(&mut self, table: &TableName) {
        self.decoder.remove_table(table);
    }
}
