//! The one thread that writes a stream's log: it takes what waits in its queue, writes it at once, makes it durable with
//! one fsync, publishes the newest mark and answers everybody.
//!
//! What can go wrong, and what then holds:
//! - The disk is full when frames are written: nothing of the append is acknowledged, the file is cut back to the last
//!   mark, everything in flight fails, and later appends may succeed. Inside a huge transaction frames without a mark
//!   precede it; then nothing more is taken until the stream is opened again, which cuts them off.
//! - Any other failing write, and any failing fsync: final. Pages may be marked clean that never reached the disk, so
//!   the file is cut back to what an earlier fsync covered, lest a restart read them from memory and believe them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use millrace_core::{Error, Kind as ErrorKind, Position, Result, TableName, source::Resume};
use tokio::sync::{mpsc, oneshot};

use super::{
    LogPosition, Mark, QUEUE_JOBS_MAX,
    disk::{DiskFile, write_all_at},
    draft::{Draft, Drafts},
    frame::{Encoding, Header, Kind, Run},
    json::Shape,
    mark::{self, Carry},
    recovery::{self, Recovered},
    segment::{self, SegmentHeader, SegmentInfo, disk_error},
    shared::{Answer, Failure, Job, Request, Shared, Work, answer},
    state::{Counts, State},
};

/// A position without changes is marked at most as often.
const IDLE_MARK_US: i64 = 10_000_000;
/// Frames are handed to the file system in pieces of about this size.
const BUFFER_BYTES: usize = 4 << 20;
/// What a frame holds is copied into such a piece only where it is smaller than this.
const DIRECT_BYTES_MIN: usize = 64 << 10;
/// As many appends share one fsync at most.
const GROUP_JOBS_MAX: usize = 1024;
/// An fsync is put off no longer for callers that are about to come.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// Room that is reckoned for the frames around an append's own bytes: mark, shapes, header of a new segment.
const OVERHEAD_BYTES: u64 = 4096;
/// A segment is closed when a 24th of the retention has passed, within these bounds, so that little is kept longer than
/// was asked for where little is written.
const AGE_MIN: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(3600);
/// A segment is given no more at once.
const PREALLOCATE_BYTES_MAX: u64 = 1 << 30;

/// Writes the log.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    file: Box<dyn DiskFile>,
    path: PathBuf,
    segment: SegmentInfo,
    created_us: i64,
    /// Frames that are not in the file yet; they begin at the end of `segment`.
    buffer: Vec<u8>,
    /// Up to here an fsync has covered the log.
    synced: u64,
    state: State,
    /// The state when everything was marked and durable, if that is so at `synced`.
    clean: Option<State>,
    shape_numbers: BTreeMap<TableName, Vec<(Shape, u32)>>,
    /// Appends that wait for the fsync, with the position that was marked.
    waiting: Vec<(oneshot::Sender<Answer>, Option<Position>)>,
    has_new_mark: bool,
    /// The position of frames that are staged behind the newest mark. Of the marks before one fsync only the last says
    /// anything, so it is written when no more frames come that it may cover.
    pending: Option<Resume>,
    /// The transaction that is being written is larger than the disk bound, and that was said.
    is_beyond: bool,
    /// Appends that shared the last fsync.
    group_jobs: usize,
    /// How long the last fsync took.
    sync_time: Duration,
}

impl Writer {
    /// Begins a new segment behind what was recovered, so that ours is the epoch that any other daemon finds there.
    pub(super) fn new(shared: Arc<Shared>, recovered: &Recovered) -> Result<Self> {
        // An empty segment is replaced by ours at the same place, which keeps restarts from piling up files.
        let last = recovered.segments.last();
        let base = last.map_or(0, |last| if last.end == last.content { last.base } else { last.end });
        let mark = recovered.mark.clone();
        let state = State {
            totals: mark.as_ref().map(|mark| mark.totals.clone()).unwrap_or_default(),
            newest_commit_us: mark.as_ref().map_or(0, |mark| mark.newest_commit_us),
            mark,
            counters: recovered.counters.clone(),
            is_unmarked: false,
            shape_count: 0,
        };
        let (file, segment) = begin_segment(&shared, base, &state)?;
        let mut segments = shared.segments();
        segments.retain(|old| old.base < base);
        segments.push(segment.clone());
        drop(segments);
        Ok(Self {
            file,
            path: segment::path(&shared.options.folder, base),
            created_us: segment.last_arrival_us,
            synced: segment.end,
            segment,
            buffer: vec![],
            clean: Some(state.clone()),
            state,
            shape_numbers: BTreeMap::new(),
            waiting: vec![],
            has_new_mark: false,
            pending: None,
            is_beyond: false,
            group_jobs: 0,
            sync_time: Duration::ZERO,
            shared,
        })
    }

