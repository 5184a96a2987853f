//! Watches what the tasks write into the state, and tells it: errors in the form of `check` when they change, one line for
//! systemd, and whether a first start has come to nothing.

use std::collections::BTreeMap;

use millrace_core::{Finding, Result};
use tracing::{error, info, warn};

use super::notify;
use crate::{
    config::Config,
    state::{
        Put, StateStore,
        keys::task::{self, TaskRecord, TaskState},
        read_all,
    },
    telemetry::{
        logs::{self, Format},
        report::Told,
    },
};

/// What was seen last.
pub struct Watch {
    format: Format,
    told: BTreeMap<String, Vec<Finding>>,
    status: String,
}

/// Whether the daemon's first start has come to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Some task has still to find out.
    Open,
    /// A task runs, or this is not the first start.
    Fine,
    /// No task could start.
    Nothing,
}

impl Watch {
    /// Prepares the records for a start: a failure of the last run is no failure of this one. Gives the watch, and whether
    /// no task here ever passed its check.
    pub fn begin(state: &dyn StateStore, format: Format) -> Result<(Self, bool)> {
        let mut puts = vec![];
        for (name, record) in read_all::<TaskRecord>(state, task::PREFIX)? {
            if record.state == TaskState::Failed {
                let record = TaskRecord { state: TaskState::Creating, errors: vec![], ..record };
                puts.push(Put::set(task::key(&name), &record));
            }
        }
        if !puts.is_empty() {
            state.commit(&puts)?;
        }
        let first = nothing_joined(state)?;
        Ok((Self { format, told: BTreeMap::new(), status: String::new() }, first))
    }

    /// Looks once.
    pub fn look(&mut self, config: &Config, state: &dyn StateStore) -> Outcome {
        let records: Vec<(String, TaskRecord)> = match read_all(state, task::PREFIX) {
            Ok(records) => records,
            Err(error) => {
                error!(error = %error, "the tasks' states could not be read");
                return Outcome::Open;
            }
        };
        for (name, record) in &records {
            if self.told.get(name) != Some(&record.errors) {
                self.tell(config, name, &record.errors);
                self.told.insert(name.clone(), record.errors.clone());
            }
        }
        self.told.retain(|name, _| records.iter().any(|(known, _)| known == name));
        let status = summary(&records);
        if status != self.status {
            notify::status(&status);
            self.status = status;
        }
        match outcome(config, &records) {
            // One ran, and failed again between two looks: it is tried again.
            Outcome::Nothing if !nothing_joined(state).unwrap_or(false) => Outcome::Fine,
            outcome => outcome,
        }
    }

    fn tell(&self, config: &Config, task: &str, findings: &[Finding]) {
        for finding in findings {
            let told = Told::of_task(config, task, finding);
            match self.format {
                Format::Text => logs::tell(&told.to_string()),
                Format::Json if told.is_error() => {
                    error!(task, code = finding.code, fix = finding.fix.join("\n"), finding = %told, "task has an error");
                }
                Format::Json => warn!(task, code = finding.code, finding = %told, "task has a warning"),
            }
        }
        if findings.is_empty() && self.told.get(task).is_some_and(|told| !told.is_empty()) {
            info!(task, "task has no errors any more");
        }
    }
}

/// Whether no table ever joined a task: no task ever passed its check.
fn nothing_joined(state: &dyn StateStore) -> Result<bool> {
    Ok(state.scan("table/")?.is_empty())
}

fn summary(records: &[(String, TaskRecord)]) -> String {
    let count = |state: TaskState| records.iter().filter(|(_, record)| record.state == state).count();
    let failed: Vec<&str> =
        records.iter().filter(|(_, r)| r.state == TaskState::Failed).map(|(name, _)| name.as_str()).collect();
    let mut text = format!("{} of {} tasks run", count(TaskState::Running), records.len());
    if !failed.is_empty() {
        text.push_str(&format!("; failed: {}", failed.join(", ")));
    }
    text
}

fn outcome(config: &Config, records: &[(String, TaskRecord)]) -> Outcome {
    let mut wanted = config.tasks.values().filter(|task| !task.removed).peekable();
    if wanted.peek().is_none() {
        return Outcome::Fine;
    }
    let state = |name: &str| records.iter().find(|(known, _)| known == name).map(|(_, record)| record.state);
    let mut all_failed = true;
    for task in wanted {
        match state(&task.name) {
            Some(TaskState::Failed) => {}
            Some(TaskState::Running | TaskState::Stopping | TaskState::Stopped | TaskState::Deleting) => {
                return Outcome::Fine;
            }
            None | Some(TaskState::Creating | TaskState::Ready | TaskState::Starting) => all_failed = false,
        }
    }
    if all_failed { Outcome::Nothing } else { Outcome::Open }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Surroundings, state::memory::MemoryState};

    const TWO: &str = "endpoints: { h: { type: hello }, l: file:///l }\ntasks:\n  a: { source: h, target: l, tables: [h.g] }\n  b: { \
                       source: h, target: l, tables: [h.g] }\n";

    fn config() -> Config {
        Config::parse(Path::new("t.yaml"), TWO, &Surroundings::of(Path::new("t.yaml"))).unwrap()
    }

    fn set(state: &dyn StateStore, task: &str, to: TaskState) {
        let errors = vec![Finding::error("X", "y")];
        state.commit(&[Put::set(task::key(task), &TaskRecord { state: to, errors, ..TaskRecord::default() })]).unwrap();
    }

    #[test]
    fn a_first_start_is_decided_by_its_tasks() {
        let (config, state) = (config(), MemoryState::default());
        set(&state, "a", TaskState::Failed);
        let (mut watch, first) = Watch::begin(&state, Format::Text).unwrap();
        assert!(first);
        assert_eq!(watch.look(&config, &state), Outcome::Open, "a failure of the last run does not count");
        set(&state, "a", TaskState::Failed);
        assert_eq!(watch.look(&config, &state), Outcome::Open);
        set(&state, "b", TaskState::Starting);
        assert_eq!(watch.look(&config, &state), Outcome::Open);
        set(&state, "b", TaskState::Failed);
        assert_eq!(watch.look(&config, &state), Outcome::Nothing);
        set(&state, "b", TaskState::Running);
        assert_eq!(watch.look(&config, &state), Outcome::Fine);
        assert_eq!(watch.status, "1 of 2 tasks run; failed: a");
        state.commit(&[Put::set("table/a/x.y", &1)]).unwrap();
        set(&state, "b", TaskState::Failed);
        assert_eq!(watch.look(&config, &state), Outcome::Fine, "it ran, and nobody looked");
        assert!(!Watch::begin(&state, Format::Text).unwrap().1);
    }
}
