//! The guardian of the source's disk: watches what the source keeps because of us, for as long as the task exists, also
//! while it is stopped or failing. It warns with the time left, and at a limit does what the config says.
//!
//! What it cannot do is reach a source that cannot be reached: there only the source's own limit helps (PostgreSQL:
//! `max_slot_wal_keep_size`).

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use millrace_core::{Error, Finding, Result, source::Retained};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{Command, Request, task::Task};
use crate::{
    config::{
        GuardAction, SourceGuard,
        units::{show_bytes, show_duration},
    },
    state::keys::task::TaskState,
    telemetry::{events, metrics::task_label, now_us},
};

/// How often the source is asked while the task runs.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// And while it does not.
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(20);
/// A source that is down answers late or never.
const PATIENCE: Duration = Duration::from_secs(5);
/// The rate is that of so long a time.
const WINDOW: Duration = Duration::from_secs(300);
/// Nothing is said of the rate before so much of it has passed.
const WINDOW_MIN: Duration = Duration::from_secs(10);
/// A log that is not pulled for so long is told as a lag.
const SILENCE_MIN: Duration = Duration::from_secs(10);
/// A warning where neither the config nor the source has a limit.
const WARN_BYTES: u64 = 5 << 30;

/// What a look at the source told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Judgement {
    /// What the operator is told.
    pub(super) finding: Option<Finding>,
    /// What is to be done now.
    pub(super) action: Option<GuardAction>,
    /// In how many seconds the first limit will be reached, if things go on as in the last minutes.
    pub(super) seconds_left: Option<f64>,
}

/// Judges what the source keeps, against the limits and its own past.
#[derive(Debug)]
pub(super) struct Guardian {
    task: String,
    limits: SourceGuard,
    samples: VecDeque<(Instant, u64)>,
    warns: bool,
    /// The limit was acted upon. Whoever lets the task go on over it has decided so; below it begins anew.
    acted: bool,
}

impl Guardian {
    pub(super) fn new(task: &str, limits: SourceGuard) -> Self {
        Self { task: task.into(), limits, samples: VecDeque::new(), warns: false, acted: false }
    }

