//! Replication tasks, in DMS's sense: full load, then change data capture.

pub mod rules;

use std::{path::PathBuf, sync::Arc};

use millrace_core::{Finding, Result, TableName, destination::Destination, source::Source};

use crate::{
    config::{Buffer, TaskConfig},
    state::StateStore,
    telemetry::metrics::Metrics,
};

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
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Fencing epoch of this daemon.
    pub epoch: u64,
}

/// A task that was started.
#[derive(Debug)]
pub struct TaskHandle {}

/// Starts a task: it checks its endpoints, and goes on from where it was. A task that an operator stopped waits.
pub fn start(_wiring: Wiring) -> TaskHandle {
    todo!()
}

impl TaskHandle {
    /// Delivery waits, capture goes on.
    pub async fn pause(&self) -> Result<Vec<String>> {
        todo!()
    }

    /// Ends a pause, or starts a stopped task again. Gives lines for the operator, as all commands do.
    pub async fn resume(&self) -> Result<Vec<String>> {
        todo!()
    }

    /// Ends capture and delivery; says what the source keeps, and for how long.
    pub async fn stop(&self) -> Result<Vec<String>> {
        todo!()
    }

    /// Loads one table, or all of them, anew.
    pub async fn reload(&self, _table: Option<&TableName>) -> Result<Vec<String>> {
        todo!()
    }

    /// Removes the task: what it made at the source, its stream and its state. The lake and the catalog stay.
    pub async fn delete(&self) -> Result<Vec<String>> {
        todo!()
    }

    /// Stops the task without marking it as stopped by an operator: SIGTERM. Finishes the append and the delivery round
    /// under way, and delivers what is in the stream (`drain`).
    pub async fn shut_down(self, _drain: bool) {
        todo!()
    }
}

/// Everything that keeps the task from working, in the words that `run` prints too.
pub async fn check(_wiring: &Wiring) -> Vec<Finding> {
    todo!()
}
