//! The durable stream of one task: Kinesis's shards over one shared log.
//!
//! The log is a row of segments (files); a segment is a row of frames; a frame holds rows of one table, or a commit mark,
//! which makes everything before it readable. An append is encoded on the caller's task (`draft`, `column_frame`) and
//! written by one thread (`writer`), which fsyncs once for everybody who waits. Opening cuts off what no mark covers
//! (`recovery`); retention takes whole segments (`retention`). What the source sends of transactions before they commit
//! lies beside the segments and counts in the same bound (`spill`).
//!
//! Measured on 2026-11-23 (2 cores, ext4 on a virtual disk; `cargo run --release --example stream`, and the ignored test
//! `measure` of `column_frame`), beside the prototype's figures in brackets:
//! - rows of 9 columns, encode and decode in ns per row: 87 and 790 at one row (113, 1402), 19 and 58 at 16 (10, 89), 15
//!   and 20 at 256 (9, 18), 16 and 16 at 4,096 (13, 13); the last is 58 where the allocator gives the memory of each
//!   batch back to the system in between, as glibc's does
//! - one row and its fsync 101 to 125 µs (median; 0.22 ms p99), 12 µs each with 32 in flight; a backlog of rows of 3
//!   columns written in batches of 65,536 87 ns per row fsyncs included, read back 23 ns
//! - `fdatasync` of 1.2 KB: 175 to 219 µs at the end of a growing file, 111 to 139 in one that was given its length at
//!   once, 123 to 152 over zeros that were written: so a segment is given its length at once
//!
//! What it holds: nothing is acknowledged before it is fsynced, and nothing is read before it is
//! acknowledged; [`Durable`] is made here only. A position never goes back. Nothing is taken before its time, and
//! nothing undelivered ever.

mod column_frame;
mod cursor;
mod disk;
mod draft;
mod frame;
mod json;
mod mark;
mod reader;
mod recovery;
mod retention;
mod segment;
pub mod shard;
mod shared;
mod spill;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use millrace_core::{
    Change, ChangeBatch, Changes, Ddl, Durable, Error, Kind as ErrorKind, Order, Position, Reject, Result, TableName,
    source::{Resume, SpillRoom},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::reader::{Reader, Wanted};
use self::{
    disk::{Disk, RealDisk},
    draft::Drafting,
    recovery::Recovered,
    shard::{SHARDS_MAX, Shards},
    shared::{Job, Request, Shared, Work},
    spill::Room,
    writer::Writer,
};
pub use crate::state::keys::log::{LogPosition, Totals};

/// As many appends may wait for the writer.
const QUEUE_JOBS_MAX: usize = 64;
/// Appends up to this size are encoded without leaving the caller's thread: well under a millisecond.
const DRAFT_INLINE_BYTES_MAX: usize = 1 << 20;

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

/// Everything before it in the log is whole, durable and readable.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// The place just behind the mark: where the next frame begins.
    pub at: LogPosition,
    /// The source's position up to which the log holds everything.
    pub source: Position,
    /// What the source said of it; see [`Changes::lineage`].
    pub lineage: Option<Arc<str>>,
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

impl Append {
    /// Nothing but where the source's log begins.
    pub fn begin(at: Resume) -> Self {
        let changes = Changes { upto: Some(at.position), lineage: at.lineage, awaited: true, ..Changes::default() };
        Self { changes, ..Self::default() }
    }
}

impl Mark {
    /// Where the source's log goes on.
    pub fn resume(&self) -> Resume {
        Resume { position: self.source, lineage: self.lineage.clone() }
    }
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
    /// Bytes on disk, those of transactions that have not committed included.
    pub bytes: u64,
    /// The bound.
    pub bytes_max: u64,
    /// Oldest place that can be read.
    pub oldest: LogPosition,
    /// Segments.
    pub segments: u64,
}

/// The log of one task. One writer appends; any number of readers read what is durable.
///
/// Dropping it ends its writer, and waits for that. A stream is open once at a time; readers outlive it.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    /// Held against a second writer in this process or another one.
    lock: Option<File>,
}

