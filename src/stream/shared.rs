//! What the writer, the readers, retention and the callers of one stream share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use millrace_core::{Durable, Error, Kind as ErrorKind, Position, Result, source::Resume};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

use super::{
    LogPosition, Mark, StreamOptions,
    disk::Disk,
    draft::{Drafting, Drafts},
    recovery::Recovered,
    segment::SegmentInfo,
    spill,
};

/// Buffers of finished appends that are kept for later ones, and their greatest size.
const POOL_BUFFERS_MAX: usize = 4;
const POOL_BUFFER_BYTES_MAX: usize = 20 << 20;

/// So many callers are woken from within the runtime.
const ANSWERED_TOGETHER_MIN: usize = 8;

/// What an append is answered with.
pub(super) type Answer = Result<Option<Durable<Position>>>;

/// An append on its way to the writer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) captured: u64,
    pub(super) filtered: BTreeMap<String, u64>,
    pub(super) upto: Option<Resume>,
    pub(super) awaited: bool,
    pub(super) newest_commit_us: Option<i64>,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// See [`super::Stream::append`].
    Append(Job),
    /// See [`super::Stream::rewind`].
    Rewind(oneshot::Sender<Result<()>>),
}

/// The frames of an append.
#[derive(Debug)]
pub(super) enum Work {
    /// They are made, or could not be.
    Ready(Result<Drafts>),
    /// They are being made on another thread.
    Pending(oneshot::Receiver<Result<Drafts>>),
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: StreamOptions,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) drafting: Drafting,
    /// When the stream was made (seconds since 1970-01-01 UTC).
    pub(super) born_s: u64,
    /// All segments, rising and without gaps; the last one is being written.
    segments: Mutex<Vec<SegmentInfo>>,
    /// Signalled when segments went, and when the stream is closed.
    space: Condvar,
    pub(super) durable: watch::Sender<Option<Mark>>,
    /// See [`super::Stream::set_pin`].
    pub(super) pin: AtomicU64,
    /// The newest time that the stream's clock showed.
    clock_us: AtomicI64,
    /// What it showed when the stream was opened, and how long the process had lived then.
    opened: (i64, Duration),
    /// Bytes beside the segments, of transactions that have not committed; see [`super::spill`].
    pub(super) spilled: AtomicU64,
    closing: AtomicBool,
    /// That of the callers, if the stream was opened within one.
    pub(super) runtime: Option<Handle>,
    /// The writer sleeps until so many appends wait in its queue; 0 where it does not.
    pub(super) gathering: AtomicUsize,
    /// Held while the list of segments is compared with the folder, by retention or by a rewind.
    pub(super) folder: Mutex<()>,
    gate: Mutex<Gate>,
    pool: Mutex<Vec<Vec<u8>>>,
}

/// Lets appends in, and keeps the log without gaps when one of them fails.
#[derive(Debug, Default)]
struct Gate {
    in_flight: usize,
    failure: Option<Failure>,
    was_abandoned: bool,
}

/// Why appends are refused.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: ErrorKind,
    text: String,
    fix: String,
    /// Until the stream is opened again; otherwise until all appends that were in flight are answered.
    is_final: bool,
}

impl Failure {
    pub(super) fn new(error: &Error, is_final: bool) -> Self {
        Self { kind: error.kind, text: error.to_string(), fix: error.fix.clone(), is_final }
    }

    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, self.text.clone()).fix(self.fix.clone())
    }
}

/// One append in flight.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    shared: &'a Shared,
    is_answered: bool,
}

impl Ticket<'_> {
    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut gate = lock(&self.shared.gate);
        gate.in_flight -= 1;
        gate.was_abandoned |= !self.is_answered;
    }
}

impl Shared {
    /// Tells everybody who waits that it is durable. A thread of the runtime wakes many of its own callers sooner than the
    /// writer does.
    pub(super) fn answer_durable(
        &self,
        waiting: impl ExactSizeIterator<Item = (oneshot::Sender<Answer>, Option<Position>)>,
    ) {
        let answers = waiting.map(|(reply, marked)| (reply, Ok(marked.map(Durable::from_fsync))));
        match &self.runtime {
            Some(runtime) if answers.len() >= ANSWERED_TOGETHER_MIN => {
                let answers: Vec<_> = answers.collect();
                runtime.spawn(async { answers.into_iter().for_each(|(reply, done)| answer(reply, done)) });
            }
            _ => answers.for_each(|(reply, done)| answer(reply, done)),
        }
    }

    pub(super) fn new(
        options: StreamOptions,
        disk: Arc<dyn Disk>,
        drafting: Drafting,
        recovered: &Recovered,
    ) -> Arc<Self> {
        let opened = (disk.now_us().max(recovered.clock_us), disk.lived());
        Arc::new(Self {
            options,
            opened,
            disk,
            drafting,
            born_s: recovered.born_s,
            segments: Mutex::new(recovered.segments.clone()),
            space: Condvar::new(),
            durable: watch::Sender::new(recovered.mark.clone()),
            pin: AtomicU64::new(0),
            clock_us: AtomicI64::new(recovered.clock_us),
            spilled: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            runtime: Handle::try_current().ok(),
            gathering: AtomicUsize::new(0),
            folder: Mutex::default(),
            gate: Mutex::default(),
            pool: Mutex::default(),
        })
    }

