//! The log as a state machine on a disk that forgets, tears, reorders and fails, against a model that knows what was
//! acknowledged. One thread does everything, so a case is the same whenever it is run.
//!
//! What holds after every step: what was acknowledged is read in order, exactly once; nothing is read behind the last
//! mark; an operation fails only where something went wrong; places, marks and sequence counters rise without gaps;
//! retention took nothing undelivered and nothing before its time; a flipped bit is told with file and offset.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, sample::Index, test_runner::TestCaseResult};

use super::{
    super::frame::Kind as FrameKind,
    simulated::{Choices, Fault, IO_ERROR, NO_SPACE, SimulatedDisk},
    *,
};
use crate::simulation::simulate;

const HOUR_US: i64 = 3_600_000_000;

/// One append of a group that is in flight together.
#[derive(Debug, Clone)]
struct Part {
    rows: i64,
    table: u8,
    is_marked: bool,
    is_abandoned: bool,
}

#[derive(Debug, Clone)]
enum Step {
    /// The seed says what follows a failure.
    Append(Vec<Part>, u64),
    Idle,
    Rewind,
    Read(usize),
    Deliver(Index),
    /// Perhaps after the time has passed that rows are kept, and with something that goes wrong.
    Retain(bool, Option<(u32, Fault)>),
    Clock(i64),
    Fault(u32, Fault),
    Restart(Restart),
    Flip(Index, u8),
}

/// The process ends, and the stream is opened again.
#[derive(Debug, Clone)]
struct Restart {
    /// The power is cut, with this seed; else the process is killed.
    power: Option<u64>,
    /// What happens during recovery, and the seed of a cut behind it.
    recovery: Option<(u32, Fault, Option<u64>)>,
}

fn part() -> impl Strategy<Value = Part> {
    (1..40i64, 0..3u8, prop::bool::weighted(0.7), prop::bool::weighted(0.03))
        .prop_map(|(rows, table, is_marked, is_abandoned)| Part { rows, table, is_marked, is_abandoned })
}

fn fault() -> impl Strategy<Value = Fault> {
    let number = || prop_oneof![Just(IO_ERROR), Just(NO_SPACE)];
    prop_oneof![
        3 => Just(Fault::Death),
        3 => number().prop_map(Fault::Error),
        2 => number().prop_map(Fault::ErrorAndDeath),
        3 => (1..40u32).prop_map(Fault::Full),
        1 => Just(Fault::Interrupted),
        1 => Just(Fault::Short),
    ]
}

fn restart() -> impl Strategy<Value = Restart> {
    let seed = || prop::option::weighted(0.7, any::<u64>());
    (seed(), prop::option::of((0..40u32, fault(), seed()))).prop_map(|(power, recovery)| Restart { power, recovery })
}

fn step() -> impl Strategy<Value = Step> {
    let jump = prop_oneof![Just(HOUR_US), Just(-HOUR_US), -9 * HOUR_US..9 * HOUR_US];
    prop_oneof![
        12 => (vec(part(), 1..4), any::<u64>()).prop_map(|(parts, seed)| Step::Append(parts, seed)),
        1 => Just(Step::Idle),
        1 => Just(Step::Rewind),
        3 => (1..9usize).prop_map(Step::Read),
        4 => any::<Index>().prop_map(Step::Deliver),
        5 => (any::<bool>(), prop::option::of((0..6u32, fault()))).prop_map(|(is_late, fault)| Step::Retain(is_late, fault)),
        1 => jump.prop_map(Step::Clock),
        4 => (0..12u32, fault()).prop_map(|(calls, fault)| Step::Fault(calls, fault)),
        4 => restart().prop_map(Step::Restart),
        2 => (any::<Index>(), 0..8u8).prop_map(|(place, bit)| Step::Flip(place, bit)),
    ]
}

