//! Replication tasks, in DMS's sense: full load, then change data capture.
//!
//! A task is three loops over one stream, each with its own retries, so that none stops another: [`capture`] (source →
//! stream), [`full_load`] (source → target) and delivery (stream → target). `session` runs them, `task` runs sessions.

pub mod capture;
pub mod fill;
pub mod follow;
pub mod full_load;
mod guardian;
mod history;
pub mod moved;
pub mod neighbours;
mod parts;
mod reload;
pub mod rules;
mod session;
pub mod tables;
mod task;
#[cfg(test)]
mod tests;
mod unfit;

use std::{path::PathBuf, sync::Arc};

use millrace_core::{
    Error, Finding, Kind, Result, Severity, TableName, destination::Destination, source::Scope, source::Source,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    catalog::Catalog,
    config::{Buffer, GuardAction, TaskConfig},
    delivery::verify,
    state::StateStore,
    stream::{Stream, StreamOptions},
    telemetry::metrics::Metrics,
};
pub use session::new_log::find_no_other_log;

use follow::{Follower, Open};
use neighbours::Owners;
use rules::Rules;

/// [`Stream::open`], or what simulates it.
pub type OpenStream = Arc<dyn Fn(StreamOptions) -> Result<Stream> + Send + Sync>;

/// What a task needs to run.
#[derive(Clone)]
pub struct Wiring {
    /// The task as configured.
    pub config: TaskConfig,
    /// Its source, made for this task.
    pub source: Arc<dyn Source>,
    /// Its target.
    pub destination: Arc<dyn Destination>,
    /// The target's buffering hints.
    pub buffer: Buffer,
    /// The state.
    pub state: Arc<dyn StateStore>,
    /// Holds `streams/<task>`.
    pub state_dir: PathBuf,
    /// Opens its stream.
    pub open_stream: OpenStream,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Fencing epoch of this daemon.
    pub epoch: u64,
}

/// What an operator asks of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Delivery waits, capture goes on.
    Pause,
    /// Ends a pause or a stop.
    Resume,
    /// Ends capture and delivery.
    Stop,
    /// Loads one table, or all, anew.
    Reload(Option<TableName>),
    /// Removes the task.
    Delete,
    /// The source keeps too much because of the task: does what the config says, for the reason that is given.
    Guard(GuardAction, Finding),
    /// The daemon ends. With `drain`, what is in the stream is delivered first.
    ShutDown {
        /// Whether to deliver what is in the stream.
        drain: bool,
    },
}

/// A command and where its answer goes.
pub(crate) type Request = (Command, oneshot::Sender<Result<Vec<String>>>);

/// A task that was started.
#[derive(Debug)]
pub struct TaskHandle {
    name: String,
    requests: mpsc::Sender<Request>,
    open: Open,
    running: JoinHandle<()>,
}

/// Starts a task: it checks its endpoints, and goes on from where it was. A task that an operator stopped waits.
pub fn start(wiring: Wiring) -> TaskHandle {
    let name = wiring.config.name.clone();
    let (requests, received) = mpsc::channel(16);
    let open = Open::default();
    let running = tokio::spawn(task::run(wiring, received, requests.downgrade(), open.clone()));
    TaskHandle { name, requests, open, running }
}

impl TaskHandle {
    async fn ask(&self, command: Command) -> Result<Vec<String>> {
        let ended = || Error::new(Kind::Internal, format!("asking task {}: it has ended", self.name));
        let (answer, answered) = oneshot::channel();
        self.requests.send((command, answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Delivery waits, capture goes on.
    pub async fn pause(&self) -> Result<Vec<String>> {
        self.ask(Command::Pause).await
    }

    /// Ends a pause, or starts a stopped task again. Gives lines for the operator, as all commands do.
    pub async fn resume(&self) -> Result<Vec<String>> {
        self.ask(Command::Resume).await
    }

    /// Ends capture and delivery; says what the source keeps, and for how long.
    pub async fn stop(&self) -> Result<Vec<String>> {
        self.ask(Command::Stop).await
    }

    /// Loads one table, or all of them, anew.
    pub async fn reload(&self, table: Option<&TableName>) -> Result<Vec<String>> {
        self.ask(Command::Reload(table.cloned())).await
    }

    /// Removes the task: what it made at the source, its stream and its state. The lake and the catalog stay.
    pub async fn delete(&self) -> Result<Vec<String>> {
        self.ask(Command::Delete).await
    }

    /// Follows the head of its stream.
    pub fn follow(&self) -> Follower {
        Follower::new(self.open.subscribe())
    }

    /// Stops the task without marking it as stopped by an operator: SIGTERM. Finishes the append and the delivery round
    /// under way, and delivers what is in the stream (`drain`).
    pub async fn shut_down(self, drain: bool) {
        let _ = self.ask(Command::ShutDown { drain }).await;
        let _ = self.running.await;
    }
}

/// Everything that keeps the task from working, in the words that `run` prints too: the source's findings, the target's,
/// and those of the rules.
pub async fn check(wiring: &Wiring) -> Vec<Finding> {
    let config = &wiring.config;
    let scope = Scope { selection: config.selection(), full_load: config.mode.loads(), cdc: config.mode.captures() };
    let (source, target) = tokio::join!(wiring.source.check(&scope), wiring.destination.check());
    let mut findings: Vec<Finding> = source.into_iter().map(|finding| finding.at(&config.source)).collect();
    let reachable = !findings.iter().any(|finding| finding.severity == Severity::Error);
    findings.extend(target.into_iter().map(|finding| finding.at(&config.target)));
    match moved::find(config, &wiring.state, &*wiring.destination) {
        Ok(moved) => findings.extend(moved.map(|finding| finding.at(&config.target))),
        Err(error) => findings.push(Finding::from(&error)),
    }
    let catalog = Catalog::new(wiring.state.clone());
    match verify::glance(&catalog, &*wiring.state, &*wiring.destination, &config.name).await {
        Ok(found) => findings.extend(found.into_iter().map(|finding| finding.at(&config.target))),
        // What keeps the target from answering is told already.
        Err(_) if findings.iter().any(|finding| finding.endpoint.as_ref() == Some(&config.target)) => {}
        Err(error) => findings.push(Finding::from(&error).at(&config.target)),
    }
    if reachable {
        match wiring.source.tables(&scope.selection).await {
            Ok(tables) => {
                findings.extend(Rules::new(config).check(&tables));
                match Owners::of_state(&*wiring.state) {
                    Ok(mut owners) => {
                        findings.extend(owners.add(config, &tables).into_iter().map(|(_, finding)| finding));
                    }
                    Err(error) => findings.push(Finding::from(&error)),
                }
            }
            Err(error) => findings.push(Finding::from(&error).at(&config.source)),
        }
    }
    findings
}
