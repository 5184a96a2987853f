//! The daemon: builds everything from the config, and owns the order in which it starts and stops.
//!
//! Start: state folder and its lock, state and epoch, control socket, HTTP, tasks. Stop: tasks (draining), control socket,
//! HTTP. One loop turns once a second: it feeds the watchdog, watches the tasks and answers signals; nothing in it waits.

pub mod control;
mod folder;
mod memory;
mod notify;
pub mod tasks;
mod watch;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use millrace_core::{Finding, Result};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    tasks::{Shared, Tasks},
    watch::{Outcome, Watch},
};
use crate::{
    api::{self, Surface},
    config::Config,
    state::{Put, StateStore, read, reserve::ReservedState},
    telemetry::{
        events::{self, Event},
        logs::Format,
        metrics::Metrics,
        report::Told,
    },
};

/// Turns of the main loop between two looks at what needs it rarely: the reserve, tasks that could not be wired.
const CHORES_EVERY: u64 = 30;
const EPOCH_KEY: &str = "epoch";

/// Why the daemon did not start, or ended early.
#[derive(Debug)]
pub enum Refused {
    /// The config is wrong.
    Config(Vec<Told>),
    /// The world is: the state folder, the addresses, or every task's endpoints. What was told already is not in it.
    World(Vec<Told>),
}

/// A daemon that has everything it needs to start its tasks.
pub struct Daemon {
    /// What is read again at SIGHUP.
    config_file: PathBuf,
    tasks: Arc<Tasks>,
    state: Arc<ReservedState>,
    metrics: Arc<Metrics>,
    control: Option<UnixListener>,
    http: Option<TcpListener>,
    watch: Watch,
    /// No task here ever passed its check.
    first_start: bool,
    _lock: folder::FolderLock,
}

/// What keeps this user from starting a daemon of this config, beside its tasks; nothing where one runs.
pub fn obstacles(config: &Config) -> Vec<Finding> {
    if control::answers(&config.state_dir) {
        return vec![];
    }
    // A folder that is another user's hides whether the address is its daemon's.
    match folder::look(&config.state_dir) {
        Err(finding) => vec![*finding],
        Ok(()) => {
            let listened = std::net::TcpListener::bind(config.listen);
            listened.err().map(|error| deaf(config.listen, &error)).into_iter().collect()
        }
    }
}

fn deaf(address: SocketAddr, error: &io::Error) -> Finding {
    Finding::error("LISTEN", format!("{address} cannot be listened at"))
        .detail(format!("the system said: {error}"))
        .fix("choose another address: listen: 127.0.0.1:PORT")
}

impl Daemon {
    /// Takes the state folder and the addresses; starts no task yet.
    pub async fn new(config: Config, format: Format) -> std::result::Result<Self, Refused> {
        let world = |finding: Finding| Refused::World(vec![Told::of_daemon(finding)]);
        let broken = |error: millrace_core::Error| world(Finding::from(&error));
        let lock = folder::open(&config.state_dir).map_err(|finding| world(*finding))?;
        let state = Arc::new(ReservedState::open(&config.state_dir).map_err(broken)?);
        let gone = tasks::vanished(&config, &*state).map_err(broken)?;
        if !gone.is_empty() {
            return Err(Refused::Config(gone));
        }
        memory::compare(&config);
        let epoch = next_epoch(&*state).map_err(broken)?;
        let (watch, first_start) = Watch::begin(&*state, format).map_err(broken)?;
        let control = control::bind(&config.state_dir).map_err(|finding| world(*finding))?;
        let http = api::bind(config.listen).await.map_err(|error| world(deaf(config.listen, &error)))?;
        let address = http.local_addr().map_or_else(|_| config.listen.to_string(), |address| address.to_string());
        info!(version = api::VERSION, epoch, state_dir = %config.state_dir.display(), listen = address, "daemon starts");
        let metrics = Arc::new(Metrics::default());
        let shared = Shared { state: state.clone(), metrics: metrics.clone(), epoch };
        Ok(Self {
            config_file: config.file.clone(),
            tasks: Arc::new(Tasks::new(config, shared)),
            state,
            metrics,
            control: Some(control),
            http: Some(http),
            watch,
            first_start,
            _lock: lock,
        })
    }

    /// The state, for looking at it while the daemon runs.
    pub fn state(&self) -> Arc<dyn StateStore> {
        self.state.clone()
    }

    /// Runs until a signal asks for the end, or until a first start has come to nothing.
    pub async fn run(mut self) -> std::result::Result<(), Refused> {
        let (Ok(mut signals), cancel) = (Signals::new(), CancellationToken::new()) else {
            let finding = Finding::error("INTERNAL", "signals cannot be received");
            return Err(Refused::World(vec![Told::of_daemon(finding)]));
        };
        allow_open_files();
        let surface = Surface { state: self.state.clone(), metrics: self.metrics.clone() };
        let http = self.http.take().map(|listener| tokio::spawn(api::serve(listener, surface, cancel.clone())));
        let control = self.control.take();
        let control =
            control.map(|listener| tokio::spawn(control::serve(listener, self.tasks.clone(), cancel.clone())));
        let started = self.turn(&mut signals).await;
        if started.is_ok() {
            self.end(&mut signals).await;
        }
        cancel.cancel();
        // Clients that keep a connection open must not hold the end up.
        let joined = async {
            if let Some(control) = control {
                let _ = control.await;
            }
            if let Some(http) = http {
                let _ = http.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), joined).await;
        info!("daemon ends");
        started
    }

