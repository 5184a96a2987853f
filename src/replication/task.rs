//! One task's life: its states, and what operators ask of it. What it does while it runs stands in [`super::session`].

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicI64},
    time::Duration,
};

use millrace_core::{Error, Finding, Kind, Result, TableName, error::Action};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::{
    Command, Request, Wiring, follow::Open, guardian, history::History, reload, rules::Rules, session, tables::Tables,
};
use crate::{
    config::GuardAction,
    state::{
        Put,
        keys::{
            checkpoint, table,
            task::{self, TaskRecord, TaskState},
        },
        read,
    },
    stream::Stream,
    telemetry::{events, metrics::task_label, now_us},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A source that cannot be reached, or whose slot is still held, is back at any moment, and a try costs nothing.
const BACKOFF_MAX_CONNECTION: Duration = Duration::from_secs(5);

/// How a run of the loops ended.
pub(super) enum Ended {
    /// Everything is loaded, and nothing is to be captured.
    Loaded,
    /// The check found errors; they stand in the task's record.
    Unfit,
    /// Somebody asked for it.
    Asked(Request),
}

/// Waits between tries: doubles from half a second to half a minute, or to a few seconds where it is the connection.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(BACKOFF_FIRST)
    }

    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(BACKOFF_MAX);
        wait
    }

    pub(super) fn after(&mut self, error: &Error) -> Duration {
        let wait = self.next();
        match error.kind {
            Kind::Connection | Kind::LogBusy => wait.min(BACKOFF_MAX_CONNECTION),
            _ => wait,
        }
    }
}

/// Runs a task until it is deleted or the daemon ends.
pub(super) async fn run(
    wiring: Wiring,
    mut requests: mpsc::Receiver<Request>,
    own_requests: mpsc::WeakSender<Request>,
    open: Open,
) {
    let task = Task::new(wiring, open);
    let mut backoff = Backoff::new();
    let guard = || tokio::spawn(guardian::watch(task.clone(), own_requests.clone()));
    let mut guarding = guard();
    task.captures_again();
    loop {
        let stopped = task.record().is_ok_and(|record| record.stopped_by_operator);
        let request = if stopped {
            task.keep_state(TaskState::Stopped);
            idle(&mut requests, None).await
        } else {
            let wait = match session::run(&task, &mut requests).await {
                Ok(Ended::Asked(request)) => Err(request),
                Ok(Ended::Loaded) => {
                    backoff = Backoff::new();
                    task.loaded();
                    Ok(None)
                }
                Ok(Ended::Unfit) => {
                    task.keep_state(TaskState::Failed);
                    Ok(Some(backoff.next()))
                }
                Err(error) => {
                    task.fail(&error);
                    if error.kind == Kind::TableSuspended {
                        task.stop_with_table();
                    }
                    let stays = error.kind.action() == Action::StopTask || task.wiring.config.on_error.task_stops;
                    let goes_on = !stays || task.remakes_log(&error);
                    Ok(goes_on.then(|| backoff.after(&error)))
                }
            };
            match wait {
                Ok(wait) => idle(&mut requests, wait).await,
                Err(request) => Some(request),
            }
        };
        let Some(request) = request else { continue };
        backoff = Backoff::new();
        if !matches!(request.0, Command::Delete | Command::ShutDown { .. }) {
            task.obey(request).await;
            continue;
        }
        // It must not write the record of a task that is gone.
        guarding.abort();
        let _ = guarding.await;
        if !task.obey(request).await {
            return;
        }
        guarding = guard();
    }
}

/// Waits for a request; with `wait`, at most as long. When the daemon dropped the handle, that is a request to end.
async fn idle(requests: &mut mpsc::Receiver<Request>, wait: Option<Duration>) -> Option<Request> {
    let received = async {
        match requests.recv().await {
            Some(request) => request,
            None => (Command::ShutDown { drain: false }, oneshot::channel().0),
        }
    };
    match wait {
        Some(wait) => tokio::time::timeout(wait, received).await.ok(),
        None => Some(received.await),
    }
}

