//! PostgreSQL as a source.
//!
//! - [`config`]: how to reach a server; [`check`]: what would keep a task from working, each with its remedy
//! - [`discover`]: tables and their shapes; [`partitions`]: of partitioned ones; [`types`]: what values become
//! - [`publication`], [`slot`]: what a task makes at the server
//! - [`snapshot`], [`load`]: full load by binary COPY at an exact position
//! - [`log`]: changes by pgoutput; [`fence`], [`lookup`]: the values that it leaves out
//! - [`wire`]: the protocol
//!
//! What is left out, on purpose: generated columns (pgoutput does not send them before PostgreSQL 18, and load and
//! changes must have the same columns), views, foreign and unlogged tables.

pub mod check;
pub mod config;
pub mod ddl_trigger;
pub mod discover;
pub mod fence;
pub mod grants;
pub mod load;
pub mod log;
pub mod lookup;
pub mod partitions;
pub mod publication;
pub mod slot;
pub mod snapshot;
mod spellings;
#[cfg(test)]
mod test_server;
pub mod types;
pub mod waiting;
pub mod wire;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32},
    },
    time::Duration,
};

use async_trait::async_trait;
use millrace_core::{
    Columns, Finding, Result, Selection, Table, TableName, ValueRules,
    source::{Identity, Log, Lookup, Resume, Retained, Scope, Snapshot, Source, SpillRoom},
};

pub use config::{Names, PostgresConfig};
use fence::VisibilityFence;
use log::{LogOptions, PostgresLog, Surroundings};
use wire::{Connection, Mode};

/// What a task may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// A longer value goes to the dead letters with its row; bytes.
    pub value_bytes_max: usize,
    /// After how long a silence the server gives up on the reader of its log.
    pub sender_timeout: Duration,
    /// What becomes of values that their columns cannot hold, and which columns get another type.
    pub values: Arc<ValueRules>,
    /// The slot is kept up to date on standbys, so that it is there after a failover (PostgreSQL 17 and later).
    pub failover: bool,
    /// Changes that the server took over from elsewhere, by replication, are left out.
    pub own_changes_only: bool,
}

impl Default for Options {
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

/// What the parts of one source share.
#[derive(Debug)]
pub struct Shared {
    config: PostgresConfig,
    names: Names,
    options: Options,
    /// What the log has handed out and a lookup must see.
    fence: Arc<VisibilityFence>,
    /// The next log asks for whole transactions.
    whole: Arc<AtomicBool>,
    /// The server process of the last session that streamed the log.
    process: Arc<AtomicU32>,
    /// A session for catalog queries, kept between them.
    idle: Mutex<Option<Connection>>,
}

impl Shared {
    /// A session for catalog queries. It comes back by [`Self::give_back`], or not at all after an error.
    async fn catalog(&self) -> Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut connection) = idle
            && connection.execute("SELECT 1").await.is_ok()
        {
            return Ok(connection);
        }
        Connection::connect(&self.config, Mode::Plain, "millrace").await
    }

    fn give_back(&self, connection: Connection) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

/// A PostgreSQL database as the source of one task.
#[derive(Debug, Clone)]
pub struct PostgresSource {
    shared: Arc<Shared>,
}