    /// One look. `runs`: whether the task is capturing.
    pub(super) fn look(&mut self, kept: &Retained, now: Instant, runs: bool) -> Judgement {
        self.samples.push_back((now, kept.retained_bytes));
        while self.samples.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.samples.pop_front();
        }
        let granted = kept.safe_bytes.map(|safe| kept.retained_bytes.saturating_add(safe));
        let limit = [granted, self.limits.act_bytes].into_iter().flatten().min();
        let rate = self.bytes_per_second();
        let seconds_left = limit.zip(rate).map(|(limit, rate)| limit.saturating_sub(kept.retained_bytes) as f64 / rate);
        let half = [granted, self.limits.act_bytes].into_iter().flatten().min().map(|limit| limit / 2);
        let warn_at = self.limits.warn_bytes.or(half).unwrap_or(WARN_BYTES);
        // At the threshold it would begin and end with every look.
        self.warns = kept.retained_bytes >= if self.warns { warn_at / 10 * 9 } else { warn_at.max(1) };
        let over = self.limits.act_bytes.is_some_and(|act| kept.retained_bytes >= act);
        self.acted &= over;
        let action = (over && !self.acted).then_some(self.limits.action);
        let finding = match over && !(self.acted && runs) {
            true => Some(self.limit_finding(kept, self.limits.action)),
            false => self.warns.then(|| self.warning(kept, seconds_left, runs)),
        };
        Judgement { finding, action, seconds_left }
    }

    /// What a look asked for was done.
    pub(super) fn acted(&mut self) {
        self.acted = true;
    }

    /// How fast what is kept grows; `None` while it does not, or is not known.
    fn bytes_per_second(&self) -> Option<f64> {
        let ((first, before), (last, after)) = (self.samples.front()?, self.samples.back()?);
        let passed = *last - *first;
        (passed >= WINDOW_MIN && after > before).then(|| (after - before) as f64 / passed.as_secs_f64())
    }

    fn warning(&self, kept: &Retained, seconds_left: Option<f64>, runs: bool) -> Finding {
        let mut finding = Finding::warning(
            "SOURCE-LOG-GROWS",
            format!("the source keeps {} of its log for us", show_bytes(kept.retained_bytes)),
        );
        finding = finding.detail(match kept.safe_bytes {
            Some(safe) => {
                format!("after {} more it gives up on us, and everything must be loaded anew", show_bytes(safe))
            }
            None => "it has no limit for that, so its disk can fill".to_string(),
        });
        if let Some(act) = self.limits.act_bytes {
            let what = match self.limits.action {
                GuardAction::Stop => "the task is stopped",
                GuardAction::DropSlot => "the slot is dropped",
            };
            finding = finding.detail(format!("at {} {what} (source-guard)", show_bytes(act)));
        }
        finding = finding.detail(match seconds_left {
            Some(left) => format!(
                "at the rate of the last minutes that is in {}",
                show_duration(Duration::from_secs_f64(left.clamp(0.0, 1e9)))
            ),
            None => "it did not grow in the last minutes".to_string(),
        });
        match runs {
            true => finding.fix("see why it is not read: millrace status; docs/runbooks/source-log-grows.md"),
            false => finding
                .fix(format!("go on: millrace resume {}", self.task))
                .fix(format!("or let its log go; everything is loaded anew afterwards: {}", kept.release)),
        }
    }

    fn limit_finding(&self, kept: &Retained, action: GuardAction) -> Finding {
        let limit = show_bytes(self.limits.act_bytes.unwrap_or_default());
        let summary =
            format!("the source keeps {} of its log for us, and the limit is {limit}", show_bytes(kept.retained_bytes));
        let finding = Finding::error("SOURCE-LOG-LIMIT", summary);
        match action {
            GuardAction::Stop => finding
                .detail(
                    "The task is stopped. That does not release the log: the source keeps it, and more of it, until",
                )
                .detail("the task goes on or the slot is dropped.")
                .fix(format!("raise source-guard.act-at, then go on: millrace resume {}", self.task))
                .fix(format!("or release the log; everything is loaded anew afterwards: {}", kept.release))
                .fix(format!("and then: millrace reload {}", self.task)),
            GuardAction::DropSlot => finding
                .detail("The slot is dropped, so that the source lets its log go. What was not read yet is lost to us:")
                .detail(
                    "when the task goes on it makes a new slot and loads every table anew; readers see the old rows.",
                )
                .fix(format!("find out why it was not read, then: millrace resume {}", self.task)),
        }
    }
}

/// Looks after a task's place in the source's log until it is aborted.
pub(super) async fn watch(task: Task, requests: mpsc::WeakSender<Request>) {
    if !task.wiring.config.mode.captures() {
        return;
    }
    let mut guardian = Guardian::new(task.name(), task.wiring.config.source_log.guard.clone());
    let heartbeat = task.wiring.config.source_log.heartbeat;
    let (mut looked, mut beaten) = (Instant::now(), Instant::now());
    let mut heart_fails = false;
    loop {
        let runs = task.record().is_ok_and(|record| record.state == TaskState::Running);
        let look_at = looked + if runs { LOOK_EVERY } else { LOOK_EVERY_IDLE };
        let beat_at = heartbeat.filter(|_| runs).map(|every| beaten + every);
        tokio::time::sleep_until(beat_at.map_or(look_at, |at| at.min(look_at)).min(Instant::now() + LOOK_EVERY)).await;
        tell_silence(&task);
        if beat_at.is_some_and(|at| at <= Instant::now()) {
            beaten = Instant::now();
            heart_fails = beat(&task, heart_fails).await;
        }
        if look_at <= Instant::now() {
            looked = Instant::now();
            if let Err(error) = look(&task, &mut guardian, &requests, runs).await {
                error!(task = task.name(), error = %error, "guarding the source's log failed");
            }
        }
    }
}