fn stream_options() -> impl Strategy<Value = StreamOptions> {
    let bound = prop_oneof![2 => Just(1u64 << 30), 1 => Just(9000u64)];
    (1..4u32, prop_oneof![Just(1200u64), Just(3000)], bound, any::<bool>()).prop_map(
        |(shards, segment_bytes, disk_bytes_max, compress)| StreamOptions {
            shards,
            segment_bytes,
            disk_bytes_max,
            compress,
            retention: Duration::from_secs(3600),
            ..options(Path::new("/"))
        },
    )
}

/// A process that has the stream open.
struct Process {
    stream: Stream,
    writer: Writer,
    jobs: mpsc::Receiver<Request>,
}

/// Rows of one append, and whether a mark follows them.
type Written = (Vec<i64>, bool);

/// What must be so.
#[derive(Debug, Default)]
struct Model {
    /// Rows that were acknowledged with a mark.
    acked: Vec<i64>,
    /// What was written behind them in this run.
    open: Vec<Written>,
    /// What may stand behind the acknowledged rows, because nobody was told that it does or does not.
    tails: Vec<Vec<Written>>,
    /// A flipped bit behind as many rows cannot be told from a write that never ended: no later fsync proves them.
    proven: usize,
    /// Delivered up to this mark, and rows before it.
    pin: (LogPosition, usize),
    /// Marks that can be read, with the rows before them.
    marks: Vec<(LogPosition, usize)>,
    next_id: i64,
    next_commit: u128,
}

struct Simulation {
    disk: SimulatedDisk,
    options: StreamOptions,
    process: Process,
    model: Model,
    /// A reader, and the rows before it.
    reader: Option<(Reader, usize)>,
}

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

impl Process {
    fn open(options: &StreamOptions, disk: &SimulatedDisk) -> millrace_core::Result<Self> {
        let (stream, writer, jobs) = Stream::prepare(options.clone(), Arc::new(disk.clone()))?;
        // At the disk bound an append is refused: there is nobody who could free something meanwhile.
        stream.shared.close();
        Ok(Self { stream, writer, jobs })
    }

    /// All in flight together. `None` for those that were abandoned.
    fn append(&mut self, appends: Vec<(Append, bool)>) -> Vec<Option<millrace_core::Result<Option<Position>>>> {
        let mut answers = vec![];
        let mut flying = vec![];
        for (append, is_abandoned) in appends {
            let mut append = Box::pin(self.stream.append(append));
            let refused = match poll(append.as_mut()) {
                Poll::Ready(answer) => Some(answer.map(|durable| durable.map(|durable| durable.get()))),
                Poll::Pending => None,
            };
            answers.push(refused);
            flying.push((append, is_abandoned));
        }
        let flying: Vec<_> = flying.into_iter().map(|(append, is_dropped)| (!is_dropped).then_some(append)).collect();
        while let Ok(first) = self.jobs.try_recv() {
            self.writer.serve_group(first, &mut self.jobs);
        }
        for (append, answer) in flying.into_iter().zip(&mut answers) {
            if let (Some(mut append), None) = (append, &answer) {
                let Poll::Ready(found) = poll(append.as_mut()) else { panic!("an append was not answered") };
                *answer = Some(found.map(|durable| durable.map(|durable| durable.get())));
            }
        }
        answers
    }

    fn rewind(&mut self) -> millrace_core::Result<()> {
        let Self { stream, writer, jobs } = self;
        let mut rewind = pin!(stream.rewind());
        assert!(poll(rewind.as_mut()).is_pending());
        while let Ok(first) = jobs.try_recv() {
            writer.serve_group(first, jobs);
        }
        let Poll::Ready(done) = poll(rewind.as_mut()) else { panic!("a rewind was not answered") };
        done
    }

    /// Everything up to the last mark, or as much as can be read.
    fn entries(&self, from: LogPosition) -> (Vec<Entry>, Option<Error>) {
        let to = self.stream.last_mark().map_or(LogPosition(0), |mark| mark.at);
        let mut entries = vec![];
        let mut reader = match self.stream.read(from, to, Box::new(|_, _| true)) {
            Ok(reader) => reader,
            Err(error) => return (entries, Some(error)),
        };
        loop {
            match reader.next_entry() {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => return (entries, None),
                Err(error) => return (entries, Some(error)),
            }
        }
    }
}

