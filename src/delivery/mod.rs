//! Delivery: from the stream to objects and the catalog, exactly once.
//!
//! A buffer is a range of the log and a count of bytes, not rows in memory. When it is large or old enough, a round
//! ([`round`]) scans the range once for all tables, writes one Parquet object per table, and registers them with the
//! checkpoints in one commit. Every row that a round meets is counted ([`ledger`]).

mod change_log;
pub mod dead_letters;
pub mod file_schema;
mod garbage;
pub mod layout;
mod ledger;
mod objects;
mod round;
pub mod verify;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use millrace_core::{Finding, Result, destination::Destination, error::Action};
use tokio::{
    sync::{Mutex as Gate, MutexGuard, Notify},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use objects::OBJECT_BYTES_MAX;

use crate::{
    blocking,
    catalog::Catalog,
    delivery::{
        change_log::ChangeLog,
        ledger::{Fates, Ledger},
        round::{Ground, Outcome},
    },
    state::{
        StateStore,
        keys::{delivery::Scanned, intent},
    },
    stream::{Mark, Stream},
    telemetry::{
        metrics::{Metrics, task_label},
        now_us,
    },
};

/// How often it is looked whether a round is due while nothing happens, and the gauges are set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Appends come by the thousand; looking after each would be waste.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How often retention and garbage are seen to.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Firehose's buffering hints and what else a delivery needs.
#[derive(Debug, Clone)]
pub struct DeliveryOptions {
    /// The replication task it belongs to.
    pub task: String,
    /// Flush at this many bytes of changes over all tables, before compression.
    pub buffer_bytes: u64,
    /// Flush when the oldest change has waited as long.
    pub buffer_interval: Duration,
    /// Bytes that accumulators and writers may hold together.
    pub memory_bytes: u64,
    /// Files that left a manifest are deleted after this.
    pub grace: Duration,
}

/// Delivers one task's stream.
pub struct Delivery {
    ground: Ground,
    metrics: Option<Arc<Metrics>>,
    /// Rounds are made one at a time.
    turn: Gate<()>,
    gate: Gate<()>,
    paused: AtomicBool,
    nudge: Notify,
    seen: Mutex<Seen>,
}

/// What the loop remembers between rounds.
#[derive(Debug, Default)]
struct Seen {
    /// As of the last round; `None` when somebody else may have written checkpoints since.
    known: Option<Known>,
    /// Since when something waits, and when its mark was written (microseconds since 1970-01-01 UTC).
    waiting: Option<(Instant, i64)>,
    error: Option<Finding>,
    unaccounted: i64,
}

#[derive(Debug, Clone)]
struct Known {
    scanned: Scanned,
    /// A round was interrupted, or a table whose load was completed waits for changes that others have got already.
    is_behind: bool,
}

/// Holds off the commits of rounds; see [`Delivery::gate`].
pub struct Held<'a> {
    delivery: &'a Delivery,
    _guard: MutexGuard<'a, ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.delivery.lock_seen().known = None;
        self.delivery.nudge.notify_one();
    }
}

impl Delivery {
    /// Nothing happens before [`Self::run`].
    pub fn new(
        options: DeliveryOptions,
        stream: Arc<Stream>,
        destination: Arc<dyn Destination>,
        state: Arc<dyn StateStore>,
        catalog: Catalog,
        metrics: Option<Arc<Metrics>>,
    ) -> Self {
        Self::over(options, stream, destination, state, catalog, metrics)
    }

    fn over(
        options: DeliveryOptions,
        log: Arc<dyn ChangeLog>,
        destination: Arc<dyn Destination>,
        state: Arc<dyn StateStore>,
        catalog: Catalog,
        metrics: Option<Arc<Metrics>>,
    ) -> Self {
        let hurry = Arc::new(AtomicBool::new(false));
        Self {
            ground: Ground { options: Arc::new(options), log, destination, state, catalog, hurry },
            metrics,
            turn: Gate::new(()),
            gate: Gate::new(()),
            paused: AtomicBool::new(false),
            nudge: Notify::new(),
            seen: Mutex::default(),
        }
    }