impl Stream {
    /// Opens or makes the stream: cuts off everything behind the last mark, checks every frame's header, and refuses
    /// ([`millrace_core::Kind::LogDamaged`]) when a damaged frame is followed by whole ones, or when a segment carries a
    /// higher epoch than ours. [`millrace_core::Kind::LogBusy`] while the stream is still open elsewhere. Blocking.
    pub fn open(options: StreamOptions) -> Result<Self> {
        Self::open_on(options, Arc::new(RealDisk))
    }

    fn open_on(options: StreamOptions, disk: Arc<dyn Disk>) -> Result<Self> {
        let lock = lock_folder(&options.folder)?;
        let (mut stream, writer, jobs) = Self::prepare(options, disk)?;
        stream.lock = Some(lock);
        let writer = thread::Builder::new()
            .name("stream-writer".into())
            .spawn(move || writer.run(jobs))
            .map_err(|e| Error::new(ErrorKind::Internal, "starting the thread that writes the stream").with(e))?;
        stream.writer = Some(writer);
        Ok(stream)
    }

    /// Everything but the lock, and the thread that the writer is to run on.
    fn prepare(options: StreamOptions, disk: Arc<dyn Disk>) -> Result<(Self, Writer, mpsc::Receiver<Request>)> {
        let folder = options.folder.clone();
        let recovered = match recovery::recover(&*disk, &folder, options.epoch)? {
            Some(recovered) => recovered,
            None => Recovered::new(&*disk, options.shards),
        };
        let Some(shards) = Shards::new(recovered.shards) else {
            let doing = format!("opening the stream in {} with {} shards", folder.display(), recovered.shards);
            return Err(Error::new(ErrorKind::Config, doing).fix(format!("a stream has 1 to {SHARDS_MAX} shards")));
        };
        let drafting = Drafting::new(shards, options.compress);
        let shared = Shared::new(options, disk, drafting, &recovered);
        let writer = Writer::new(shared.clone(), &recovered)?;
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
        Ok((Self { shared, queue: Some(queue), writer: None, lock: None }, writer, jobs))
    }

    /// The last durable mark; `None` if there never was one.
    pub fn last_mark(&self) -> Option<Mark> {
        self.shared.durable.borrow().clone()
    }

    /// The last durable mark, as it moves.
    pub fn marks(&self) -> watch::Receiver<Option<Mark>> {
        self.shared.durable.subscribe()
    }