impl Simulation {
    fn new(options: StreamOptions) -> Self {
        let disk = SimulatedDisk::default();
        disk.move_clock(1_000_000 * HOUR_US);
        let process = Process::open(&options, &disk).unwrap();
        Self { disk, options, process, model: Model::default(), reader: None }
    }

    fn step(&mut self, step: Step) -> TestCaseResult {
        self.disk.pass(Duration::from_millis(1));
        match step {
            Step::Append(parts, seed) => self.append(parts, seed)?,
            Step::Idle => {
                self.model.next_commit += 1;
                let idle = position_only(self.model.next_commit);
                self.append_all(vec![(idle, false)], vec![(vec![], true)], 0)?;
            }
            Step::Rewind => self.rewind(0)?,
            Step::Read(entries) => self.read_on(entries)?,
            Step::Deliver(to) => self.deliver(to),
            Step::Retain(is_late, fault) => {
                self.disk.pass(Duration::from_secs(if is_late { 7200 } else { 0 }));
                if let Some((calls, fault)) = fault {
                    self.disk.arm(calls, fault);
                }
                self.retain()?;
            }
            Step::Clock(us) => self.disk.move_clock(us),
            Step::Fault(calls, fault) => self.disk.arm(calls, fault),
            Step::Restart(restart) => self.restart(restart)?,
            Step::Flip(place, bit) => self.flip(place, bit)?,
        }
        if self.disk.is_dead() {
            self.restart_after(self.model.next_commit as u64)?;
        }
        let disk = self.disk.clone();
        disk.quietly(|| self.verify())
    }

    fn append(&mut self, parts: Vec<Part>, seed: u64) -> TestCaseResult {
        let (mut appends, mut written) = (vec![], vec![]);
        let has_abandoned = parts.iter().any(|part| part.is_abandoned);
        for part in parts {
            let ids = self.model.next_id..self.model.next_id + part.rows;
            self.model.next_id = ids.end;
            let rows = batch(&table(&format!("t{}", part.table), 1), self.model.next_commit, ids.clone());
            let upto = part.is_marked.then(|| Position(self.model.next_commit + 1));
            self.model.next_commit += u128::from(part.is_marked);
            let items = vec![Change::Rows(rows)];
            let changes = Changes { items, upto, ..Changes::default() };
            appends.push((Append { changes, captured: part.rows as u64, ..Append::default() }, part.is_abandoned));
            written.push((ids.collect(), part.is_marked));
        }
        self.append_all(appends, written, seed)?;
        if has_abandoned && !self.disk.is_dead() { self.rewind(seed) } else { Ok(()) }
    }

    fn append_all(&mut self, appends: Vec<(Append, bool)>, written: Vec<Written>, seed: u64) -> TestCaseResult {
        let faults = self.disk.faults();
        let has_failed = self.process.stream.shared.is_in_doubt();
        let answers = self.process.append(appends);
        let model = &mut self.model;
        let before = model.acked.len();
        let mut failed = None;
        for (answer, (rows, is_marked)) in answers.into_iter().zip(written) {
            match answer {
                Some(Ok(marked)) => {
                    prop_assert!(failed.is_none(), "acknowledged behind one that failed");
                    prop_assert_eq!(marked.is_some(), is_marked && (marked.is_some() || !rows.is_empty()));
                    model.open.push((rows, false));
                    if marked.is_some() {
                        model.acked.extend(model.open.drain(..).flat_map(|(rows, _)| rows));
                        model.tails.clear();
                    }
                }
                Some(Err(error)) => {
                    failed.get_or_insert(error);
                    model.open.push((rows, is_marked));
                }
                None => model.open.push((rows, is_marked)),
            }
        }
        if model.acked.len() > before {
            model.proven = before;
        }
        let Some(error) = failed else { return Ok(()) };
        model.tails.push(std::mem::take(&mut model.open));
        let bounded = self.options.disk_bytes_max < 1 << 30 && error.kind == ErrorKind::DiskFull;
        let why = self.disk.faults() > faults || has_failed || bounded;
        prop_assert!(why, "failed without a reason: {}", error);
        if self.disk.is_dead() {
            return Ok(());
        }
        match error.kind {
            ErrorKind::DiskFull if Choices(seed).below(2) == 0 => Ok(()),
            ErrorKind::DiskFull => self.rewind(seed),
            _ => self.restart_after(seed),
        }
    }

