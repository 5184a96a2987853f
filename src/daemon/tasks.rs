//! The tasks of a daemon: wired from the config, started, changed by a reload, asked by operators, shut down.

use std::{collections::BTreeMap, sync::Arc};

use millrace_core::{Error, Finding, Kind, Result};
use tokio::{
    sync::{Mutex, RwLock},
    task::JoinSet,
};
use tracing::{error, info};

use super::control::Request;
use crate::{
    config::{Config, TaskConfig},
    registry,
    replication::{self, TaskHandle, Wiring, follow::Follower},
    state::{
        Put, StateStore,
        keys::task::{self, TaskRecord, TaskState},
        read, read_all,
        reserve::{RESERVE_BYTES, volume},
    },
    stream::Stream,
    telemetry::{
        events::{self, Event},
        metrics::{Live, Metrics},
        report::Told,
    },
};

/// What all tasks of a daemon share.
#[derive(Clone)]
pub struct Shared {
    /// The state.
    pub state: Arc<dyn StateStore>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Fencing epoch of this daemon.
    pub epoch: u64,
}

/// A task's handle; empty once it was shut down. A command holds it for reading, the end for writing.
type Slot = Arc<RwLock<Option<TaskHandle>>>;

/// The tasks that run.
pub struct Tasks {
    shared: Shared,
    inner: Mutex<Inner>,
}

struct Inner {
    config: Arc<Config>,
    running: BTreeMap<String, Slot>,
}

/// What a task needs to run, or to be checked.
pub fn wire(config: &Config, task: &TaskConfig, shared: &Shared) -> Result<Wiring> {
    let missing = || Error::new(Kind::Config, format!("wiring task {}: an endpoint is missing", task.name));
    let (source, target) = config.endpoints_of(task).ok_or_else(missing)?;
    let mut resolved = task.clone();
    resolved.stream.disk_bytes_max = resolved.stream.disk_bytes_max.or_else(|| disk_bound(config));
    Ok(Wiring {
        source: registry::source(source, task)?,
        destination: registry::destination(target, config.state_dir.join("spool").join(&task.name))?,
        buffer: target.buffer.clone(),
        config: resolved,
        state: shared.state.clone(),
        state_dir: config.state_dir.clone(),
        open_stream: Arc::new(Stream::open),
        metrics: shared.metrics.clone(),
        epoch: shared.epoch,
    })
}

/// The default bound of a stream: 80 % of the volume less the reserve, shared by the tasks that have a stream.
pub fn disk_bound(config: &Config) -> Option<u64> {
    let streams = config.tasks.values().filter(|task| task.mode.captures() && !task.removed).count().max(1);
    let volume = volume(&config.state_dir).ok()?;
    Some((volume.bytes / 10 * 8).saturating_sub(RESERVE_BYTES) / streams as u64)
}

/// Tasks that have state here but are not in the config: forgetting one would leave its slot at the source for ever.
pub fn vanished(config: &Config, state: &dyn StateStore) -> Result<Vec<Told>> {
    let records: Vec<(String, TaskRecord)> = read_all(state, task::PREFIX)?;
    let gone = records.into_iter().filter(|(name, _)| !config.tasks.contains_key(name));
    let told = gone.map(|(name, record)| {
        let file = config.file.display().to_string();
        let finding = Finding::error("CFG-TASK-VANISHED", format!("task {name} is not in the config any more"))
            .detail(match record.source.as_str() {
                "" => "it has state here, and what it made at its source may keep that one's log".to_string(),
                source => format!("it has state here, and a slot at its source {source} may keep that one's log"),
            })
            .fix("put it back with `removed: true`: it is deleted at its source and here")
            .fix(format!("or put it back, run `millrace delete {name}`, and then take it out"));
        Told { file: Some(file), ..Told::of_daemon(finding) }
    });
    Ok(told.collect())
}

/// Tasks whose target is another place than where their files are.
fn moved(config: &Config, shared: &Shared) -> Result<Vec<Told>> {
    let mut told = vec![];
    for (name, task) in config.tasks.iter().filter(|(_, task)| !task.removed) {
        // What cannot be wired is told when it starts.
        let Ok(wiring) = wire(config, task, shared) else { continue };
        let found = replication::moved::find(task, &shared.state, &*wiring.destination)?;
        told.extend(found.map(|finding| Told::of_task(config, name, &finding.at(&task.target))));
    }
    Ok(told)
}