/// What the source has written since we last heard of it is not known: the lag is at least the time since then.
fn tell_silence(task: &Task) {
    let silence = now_us().saturating_sub(task.pulled_us.load(Ordering::Relaxed)) as f64 / 1e6;
    if silence >= SILENCE_MIN.as_secs_f64() {
        let lag = task.wiring.metrics.source_lag_seconds.get_or_create_owned(&task_label(task.name()));
        lag.set(lag.get().max(silence));
    }
}

/// Gives whether it failed; told once.
async fn beat(task: &Task, failed: bool) -> bool {
    let Ok(beaten) = tokio::time::timeout(PATIENCE, task.wiring.source.heartbeat()).await else { return failed };
    if let Err(error) = &beaten
        && !failed
    {
        warn!(task = task.name(), error = %error, "the heartbeat at the source failed");
    }
    beaten.is_err()
}

async fn look(task: &Task, guardian: &mut Guardian, requests: &mpsc::WeakSender<Request>, runs: bool) -> Result<()> {
    let record = task.record()?;
    // Before the slot is made there is nothing to look after, and behind the end of a task there is no record to write.
    if record.identity.is_none() || record.state == TaskState::Deleting {
        return Ok(());
    }
    let asked = tokio::time::timeout(PATIENCE, task.wiring.source.retained()).await;
    // A source that does not answer is told by those who need it.
    let Ok(Ok(answer)) = asked else { return Ok(()) };
    let (metrics, label) = (&task.wiring.metrics, task_label(task.name()));
    let Some(kept) = answer else {
        metrics.source_retained_bytes.get_or_create(&label).set(0);
        return tell(task, None, None);
    };
    metrics.source_retained_bytes.get_or_create(&label).set(kept.retained_bytes as i64);
    metrics.source_safe_bytes.get_or_create(&label).set(kept.safe_bytes.map_or(-1, |bytes| bytes as i64));
    if let (Some(end), Some(confirmed)) = (kept.end, kept.confirmed) {
        metrics.confirmed_lag_bytes.get_or_create(&label).set(end.0.saturating_sub(confirmed.0) as i64);
    }
    let judgement = guardian.look(&kept, Instant::now(), runs);
    metrics.source_limit_seconds.get_or_create(&label).set(judgement.seconds_left.unwrap_or(-1.0));
    tell(task, Some(kept), judgement.finding.clone())?;
    let (Some(action), Some(finding)) = (judgement.action, judgement.finding) else { return Ok(()) };
    if action == GuardAction::Stop && record.stopped_by_operator {
        guardian.acted();
        return Ok(());
    }
    let Some(requests) = requests.upgrade() else { return Ok(()) };
    let (answer, answered) = oneshot::channel();
    if requests.send((Command::Guard(action, finding), answer)).await.is_err() {
        return Ok(());
    }
    drop(requests);
    let ended = |_| Error::new(millrace_core::Kind::Internal, "asking the task to respect its limit");
    answered.await.map_err(ended)??;
    guardian.acted();
    Ok(())
}