    /// As whenever the source's log is opened anew.
    fn rewind(&mut self, seed: u64) -> TestCaseResult {
        let faults = self.disk.faults();
        let has_failed = self.process.stream.shared.failure().is_some();
        match self.process.rewind() {
            Ok(()) => {
                let disk = self.disk.clone();
                disk.quietly(|| self.observe())
            }
            Err(_) if self.disk.is_dead() => Ok(()),
            Err(error) => {
                prop_assert!(has_failed || self.disk.faults() > faults, "failed without a reason: {}", error);
                if error.kind != ErrorKind::DiskFull {
                    return self.restart_after(seed);
                }
                // Tried again when there is room, as the capture does.
                let disk = self.disk.clone();
                disk.quietly(|| {
                    let rewound = self.process.rewind();
                    prop_assert!(rewound.is_ok(), "{:?}", rewound);
                    self.observe()
                })
            }
        }
    }

    /// The daemon ends when its disk fails; whether the power fails too, the seed says.
    fn restart_after(&mut self, seed: u64) -> TestCaseResult {
        let power = (Choices(seed).below(2) == 0).then_some(seed);
        self.restart(Restart { power, recovery: None })
    }

    fn restart(&mut self, restart: Restart) -> TestCaseResult {
        self.reader = None;
        let end = |power: Option<u64>| match power {
            Some(seed) => self.disk.cut_power(seed),
            None => self.disk.kill(),
        };
        end(restart.power);
        if let Some((calls, fault, power)) = restart.recovery {
            self.disk.arm(calls, fault);
            let faults = self.disk.faults();
            if let Err(error) = Process::open(&self.options, &self.disk) {
                prop_assert!(self.disk.faults() > faults, "opening failed without a reason: {}", error);
            }
            // What is seen once must stay, but nobody looked.
            end(power);
        }
        match Process::open(&self.options, &self.disk) {
            Ok(process) => self.process = process,
            Err(error) => return Err(TestCaseError::fail(format!("opening failed without a reason: {error}"))),
        }
        self.model.proven = usize::MAX;
        self.observe()
    }

    /// Finds out what became of appends that were not answered. From now on it stays so.
    fn observe(&mut self) -> TestCaseResult {
        let oldest = self.process.stream.usage().oldest;
        let (entries, error) = self.process.entries(oldest);
        prop_assert!(error.is_none(), "{}", error.unwrap());
        let found = ids_of(&entries);
        let model = &mut self.model;
        let gone = model.acked.iter().take_while(|id| found.first() != Some(*id)).count();
        let gone = if found.is_empty() { model.pin.1 } else { gone };
        model.tails.push(std::mem::take(&mut model.open));
        let known = model.acked.get(gone..).unwrap_or_default();
        prop_assert!(found.starts_with(known), "acknowledged rows are lost: {:?} of {:?}", found, model.acked);
        let more = &found[known.len()..];
        let is_possible = |tail: &Vec<Written>| {
            let mut sum = vec![];
            tail.iter().any(|(rows, is_marked)| {
                sum.extend_from_slice(rows);
                *is_marked && sum == more
            })
        };
        prop_assert!(more.is_empty() || model.tails.iter().any(is_possible), "nobody wrote {:?}", more);
        model.acked.extend_from_slice(more);
        model.tails.clear();
        self.process.stream.set_pin(model.pin.0);
        Ok(())
    }