    /// The main loop.
    async fn turn(&mut self, signals: &mut Signals) -> std::result::Result<(), Refused> {
        let mut turns = tokio::time::interval(notify::turn_every().min(Duration::from_millis(200)));
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count: u64 = 0;
        let mut ready = false;
        let tasks = self.tasks.clone();
        let mut job: Option<JoinHandle<()>> = Some(tokio::spawn(async move { tasks.start().await }));
        // A SIGHUP that came while tasks were being started or stopped: what they do may be of an older file.
        let mut reload_waits = false;
        loop {
            tokio::select! {
                asked = signals.next() => match (asked, &job) {
                    (Asked::End, _) => {
                        if let Some(job) = job.take() {
                            job.abort();
                        }
                        return Ok(());
                    }
                    (Asked::Reload, Some(job)) if !job.is_finished() => {
                        info!("tasks are being started or stopped; the config is read again behind that");
                        reload_waits = true;
                    }
                    (Asked::Reload, _) => job = Some(self.begin_reload(ready)),
                },
                () = ended(&mut job), if reload_waits => {
                    reload_waits = false;
                    job = Some(self.begin_reload(ready));
                }
                _ = turns.tick() => {
                    notify::alive();
                    count += 1;
                    // Five turns a second until it is known whether the start came to something, then one.
                    if ready && !count.is_multiple_of(5) {
                        continue;
                    }
                    let outcome = self.look().await;
                    if !ready && self.first_start && outcome == Outcome::Nothing && !reload_waits {
                        return Err(self.nothing_started().await);
                    }
                    if !ready && (outcome != Outcome::Open || !self.first_start) {
                        ready = true;
                        notify::ready();
                    }
                    let idle = job.as_ref().is_none_or(JoinHandle::is_finished);
                    if count.is_multiple_of(5 * CHORES_EVERY) && idle {
                        self.state.keep_reserve();
                        let tasks = self.tasks.clone();
                        job = Some(tokio::spawn(async move { tasks.start().await }));
                    }
                }
            }
        }
    }

    async fn look(&mut self) -> Outcome {
        // While a reload holds the tasks the loop must go on turning.
        match tokio::time::timeout(Duration::from_millis(100), self.tasks.config()).await {
            Ok(config) => self.watch.look(&config, &*self.state),
            Err(_) => Outcome::Open,
        }
    }

    async fn nothing_started(&self) -> Refused {
        let finding = Finding::error("NOTHING-STARTED", "no task can start, and none ever did here")
            .detail("what keeps them from it is told above")
            .fix("mend that, and see with: millrace check");
        self.tasks.shut_down(false).await;
        Refused::World(vec![Told::of_daemon(finding)])
    }

    /// Reads the config again; a wrong one changes nothing. Before the daemon is ready the end of it is nobody's news.
    fn begin_reload(&self, ready: bool) -> JoinHandle<()> {
        let (file, tasks, state) = (self.config_file.clone(), self.tasks.clone(), self.state.clone());
        notify::reloading();
        tokio::spawn(async move {
            let loaded = Config::load(&file);
            let loaded = loaded.map_err(|wrong| wrong.iter().map(|p| Told::of_config(&file, p)).collect::<Vec<_>>());
            let taken = match loaded {
                Ok(config) => tasks.reload(config).await,
                Err(told) => Err(told),
            };
            match taken {
                Ok(lines) => {
                    info!(changes = ?lines, "config is taken");
                    let told = if lines.is_empty() { "nothing of it changed".into() } else { lines.join("; ") };
                    let message = format!("config is taken: {told}");
                    events::record(&*state, Event::of_daemon("configuration change", message));
                }
                Err(told) => {
                    for told in &told {
                        error!(code = told.finding.code, finding = %told, "config is wrong");
                    }
                    let first = told.first().map_or(String::new(), |told| told.finding.summary.clone());
                    let message = format!("config is wrong, nothing was changed: {first}");
                    events::record(&*state, Event::of_daemon("configuration change", message).code("CONFIG"));
                }
            }
            if ready {
                notify::ready();
            }
        })
    }

    /// Ends the tasks; a second signal ends the wait.
    async fn end(&self, signals: &mut Signals) {
        info!("daemon stops: what is in the streams is delivered first; a second signal stops at once");
        notify::stopping();
        let mut turns = tokio::time::interval(notify::turn_every());
        let ending = self.tasks.shut_down(true);
        tokio::pin!(ending);
        loop {
            tokio::select! {
                () = &mut ending => return,
                () = signals.end() => {
                    warn!("daemon stops at once; what is not delivered waits in the streams");
                    return;
                }
                _ = turns.tick() => notify::alive(),
            }
        }
    }
}

/// Waits for the end of a job, if there is one.
async fn ended(job: &mut Option<JoinHandle<()>>) {
    if let Some(running) = job {
        // A panic is told by its hook; the loop goes on.
        let _ = running.await;
    }
    *job = None;
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    End,
    Reload,
}

/// The signals that a daemon answers.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.reload.recv() => Asked::Reload,
        }
    }

    /// SIGTERM or SIGINT.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Counts the fencing epoch up: no daemon before this one had it.
fn next_epoch(state: &dyn StateStore) -> Result<u64> {
    let last = state.get(EPOCH_KEY)?;
    let epoch = read::<u64>(state, EPOCH_KEY)?.unwrap_or(0) + 1;
    state.commit(&[Put { expect: Some(last), ..Put::set(EPOCH_KEY, &epoch) }])?;
    Ok(epoch)
}

/// As many as the system lets us: a delivery's round that is done again may hold a file for each table.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_err() {
        warn!(limit = limit.current, "the limit of open files cannot be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::memory::MemoryState;

    // trap: 44
    #[test]
    fn epochs_rise() {
        let state = MemoryState::default();
        assert_eq!((next_epoch(&state).unwrap(), next_epoch(&state).unwrap()), (1, 2));
    }
}
