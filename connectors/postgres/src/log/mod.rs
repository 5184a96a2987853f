//! The log of a database: pgoutput over our own replication socket (manual, "Logical Streaming Replication Protocol").
//!
//! Streaming of open transactions is off and the slot is made without two-phase, so only committed transactions arrive,
//! one after the other. Values are decoded from the receive buffer straight into the batches that are handed out.
//!
//! - [`open`]: the checks of every connect; [`pace`]: when to read; [`status`]: keeps the session alive
//! - [`decoder`]: messages to changes; [`transaction`], [`captured`]: its parts
//! - [`shape`], [`attributes`]: a table's shape in the log against ours; [`deferrable`], [`pending`]: rows that need a second look

mod attributes;
mod captured;
mod decoder;
mod deferrable;
#[cfg(test)]
mod fuzz;
mod open;
mod pace;
mod pending;
mod shape;
mod status;
#[cfg(test)]
mod tests;
mod transaction;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use millrace_core::{
    Changes, Durable, Error, Kind, Position, Result, Table, TableName, ValueRules,
    error::Context,
    source::{Budget, Identity, Log},
};

pub(crate) use self::open::verify_identity;
use self::{
    decoder::{Applied, Decoder},
    pace::Pace,
    status::StatusSender,
};
use crate::{
    PostgresConfig,
    config::Names,
    fence::VisibilityFence,
    wire::{Connection, LogReader, Mode},
};

/// While a backlog is read in bursts, changes are collected for so long before they are handed out.
const COLLECT: Duration = Duration::from_millis(40);

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

/// An open log.
#[derive(Debug)]
pub struct PostgresLog {
    config: PostgresConfig,
    reader: LogReader,
    status: StatusSender,
    decoder: Decoder,
    pace: Pace,
    /// When other tasks were last let run.
    yielded: Instant,
    fence: Arc<VisibilityFence>,
    /// Who answered.
    identity: Identity,
    /// For shapes that changed; closed when a pull ends.
    catalog: Option<Connection>,
}

impl PostgresLog {
    /// Connects, makes sure that nothing from `from` on is lost, and starts the stream. Transactions with changes that
    /// need a lookup are noted in `fence`.
    pub async fn open(
        config: &PostgresConfig,
        names: &Names,
        tables: &[Arc<Table>],
        from: Position,
        known: &Identity,
        options: LogOptions,
        fence: Arc<VisibilityFence>,
    ) -> Result<Self> {
        let start = u64::try_from(from.0).context(Kind::Internal, || format!("opening the log at {from}"))?;
        let mut session = Connection::connect(config, Mode::Replication, "millrace log").await?;
        let identity = verify_identity(&mut session, names, from, known).await?;
        open::verify_slot(&mut session, names, from).await?;
        let mut decoder = Decoder::new(tables, start, options.value_bytes_max, options.values.clone(), fence.clone());
        decoder.own_changes_only = options.own_changes_only;
        open::learn_tables(&mut session, tables, &mut decoder).await?;
        let stream = open::start(session, names, start, &options).await?;
        // A third of the server's patience, and often enough that an idle log advances.
        let interval = (options.sender_timeout / 3).min(Duration::from_secs(10));
        tracing::info!(slot = names.slot, position = %from, "the log is open");
        Ok(Self {
            config: config.clone(),
            pace: Pace::new(stream.reader.gains_from_bursts(), Instant::now()),
            reader: stream.reader,
            status: StatusSender::spawn(stream.writer, start, interval),
            decoder,
            yielded: Instant::now(),
            fence,
            identity,
            catalog: None,
        })
    }

    /// Up to where was confirmed.
    pub fn confirmed(&self) -> Position {
        self.status.confirmed()
    }

    /// Decodes what has been received; whether the budget is used up. Safe to cancel.
    async fn decode(&mut self, budget: &Budget) -> Result<bool> {
        loop {
            while self.decoder.unresolved().is_some() {
                self.resolve().await?;
            }
            if self.decoder.is_full(budget) {
                return Ok(true);
            }
            let Some(payload) = self.reader.message()? else { return Ok(false) };
            if self.decoder.apply(payload)? == Applied::ReplyRequested {
                self.status.answer_now();
            }
        }
    }

    /// Compares the shape of one table with the catalog's help. Safe to cancel: it is asked for again.
    async fn resolve(&mut self) -> Result<()> {
        if self.catalog.is_none() {
            self.catalog = Some(Connection::connect(&self.config, Mode::Plain, "millrace log catalog").await?);
        }
        let mut types = std::mem::take(&mut self.decoder.types);
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

    /// Reads more; `false` when it is time to hand out what there is. Safe to cancel.
    async fn read_more(&mut self, began: Instant, deadline: tokio::time::Instant) -> Result<bool> {
        let ready = self.decoder.has_changes() && !self.decoder.in_transaction();
        // A backlog may keep this task busy for long, and status updates must go out meanwhile.
        if self.yielded.elapsed() >= YIELD_INTERVAL {
            tokio::task::yield_now().await;
            self.yielded = Instant::now();
        }
        let count = if self.pace.is_drained() { 0 } else { self.reader.fill_now().await? };
        if count > 0 {
            self.pace.read(count, Instant::now());
            return Ok(true);
        }
        if let Some(sleep) = self.pace.dry(Instant::now()) {
            if (ready && began.elapsed() >= COLLECT) || (!ready && tokio::time::Instant::now() >= deadline) {
                return Ok(false);
            }
            self.reader.leave_alone();
            tokio::time::sleep(sleep).await;
            return Ok(true);
        }
        if ready {
            return Ok(false);
        }
        match tokio::time::timeout_at(deadline, self.reader.fill()).await {
            Ok(count) => {
                self.pace.read(count?, Instant::now());
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }
}

#[async_trait]
impl Log for PostgresLog {
    async fn pull(&mut self, budget: Budget) -> Result<Changes> {
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + budget.wait;
        while !self.decode(&budget).await? && self.read_more(began, deadline).await? {}
        self.catalog = None;
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
        self.status.confirm(lsn);
        self.fence.forget_before(position);
        Ok(())
    }

    fn add_table(&mut self, table: Arc<Table>) {
        self.decoder.add_table(table);
    }

    fn remove_table(&mut self, table: &TableName) {
        self.decoder.remove_table(table);
    }
}