    fn verify(&mut self) -> TestCaseResult {
        let stream = &self.process.stream;
        let usage = stream.usage();
        let (entries, error) = self.process.entries(usage.oldest);
        prop_assert!(error.is_none(), "{}", error.unwrap());
        let found = ids_of(&entries);
        let model = &mut self.model;
        prop_assert!(model.acked.ends_with(&found), "{:?} is no end of {:?}", found, model.acked);
        let gone = model.acked.len() - found.len();
        prop_assert!(gone <= model.pin.1, "{} rows are gone, {} were delivered", gone, model.pin.1);

        let last = stream.last_mark();
        model.marks.clear();
        let (mut count, mut marks) = (gone, vec![]);
        for entry in entries {
            match entry {
                Entry::Rows { batch, .. } => count += batch.rows(),
                Entry::Mark(mark) => {
                    prop_assert_eq!(mark.totals.rows, count as u64);
                    model.marks.push((mark.at, count));
                    marks.push(mark);
                }
                _ => prop_assert!(false, "only rows were written"),
            }
        }
        let rises = |a: &Mark, b: &Mark| a.at < b.at && a.source < b.source && a.arrival_us <= b.arrival_us;
        prop_assert!(marks.is_sorted_by(rises));
        if let (Some(found), Some(last)) = (marks.last(), &last) {
            prop_assert_eq!(found, last);
        }
        let at = last.map_or(0, |mark| mark.at.0);
        prop_assert!(stream.read(usage.oldest, LogPosition(at + 1), Box::new(|_, _| true)).is_err());
        if model.pin.0 >= usage.oldest {
            let (entries, error) = self.process.entries(model.pin.0);
            prop_assert!(error.is_none(), "{}", error.unwrap());
            prop_assert_eq!(ids_of(&entries), &model.acked[model.pin.1..]);
        }
        self.verify_counters(at)
    }

    /// The sequence counters of every shard rise without a gap.
    fn verify_counters(&self, end: u64) -> TestCaseResult {
        let mut counters: BTreeMap<u32, u64> = BTreeMap::new();
        let bases: Vec<u64> = self.process.stream.shared.segments().iter().map(|segment| segment.base).collect();
        for base in bases {
            let mut reader = SegmentReader::open(&self.disk, &self.options.folder, base).unwrap();
            let mut offset = segment::HEADER_LEN;
            while base + offset < end
                && let Probe::Whole(header, next) = reader.probe(offset).unwrap()
            {
                prop_assert!(header.runs.is_empty() || header.kind == FrameKind::Rows);
                for run in header.runs {
                    let expected = counters.entry(run.shard).or_insert(run.first);
                    prop_assert_eq!(run.first, *expected);
                    *expected += u64::from(run.rows);
                }
                offset = next;
            }
        }
        Ok(())
    }