/// The record, and an event when a warning begins or ends.
fn tell(task: &Task, kept: Option<Retained>, finding: Option<Finding>) -> Result<()> {
    let before = task.record()?.guard;
    let message = match (&before, &finding) {
        (None, Some(found)) => {
            warn!(task = task.name(), code = found.code, finding = found.summary, "the source's log grows");
            Some(format!("{}; {}", found.summary, found.detail.join("; ")))
        }
        (Some(_), None) => {
            info!(task = task.name(), "the source's log is within its limits again");
            Some("the source's log is within its limits again".to_string())
        }
        _ => None,
    };
    if let Some(message) = message {
        events::record(&*task.wiring.state, events::Event::of_task("low storage", task.name(), message));
    }
    task.update(|record| {
        record.guard = finding;
        record.retained = kept;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn kept(retained_mib: u64, safe_mib: Option<u64>) -> Retained {
        Retained {
            retained_bytes: retained_mib * MIB,
            safe_bytes: safe_mib.map(|safe| safe * MIB),
            release: "SELECT release();".into(),
            ..Retained::default()
        }
    }

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_warns_at_half_of_what_is_granted_with_the_time_left() {
        let mut guardian = Guardian::new("shop", SourceGuard::default());
        let begin = Instant::now();
        assert_eq!(guardian.look(&kept(100, Some(900)), begin, true), Judgement::default());
        // 10 MiB a second.
        let judged = guardian.look(&kept(400, Some(600)), begin + after(30), true);
        assert_eq!((judged.finding, judged.seconds_left), (None, Some(60.0)));
        let judged = guardian.look(&kept(500, Some(500)), begin + after(40), false);
        let finding = judged.finding.unwrap();
        assert_eq!((finding.code.as_str(), judged.action, judged.seconds_left), ("SOURCE-LOG-GROWS", None, Some(50.0)));
        assert!(finding.detail.contains(&"at the rate of the last minutes that is in 50s".to_string()), "{finding:?}");
        assert!(finding.fix.iter().any(|fix| fix.contains("SELECT release();")), "{finding:?}");
        // It does not flutter at the threshold, and is over below it.
        assert!(guardian.look(&kept(470, Some(530)), begin + after(45), true).finding.is_some());
        assert!(guardian.look(&kept(300, Some(700)), begin + after(50), true).finding.is_none());
        assert!(guardian.look(&kept(470, Some(530)), begin + after(55), true).finding.is_none());
    }

    #[test]
    fn the_rate_is_that_of_the_last_minutes() {
        let mut guardian = Guardian::new("shop", SourceGuard::default());
        let begin = Instant::now();
        guardian.look(&kept(0, Some(1000)), begin, true);
        guardian.look(&kept(300, Some(700)), begin + after(100), true);
        let judged = guardian.look(&kept(310, Some(690)), begin + after(400), true);
        // The first sample is forgotten: 10 MiB in 300 s.
        assert_eq!(judged.seconds_left.map(f64::round), Some(690.0 * 30.0));
        let judged = guardian.look(&kept(250, Some(750)), begin + after(401), true);
        assert_eq!(judged.seconds_left, None, "what shrinks reaches no limit");
        assert_eq!(guardian.look(&kept(5_000, None), begin + after(402), true).finding, None);
        let unlimited = guardian.look(&kept(5 << 10, None), begin + after(403), true).finding.unwrap();
        assert!(unlimited.detail[0].contains("no limit"), "{unlimited:?}");
    }

    #[test]
    fn it_acts_only_where_a_limit_is_configured() {
        let begin = Instant::now();
        let mut silent = Guardian::new("shop", SourceGuard::default());
        assert_eq!(silent.look(&kept(1 << 20, Some(0)), begin, true).action, None);
        for (action, told) in [(GuardAction::Stop, "does not release the log"), (GuardAction::DropSlot, "is dropped")] {
            let limits = SourceGuard { warn_bytes: Some(50 * MIB), act_bytes: Some(200 * MIB), action };
            let mut guardian = Guardian::new("shop", limits);
            let judged = guardian.look(&kept(60, None), begin, true);
            assert_eq!((judged.action, judged.finding.unwrap().code.as_str()), (None, "SOURCE-LOG-GROWS"));
            let judged = guardian.look(&kept(200, None), begin, true);
            let finding = judged.finding.unwrap();
            assert_eq!((judged.action, finding.code.as_str()), (Some(action), "SOURCE-LOG-LIMIT"));
            assert!(finding.detail.join(" ").contains(told), "{finding:?}");
            assert_eq!(action == GuardAction::Stop, finding.fix.join(" ").contains("SELECT release();"));
            guardian.acted();
            let resumed = guardian.look(&kept(210, None), begin, true);
            assert_eq!((resumed.action, resumed.finding.unwrap().code.as_str()), (None, "SOURCE-LOG-GROWS"));
            guardian.look(&kept(100, None), begin, true);
            assert_eq!(guardian.look(&kept(200, None), begin, true).action, Some(action), "it begins anew");
        }
    }
}