/// A task and its record in the state.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) wiring: Wiring,
    /// Held while the record is read, changed and written.
    record: Arc<Mutex<()>>,
    /// The source in its present history; `wiring.source` is the same.
    history: Arc<History>,
    /// Where followers of its stream look.
    pub(super) open: Open,
    /// When its capture last pulled the log (microseconds since 1970-01-01 UTC).
    pub(super) pulled_us: Arc<AtomicI64>,
}

impl Task {
    fn new(mut wiring: Wiring, open: Open) -> Self {
        let history = Arc::new(History::new(wiring.source.clone(), 0));
        wiring.source = history.clone();
        let pulled_us = Arc::new(AtomicI64::new(now_us()));
        let task = Self { wiring, record: Arc::default(), history, open, pulled_us };
        // A state that cannot be read is found again at once, by whoever needs more of it.
        task.history.set(task.record().map_or(0, |record| record.history));
        task
    }

    /// Positions of the source begin anew: from now on they belong to a new history, whose number is given.
    pub(super) fn next_history(&self) -> Result<u16> {
        let next = self.history.number().checked_add(1);
        let number = next.ok_or_else(|| Error::new(Kind::Internal, "beginning a new history: there were 65,535"))?;
        self.update(|record| record.history = number)?;
        self.history.set(number);
        Ok(number)
    }

    /// The stream knows of a history that another server began, a moment before the record does.
    pub(super) fn follow_history(&self, stream: &Stream) -> Result<()> {
        let number = stream.last_mark().map_or(0, |mark| mark.source.history());
        if number > self.history.number() {
            self.update(|record| record.history = number)?;
            self.history.set(number);
        }
        Ok(())
    }

    /// Whether the task goes on by itself after the error: its place in the source's log is lost, and the config says that
    /// everything is loaded anew then.
    fn remakes_log(&self, error: &Error) -> bool {
        let config = &self.wiring.config;
        if error.kind != Kind::LogLost || !config.source_log.reload_when_lost || !config.mode.loads() {
            return false;
        }
        let message = "the place in the source's log is lost; it is made anew, and every table is loaded anew";
        warn!(task = self.name(), error = %error, "the source's log is lost; everything is loaded anew");
        events::record(&*self.wiring.state, events::Event::of_task("failure", self.name(), message).code("LOG-LOST"));
        self.update(|record| record.remake_log = true).is_ok()
    }

    pub(super) fn name(&self) -> &str {
        &self.wiring.config.name
    }

    pub(super) fn record(&self) -> Result<TaskRecord> {
        Ok(read(&*self.wiring.state, &task::key(self.name()))?.unwrap_or_default())
    }

    /// Changes the record in the state.
    pub(super) fn update(&self, change: impl FnOnce(&mut TaskRecord)) -> Result<()> {
        let held = self.record.lock().expect("no panic while locked");
        let mut record = self.record()?;
        let before = record.clone();
        change(&mut record);
        if record == before {
            return Ok(());
        }
        if record.state != before.state {
            record.changed_us = now_us();
            info!(task = self.name(), from = ?before.state, to = ?record.state, "task state changed");
        }
        self.wiring.state.commit(&[Put::set(task::key(self.name()), &record)])?;
        drop(held);
        if record.state != before.state {
            let event =
                events::Event::of_task("state change", self.name(), format!("{:?}", record.state).to_lowercase());
            events::record(&*self.wiring.state, event);
        }
        let up = i64::from(record.state == TaskState::Running);
        self.wiring.metrics.task_up.get_or_create(&task_label(self.name())).set(up);
        Ok(())
    }

    fn keep_state(&self, state: TaskState) {
        if let Err(error) = self.update(|record| record.state = state) {
            self.end_if_storage(&error);
        }
    }

    /// A task that was done once everything was loaded goes on where the config has it capture by now.
    fn captures_again(&self) {
        let done = |record: &TaskRecord| record.stop_reason.as_deref() == Some(task::FULL_LOAD_FINISHED);
        if self.wiring.config.mode.captures() && self.record().is_ok_and(|record| done(&record)) {
            let going_on = self.update(|record| {
                record.stopped_by_operator = false;
                record.stop_reason = None;
            });
            if let Err(error) = going_on {
                self.end_if_storage(&error);
            }
        }
    }

    fn loaded(&self) {
        let done = self.update(|record| {
            record.state = TaskState::Stopped;
            record.stop_reason = Some(task::FULL_LOAD_FINISHED.into());
            record.stopped_by_operator = true;
            record.errors.clear();
        });
        if let Err(error) = done {
            self.end_if_storage(&error);
        }
    }