    fn read_on(&mut self, entries: usize) -> TestCaseResult {
        let (mut reader, mut rows) = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let stream = &self.process.stream;
                let Some(last) = stream.last_mark() else { return Ok(()) };
                let (from, rows) = self.model.pin;
                match stream.read(from, last.at, Box::new(|_, _| true)) {
                    Ok(reader) => (reader, rows),
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                }
            }
        };
        let faults = self.disk.faults();
        for _ in 0..entries {
            match reader.next_entry() {
                Ok(None) => return Ok(()),
                Ok(Some(entry)) => {
                    let found = ids_of(&[entry]);
                    prop_assert!(self.model.acked[rows..].starts_with(&found), "{:?} was read at {}", found, rows);
                    rows += found.len();
                }
                Err(error) => {
                    let is_behind = rows < self.model.pin.1 && error.kind == ErrorKind::Internal;
                    prop_assert!(self.disk.faults() > faults || is_behind, "failed without a reason: {}", error);
                    return Ok(());
                }
            }
        }
        self.reader = Some((reader, rows));
        Ok(())
    }

    fn deliver(&mut self, to: Index) {
        let marks: Vec<_> = self.model.marks.iter().filter(|(at, _)| *at >= self.model.pin.0).collect();
        if !marks.is_empty() {
            self.model.pin = **to.get(&marks);
            self.process.stream.set_pin(self.model.pin.0);
        }
    }

    fn retain(&mut self) -> TestCaseResult {
        let stream = &self.process.stream;
        let faults = self.disk.faults();
        let before = stream.usage();
        let arrivals = self.disk.quietly(|| self.process.entries(before.oldest).0);
        let retained = stream.retain();
        prop_assert!(retained.is_ok() || self.disk.faults() > faults, "failed without a reason: {:?}", retained);
        let now_us = stream.shared.passed_us();
        let oldest = stream.usage().oldest;
        let is_full = before.bytes > self.options.disk_bytes_max / 4 * 3;
        for entry in arrivals {
            if let Entry::Mark(mark) = entry
                && mark.at <= oldest
            {
                let age_us = now_us - mark.arrival_us;
                prop_assert!(
                    is_full || age_us >= self.options.retention.as_micros() as i64,
                    "taken after {} us",
                    age_us
                );
            }
        }
        Ok(())
    }

    /// A bit that flips in acknowledged bytes, in a copy of the disk.
    fn flip(&mut self, place: Index, bit: u8) -> TestCaseResult {
        let end = self.process.stream.last_mark().map_or(0, |mark| mark.at.0);
        let segments = self.process.stream.shared.segments().clone();
        let spans = segments.iter().map(|segment| (segment.base, segment.end.min(end).saturating_sub(segment.base)));
        let spans: Vec<(u64, u64)> = spans.filter(|(_, len)| *len > 0).collect();
        let total: u64 = spans.iter().map(|(_, len)| len).sum();
        if total == 0 || self.disk.is_dead() {
            return Ok(());
        }
        let mut place = place.index(total as usize) as u64;
        let (base, _) = *spans
            .iter()
            .find(|(_, len)| {
                place < *len || {
                    place -= len;
                    false
                }
            })
            .unwrap();
        let disk = self.disk.copy();
        disk.kill();
        let path = segment::path(&self.options.folder, base);
        disk.flip(&path, place, bit);
        let is_told = |error: &Error| {
            let text = error.to_string();
            let has_place = ["at offset", "format version"].iter().any(|part| text.contains(part));
            let is_ours = matches!(error.kind, ErrorKind::Storage | ErrorKind::LogDamaged);
            is_ours && has_place && text.contains(&*path.to_string_lossy())
        };
        let process = match Process::open(&self.options, &disk) {
            Ok(process) => process,
            Err(error) => {
                prop_assert!(is_told(&error), "{}", error);
                return Ok(());
            }
        };
        let (entries, error) = process.entries(process.stream.usage().oldest);
        let found = ids_of(&entries);
        let gone = self.process.stream.usage().oldest;
        prop_assert_eq!(process.stream.usage().oldest, gone);
        let rows_gone = self.model.marks.iter().find(|(at, _)| *at > gone).map_or(0, |_| self.rows_gone());
        let expected = &self.model.acked[rows_gone..];
        prop_assert!(expected.starts_with(&found), "{:?} was read instead of {:?}", found, expected);
        let is_whole = found.len() == expected.len() || rows_gone + found.len() >= self.model.proven;
        prop_assert!(
            is_whole || error.as_ref().is_some_and(is_told),
            "{} of {}: {:?}",
            found.len(),
            expected.len(),
            error
        );
        Ok(())
    }

    fn rows_gone(&self) -> usize {
        let (entries, _) = self.disk.quietly(|| self.process.entries(self.process.stream.usage().oldest));
        self.model.acked.len() - ids_of(&entries).len()
    }
}

// fault: 7, 11
#[test]
fn the_log_keeps_what_it_acknowledged_whatever_the_disk_does() {
    simulate(200, (stream_options(), vec(step(), 1..50)), |(options, steps)| {
        let mut simulation = Simulation::new(options);
        steps.into_iter().try_for_each(|step| simulation.step(step))
    });
}