    /// Runs rounds until cancelled, finishing the round it is in. First completes a round that a crash interrupted.
    /// Errors that a retry may mend are retried inside with back-off (see [`Self::last_error`]); others end it.
    pub async fn run(&self, cancel: CancellationToken) -> Result<()> {
        let scanned = self.known().await?.scanned;
        self.lock_seen().waiting = (scanned.arrival_us > 0).then(|| (Instant::now(), scanned.arrival_us));
        let (mut failures, mut housekeeping) = (0, Instant::now());
        let mut marks = self.ground.log.marks();
        while !cancel.is_cancelled() {
            if housekeeping.elapsed() >= HOUSEKEEPING_EVERY {
                self.keep_house().await?;
                housekeeping = Instant::now();
            }
            let due = match self.is_due().await {
                Ok(true) => self.round_until_mark(&cancel).await.map(|_| true),
                other => other,
            };
            let wait = match due {
                Ok(true) => {
                    failures = 0;
                    continue;
                }
                Ok(false) => {
                    if std::mem::take(&mut failures) > 0 {
                        self.lock_seen().error = None;
                    }
                    LOOK_EVERY
                }
                Err(error) => {
                    self.note_error(&error);
                    if error.kind.action() != Action::Retry {
                        return Err(error);
                    }
                    failures += 1;
                    back_off(failures)
                }
            };
            let new_mark = async {
                // Without a stream any more there is nothing to wait for but the end.
                if failures > 0 || marks.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = self.nudge.notified() => {}
                () = new_mark => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        Ok(())
    }

    /// Everything up to the last mark, now, whatever the buffers hold: for draining and for tests. Does nothing while
    /// paused. Must not be called by who holds the gate.
    pub async fn flush(&self) -> Result<()> {
        let Some(last) = self.ground.log.last_mark() else { return Ok(()) };
        while !self.paused.load(Ordering::Relaxed) {
            let done = self.round().await?;
            let known = self.known().await?;
            if !done || (known.scanned.at >= last.at && !known.is_behind) {
                break;
            }
        }
        Ok(())
    }

    /// No round commits while it is held: whoever writes checkpoints or manifests of the task takes it, and reads the
    /// records once it is held. A round that is under way sees what changed before it commits.
    pub async fn gate(&self) -> Held<'_> {
        Held { delivery: self, _guard: self.gate.lock().await }
    }

    /// Starts no new round until resumed.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
        self.nudge.notify_one();
    }

    /// What the last round failed with, if it failed.
    pub fn last_error(&self) -> Option<Finding> {
        self.lock_seen().error.clone()
    }

    /// Captured rows that are neither delivered, filtered, dead-lettered nor in flight, as of the last round: must be 0.
    pub fn unaccounted(&self) -> i64 {
        self.lock_seen().unaccounted
    }

    /// Bytes of changes in the stream that are not delivered, before compression.
    pub async fn buffered_bytes(&self) -> Result<u64> {
        let known = self.known().await?;
        let last = self.ground.log.last_mark();
        Ok(last.map_or(0, |mark| mark.totals.bytes.saturating_sub(known.scanned.totals.bytes)))
    }

    fn lock_seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round, which ends at the next mark once cancelled.
    async fn round_until_mark(&self, cancel: &CancellationToken) -> Result<bool> {
        let round = self.round();
        tokio::pin!(round);
        tokio::select! {
            biased;
            done = &mut round => return done,
            () = cancel.cancelled() => self.ground.hurry.store(true, Ordering::Relaxed),
        }
        let done = round.await;
        self.ground.hurry.store(false, Ordering::Relaxed);
        done
    }

    /// Gives false if there was nothing to do.
    async fn round(&self) -> Result<bool> {
        let _turn = self.turn.lock().await;
        let start = Instant::now();
        self.lock_seen().known = None;
        let Some(outcome) = round::run(&self.ground, &self.gate).await? else {
            self.known().await?;
            return Ok(false);
        };
        self.know(&outcome.ledger, false);
        {
            let mut seen = self.lock_seen();
            seen.error = None;
            // What is left was written after the last mark that is delivered.
            seen.waiting = Some((Instant::now(), outcome.ledger.scanned().arrival_us));
        }
        self.report(&outcome, start.elapsed());
        Ok(true)
    }

    fn know(&self, ledger: &Ledger, is_interrupted: bool) -> Known {
        self.ground.log.set_pin(ledger.pin());
        let is_behind = is_interrupted || ledger.is_behind();
        let known = Known { scanned: ledger.scanned().clone(), is_behind };
        let mut seen = self.lock_seen();
        (seen.unaccounted, seen.known) = (ledger.unaccounted(), Some(known.clone()));
        known
    }

    async fn known(&self) -> Result<Known> {
        if let Some(known) = self.lock_seen().known.clone() {
            return Ok(known);
        }
        let (state, options) = (self.ground.state.clone(), self.ground.options.clone());
        let (ledger, is_interrupted) = blocking::run("reading the checkpoints", move || {
            let is_interrupted = state.get(&intent::key(&options.task))?.is_some();
            Ok((Ledger::open(&*state, &options.task, None)?, is_interrupted))
        })
        .await?;
        Ok(self.know(&ledger, is_interrupted))
    }