impl PostgresSource {
    /// Nothing is connected yet. What the task makes at the server is named after it.
    pub fn new(config: PostgresConfig, task: &str, options: Options) -> Self {
        let names = Names::of_task(task);
        let (fence, whole, process, idle) = (Arc::default(), Arc::default(), Arc::default(), Mutex::new(None));
        Self { shared: Arc::new(Shared { config, names, options, fence, whole, process, idle }) }
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn check(&self, scope: &Scope) -> Vec<Finding> {
        check::check(&self.shared.config, &self.shared.names, &self.shared.options, scope).await
    }

    async fn identity(&self) -> Result<Identity> {
        let mut connection = self.shared.catalog().await?;
        let mut identity = slot::identity(&mut connection).await?;
        self.shared.give_back(connection);
        if identity.timeline == 0 {
            identity.timeline = slot::replayed_timeline(&self.shared.config).await?;
        }
        Ok(identity)
    }

    async fn tables(&self, selection: &Selection) -> Result<Vec<Table>> {
        let mut connection = self.shared.catalog().await?;
        let shapes = discover::select(&mut connection, selection).await?;
        self.shared.give_back(connection);
        let retyped = shapes.into_iter().map(|mut shape| {
            shape.retype(&self.shared.options.values);
            shape.table
        });
        Ok(retyped.collect())
    }

    async fn prepare(&self, tables: &[Arc<Table>]) -> Result<()> {
        let mut connection = self.shared.catalog().await?;
        let process_id = connection.process_id();
        let preparing = publication::prepare(&mut connection, &self.shared.names, tables);
        waiting::watch(&self.shared.config, process_id, "altering the publications", preparing).await?;
        self.shared.give_back(connection);
        Ok(())
    }

    async fn unpublished(&self, tables: &[Arc<Table>]) -> Result<Vec<TableName>> {
        let mut connection = self.shared.catalog().await?;
        let unpublished = publication::unpublished(&mut connection, &self.shared.names, tables).await?;
        self.shared.give_back(connection);
        Ok(unpublished)
    }

    async fn publication_ids(&self, tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, u64>> {
        let mut connection = self.shared.catalog().await?;
        let ids = publication::ids(&mut connection, &self.shared.names, tables).await?;
        self.shared.give_back(connection);
        Ok(ids)
    }

    async fn spellings(&self, tables: &[Arc<Table>]) -> Result<BTreeMap<TableName, String>> {
        let mut connection = self.shared.catalog().await?;
        let found = spellings::read(&mut connection, tables).await?;
        self.shared.give_back(connection);
        Ok(found)
    }

    fn spellings_differ(&self, before: &str, now: &str) -> bool {
        spellings::differ(before, now)
    }

    async fn create_log(&self) -> Result<Resume> {
        let made = slot::create(&self.shared.config, &self.shared.names, self.shared.options.failover).await?;
        Ok(made.into())
    }

    async fn open_log(
        &self,
        tables: &[Arc<Table>],
        from: &Resume,
        known: &Identity,
        spill: Arc<dyn SpillRoom>,
    ) -> Result<Box<dyn Log>> {
        let Shared { config, names, options, fence, whole, process, .. } = &*self.shared;
        let Options { value_bytes_max, sender_timeout, failover, own_changes_only, values } = options.clone();
        let options = LogOptions { value_bytes_max, sender_timeout, failover, own_changes_only, values };
        let around = Surroundings { fence: fence.clone(), spill, whole: whole.clone(), process: process.clone() };
        let log = PostgresLog::open(config, names, tables, from, known, options, around).await?;
        Ok(Box::new(log))
    }

    async fn lookup(&self, table: &Table, keys: &Columns, columns: &[usize]) -> Result<Lookup> {
        let mut connection = self.shared.catalog().await?;
        let xids = self.shared.fence.xids();
        lookup::wait_until_visible(&mut connection, &xids).await?;
        self.shared.fence.seen(&xids);
        let found = lookup::read(&mut connection, table, keys, columns, &self.shared.options).await?;
        self.shared.give_back(connection);
        Ok(found)
    }

    async fn snapshot(&self, tables: &[TableName], exact: bool) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(snapshot::PostgresSnapshot::take(self.shared.clone(), tables, exact).await?))
    }

    async fn retained(&self) -> Result<Option<Retained>> {
        let mut connection = self.shared.catalog().await?;
        let retained = slot::retained(&mut connection, &self.shared.names).await?;
        self.shared.give_back(connection);
        Ok(retained)
    }

    async fn verify(&self, from: &Resume, known: &Identity) -> Result<()> {
        let mut session = Connection::connect(&self.shared.config, Mode::Replication, "millrace identity").await?;
        log::verify_identity(&mut session, &self.shared.names, from.position, known).await?;
        session.close().await;
        Ok(())
    }

    async fn heartbeat(&self) -> Result<()> {
        let mut connection = self.shared.catalog().await?;
        slot::heartbeat(&mut connection, &self.shared.names).await?;
        self.shared.give_back(connection);
        Ok(())
    }

    async fn drop_log(&self) -> Result<()> {
        let mut connection = self.shared.catalog().await?;
        slot::drop_for_good(&mut connection, &self.shared.names).await?;
        self.shared.give_back(connection);
        Ok(())
    }

    async fn remove(&self) -> Result<Vec<String>> {
        let mut connection = self.shared.catalog().await?;
        let mut left = slot::remove(&mut connection, &self.shared.names).await?;
        left.extend(publication::remove(&mut connection, &self.shared.names).await?);
        self.shared.give_back(connection);
        Ok(left)
    }
}
