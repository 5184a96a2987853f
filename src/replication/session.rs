//! What a task does while it runs: three loops over one stream, each with its own retries, so that none stops another.
//! Delivery goes on while the source is down; capture goes on while the target is down or tables load.

mod loading;
mod mending;
pub(super) mod new_log;
mod respelled;
mod unpublished;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_core::{Error, Finding, Kind, Result, Severity, Table, TableName, error::Action, throttle::Throttle};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Command, Request,
    capture::{Ask, Capture, Progress},
    check, follow,
    full_load::FullLoad,
    moved,
    neighbours::Owners,
    parts, reload,
    rules::Rules,
    tables::Tables,
    task::{Backoff, Ended, Task},
    unfit,
};
use crate::{
    catalog::Catalog,
    config::SchemaChange,
    delivery::{Delivery, DeliveryOptions},
    state::keys::{
        progress::{self, LoadProgress},
        table::TableRecord,
        task::TaskState,
    },
    state::{Put, StateStore},
    stream::{Append, Stream, StreamOptions},
    telemetry::{events, metrics::task_label},
};

const LOG_SEGMENT_BYTES: u64 = 64 << 20;
const WRITERS_BYTES: u64 = 32 << 20;
/// Files that left a manifest stay readable for as long.
const GRACE: Duration = Duration::from_secs(3600);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Every so many looks the position is copied into the record.
const LOOKS_PER_POSITION: u64 = 5;
/// Held while a task claims its tables in the catalog.
static CLAIMING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
/// What is not delivered by then waits in the stream for the next start.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// A session of so long is taken for one that works.
const WORKED_MIN: Duration = Duration::from_secs(30);
/// How long the loops may take to end what they are at: a target that hangs answers after minutes. With the drain before
/// it, a SIGTERM takes less than 30 s.
const END_MAX: Duration = Duration::from_secs(5);

/// Runs the loops until one of them cannot go on, everything is loaded, or somebody asks for their end.
pub(super) async fn run(task: &Task, requests: &mut mpsc::Receiver<Request>) -> Result<Ended> {
    task.update(|record| {
        record.state = TaskState::Starting;
        record.source.clone_from(&task.wiring.config.source);
    })?;
    let Some((session, asked)) = Session::open(task).await? else { return Ok(Ended::Unfit) };
    session.run(asked, requests).await
}

/// The loops of one run, and what they share.
#[derive(Clone)]
struct Session {
    task: Task,
    stream: Arc<Stream>,
    tables: Arc<Tables>,
    delivery: Arc<Delivery>,
    load: FullLoad,
    /// Wakes the load loop.
    wake: Arc<Notify>,
    /// Wakes it to look at the source's tables.
    look_again: Arc<Notify>,
    /// How often each table was loaded anew because the log showed a change that it does not tell, and when last.
    mended: Arc<Mutex<BTreeMap<TableName, (u32, Instant)>>>,
    asks: mpsc::UnboundedSender<Ask>,
    progress: Arc<Progress>,
    /// Tables that were suspended when this run began: an operator who has the task go on knows of them.
    suspended_before: BTreeSet<TableName>,
}

