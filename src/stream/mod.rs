//! The durable stream of one task: Kinesis's shards over one shared log.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use millrace_core::{ChangeBatch, Changes, Ddl, Durable, Order, Position, Reject, Result, TableName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A place in a stream's log: bytes since the log's birth, over all its segments. Never goes back, never reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition(pub u64);

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How a stream is kept.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// `state_dir/streams/<stream>`, made if it is not there.
    pub folder: PathBuf,
    /// Number of shards when the stream is made: 1 to 4096. Later opens keep what is on disk.
    pub shards: u32,
    /// Segments go when their newest record is older than this and everything in them is delivered.
    pub retention: Duration,
    /// A segment is closed at this size (default 64 MiB).
    pub segment_bytes: u64,
    /// LZ4 over payloads from 4 KiB on.
    pub compress: bool,
    /// The log may hold as many bytes; at the bound an append waits.
    pub disk_bytes_max: u64,
    /// Fencing epoch of this daemon, higher than that of any earlier one.
    pub epoch: u64,
}

/// Cumulative counts since the stream's birth, written with every mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Row changes that the source handed out.
    pub captured: u64,
    /// Rows that were left out before the log, by reason.
    pub filtered: BTreeMap<String, u64>,
    /// Rows in the log, rejected ones included.
    pub rows: u64,
    /// Bytes of rows before compression: what a buffer's size is measured in.
    pub bytes: u64,
}

/// Everything before it in the log is whole, durable and readable.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// The place just behind the mark: where the next frame begins.
    pub at: LogPosition,
    /// The source's position up to which the log holds everything.
    pub source: Position,
    /// When it was written (microseconds since 1970-01-01 UTC; never goes back).
    pub arrival_us: i64,
    /// Commit time of the newest transaction in the log (microseconds since 1970-01-01 UTC); 0 if there is none.
    pub newest_commit_us: i64,
    /// Counts up to here.
    pub totals: Totals,
}

/// One append.
#[derive(Debug, Default)]
pub struct Append {
    /// Whole rows, with target names.
    pub changes: Changes,
    /// Row changes that the source handed out for it.
    pub captured: u64,
    /// Rows left out before the log, by reason.
    pub filtered: BTreeMap<String, u64>,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Entry {
    /// Rows of a wanted table.
    Rows {
        /// Where its frame begins.
        at: LogPosition,
        /// The rows.
        batch: ChangeBatch,
        /// Bytes before compression.
        bytes: u64,
    },
    /// Rows (or rejected rows) of a table that was not wanted.
    Skipped {
        /// Where its frame begins.
        at: LogPosition,
        /// The table.
        table: TableName,
        /// How many.
        rows: u64,
    },
    /// Rows that their columns cannot hold, all of one wanted table.
    Rejected {
        /// Where its frame begins.
        at: LogPosition,
        /// The rows.
        rejects: Vec<Reject>,
    },
    /// Tables were emptied.
    Truncate {
        /// Where its frame begins.
        at: LogPosition,
        /// Which.
        tables: Vec<TableName>,
        /// Its place at the source.
        order: Order,
    },
    /// A table changed its shape.
    Ddl {
        /// Where its frame begins.
        at: LogPosition,
        /// How.
        ddl: Ddl,
    },
    /// A commit boundary.
    Mark(Mark),
}

/// Space and age of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// The bound.
    pub bytes_max: u64,
    /// Oldest place that can be read.
    pub oldest: LogPosition,
    /// Segments.
    pub segments: u64,
}

/// The log of one task. One writer appends; any number of readers read what is durable.
#[derive(Debug)]
pub struct Stream {}

impl Stream {
    /// Opens or makes the stream: cuts off everything behind the last mark, checks every frame's header, and refuses
    /// ([`millrace_core::Kind::Storage`]) when a damaged frame is followed by whole ones.
    pub fn open(_options: StreamOptions) -> Result<Self> {
        todo!()
    }

    /// The last durable mark; `None` if there never was one.
    pub fn last_mark(&self) -> Option<Mark> {
        todo!()
    }

    /// The last durable mark, as it moves.
    pub fn marks(&self) -> watch::Receiver<Option<Mark>> {
        todo!()
    }

    /// Writes the changes, and a mark where `changes.upto` is given, and waits for the fsync that covers them.
    /// `None` where no mark was written: inside a huge transaction, or for a position without changes less than 10 s
    /// after the last mark. Appends of one stream are made one after the other; while one waits for its fsync the next
    /// may already be encoded.
    pub async fn append(&self, _append: Append) -> Result<Option<Durable<Position>>> {
        todo!()
    }

    /// Cuts off everything behind the last mark, and lets appends through again after one failed: from a failed append
    /// until this is called every append fails, because a later one's mark would cover what is missing.
    pub async fn rewind(&self) -> Result<()> {
        todo!()
    }

    /// Reads from `from` (a mark's `at`, or 0) to `to` (a mark's `at`). Blocking. Frames of tables for which `wanted`
    /// is false (given the table and the place of the frame) are passed over undecoded.
    pub fn read(
        &self,
        _from: LogPosition,
        _to: LogPosition,
        _wanted: Box<dyn Fn(&TableName, LogPosition) -> bool + Send>,
    ) -> Result<Reader> {
        todo!()
    }

    /// Nothing from here on may be taken by retention.
    pub fn set_pin(&self, _pin: LogPosition) {
        todo!()
    }

    /// Takes segments whose retention has passed and which are delivered; called now and then. Blocking.
    pub fn retain(&self) -> Result<()> {
        todo!()
    }

    /// Space and age.
    pub fn usage(&self) -> Usage {
        todo!()
    }
}

/// Reads a range of a stream in log order.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// The next entry, or `None` at the end of the range. Blocking.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        todo!()
    }
}