    /// Until the stream is dropped.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            self.serve_group(first, &mut queue);
        }
    }

    /// A request and those that wait behind it share one fsync. Callers that were answered together come again together,
    /// but not all at the same moment: where fewer are here than last time, the fsync is put off for a part of its own
    /// length, so that it serves them all.
    pub(super) fn serve_group(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) {
        self.serve(first);
        let mut waits_since = None;
        while self.buffer.len() < BUFFER_BYTES && self.waiting.len() < GROUP_JOBS_MAX {
            if let Ok(request) = queue.try_recv() {
                self.serve(request);
                continue;
            }
            let since = *waits_since.get_or_insert_with(Instant::now);
            let left = (self.sync_time / 2).min(GATHER_MAX).saturating_sub(since.elapsed());
            let missing = self.group_jobs.saturating_sub(self.waiting.len());
            if missing == 0 || left.is_zero() {
                break;
            }
            self.sleep_until(missing.min(QUEUE_JOBS_MAX), left, queue);
        }
        self.group_jobs = self.waiting.len();
        self.commit_or_fail();
    }

    /// Until so many requests wait, or the time is over. Who sends the last of them wakes us.
    fn sleep_until(&self, requests: usize, time: Duration, queue: &mpsc::Receiver<Request>) {
        self.shared.gathering.store(requests, Ordering::SeqCst);
        if queue.len() < requests {
            thread::park_timeout(time);
        }
        self.shared.gathering.store(0, Ordering::SeqCst);
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Append(job) => self.take(job),
            Request::Rewind(reply) => {
                // Nobody listens where the asker was cancelled; it asks again.
                let _ = reply.send(self.rewind());
            }
        }
    }

    /// Cuts off what stands behind the last mark: frames of a huge transaction that was not finished, and what failed.
    /// The same code that opens a stream after a crash looks at what is really there.
    fn rewind(&mut self) -> Result<()> {
        self.commit_or_fail();
        if !self.state.is_unmarked && !self.shared.is_in_doubt() {
            return Ok(());
        }
        self.shared.must_be_mendable()?;
        let shared = self.shared.clone();
        let _held = shared.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let options = &shared.options;
        let recovered = recovery::recover(&*shared.disk, &options.folder, options.epoch)?;
        let shards = shared.drafting.shards().count();
        let recovered = recovered.unwrap_or_else(|| Recovered::new(&*shared.disk, shards));
        self.shared.segments().clone_from(&recovered.segments);
        *self = Self::new(self.shared.clone(), &recovered)?;
        self.shared.durable.send_replace(recovered.mark);
        // Not before: where the disk is too full for a new segment, the log is as much in doubt as it was.
        self.shared.reopen();
        Ok(())
    }

    fn take(&mut self, job: Job) {
        let drafts = self.receive(job.work);
        if let Some(failure) = self.shared.failure() {
            return answer(job.reply, Err(failure.error()));
        }
        let sound = drafts.and_then(|drafts| {
            self.check_position(job.upto.as_ref().map(|upto| upto.position), &drafts).map(|()| drafts)
        });
        let drafts = match sound {
            Ok(drafts) => drafts,
            Err(error) => {
                // What came before it is whole; what comes behind it would follow a gap.
                self.commit_or_fail();
                if self.shared.failure().is_none() {
                    self.shared.fail(Failure::new(&error, self.state.is_unmarked));
                }
                return answer(job.reply, Err(error));
            }
        };
        let counts = Counts { captured: job.captured, filtered: job.filtered, newest_commit_us: job.newest_commit_us };
        let staged = self.stage(&drafts, job.upto, job.awaited, counts);
        self.shared.give_buffer(drafts.bytes);
        match staged {
            Ok(marked) => self.waiting.push((job.reply, marked)),
            Err(error) => {
                self.waiting.push((job.reply, None));
                self.fail(error);
            }
        }
    }

    fn receive(&mut self, work: Work) -> Result<Drafts> {
        match work {
            Work::Ready(drafts) => drafts,
            Work::Pending(mut pending) => pending.try_recv().unwrap_or_else(|_| {
                // Nobody waits for the work of somebody else.
                self.commit_or_fail();
                let lost = |e| Err(Error::new(ErrorKind::Internal, "encoding an append").with(e));
                pending.blocking_recv().unwrap_or_else(lost)
            }),
        }
    }

    /// Invariant A5.2: a position never goes back.
    fn check_position(&self, upto: Option<Position>, drafts: &Drafts) -> Result<()> {
        match (upto, self.marked()) {
            (Some(upto), Some(marked)) if upto < marked && !drafts.frames.is_empty() => {
                let doing = format!("appending changes up to {upto} to a stream that stands at {marked}");
                Err(Error::new(ErrorKind::Internal, doing))
            }
            _ => Ok(()),
        }
    }

    /// The newest position that is marked, or will be before anything else.
    fn marked(&self) -> Option<Position> {
        self.pending.as_ref().map(|upto| upto.position).or_else(|| Some(self.state.mark.as_ref()?.source))
    }

    /// Puts an append behind what is written; gives the position that it marks. What it counts is added behind its
    /// frames, so that it is not counted where they could not be written.
    fn stage(
        &mut self,
        drafts: &Drafts,
        upto: Option<Resume>,
        awaited: bool,
        counts: Counts,
    ) -> Result<Option<Position>> {
        let has_frames = !drafts.frames.is_empty();
        let marked = upto.filter(|upto| has_frames || self.is_worth_a_mark(upto.position, awaited));
        let bytes = drafts.bytes.len() as u64 + OVERHEAD_BYTES;
        // A mark must not cover frames of a transaction that goes on, nor a part of an append.
        if marked.is_none() || self.is_roll_due(bytes) {
            self.put_pending()?;
        }
        if has_frames || marked.is_some() {
            self.wait_for_space(bytes)?;
            self.roll_if_due(drafts.frames.first().map_or(0, |first| first.stored.len() as u64))?;
        }
        for draft in &drafts.frames {
            self.put_draft(draft, &drafts.bytes)?;
            self.state.is_unmarked = true;
        }
        self.state.count(counts, drafts);
        let position = marked.as_ref().map(|upto| upto.position);
        if marked.is_some() {
            self.pending = marked;
        }
        Ok(position)
    }

    fn put_pending(&mut self) -> Result<()> {
        let Some(upto) = self.pending.take() else { return Ok(()) };
        if cfg!(feature = "failpoints") && self.state.is_unmarked {
            self.write_buffer()?;
            fail::fail_point!("stream-between-frames-and-mark");
        }
        self.put_mark(upto)
    }

    /// Whether a position without changes is marked.
    fn is_worth_a_mark(&self, upto: Position, awaited: bool) -> bool {
        let (Some(mark), Some(marked)) = (&self.state.mark, self.marked()) else { return true };
        let due = || awaited || self.shared.now_us() - mark.arrival_us >= IDLE_MARK_US;
        self.state.is_unmarked && self.pending.is_none() || upto > marked && due()
    }

    fn position(&self) -> u64 {
        self.segment.end + self.buffer.len() as u64
    }

    fn put_draft(&mut self, draft: &Draft, bytes: &[u8]) -> Result<()> {
        let stored = bytes.get(draft.stored.clone()).unwrap_or_default();
        if self.pending.is_none() {
            self.roll_if_due(stored.len() as u64)?;
        }
        let shape = match &draft.shape {
            Some(shape) => self.number_shape(shape)?,
            None => 0,
        };
        let mut runs = Vec::with_capacity(draft.runs.len());
        for &(shard, rows) in &draft.runs {
            if let Some(counter) = self.state.counters.get_mut(shard as usize) {
                runs.push(Run { shard, first: *counter, rows });
                *counter += u64::from(rows);
            }
        }
        let (kind, encoding) = (draft.kind, draft.encoding);
        let header = Header {
            lz4: draft.lz4,
            shard_width: draft.shard_width,
            raw_len: draft.raw_len,
            payload_crc: draft.payload_crc,
            rows: draft.rows,
            shape,
            runs,
            ..self.header(kind, encoding, stored.len())
        };
        self.put_frame(&header, stored)
    }

    /// The number of the shape in this segment; written down before its first use.
    fn number_shape(&mut self, shape: &Shape) -> Result<u32> {
        let known = self.shape_numbers.get(shape.name()).into_iter().flatten();
        if let Some((_, number)) = known.rev().find(|(known, _)| known.is(shape)) {
            return Ok(*number);
        }
        let payload = shape
            .encode()
            .map_err(|e| Error::new(ErrorKind::Internal, "writing a table's shape to the stream").with(e))?;
        let header = self.header(Kind::Shape, Encoding::Json, payload.len());
        let header = Header { payload_crc: crc32c::crc32c(&payload), ..header };
        self.segment.shapes.push((header.position, shape.clone()));
        self.put_frame(&header, &payload)?;
        let number = self.state.shape_count;
        self.state.shape_count += 1;
        self.shape_numbers.entry(shape.name().clone()).or_default().push((shape.clone(), number));
        Ok(number)
    }

    fn put_mark(&mut self, upto: Resume) -> Result<()> {
        let mut mark = Mark {
            at: LogPosition(0),
            source: upto.position,
            lineage: upto.lineage,
            arrival_us: 0,
            newest_commit_us: self.state.newest_commit_us,
            totals: self.state.totals.clone(),
        };
        let mut payload = vec![];
        mark::encode(&mark, &mut payload);
        let header = self.header(Kind::Mark, Encoding::Mark, payload.len());
        let header = Header { payload_crc: crc32c::crc32c(&payload), ..header };
        self.put_frame(&header, &payload)?;
        mark.at = LogPosition(self.position());
        mark.arrival_us = header.arrival_us;
        self.state.mark = Some(mark);
        self.state.is_unmarked = false;
        self.is_beyond = false;
        self.has_new_mark = true;
        Ok(())
    }

    /// A header for a frame at the end of the log whose payload is not compressed.
    fn header(&mut self, kind: Kind, encoding: Encoding, len: usize) -> Header {
        let arrival_us = self.shared.now_us();
        self.segment.last_arrival_us = arrival_us;
        Header {
            kind,
            encoding,
            lz4: false,
            shard_width: 0,
            stored_len: len as u32,
            raw_len: len as u32,
            payload_crc: 0,
            rows: 0,
            shape: 0,
            position: self.position(),
            synced: self.synced,
            arrival_us,
            runs: vec![],
        }
    }

    fn put_frame(&mut self, header: &Header, stored: &[u8]) -> Result<()> {
        assert_eq!(header.position, self.position(), "a frame is written where its header says it stands");
        header.encode(&mut self.buffer);
        if stored.len() >= DIRECT_BYTES_MIN {
            self.write_buffer()?;
            return self.write(stored);
        }
        self.buffer.extend_from_slice(stored);
        if self.buffer.len() >= BUFFER_BYTES { self.write_buffer() } else { Ok(()) }
    }

    fn write_buffer(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let written = self.write(&buffer);
        if written.is_ok() {
            buffer.clear();
        }
        self.buffer = buffer;
        written
    }

    /// Writes at the end of the file.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let offset = self.segment.end - self.segment.base;
        write_all_at(&*self.file, bytes, offset).map_err(|e| disk_error(e, "writing", &self.path))?;
        self.segment.end += bytes.len() as u64;
        Ok(())
    }

    fn commit_or_fail(&mut self) {
        if let Err(error) = self.commit(false) {
            self.fail(error);
        }
    }

    /// Writes what is staged, makes it durable if there is a mark (or `always`), publishes it and answers.
    fn commit(&mut self, always: bool) -> Result<()> {
        self.put_pending()?;
        self.write_buffer()?;
        if self.has_new_mark || always {
            let began = Instant::now();
            // A full disk that only shows here is no different from any other failed fsync.
            self.file
                .sync_data()
                .map_err(|e| Error::new(ErrorKind::Storage, format!("fsyncing {}", self.path.display())).with(e))?;
            fail::fail_point!("stream-after-fsync");
            self.synced = self.segment.end;
            self.sync_time = began.elapsed();
        }
        if let Some(segment) = self.shared.segments().last_mut() {
            segment.end = self.segment.end;
            segment.last_arrival_us = self.segment.last_arrival_us;
            segment.shapes.extend_from_slice(self.segment.shapes.get(segment.shapes.len()..).unwrap_or_default());
        }
        if std::mem::take(&mut self.has_new_mark) {
            self.shared.durable.send_replace(self.state.mark.clone());
        }
        self.clean = (!self.state.is_unmarked).then(|| self.state.clone());
        self.shared.answer_durable(self.waiting.drain(..));
        Ok(())
    }

    /// Everything in flight fails.
    fn fail(&mut self, error: Error) {
        let (error, is_final) = match error.kind {
            ErrorKind::DiskFull => match self.restore() {
                Ok(restored) => (error, !restored),
                Err(worse) => (worse, true),
            },
            _ => (error, true),
        };
        let failure = Failure::new(&error, is_final);
        if is_final {
            // Best effort; the process is about to end or to open the stream anew.
            let _ = self.file.set_len(self.synced - self.segment.base);
            tracing::error!(error = %error, "the stream takes no more changes until it is opened again");
        } else {
            tracing::warn!(error = %error, "an append to the stream failed and was taken back");
        }
        self.buffer.clear();
        (self.has_new_mark, self.pending) = (false, None);
        self.shared.fail(failure.clone());
        for (reply, _) in self.waiting.drain(..) {
            answer(reply, Err(failure.error()));
        }
    }

    /// Takes back everything behind the last mark; false where frames of a transaction that goes on are in the log
    /// already, which only a rewind takes out.
    fn restore(&mut self) -> Result<bool> {
        let Some(clean) = self.clean.clone() else { return Ok(false) };
        let len = self.synced - self.segment.base;
        // Durably, so that nothing of it comes back behind what will be written in its place.
        let cut = self.file.set_len(len).and_then(|()| self.file.sync_all());
        cut.map_err(|e| Error::new(ErrorKind::Storage, format!("cutting {}", self.path.display())).with(e))?;
        self.segment.end = self.synced;
        self.segment.shapes.truncate(clean.shape_count as usize);
        for numbers in self.shape_numbers.values_mut() {
            numbers.retain(|(_, number)| *number < clean.shape_count);
        }
        self.state = clean;
        Ok(true)
    }

    fn roll_if_due(&mut self, bytes: u64) -> Result<()> {
        if self.is_roll_due(bytes) { self.roll() } else { Ok(()) }
    }

    /// Whether so many bytes more belong into another segment.
    fn is_roll_due(&self, bytes: u64) -> bool {
        let len = self.position() - self.segment.base;
        let is_full = len + bytes > self.shared.options.segment_bytes;
        let age = || Duration::from_micros(self.shared.now_us().abs_diff(self.created_us));
        let is_old = || age() > (self.shared.options.retention / 24).clamp(AGE_MIN, AGE_MAX);
        self.position() > self.segment.content && (is_full || is_old())
    }

    /// Closes the segment and begins the next one.
    fn roll(&mut self) -> Result<()> {
        self.commit(true)?;
        let close = self.file.set_len(self.segment.end - self.segment.base).and_then(|()| self.file.sync_all());
        close.map_err(|e| Error::new(ErrorKind::Storage, format!("closing {}", self.path.display())).with(e))?;
        let (file, segment) = begin_segment(&self.shared, self.segment.end, &self.state)?;
        self.file = file;
        self.path = segment::path(&self.shared.options.folder, segment.base);
        self.created_us = segment.last_arrival_us;
        self.synced = segment.end;
        self.shape_numbers.clear();
        self.state.shape_count = 0;
        self.clean = (!self.state.is_unmarked).then(|| self.state.clone());
        self.shared.segments().push(segment.clone());
        self.segment = segment;
        Ok(())
    }

    /// Waits at the disk bound until retention has freed enough for `bytes` more.
    fn wait_for_space(&mut self, bytes: u64) -> Result<()> {
        let published = self.shared.segments().last().map_or(0, |last| last.end);
        if self.shared.has_space(self.position() - published + bytes) {
            return Ok(());
        }
        // What is staged is answered first, and what is written is closed, so that retention may take it.
        self.commit(false)?;
        if self.state.is_unmarked {
            // Nothing can be freed before its end is written: waiting would be waiting for ourselves.
            if !std::mem::replace(&mut self.is_beyond, true) {
                let folder = self.shared.options.folder.display();
                tracing::warn!(%folder, bytes, "a transaction that goes on takes the stream beyond its disk bound");
            }
            return Ok(());
        }
        if self.position() > self.segment.content {
            self.roll()?;
        }
        if self.shared.has_space(bytes) {
            return Ok(());
        }
        let folder = self.shared.options.folder.display();
        let bytes_max = self.shared.options.disk_bytes_max;
        tracing::warn!(%folder, bytes_max, "the stream is at its disk bound and waits for retention to free space");
        if !self.shared.wait_for_space(bytes) {
            return Err(Error::new(ErrorKind::DiskFull, "closing a stream that waits at its disk bound"));
        }
        tracing::info!(%folder, "the stream is below its disk bound again");
        Ok(())
    }
}

/// Makes the segment that begins at `base`, which carries on from `state`.
fn begin_segment(shared: &Shared, base: u64, state: &State) -> Result<(Box<dyn DiskFile>, SegmentInfo)> {
    let header = SegmentHeader {
        shards: shared.drafting.shards().count(),
        epoch: shared.options.epoch,
        base,
        created_us: shared.now_us(),
        born_s: shared.born_s,
    };
    let carry = Carry { mark: state.mark.clone(), counters: state.counters.clone() };
    let bytes_wanted = shared.options.segment_bytes.min(PREALLOCATE_BYTES_MAX);
    let (file, len) = segment::create(&*shared.disk, &shared.options.folder, &header, &carry, bytes_wanted)?;
    let end = base + len;
    Ok((file, SegmentInfo { base, end, content: end, last_arrival_us: header.created_us, shapes: vec![] }))
}