impl Tasks {
    /// Nothing runs yet.
    pub fn new(config: Config, shared: Shared) -> Self {
        Self { shared, inner: Mutex::new(Inner { config: Arc::new(config), running: BTreeMap::new() }) }
    }

    /// The config that is in force.
    pub async fn config(&self) -> Arc<Config> {
        self.inner.lock().await.config.clone()
    }

    /// Starts every task of the config that does not run; deletes those marked as removed.
    pub async fn start(&self) {
        let mut inner = self.inner.lock().await;
        let config = inner.config.clone();
        self.start_missing(&config, &mut inner.running).await;
    }

    async fn start_missing(&self, config: &Config, running: &mut BTreeMap<String, Slot>) {
        for (name, task) in &config.tasks {
            if running.contains_key(name) {
                continue;
            }
            let known = read::<TaskRecord>(&*self.shared.state, &task::key(name)).is_ok_and(|record| record.is_some());
            if task.removed && !known {
                continue;
            }
            match wire(config, task, &self.shared) {
                Ok(wiring) if task.removed => self.remove(wiring).await,
                Ok(wiring) => {
                    if !known {
                        events::record(&*self.shared.state, Event::of_task("creation", name, "the task is new"));
                    }
                    info!(task = name, "task starts");
                    running.insert(name.clone(), Arc::new(RwLock::new(Some(replication::start(wiring)))));
                }
                Err(error) => self.unwired(config, task, &error),
            }
        }
    }