impl Session {
    /// Opens the stream and everything over it. Before anything is made at the source, both ends must pass their check
    /// (`None` if they do not); later a target that is down does not keep the capture from going on.
    async fn open(task: &Task) -> Result<Option<(Self, mpsc::UnboundedReceiver<Ask>)>> {
        let (wiring, name) = (&task.wiring, task.name().to_string());
        if let Some(finding) = moved::find(&wiring.config, &wiring.state, &*wiring.destination)? {
            task.update(|record| record.errors = vec![finding.at(&wiring.config.target)])?;
            return Ok(None);
        }
        let options = StreamOptions {
            folder: task.stream_folder(),
            shards: wiring.config.stream.shards,
            retention: wiring.config.stream.retention,
            segment_bytes: LOG_SEGMENT_BYTES,
            compress: wiring.config.stream.compress,
            disk_bytes_max: wiring.config.stream.disk_bytes_max.unwrap_or(u64::MAX),
            epoch: wiring.epoch,
        };
        let stream = Arc::new((wiring.open_stream)(options)?);
        follow::publish(&task.open, &stream);
        task.follow_history(&stream)?;
        if stream.last_mark().is_none() && !passes_check(task).await? {
            return Ok(None);
        }
        if let Err(error) = wiring.destination.sweep().await {
            warn!(task = name, error = %error, "sweeping what a crash left staged failed; it is tried at the next start");
        }
        let tables = Arc::new(Tables::open(&name, wiring.state.clone(), Rules::new(&wiring.config))?);
        let catalog = Catalog::new(wiring.state.clone());
        let options = DeliveryOptions {
            task: name.clone(),
            buffer_bytes: wiring.buffer.size,
            buffer_interval: wiring.buffer.interval,
            memory_bytes: WRITERS_BYTES,
            grace: GRACE,
        };
        let (destination, state) = (wiring.destination.clone(), wiring.state.clone());
        let metrics = Some(wiring.metrics.clone());
        let delivery = Delivery::new(options, stream.clone(), destination, state, catalog.clone(), metrics);
        let delivery = Arc::new(delivery);
        delivery.set_paused(task.record()?.paused);
        // Nobody waits for room in it: a load that waited for a capture that waits for the disk would be for ever. There are
        // a few for each table.
        let (asks, asked) = mpsc::unbounded_channel();
        let load = FullLoad {
            task: name,
            asks: asks.clone(),
            source: wiring.source.clone(),
            destination: wiring.destination.clone(),
            state: wiring.state.clone(),
            catalog,
            tables: tables.clone(),
            delivery: delivery.clone(),
            parallel: wiring.config.load.parallel,
            throttle: Arc::new(Throttle::new(wiring.config.load.rate_bytes)),
            exact: wiring.config.mode.captures(),
            metrics: wiring.metrics.clone(),
            progress: Arc::new(Mutex::new(BTreeMap::new())),
        };
        let suspended_before = tables.suspended().into_iter().map(|record| record.table.name).collect();
        let session = Self {
            task: task.clone(),
            stream,
            tables,
            delivery,
            load,
            wake: Arc::default(),
            look_again: Arc::default(),
            mended: Arc::default(),
            asks,
            progress: Arc::new(Progress { pulled_us: task.pulled_us.clone(), ..Progress::default() }),
            suspended_before,
        };
        Ok(Some((session, asked)))
    }