    /// The error goes into the log and the task's record, and unless it is there already, into the events.
    pub(super) fn fail(&self, error: &Error) {
        self.end_if_storage(error);
        error!(task = self.name(), error = %error, code = error.kind.code(), "task failed");
        self.wiring.metrics.count_error(self.name(), error.kind.code());
        let finding = Finding::from(error);
        let mut is_new = true;
        let _ = self.update(|record| {
            is_new = record.state != TaskState::Failed || !record.errors.contains(&finding);
            record.state = TaskState::Failed;
            record.errors = vec![finding];
        });
        if is_new {
            let event = events::Event::of_task("failure", self.name(), error.to_string()).code(error.kind.code());
            events::record(&*self.wiring.state, event);
        }
    }

    /// Also over a restart of the daemon, until an operator has it go on.
    fn stop_with_table(&self) {
        let stopped = self.update(|record| {
            record.state = TaskState::Stopped;
            record.stopped_by_operator = true;
            record.stop_reason = Some(Kind::TableSuspended.code().into());
        });
        if let Err(error) = stopped {
            self.end_if_storage(&error);
        }
    }

    /// The disk can no longer be trusted: a restart reads again what is really there.
    pub(super) fn end_if_storage(&self, error: &Error) {
        if error.kind.action() == Action::Exit {
            let code = error.kind.code();
            error!(task = self.name(), code, error = %error, "storage failed; the daemon ends");
            #[cfg(test)]
            crate::simulation::end_process();
            std::process::exit(1);
        }
    }

    /// Answers an operator. What could not be written to the state may be there all the same: only a restart knows.
    pub(super) fn answer(&self, done: Result<Vec<String>>, answer: oneshot::Sender<Result<Vec<String>>>) {
        let kind = done.as_ref().err().map(|error| error.kind);
        let _ = answer.send(done);
        if let Some(kind) = kind {
            self.end_if_storage(&Error::new(kind, "obeying a command"));
        }
    }

    /// Does what is asked while the loops do not run. Gives false when the task is to end.
    async fn obey(&self, (command, answer): Request) -> bool {
        let ends = matches!(command, Command::ShutDown { .. } | Command::Delete);
        let done = match command {
            Command::ShutDown { .. } => self.shut_down(),
            Command::Delete => self.delete().await,
            Command::Stop => self.stopped().await,
            Command::Guard(action, finding) => self.guarded(action, finding).await,
            Command::Pause => self.set_paused(true),
            Command::Resume => self.resumed(),
            Command::Reload(table) => self.reload(table.as_ref()),
        };
        let ends = ends && done.is_ok();
        self.answer(done, answer);
        !ends
    }

    /// A task that an operator stopped, or that failed, keeps saying so.
    fn shut_down(&self) -> Result<Vec<String>> {
        self.update(|record| {
            if matches!(record.state, TaskState::Starting | TaskState::Running | TaskState::Stopping) {
                record.state = TaskState::Ready;
            }
        })?;
        Ok(vec![])
    }

    pub(super) fn set_paused(&self, paused: bool) -> Result<Vec<String>> {
        self.update(|record| record.paused = paused)?;
        let what = if paused { "delivery waits, capture goes on" } else { "delivery goes on" };
        Ok(vec![format!("task {}: {what}", self.name())])
    }

    fn resumed(&self) -> Result<Vec<String>> {
        self.update(|record| {
            record.stopped_by_operator = false;
            record.paused = false;
            record.stop_reason = None;
        })?;
        Ok(vec![format!("task {} starts", self.name())])
    }

    async fn stopped(&self) -> Result<Vec<String>> {
        let retained = self.wiring.source.retained().await.ok().flatten();
        self.update(|record| {
            record.state = TaskState::Stopped;
            record.stopped_by_operator = true;
            record.stop_reason = Some("NORMAL".into());
            record.retained.clone_from(&retained);
            record.target = None;
        })?;
        let mut lines = vec![format!("task {} is stopped", self.name())];
        if let Some(retained) = retained {
            lines.push(format!("the source keeps its log for it: {} bytes now, and growing", retained.retained_bytes));
            lines.push(match retained.safe_bytes {
                Some(safe) => format!("it gives up on us after {safe} more bytes; then the task must be reloaded"),
                None => "it has no limit for that (max_slot_wal_keep_size = -1), so its disk can fill".into(),
            });
            lines.push(format!("go on: millrace resume {0}   |   for good: millrace delete {0}", self.name()));
        }
        Ok(lines)
    }