    /// Deletes a task that the config marks as removed.
    async fn remove(&self, wiring: Wiring) {
        let name = wiring.config.name.clone();
        // A stopped task waits for what it is asked, so nothing is made at the source on the way to its end.
        let stopped = self.change(&name, |record| record.stopped_by_operator = true);
        let handle = replication::start(wiring);
        let done = match stopped {
            Ok(()) => handle.delete().await,
            Err(error) => Err(error),
        };
        match done {
            Ok(lines) => {
                info!(task = name, lines = ?lines, "removed task is deleted");
                events::record(&*self.shared.state, Event::of_task("deletion", &name, sentence(&lines)));
            }
            Err(error) => {
                error!(task = name, error = %error, "deleting the removed task failed; it is tried at the next start");
                handle.shut_down(false).await;
            }
        }
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut TaskRecord)) -> Result<()> {
        let mut record: TaskRecord = read(&*self.shared.state, &task::key(name))?.unwrap_or_default();
        let before = record.clone();
        change(&mut record);
        if record == before { Ok(()) } else { self.shared.state.commit(&[Put::set(task::key(name), &record)]) }
    }

    /// A task whose connectors cannot be built fails like one whose check fails; it is tried again with the others.
    fn unwired(&self, config: &Config, task: &TaskConfig, error: &Error) {
        let finding = Finding::from(error);
        let changed = self.change(&task.name, |record| {
            record.state = TaskState::Failed;
            record.source = task.source.clone();
            record.errors = vec![finding.clone()];
        });
        if let Err(error) = changed {
            error!(task = task.name, error = %error, "the task's state could not be stored");
        }
        error!(task = task.name, file = %config.file.display(), error = %error, "the task cannot be wired");
    }

    /// Puts a config in force: changed tasks start anew, new ones start, removed ones are deleted, the others are left
    /// alone. Gives one line per task that something happened to; when the config cannot be taken, nothing happens.
    pub async fn reload(&self, new: Config) -> std::result::Result<Vec<String>, Vec<Told>> {
        let mut inner = self.inner.lock().await;
        for refused in [vanished(&new, &*self.shared.state), moved(&new, &self.shared)] {
            let refused = refused.map_err(|error| vec![Told::of_daemon(Finding::from(&error))])?;
            if !refused.is_empty() {
                return Err(refused);
            }
        }
        let mut lines = vec![];
        let old = inner.config.clone();
        if old.state_dir != new.state_dir || old.listen != new.listen {
            lines.push("state-dir and listen are taken at a restart only".to_string());
        }
        let new = Config { state_dir: old.state_dir.clone(), listen: old.listen, ..new };
        let changed: Vec<String> = inner.running.keys().filter(|name| !old.same_task(&new, name)).cloned().collect();
        for name in changed {
            if let Some(slot) = inner.running.remove(&name) {
                shut_down(&slot, false).await;
                lines.push(format!("task {name}: changed, starts anew"));
            }
        }
        for (name, task) in &new.tasks {
            if !old.tasks.contains_key(name) && !task.removed {
                lines.push(format!("task {name}: new, starts"));
            }
        }
        inner.config = Arc::new(new);
        let config = inner.config.clone();
        self.start_missing(&config, &mut inner.running).await;
        Ok(lines)
    }

    /// Does what an operator asks of one task.
    pub async fn obey(&self, request: &Request) -> Result<Vec<String>> {
        let (Request::Pause { task }
        | Request::Resume { task }
        | Request::Stop { task }
        | Request::Reload { task, .. }
        | Request::Delete { task }) = request
        else {
            return Ok(vec![]);
        };
        let slot = self.slot(task).await?;
        let held = slot.read().await;
        let ended = || Error::new(Kind::Config, format!("asking task {task}: it has just ended"));
        let handle = held.as_ref().ok_or_else(ended)?;
        let lines = match request {
            Request::Pause { .. } => handle.pause().await?,
            Request::Resume { .. } => handle.resume().await?,
            Request::Stop { .. } => handle.stop().await?,
            Request::Reload { table, .. } => handle.reload(table.as_ref()).await?,
            Request::Delete { .. } => handle.delete().await?,
            Request::Live | Request::Follow { .. } => vec![],
        };
        drop(held);
        let category = if matches!(request, Request::Delete { .. }) { "deletion" } else { "state change" };
        events::record(&*self.shared.state, Event::of_task(category, task, sentence(&lines)));
        if !matches!(request, Request::Delete { .. }) {
            return Ok(lines);
        }
        shut_down(&slot, false).await;
        self.inner.lock().await.running.remove(task);
        let advice = format!("take task {task} out of the config now: at the next SIGHUP or start it would begin anew");
        Ok(lines.into_iter().chain([advice]).collect())
    }

    /// Follows the head of a task's stream.
    pub async fn follow(&self, task: &str) -> Result<Follower> {
        let slot = self.slot(task).await?;
        let held = slot.read().await;
        let ended = || Error::new(Kind::Config, format!("following task {task}: it has just ended"));
        held.as_ref().map(TaskHandle::follow).ok_or_else(ended)
    }

    async fn slot(&self, task: &str) -> Result<Slot> {
        let inner = self.inner.lock().await;
        let known: Vec<&str> = inner.running.keys().map(String::as_str).collect();
        let unknown = || {
            Error::new(Kind::Config, format!("asking task {task}: no such task runs")).fix(match known.as_slice() {
                [] => "none runs; what the config has starts with the next SIGHUP, or a restart".into(),
                known => format!("tasks are: {}", known.join(", ")),
            })
        };
        inner.running.get(task).cloned().ok_or_else(unknown)
    }

    /// What only the running daemon knows of its tasks.
    pub async fn live(&self) -> BTreeMap<String, Live> {
        let inner = self.inner.lock().await;
        inner.running.keys().map(|name| (name.clone(), self.shared.metrics.live(name))).collect()
    }

    /// Ends all tasks at the same time.
    pub async fn shut_down(&self, drain: bool) {
        let running = std::mem::take(&mut self.inner.lock().await.running);
        let mut ending = JoinSet::new();
        for slot in running.into_values() {
            ending.spawn(async move { shut_down(&slot, drain).await });
        }
        while ending.join_next().await.is_some() {}
    }
}

/// An operator's lines as one for the events. Some lines are statements, and some tell what follows.
fn sentence(lines: &[String]) -> String {
    let mut told = String::new();
    for line in lines {
        told.push_str(if told.is_empty() {
            ""
        } else if told.ends_with([':', ';']) {
            " "
        } else {
            "; "
        });
        told.push_str(line);
    }
    told
}

/// Ends one task, once no command is under way in it.
async fn shut_down(slot: &Slot, drain: bool) {
    if let Some(handle) = slot.write().await.take() {
        handle.shut_down(drain).await;
    }
}
