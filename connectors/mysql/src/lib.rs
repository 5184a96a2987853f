//! MySQL and MariaDB as sources.
//!
//! - [`config`]: how to reach a server; [`check`]: what would keep a task from working, each with its remedy
//! - [`discover`], [`definition`]: tables and their shapes; [`types`]: what values become
//! - [`server`]: the binary log as a whole, and places in it; [`gtid`]: places that hold on every server of a replication
//! - [`snapshot`], [`sessions`], [`divide`], [`load`]: full load over the text protocol at an exact position, or one from
//!   [`lower_bound`]; [`lookup`]: single rows; [`two_phases`]: when XA's are visible
//! - [`log`]: changes from the binary log
//! - [`wire`]: the protocol
//!
//! The server keeps nothing for a reader of its log: files go by age and by size. So nothing is made there, and nothing is
//! left behind.

pub mod check;
pub mod config;
pub mod definition;
pub mod discover;
pub mod divide;
pub mod grants;
pub mod gtid;
pub mod load;
pub mod log;
pub mod lookup;
pub mod lower_bound;
pub mod server;
pub mod sessions;
pub mod snapshot;
pub mod two_phases;
pub mod types;
pub mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use millrace_core::{
    Columns, Finding, Result, Secret, Selection, Table, TableName, ValueRules,
    source::{Identity, Log, Lookup, Resume, Retained, Scope, Snapshot, Source, SpillRoom},
};

pub use config::MysqlConfig;
use log::{LoadPositions, LogOptions, MysqlLog};
use wire::Connection;

/// What a task may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// A longer value goes to the dead letters with its row; bytes.
    pub value_bytes_max: usize,
    /// What becomes of values that their columns cannot hold, and which columns get another type.
    pub values: Arc<ValueRules>,
    /// Pieces of tables that are read at the same time, each in a session of its own.
    pub readers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { value_bytes_max: 64 << 20, values: Arc::default(), readers: 1 }
    }
}

/// What the parts of one source share.
#[derive(Debug)]
pub struct Shared {
    config: MysqlConfig,
    /// The reader's number among the server's replicas.
    server_id: u32,
    options: Options,
    loads: Arc<LoadPositions>,
}

impl Shared {
    /// Connects to the server whose log is read.
    async fn connect(&self) -> Result<Connection> {
        self.loads.connect(&self.config).await
    }

    /// Connects to it, or to whoever answers where no log is read.
    async fn connect_for(&self, exact: bool) -> Result<Connection> {
        if exact { self.connect().await } else { Connection::connect(&self.config).await }
    }
}

/// A server as the source of one task.
#[derive(Debug, Clone)]
pub struct MysqlSource {
    shared: Arc<Shared>,
}

impl MysqlSource {
    /// Nothing is connected yet.
    pub fn new(config: MysqlConfig, task: &str, options: Options) -> Self {
        let server_id = config.server_id.unwrap_or_else(|| config::server_id_of(task));
        Self { shared: Arc::new(Shared { config, server_id, options, loads: Arc::default() }) }
    }

    async fn connect(&self) -> Result<Connection> {
        Connection::connect(&self.shared.config).await
    }
}

/// The password: as configured, else `MYSQL_PWD`, else none.
fn password(config: &MysqlConfig) -> Result<Option<Secret>> {
    match &config.password {
        Some(source) => source.read().map(Some),
        None => Ok(std::env::var("MYSQL_PWD").ok().filter(|text| !text.is_empty()).map(Secret::new)),
    }
}

#[async_trait]
impl Source for MysqlSource {
    async fn check(&self, scope: &Scope) -> Vec<Finding> {
        check::check(&self.shared.config, self.shared.server_id, scope).await
    }

    async fn identity(&self) -> Result<Identity> {
        server::identity(&mut self.connect().await?, &self.shared.config.database).await
    }

    async fn tables(&self, selection: &Selection) -> Result<Vec<Table>> {
        let shapes = discover::select(&mut self.connect().await?, selection).await?;
        let retyped = shapes.into_iter().map(|shape| {
            let mut table = shape.known()?;
            types::retype(&self.shared.options.values, &mut table);
            Ok(table)
        });
        retyped.collect()
    }

    async fn prepare(&self, _: &[Arc<Table>]) -> Result<()> {
        Ok(())
    }

    async fn create_log(&self) -> Result<Resume> {
        let (begin, system) = log::open::create(&self.shared.config, &mut self.connect().await?).await?;
        self.shared.loads.follow(&system);
        Ok(begin)
    }

    async fn open_log(
        &self,
        tables: &[Arc<Table>],
        from: &Resume,
        known: &Identity,
        _: Arc<dyn SpillRoom>,
    ) -> Result<Box<dyn Log>> {
        let Shared { config, server_id, options, loads } = &*self.shared;
        let options = LogOptions {
            server_id: *server_id,
            value_bytes_max: options.value_bytes_max,
            values: options.values.clone(),
            loads: loads.clone(),
        };
        Ok(Box::new(MysqlLog::open(config, tables, from, known, options).await?))
    }

    async fn lookup(&self, table: &Table, keys: &Columns, columns: &[usize]) -> Result<Lookup> {
        let mut session = self.shared.connect().await?;
        lookup::wait_until_visible(&self.shared.config, &mut session, &self.shared.loads.handed_out()).await?;
        lookup::read(&mut session, table, keys, columns, &self.shared.options).await
    }

    async fn snapshot(&self, _: &[TableName], exact: bool) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(snapshot::MysqlSnapshot::take(self.shared.clone(), exact).await?))
    }

    async fn retained(&self) -> Result<Option<Retained>> {
        Ok(None)
    }

    async fn verify(&self, from: &Resume, known: &Identity) -> Result<()> {
        self.shared.loads.follow(&log::open::system_of(from, known)?);
        log::open::find(&self.shared.config, &mut self.connect().await?, from, known).await.map(|_| ())
    }

    async fn remove(&self) -> Result<Vec<String>> {
        Ok(vec![])
    }
}