    /// The source keeps too much because of us.
    async fn guarded(&self, action: GuardAction, finding: Finding) -> Result<Vec<String>> {
        error!(task = self.name(), code = finding.code, finding = finding.summary, "the source's log is at its limit");
        let message = format!("{}; {}", finding.summary, finding.detail.join(" "));
        let event = events::Event::of_task("low storage", self.name(), message).code(&finding.code);
        events::record(&*self.wiring.state, event);
        let drops = action == GuardAction::DropSlot;
        let goes_on = drops && self.wiring.config.source_log.reload_when_lost && self.wiring.config.mode.loads();
        // Before the slot goes: what was not read by then is lost, and only a reload brings it.
        self.update(|record| {
            record.state = TaskState::Stopped;
            record.stopped_by_operator = !goes_on;
            let reason = if drops { task::SOURCE_LOG_DROPPED } else { task::SOURCE_LOG_LIMIT };
            record.stop_reason = (!goes_on).then(|| reason.into());
            record.remake_log |= drops;
            record.errors = vec![finding];
            record.guard = None;
        })?;
        if drops {
            self.wiring.source.drop_log().await?;
        }
        Ok(vec![])
    }

    /// A task that only captures has nothing to load a table with.
    pub(super) fn must_load(&self) -> Result<()> {
        if self.wiring.config.mode.loads() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Config,
            format!("reloading in task {}: it captures changes and loads nothing", self.name()),
        )
        .fix("set mode: full-load-and-cdc in the config, have it read (SIGHUP), then reload"))
    }

    fn reload(&self, table: Option<&TableName>) -> Result<Vec<String>> {
        self.must_load()?;
        if table.is_none() && self.log_is_gone()? {
            self.update(|record| record.remake_log = true)?;
            let mut lines = vec!["the source's log is read anew from now on, and every table is loaded anew".into()];
            lines.extend(self.resumed()?);
            return Ok(lines);
        }
        let tables = Tables::open(self.name(), self.wiring.state.clone(), Rules::new(&self.wiring.config))?;
        let mut lines = reload::mark(&tables, self.name(), table)?;
        lines.extend(self.resumed()?);
        Ok(lines)
    }

    /// Whether the task cannot go on from where it was, so that loading everything anew begins at the source's log.
    pub(super) fn log_is_gone(&self) -> Result<bool> {
        let record = self.record()?;
        let codes = [Kind::LogLost.code(), Kind::SourceChanged.code()];
        Ok(record.remake_log || record.errors.iter().any(|error| codes.contains(&error.code.as_str())))
    }

    pub(super) fn stream_folder(&self) -> PathBuf {
        self.wiring.state_dir.join("streams").join(self.name())
    }

    async fn delete(&self) -> Result<Vec<String>> {
        self.update(|record| record.state = TaskState::Deleting)?;
        let left = self.wiring.source.remove().await?;
        let folder = self.stream_folder();
        if folder.exists() {
            let removed = std::fs::remove_dir_all(&folder);
            removed.map_err(|e| Error::new(Kind::Storage, format!("removing {}", folder.display())).with(e))?;
        }
        let name = self.name();
        let mut puts = vec![Put::delete(task::key(name))];
        let kinds = ["segment", "intent", "delivery", "garbage"].map(|kind| format!("{kind}/{name}/"));
        for prefix in kinds.into_iter().chain([table::prefix(name), checkpoint::prefix(name)]) {
            puts.extend(self.wiring.state.scan(&prefix)?.into_iter().map(|(key, _)| Put::delete(key)));
        }
        self.wiring.state.commit(&puts)?;
        let mut lines = vec![format!("task {name} is deleted; its files and their catalog entries stay")];
        if !left.is_empty() {
            lines.push("the role may not remove these; run at the source:".into());
            lines.extend(left);
        }
        Ok(lines)
    }
}