    /// Lets one append in. After a failure nothing is let in before everything that was in flight has failed too: what
    /// follows a gap must not be written.
    pub(super) fn enter(&self) -> Result<Ticket<'_>> {
        let mut gate = lock(&self.gate);
        if gate.was_abandoned {
            let doing = "appending to a stream of which an earlier append was abandoned before it was answered";
            return Err(
                Error::new(ErrorKind::Internal, doing).fix("open the stream again and read on from its last mark")
            );
        }
        match &gate.failure {
            Some(failure) if failure.is_final || gate.in_flight > 0 => return Err(failure.error()),
            _ => gate.failure = None,
        }
        gate.in_flight += 1;
        Ok(Ticket { shared: self, is_answered: false })
    }

    /// Gives the failure back that only a restart mends.
    pub(super) fn must_be_mendable(&self) -> Result<()> {
        let gate = lock(&self.gate);
        let failure = gate.failure.as_ref().filter(|failure| failure.kind != ErrorKind::DiskFull);
        failure.map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Appends are let in again: the log stands at its last mark.
    pub(super) fn reopen(&self) {
        let mut gate = lock(&self.gate);
        gate.failure = None;
        gate.was_abandoned = false;
    }

    /// Whether an append failed or was abandoned since the log was last known to stand at a mark.
    pub(super) fn is_in_doubt(&self) -> bool {
        let gate = lock(&self.gate);
        gate.failure.is_some() || gate.was_abandoned
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        lock(&self.gate).failure.clone()
    }

    pub(super) fn fail(&self, failure: Failure) {
        lock(&self.gate).failure = Some(failure);
    }

    pub(super) fn segments(&self) -> MutexGuard<'_, Vec<SegmentInfo>> {
        lock(&self.segments)
    }

    /// The newest durable mark's place.
    pub(super) fn durable_at(&self) -> LogPosition {
        self.durable.borrow().as_ref().map_or(LogPosition(0), |mark| mark.at)
    }

    /// Microseconds since 1970-01-01 UTC; stands still while the system's clock is behind.
    pub(super) fn now_us(&self) -> i64 {
        let now = self.disk.now_us();
        self.clock_us.fetch_max(now, Ordering::Relaxed).max(now)
    }

    /// The same by the time that passed since the stream was opened: a clock that jumps ahead makes nothing older.
    pub(super) fn passed_us(&self) -> i64 {
        let (opened_us, lived) = self.opened;
        let passed = self.disk.lived().saturating_sub(lived);
        opened_us.saturating_add(i64::try_from(passed.as_micros()).unwrap_or(i64::MAX))
    }

    #[cfg(test)]
    pub(super) fn set_clock_ahead(&self, us: i64) {
        self.clock_us.fetch_max(us, Ordering::Relaxed);
    }

    /// Whether `bytes` more fit the bound. An empty log always takes an append, else one larger than the bound would
    /// wait for ever.
    pub(super) fn has_space(&self, bytes: u64) -> bool {
        self.fits(&self.segments(), bytes)
    }

    fn fits(&self, segments: &[SegmentInfo], bytes: u64) -> bool {
        let is_empty = matches!(segments, [only] if only.end == only.content);
        is_empty || self.bytes_held(segments).saturating_add(bytes) <= self.options.disk_bytes_max
    }

    /// What stands against the bound.
    pub(super) fn bytes_held(&self, segments: &[SegmentInfo]) -> u64 {
        let spilled = self.spilled.load(Ordering::Acquire);
        bytes_on_disk(segments) + spill::counted(spilled, self.options.disk_bytes_max)
    }

    /// Blocks until `bytes` more fit the bound; false if the stream is closed meanwhile.
    pub(super) fn wait_for_space(&self, bytes: u64) -> bool {
        let mut segments = self.segments();
        while !self.fits(&segments, bytes) {
            if self.closing.load(Ordering::Relaxed) {
                return false;
            }
            // The timeout covers a signal between the check of `closing` and the wait.
            let woken = self.space.wait_timeout(segments, Duration::from_millis(500));
            segments = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Wakes the writer: space was freed.
    pub(super) fn space_freed(&self) {
        self.space.notify_all();
    }

    /// Nothing waits for space any more.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.space.notify_all();
    }

    /// An empty buffer, used before if there is one.
    pub(super) fn take_buffer(&self) -> Vec<u8> {
        lock(&self.pool).pop().unwrap_or_default()
    }

    pub(super) fn give_buffer(&self, mut buffer: Vec<u8>) {
        let mut pool = lock(&self.pool);
        if pool.len() < POOL_BUFFERS_MAX && buffer.capacity() <= POOL_BUFFER_BYTES_MAX {
            buffer.clear();
            pool.push(buffer);
        }
    }
}

/// Bytes of all segments, without the zeros ahead of the last one.
pub(super) fn bytes_on_disk(segments: &[SegmentInfo]) -> u64 {
    segments.iter().map(|segment| segment.end - segment.base).sum()
}

/// A panic while a lock is held is a crash of its own; what the lock guards is consistent at every point.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn answer(reply: oneshot::Sender<Answer>, answer: Answer) {
    // Nobody listens where the append was abandoned; its ticket has seen to that.
    let _ = reply.send(answer);
}
