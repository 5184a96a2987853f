//! The config file, resolved: every default filled in, every name checked.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use millrace_core::{Selection, TablePattern};
use millrace_object_store::ObjectStoreConfig;
use millrace_postgres::PostgresConfig;

/// One config file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file, for messages.
    pub file: PathBuf,
    /// State and streams.
    pub state_dir: PathBuf,
    /// Where the HTTP surface listens.
    pub listen: SocketAddr,
    /// Endpoints by name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Tasks by name.
    pub tasks: BTreeMap<String, TaskConfig>,
}

/// A source or a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Line of the file it stands in, for messages.
    pub line: usize,
    /// What it is.
    pub kind: EndpointKind,
    /// Firehose's buffering hints, for targets.
    pub buffer: Buffer,
}

/// Endpoint kinds with their settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointKind {
    /// A PostgreSQL source.
    Postgres(PostgresConfig),
    /// A folder or an S3 bucket as a target.
    ObjectStore(ObjectStoreConfig),
    /// The example connector: a source of a few made-up rows.
    Hello,
}

/// Buffering hints: whichever is reached first flushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Bytes of changes over all tables, before compression (default 128 MiB).
    pub size: u64,
    /// Age of the oldest change (default 60 s).
    pub interval: Duration,
}

/// A replication task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskConfig {
    /// Its name.
    pub name: String,
    /// Line of the file it stands in, for messages.
    pub line: usize,
    /// What it does.
    pub mode: Mode,
    /// Name of its source endpoint.
    pub source: String,
    /// Name of its target endpoint.
    pub target: String,
    /// Which tables, in order: the first rule that matches a table applies.
    pub tables: Vec<TableRule>,
    /// Tables that match one of these are left out.
    pub exclude: Vec<TablePattern>,
    /// The stream's settings.
    pub stream: StreamConfig,
    /// The full load's settings.
    pub load: LoadConfig,
    /// What errors lead to.
    pub on_error: OnError,
    /// A value above this goes to the dead letters (default 64 MiB).
    pub max_value_bytes: u64,
    /// The task is to be deleted, and may then vanish from the config.
    pub removed: bool,
}

impl TaskConfig {
    /// Which source tables the task takes.
    pub fn selection(&self) -> Selection {
        Selection { include: self.tables.iter().map(|rule| rule.from.clone()).collect(), exclude: self.exclude.clone() }
    }
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Loads the tables once, then stops.
    FullLoad,
    /// Captures changes from now on.
    Cdc,
    /// Both.
    FullLoadAndCdc,
}

impl Mode {
    /// Whether tables are loaded.
    pub fn loads(self) -> bool {
        self != Self::Cdc
    }

    /// Whether changes are captured.
    pub fn captures(self) -> bool {
        self != Self::FullLoad
    }

    /// The word in the config.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FullLoad => "full-load",
            Self::Cdc => "cdc",
            Self::FullLoadAndCdc => "full-load-and-cdc",
        }
    }
}

/// What to do with the tables that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRule {
    /// Which tables of the source.
    pub from: TablePattern,
    /// The name at the target; a part `*` keeps the source's.
    pub to: Option<TablePattern>,
    /// Column names at the source and their names at the target.
    pub rename: BTreeMap<String, String>,
    /// Columns that are left out.
    pub drop: Vec<String>,
}

/// A stream's settings, with Kinesis's names and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// Shards when the stream is made (default 1).
    pub shards: u32,
    /// 24 h to 8760 h (default 24 h); tests may set less.
    pub retention: Duration,
    /// Bytes on disk; `None`: 80 % of the volume less the reserve.
    pub disk_bytes_max: Option<u64>,
    /// LZ4 over payloads from 4 KiB on (default on).
    pub compress: bool,
}

/// A full load's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadConfig {
    /// Segments that are read at the same time, over all tables (default 2 per core, at most 8; DMS: MaxFullLoadSubTasks).
    pub parallel: usize,
    /// Bytes per second read from the source by all of them; `None`: as fast as it can give.
    pub rate_bytes: Option<u64>,
}

/// What errors lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnError {
    /// A table that cannot go on is suspended (the default), or stops the task.
    pub table_stops_task: bool,
    /// A task that failed is retried with back-off (the default), or stops.
    pub task_stops: bool,
}
