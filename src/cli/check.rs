//! `millrace check`: everything that is wrong, at once. The config first (exit 2), then the world (exit 3).

use std::{process::ExitCode, sync::Arc};

use millrace_core::{Finding, Severity};
use serde_json::json;

use super::{Context, Failure, Outcome, block_on, output};
use crate::{
    config::Config,
    daemon::{
        self,
        tasks::{Shared, vanished, wire},
    },
    replication::{self, neighbours::Owners},
    state::{
        keys::task::{self, TaskRecord},
        memory::MemoryState,
        read,
    },
    telemetry::{metrics::Metrics, report::Told},
};

pub fn check(context: &Context) -> Outcome {
    let config = context.config()?;
    // A state that this user may not read is no mistake of the config's.
    if let Ok(Some(state)) = context.state_if_any(&config) {
        let gone = vanished(&config, &state)?;
        if !gone.is_empty() {
            return Err(Failure::config(gone));
        }
    }
    let mut told: Vec<Told> = config.warnings.iter().map(|warning| Told::of_config(&config.file, warning)).collect();
    told.extend(daemon::obstacles(&config).into_iter().map(Told::of_daemon));
    let state = context.state_if_any(&config);
    let knows_tasks = state.is_ok();
    let shared = match state {
        // Who owns which table in the catalog stands in the state; a check only looks.
        Ok(Some(state)) => Shared { state: Arc::new(state), ..throwaway() },
        _ => throwaway(),
    };
    told.extend(block_on(check_world(&config, &shared, knows_tasks))?);
    let errors = told.iter().filter(|told| told.is_error()).count();
    let warnings = told.len() - errors;
    output::print(context, &json!({ "errors": errors, "warnings": warnings, "findings": told }), || {
        let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let summary = match told.is_empty() {
            true => format!("{}: nothing is wrong", plural(config.tasks.len(), "task")),
            false => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
        };
        told.iter().map(|told| format!("{told}\n")).chain([summary]).collect()
    });
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Nothing here is kept: a check leaves no trace.
pub(super) fn throwaway() -> Shared {
    Shared { state: Arc::new(MemoryState::default()), metrics: Arc::new(Metrics::default()), epoch: 0 }
}

/// The findings of all tasks, which are checked at the same time; then those between tasks that are both new, of which
/// the state knows nothing yet.
async fn check_world(config: &Config, shared: &Shared, knows_tasks: bool) -> Vec<Told> {
    let checks = config.tasks.values().filter(|task| !task.removed).map(async |task| {
        let (findings, tables) = match wire(config, task, shared) {
            Ok(wiring) => {
                let mut findings = replication::check(&wiring).await;
                let is_new = knows_tasks
                    && read::<TaskRecord>(&*shared.state, &task::key(&task.name)).is_ok_and(|r| r.is_none());
                if is_new && task.mode.captures() && !findings.iter().any(|found| found.severity == Severity::Error) {
                    let other = replication::find_no_other_log(&task.name, &*wiring.source).await;
                    // A warning, because another machine's state may know it well.
                    let warning = |error| Finding { severity: Severity::Warning, ..Finding::from(&error) };
                    findings.extend(other.err().map(|error| warning(error).at(&task.source)));
                }
                (findings, wiring.source.tables(&task.selection()).await.unwrap_or_default())
            }
            Err(error) => (vec![Finding::from(&error)], vec![]),
        };
        (task, findings, tables)
    });
    let (mut owners, mut told) = (Owners::default(), vec![]);
    for (task, mut findings, tables) in futures::future::join_all(checks).await {
        for (_, finding) in owners.add(task, &tables) {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        told.extend(findings.iter().map(|finding| Told::of_task(config, &task.name, finding)));
    }
    told
}