    async fn run(self, asked: mpsc::UnboundedReceiver<Ask>, requests: &mut mpsc::Receiver<Request>) -> Result<Ended> {
        let (capturing, delivering) = (CancellationToken::new(), CancellationToken::new());
        let mut loops: JoinSet<Result<bool>> = JoinSet::new();
        let (delivery, cancel) = (self.delivery.clone(), delivering.clone());
        loops.spawn(async move { delivery.run(cancel).await.map(|()| false) });
        let (session, cancel) = (self.clone(), capturing.clone());
        let source_ended = Arc::new(Notify::new());
        let ended = source_ended.clone();
        loops.spawn(async move {
            let done = session.source_side(asked, cancel).await;
            ended.notify_one();
            done
        });
        let outcome = self.attend(&mut loops, requests).await;
        capturing.cancel();
        self.task.update(|record| record.state = TaskState::Stopping)?;
        let drains = match &outcome {
            Ok(Ended::Asked((Command::ShutDown { drain }, _))) => *drain,
            Ok(Ended::Asked((Command::Stop, _))) => true,
            _ => false,
        };
        if drains && !self.task.record()?.paused {
            // Capture ends first: only then is everything that it pulled in the stream.
            let drained = tokio::time::timeout(DRAIN_MAX, async {
                source_ended.notified().await;
                self.delivery.flush().await
            });
            match drained.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(task = self.task.name(), error = %error, "draining failed; the rest is delivered after a restart");
                }
                Err(_) => {
                    warn!(task = self.task.name(), "draining took too long; the rest is delivered after a restart")
                }
            }
        }
        delivering.cancel();
        let all_ended = async { while loops.join_next().await.is_some() {} };
        if !matches!(&outcome, Ok(Ended::Asked((Command::ShutDown { .. }, _)))) {
            // What is given up goes on in its thread for a while, and must not meet the task's next life.
            all_ended.await;
        } else if tokio::time::timeout(END_MAX, all_ended).await.is_err() {
            warn!(task = self.task.name(), "an upload or a load takes too long; it is given up and done anew");
            loops.shutdown().await;
        }
        self.look(0).await;
        outcome
    }

    /// Answers requests and keeps the status up to date while the loops run.
    async fn attend(&self, loops: &mut JoinSet<Result<bool>>, requests: &mut mpsc::Receiver<Request>) -> Result<Ended> {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0;
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    None => return Ok(Ended::Asked((Command::ShutDown { drain: false }, oneshot::channel().0))),
                    Some((command, answer)) if self.ends(&command) => {
                        return Ok(Ended::Asked((command, answer)));
                    }
                    Some((command, answer)) => {
                        self.task.answer(self.obey(command).await, answer);
                    }
                },
                Some(joined) = loops.join_next() => match joined {
                    Ok(Ok(true)) => return Ok(Ended::Loaded),
                    Ok(Ok(false)) => {}
                    Ok(Err(error)) => return Err(error),
                    Err(error) => return Err(Error::new(Kind::Internal, "running the task's loops").with(error)),
                },
                _ = looks.tick() => {
                    count += 1;
                    self.look(count).await;
                    if let Some(error) = self.suspension() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// A table that was suspended in this run, where the policy is to stop with it.
    fn suspension(&self) -> Option<Error> {
        let config = &self.task.wiring.config;
        let stops = |record: &TableRecord| {
            let by_shape = (record.mends || record.unfit) && config.on_change.schema == SchemaChange::Stop;
            by_shape || (config.on_error.table_stops_task && !(record.mends && self.mends()))
        };
        let mut suspended = self.tables.suspended().into_iter();
        let record = suspended.find(|record| !self.suspended_before.contains(&record.table.name) && stops(record))?;
        let table = &record.table.name;
        let why = record.error.unwrap_or_default();
        let (name, doing) = (self.task.name(), format!("table {table} is suspended, and the task stops with it"));
        let fix = format!("millrace reload {name} {table}; millrace resume {name}");
        Some(Error::new(Kind::TableSuspended, doing).with(why).fix(fix))
    }

    /// Whether tables of which the log does not tell a change are loaded anew without being asked.
    fn mends(&self) -> bool {
        let config = &self.task.wiring.config;
        config.on_change.schema == SchemaChange::Evolve && config.mode.loads() && config.mode.captures()
    }

    /// Whether the loops must end before the command is obeyed. Of a task that has lost its place in the source's log, and
    /// tries it once more, everything can only be loaded anew from a new place.
    fn ends(&self, command: &Command) -> bool {
        match command {
            Command::Stop | Command::Delete | Command::Guard(..) | Command::ShutDown { .. } => true,
            Command::Reload(None) => self.task.log_is_gone().unwrap_or(false),
            Command::Reload(Some(_)) | Command::Pause | Command::Resume => false,
        }
    }

    async fn obey(&self, command: Command) -> Result<Vec<String>> {
        match command {
            Command::Pause | Command::Resume => {
                let paused = command == Command::Pause;
                self.delivery.set_paused(paused);
                self.task.set_paused(paused)
            }
            Command::Reload(table) => {
                self.task.must_load()?;
                let _gate = self.delivery.gate().await;
                let lines = reload::mark(&self.tables, self.task.name(), table.as_ref())?;
                self.wake.notify_one();
                Ok(lines)
            }
            Command::Stop | Command::Delete | Command::Guard(..) | Command::ShutDown { .. } => {
                Err(Error::new(Kind::Internal, "obeying: the loops must end first"))
            }
        }
    }

    /// Capture and load, once the source is set up; tries again until it is.
    async fn source_side(&self, mut asked: mpsc::UnboundedReceiver<Ask>, cancel: CancellationToken) -> Result<bool> {
        let mut backoff = Backoff::new();
        loop {
            let set_up = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(false),
                set_up = self.set_up() => set_up,
            };
            match set_up {
                Ok(()) => break,
                Err(error) => self.bear(error, &mut backoff, &cancel).await?,
            }
        }
        if !self.task.wiring.config.mode.captures() {
            self.running()?;
            return self.load_loop(&cancel).await;
        }
        let loads = async {
            match self.task.wiring.config.mode.loads() {
                true => self.load_loop(&cancel).await,
                false => Ok(false),
            }
        };
        let (_, loaded) = tokio::try_join!(self.capture_loop(&mut asked, &cancel), loads)?;
        Ok(loaded)
    }

    /// Shows the error and waits, if trying again may help; gives it back otherwise.
    async fn bear(&self, error: Error, backoff: &mut Backoff, cancel: &CancellationToken) -> Result<()> {
        let stays = self.task.wiring.config.on_error.task_stops;
        if stays || matches!(error.kind.action(), Action::StopTask | Action::Exit) {
            return Err(error);
        }
        self.task.fail(&error);
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(backoff.after(&error)) => {}
        }
        Ok(())
    }

    fn running(&self) -> Result<()> {
        self.task.update(|record| {
            record.state = TaskState::Running;
            record.errors.retain(|finding| finding.severity == Severity::Warning);
        })
    }

    /// Tables, publications and the slot, in this order: a publication must be committed before the slot exists.
    async fn set_up(&self) -> Result<()> {
        let wiring = &self.task.wiring;
        self.verify_source().await?;
        let found = wiring.source.tables(&wiring.config.selection()).await?;
        let mark = self.stream.last_mark();
        if mark.is_none()
            && let Some(finding) = self.tables.rules().check(&found).into_iter().next()
        {
            return Err(Error::new(Kind::Config, finding.summary).fix(finding.fix.join("\n")));
        }
        let captures = wiring.config.mode.captures();
        if captures && mark.is_some() && self.task.record()?.remake_log {
            self.remake_log(&found).await?;
        } else if captures && mark.is_none() {
            self.find_no_other_log().await?;
            // The shapes are needed for the publications; the records are made when the first mark stands.
            let tables: Vec<_> = found.iter().cloned().map(Arc::new).collect();
            wiring.source.prepare(&tables).await?;
            let identity = wiring.source.identity().await?;
            self.task.update(|record| {
                record.identity = Some(identity);
                record.slot_intent = true;
            })?;
            if wiring.config.mode.loads() {
                // What was loaded before, by a task that only loaded, lacks what changed since.
                let _gate = self.delivery.gate().await;
                reload::mark_for_new_log(&self.tables, self.task.name())?;
            }
            let begin = wiring.source.create_log().await?;
            let position = begin.position;
            self.stream.append(Append::begin(begin)).await?;
            info!(task = self.task.name(), position = %position, "slot is made");
        }
        if captures {
            self.reload_unpublished(&found).await?;
        }
        if self.reconcile(&found).await? && mark.is_some() {
            self.warn_anew().await?;
        }
        if captures {
            self.publish(&found).await?;
            if !wiring.config.mode.loads() {
                // What was missed is told; it is not told again at the next start.
                self.tables.note_published(&wiring.source.publication_ids(&self.tables.captured()).await?)?;
            }
            self.follow_spellings().await?;
            self.task.update(|record| {
                record.slot_intent = false;
                record.remake_log = false;
            })?;
        }
        Ok(())
    }

    /// Brings the records in line with what the source has now; gives whether anything changed.
    async fn reconcile(&self, found: &[Table]) -> Result<bool> {
        let wiring = &self.task.wiring;
        let captures = wiring.config.mode.captures();
        let recaptured = captures && self.any_recaptured(found) && self.publish(found).await?;
        // The records are the claim to a table of the catalog: between looking and writing nobody else may do so.
        let claiming = CLAIMING.lock().await;
        let mut owners = Owners::of_state(&*wiring.state)?;
        let unfit = unfit::find(&self.tables, &wiring.config, &mut owners, found);
        let gate = self.delivery.gate().await;
        let mark = self.stream.last_mark();
        let loads = wiring.config.mode.loads();
        let mut changed = self.tables.reconcile(found, &unfit, mark.as_ref(), loads, recaptured)?;
        let policies = (&wiring.config.on_change, loads, recaptured);
        changed.extend(parts::follow(&self.tables, self.task.name(), found, policies, |table| self.may_mend(table))?);
        drop((gate, claiming));
        self.task.update(|record| unfit::tell(&mut record.errors, &unfit))?;
        let any = !changed.is_empty();
        for message in changed {
            info!(task = self.task.name(), "{message}");
            events::record(&*wiring.state, events::Event::of_task("configuration change", self.task.name(), message));
        }
        Ok(any)
    }

    async fn capture_loop(&self, asked: &mut mpsc::UnboundedReceiver<Ask>, cancel: &CancellationToken) -> Result<()> {
        let mut backoff = Backoff::new();
        while !cancel.is_cancelled() {
            let identity = self.task.record()?.identity;
            let identity =
                identity.ok_or_else(|| Error::new(Kind::Internal, "capturing: the source's identity is unknown"))?;
            let capture = Capture {
                task: self.task.name(),
                source: &*self.task.wiring.source,
                stream: &self.stream,
                tables: &self.tables,
                on_change: &self.task.wiring.config.on_change,
                identity: &identity,
                progress: &self.progress,
                metrics: &self.task.wiring.metrics,
                look_again: &self.look_again,
            };
            let (worked, began) = (AtomicBool::new(false), Instant::now());
            let opened = |identity| {
                worked.store(true, Ordering::Relaxed);
                self.task.follow_history(&self.stream)?;
                self.task.update(|record| record.identity = Some(identity))?;
                self.running()
            };
            match capture.run(asked, cancel, &opened).await {
                Ok(()) => break,
                Err(error) => {
                    // What fails at the same place each time must not make a session each half second.
                    if worked.load(Ordering::Relaxed) && began.elapsed() >= WORKED_MIN {
                        backoff = Backoff::new();
                    }
                    self.bear(error, &mut backoff, cancel).await?;
                }
            }
        }
        Ok(())
    }

    /// Brings the status, the metrics and what follows from the delivery up to date.
    async fn look(&self, count: u64) {
        let (wiring, label) = (&self.task.wiring, task_label(self.task.name()));
        let usage = self.stream.usage();
        wiring.metrics.stream_bytes.get_or_create(&label).set(usage.bytes as i64);
        let suspended = self.tables.suspended().len();
        wiring.metrics.suspended_tables.get_or_create(&label).set(suspended as i64);
        let mut looked = self.tables.follow_delivery().and_then(|()| self.store_progress());
        if looked.is_ok() {
            looked = self.mend().await;
        }
        if let Err(error) = looked {
            self.task.end_if_storage(&error);
            error!(task = self.task.name(), error = %error, "keeping the status failed");
        }
        let target = self.delivery.last_error().map(|error| Finding { severity: Severity::Warning, ..error });
        let _ = self.task.update(|record| record.target = target);
        if !count.is_multiple_of(LOOKS_PER_POSITION) {
            return;
        }
        let position = self.stream.last_mark().map(|mark| mark.source);
        let _ = self.task.update(|record| record.position = position);
    }

    /// The progress of loads under way, for `tables` and the progress bars.
    fn store_progress(&self) -> Result<()> {
        let now: BTreeMap<String, LoadProgress> = {
            let under_way = self.load.progress.lock().expect("no panic while locked");
            let of = |(table, rows): (&TableName, &Arc<AtomicU64>)| {
                let rows_estimated = self.tables.get(table).map_or(0, |record| record.table.estimated_rows);
                (table.to_string(), LoadProgress { rows: rows.load(Ordering::Relaxed), rows_estimated })
            };
            under_way.iter().map(of).collect()
        };
        let label = task_label(self.task.name());
        let metrics = &self.task.wiring.metrics;
        metrics.full_load_rows.get_or_create(&label).set(now.values().map(|load| load.rows as i64).sum());
        let estimated = now.values().map(|load| load.rows_estimated as i64).sum();
        metrics.full_load_rows_estimated.get_or_create(&label).set(estimated);
        let state: &dyn StateStore = &*self.task.wiring.state;
        let key = progress::key(self.task.name());
        match (now.is_empty(), state.get(&key)?.is_some()) {
            (true, false) => Ok(()),
            (true, true) => state.commit(&[Put::delete(key)]),
            (false, _) => state.commit(&[Put::set(key, &now)]),
        }
    }
}

async fn passes_check(task: &Task) -> Result<bool> {
    let findings = check(&task.wiring).await;
    let passes = !findings.iter().any(|finding| finding.severity == Severity::Error);
    task.update(|record| record.errors = findings)?;
    Ok(passes)
}
