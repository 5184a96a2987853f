//! `millrace check`: everything that is wrong, at once. The config first (exit 2), then the world (exit 3).

use std::{process::ExitCode, sync::Arc};

use millrace_core::Finding;
use serde_json::json;

use super::{Context, Failure, Outcome, block_on, output};
use crate::{
    config::Config,
    daemon::tasks::{Shared, vanished, wire},
    replication,
    state::memory::MemoryState,
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
    told.extend(block_on(check_world(&config))?);
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

/// The findings of all tasks, which are checked at the same time.
async fn check_world(config: &Config) -> Vec<Told> {
    let shared = throwaway();
    let checks = config.tasks.values().filter(|task| !task.removed).map(|task| {
        let shared = &shared;
        async move {
            let findings = match wire(config, task, shared) {
                Ok(wiring) => replication::check(&wiring).await,
                Err(error) => vec![Finding::from(&error)],
            };
            let told = |finding: &Finding| Told::of_task(config, &task.name, finding);
            findings.iter().map(told).collect::<Vec<Told>>()
        }
    });
    futures::future::join_all(checks).await.into_iter().flatten().collect()
}