    /// Whether a round is due; sets the gauges on the way.
    async fn is_due(&self) -> Result<bool> {
        let Some(last) = self.ground.log.last_mark() else { return Ok(false) };
        let known = self.known().await?;
        let bytes = last.totals.bytes.saturating_sub(known.scanned.totals.bytes);
        let waited = {
            let mut seen = self.lock_seen();
            if last.at <= known.scanned.at {
                seen.waiting = None;
            } else if seen.waiting.is_none() {
                seen.waiting = Some((Instant::now(), last.arrival_us));
            }
            self.set_gauges(&known, &last, bytes, &seen);
            seen.waiting.map(|(since, _)| since.elapsed())
        };
        let options = &self.ground.options;
        let full = bytes >= options.buffer_bytes && last.at > known.scanned.at;
        let old = waited.is_some_and(|waited| waited >= options.buffer_interval);
        let paused = self.paused.load(Ordering::Relaxed);
        Ok(!paused && (full || old || known.is_behind))
    }

    fn set_gauges(&self, known: &Known, last: &Mark, bytes: u64, seen: &Seen) {
        let Some(metrics) = &self.metrics else { return };
        let label = task_label(&self.ground.options.task);
        metrics.buffer_bytes.get_or_create(&label).set(bytes as i64);
        let rows = last.totals.rows > known.scanned.totals.rows;
        let lag_us = seen.waiting.filter(|_| rows).map_or(0, |(_, arrival_us)| now_us() - arrival_us);
        metrics.target_lag_seconds.get_or_create(&label).set(lag_us.max(0) as f64 / 1e6);
        metrics.unaccounted_rows.get_or_create(&label).set(seen.unaccounted);
    }

    fn report(&self, outcome: &Outcome, elapsed: Duration) {
        let (task, ledger) = (&self.ground.options.task, &outcome.ledger);
        let (before, now) = (outcome.before, ledger.fates());
        let delivered = now.delivered - before.delivered;
        let elapsed_ms = elapsed.as_millis() as u64;
        let objects = outcome.object_bytes.len();
        tracing::debug!(task, position = %ledger.scanned().at, rows = delivered, objects, elapsed_ms, "round delivered");
        for (table, why) in ledger.suspended() {
            tracing::warn!(task, table = %table, reason = why, "table suspended: it must be reloaded");
        }
        if ledger.unaccounted() != 0 {
            tracing::error!(task, rows = ledger.unaccounted(), "rows are unaccounted for");
        }
        let Some(metrics) = &self.metrics else { return };
        metrics.flush_seconds.get_or_create(&task_label(task)).observe(elapsed.as_secs_f64());
        for bytes in &outcome.object_bytes {
            metrics.object_bytes.get_or_create(&task_label(task)).observe(*bytes as f64);
        }
        let count = |stage, pick: fn(&Fates) -> u64| metrics.count_rows(task, stage, pick(&now) - pick(&before));
        count("delivered", |fates| fates.delivered);
        count("filtered", |fates| fates.filtered);
        count("dead_lettered", |fates| fates.dead_lettered);
    }

    fn note_error(&self, error: &millrace_core::Error) {
        let task = &self.ground.options.task;
        tracing::warn!(task, %error, code = error.kind.code(), "delivery round failed");
        if let Some(metrics) = &self.metrics {
            metrics.count_error(task, error.kind.code());
        }
        self.lock_seen().error = Some(Finding::from(error));
    }

    /// Retention and garbage; what fails here is tried again next time.
    async fn keep_house(&self) -> Result<()> {
        let task = &self.ground.options.task;
        let log = self.ground.log.clone();
        match blocking::run("retiring segments", move || log.retain()).await {
            // Tried again, a failed fsync could seem to have worked.
            Err(error) if error.kind.action() == Action::Exit => return Err(error),
            Err(error) => tracing::warn!(task, %error, "retention failed"),
            Ok(()) => {}
        }
        match self.collect_garbage().await {
            Ok(0) => {}
            Ok(objects) => tracing::info!(task, objects, "replaced objects deleted"),
            Err(error) => tracing::warn!(task, %error, "deleting replaced objects failed"),
        }
        Ok(())
    }

    async fn collect_garbage(&self) -> Result<usize> {
        let Ground { options, destination, state, .. } = &self.ground;
        garbage::collect(state, &**destination, &options.task, options.grace).await
    }
}

/// Doubles up to the bound; a quarter of it is left to chance, so that many tasks do not knock at the same moment.
fn back_off(failures: u32) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.min(8)).min(BACKOFF_MAX);
    let chance = (now_us() % 1000) as f64 / 1000.0;
    full.mul_f64(1.0 - chance / 4.0)
}

#[cfg(test)]
mod tests;