    /// Writes the changes, and a mark where `changes.upto` is given, and waits for the fsync that covers them.
    /// `None` where no mark was written: inside a huge transaction, or for a position without changes that nobody awaits
    /// less than 10 s after the last mark (what such an append counted goes into the next mark). Appends of one stream
    /// are made one after the other; while one waits for its fsync the next may already be encoded.
    ///
    /// After an error the log stands at [`Self::last_mark`], and the source must be read again from there; all appends
    /// that were in flight fail with it. [`millrace_core::Kind::DiskFull`] may be followed by another try; where
    /// frames of a huge transaction precede it, and after any other error of the disk, appends fail until the stream is
    /// opened again. The same holds once an append was dropped before it was answered, because nobody knows whether it
    /// was written.
    pub async fn append(&self, append: Append) -> Result<Option<Durable<Position>>> {
        let ticket = self.shared.enter()?;
        let Append { changes, captured, filtered } = append;
        let (reply, answer) = oneshot::channel();
        let upto = changes.upto.map(|position| Resume { position, lineage: changes.lineage.clone() });
        let (awaited, newest_commit_us) = (changes.awaited, changes.newest_commit_us);
        let work = draft(&self.shared, changes);
        let job = Job { work, captured, filtered, upto, awaited, newest_commit_us, reply };
        let sent = match &self.queue {
            Some(queue) => queue.send(Request::Append(job)).await.is_ok(),
            None => false,
        };
        self.wake_writer();
        let answered = if sent { answer.await.ok() } else { None };
        ticket.answered();
        answered.unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "appending to a stream whose writer has ended")))
    }

    /// Where the writer sleeps until a group is together, who completes it wakes it.
    fn wake_writer(&self) {
        let wanted = self.shared.gathering.load(Ordering::SeqCst);
        let (Some(queue), Some(writer)) = (&self.queue, &self.writer) else { return };
        if wanted > 0 && QUEUE_JOBS_MAX - queue.capacity() >= wanted {
            writer.thread().unpark();
        }
    }

    /// Cuts off everything behind the last mark, and lets appends in again after one failed or was abandoned. Called
    /// whenever the source's log is opened anew: the source then sends unfinished transactions again from their begin,
    /// so frames of theirs must not stay. What is still in flight is answered first. After a failure that only a restart
    /// mends, gives that failure back.
    pub async fn rewind(&self) -> Result<()> {
        let ended = || Error::new(ErrorKind::Internal, "rewinding a stream whose writer has ended");
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.send(Request::Rewind(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Reads from `from` (a mark's `at`, or 0) to `to` (a mark's `at`). Blocking. Frames of tables for which `wanted`
    /// is false (given the table and the place of the frame) are passed over undecoded. Refused with
    /// [`millrace_core::Kind::Internal`] where `to` is not durable yet or retention has taken what is at `from`.
    pub fn read(&self, from: LogPosition, to: LogPosition, wanted: Wanted) -> Result<Reader> {
        Reader::new(self.shared.clone(), from, to, wanted)
    }

    /// Nothing from here on may be taken by retention. Until it is called nothing at all is taken.
    pub fn set_pin(&self, pin: LogPosition) {
        self.shared.pin.store(pin.0, Ordering::Release);
    }

    /// Takes segments whose retention has passed and which are delivered; called now and then. Blocking.
    pub fn retain(&self) -> Result<()> {
        retention::retain(&self.shared)
    }

    /// Where the source's log keeps rows of transactions that have not committed; they count in the disk bound.
    pub fn spill_room(&self) -> Arc<dyn SpillRoom> {
        Arc::new(Room::new(self.shared.clone()))
    }

    /// Space and age.
    pub fn usage(&self) -> Usage {
        let segments = self.shared.segments();
        Usage {
            bytes: shared::bytes_on_disk(&segments) + self.shared.spilled.load(Ordering::Acquire),
            bytes_max: self.shared.options.disk_bytes_max,
            oldest: LogPosition(segments.first().map_or(0, |oldest| oldest.base)),
            segments: segments.len() as u64,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.queue = None;
        self.shared.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(folder = %self.shared.options.folder.display(), "the thread that wrote the stream panicked");
        }
    }
}

/// Makes the folder if it is not there, and takes the lock that one writer holds.
fn lock_folder(folder: &Path) -> Result<File> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(folder).map_err(|e| segment::disk_error(e, "making the folder", folder))?;
    for parent in missing.iter().filter_map(|folder| folder.parent()) {
        // The parent of a relative folder's first part is "".
        segment::sync_folder(&RealDisk, if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    let lock = File::open(folder).map_err(|e| segment::disk_error(e, "opening the folder", folder))?;
    let doing = || format!("locking the stream's folder {}", folder.display());
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::new(ErrorKind::LogBusy, format!("{}: it is still open", doing()))),
        Err(TryLockError::Error(error)) => Err(Error::new(ErrorKind::Storage, doing()).with(error)),
    }
}

/// Makes the frames: at once where that is quick, else on a thread for such work.
fn draft(shared: &Arc<Shared>, changes: Changes) -> Work {
    let size = |item: &Change| match item {
        Change::Rows(batch) => batch.after.byte_size(),
        Change::Rejected(_) | Change::Truncate { .. } | Change::Ddl(_) => 0,
    };
    if changes.items.iter().map(size).sum::<usize>() <= DRAFT_INLINE_BYTES_MAX {
        return Work::Ready(shared.drafting.draft(&changes, shared.take_buffer()));
    }
    let (done, pending) = oneshot::channel();
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        // Nobody waits for it where the append was abandoned.
        let _ = done.send(shared.drafting.draft(&changes, shared.take_buffer()));
    });
    Work::Pending(pending)
}
