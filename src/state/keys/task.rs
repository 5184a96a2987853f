//! `task/<task>`: what is known of a replication task.

use millrace_core::{
    Position,
    finding::Finding,
    source::{Identity, Retained},
};
use serde::{Deserialize, Serialize};

/// The key.
pub fn key(task: &str) -> String {
    format!("{PREFIX}{task}")
}

/// All tasks.
pub const PREFIX: &str = "task/";

/// A replication task's states, with DMS's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Never started.
    #[default]
    Creating,
    /// May be started.
    Ready,
    /// Checks and connects.
    Starting,
    /// Loads or captures.
    Running,
    /// Finishes what it has begun.
    Stopping,
    /// Ended, by a command or because a full load is done.
    Stopped,
    /// Ended by an error; retried with back-off where that may help.
    Failed,
    /// Being taken away, at the source too.
    Deleting,
}

/// Stop reason: everything is loaded, and nothing is to be captured (DMS's word).
pub const FULL_LOAD_FINISHED: &str = "FULL_LOAD_ONLY_FINISHED";
/// Stop reason: the source keeps too much for us, and the config says to stop then.
pub const SOURCE_LOG_LIMIT: &str = "SOURCE_LOG_LIMIT";
/// Stop reason: the same, and the slot was dropped.
pub const SOURCE_LOG_DROPPED: &str = "SOURCE_LOG_DROPPED";

/// One task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its state.
    pub state: TaskState,
    /// Why it is stopped: `FULL_LOAD_ONLY_FINISHED`, `NORMAL`, …
    pub stop_reason: Option<String>,
    /// An operator stopped it; it stays stopped over a restart until it is resumed.
    pub stopped_by_operator: bool,
    /// Delivery waits; capture goes on.
    pub paused: bool,
    /// Who the source was when the slot was made.
    pub identity: Option<Identity>,
    /// We are about to make the slot: one that is found while there is no mark in the stream is ours and is made again.
    pub slot_intent: bool,
    /// The place in the source's log is lost or was given up, and everybody agrees to that: it is made anew before anything
    /// is captured, and every table is loaded anew.
    #[serde(default)]
    pub remake_log: bool,
    /// Number of the source's history that positions are of; see [`Position::history`].
    #[serde(default)]
    pub history: u16,
    /// What the guardian of the source's log has to say, while it has.
    #[serde(default)]
    pub guard: Option<Finding>,
    /// What delivery fails with, while it does; everything else goes on meanwhile.
    #[serde(default)]
    pub target: Option<Finding>,
    /// A copy of the durable position, for display only: the stream's last mark is the truth.
    pub position: Option<Position>,
    /// What the source keeps for us, as last seen.
    pub retained: Option<Retained>,
    /// What keeps it from working, in the words of `check`.
    pub errors: Vec<Finding>,
    /// Name of the source endpoint, for messages.
    pub source: String,
    /// The task as configured, to tell what changed (JSON without secrets).
    pub config: String,
    /// Last change of this record (microseconds since 1970-01-01 UTC).
    pub changed_us: i64,
}

impl TaskRecord {
    /// Whether it does not run, and nobody asked for that. A task that tries again after an error has failed until it runs.
    pub fn has_failed(&self) -> bool {
        let again = matches!(self.state, TaskState::Starting | TaskState::Stopping)
            && self.errors.iter().any(|finding| finding.severity == millrace_core::Severity::Error);
        again
            || self.state == TaskState::Failed
            || matches!(self.stop_reason.as_deref(), Some(SOURCE_LOG_LIMIT | SOURCE_LOG_DROPPED))
    }
}
