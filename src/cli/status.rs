//! `millrace status`: the tasks; read from the state, with what only a running daemon knows where one answers.

use std::{collections::BTreeMap, fmt::Write, path::Path, process::ExitCode, time::Duration};

use millrace_core::{Finding, Result};
use serde::Serialize;

use super::{Context, Outcome, output};
use crate::{
    config::{
        Config, TaskConfig,
        units::{show_bytes, show_duration},
    },
    daemon::{
        control::{Reply, Request, ask},
        tasks::disk_bound,
    },
    state::{
        StateStore,
        keys::{
            checkpoint::{self, Checkpoint, Flow},
            table::{self, TableRecord},
            task::{self, TaskRecord, TaskState},
        },
        read, read_all,
    },
    telemetry::{metrics::Live, report::Told, show_time},
};

/// As many suspended tables are shown with their reason.
const STANDING_SHOWN: usize = 5;
/// Changes that wait longer than this are told as a backlog.
const STALLED_SECONDS: f64 = 60.0;

#[derive(Debug, Serialize)]
struct Status {
    /// Whether a daemon answers; if not, everything is as it was left.
    daemon_runs: bool,
    tasks: Vec<TaskStatus>,
}

#[derive(Debug, Serialize)]
struct TaskStatus {
    task: String,
    state: TaskState,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<String>,
    paused: bool,
    mode: &'static str,
    source: String,
    target: String,
    /// Everything that committed before this is durable here.
    position: Option<String>,
    changed: String,
    /// What the source keeps for us.
    retained_bytes: Option<u64>,
    /// What it may still write before it gives up on us; `None`: no limit, or not known.
    safe_bytes: Option<u64>,
    slot_status: Option<String>,
    stream_bytes: u64,
    stream_bytes_max: Option<u64>,
    /// In how many seconds the stream will have reached that, at the least, if nothing is delivered until then.
    stream_full_in_seconds: Option<f64>,
    /// The table whose delivery is farthest behind: the stream keeps everything from there on.
    pinned_by: Option<Pin>,
    /// Tables by state, in DMS's words.
    tables: BTreeMap<&'static str, usize>,
    dead_letters: u64,
    #[serde(flatten)]
    live: Live,
    errors: Vec<Told>,
    /// Tables that are suspended or gone, and why.
    standing: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Pin {
    table: String,
    flow: Flow,
    log_position: String,
}

/// With `running`, a daemon that does not answer is a failure.
pub fn status(context: &Context, running: bool) -> Outcome {
    let config = context.config()?;
    let mut live = BTreeMap::new();
    let answered = ask(&config.state_dir, &Request::Live, |reply| {
        if let Reply::Live(found) = reply {
            live = found;
        }
    });
    let mut tasks = vec![];
    if let Some(state) = context.state_if_any(&config)? {
        for task in config.tasks.values() {
            tasks.push(look(&config, task, &state, live.remove(&task.name).unwrap_or_default())?);
        }
    }
    let status = Status { daemon_runs: answered.is_ok(), tasks };
    output::print(context, &status, || {
        let daemon = match status.daemon_runs {
            true => "daemon: runs\n".to_string(),
            false => "daemon: does not run; this is how it left things\n".to_string(),
        };
        [daemon].into_iter().chain(status.tasks.iter().map(text)).collect::<Vec<_>>().join("\n")
    });
    Ok(if running && !status.daemon_runs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn look(config: &Config, task: &TaskConfig, state: &dyn StateStore, live: Live) -> Result<TaskStatus> {
    let record: TaskRecord = read(state, &task::key(&task.name))?.unwrap_or_default();
    let tables: Vec<(String, TableRecord)> = read_all(state, &table::prefix(&task.name))?;
    let checkpoints: Vec<(String, Checkpoint)> = read_all(state, &checkpoint::prefix(&task.name))?;
    let mut by_state = BTreeMap::new();
    for (_, table) in &tables {
        *by_state.entry(table.state.as_str()).or_insert(0) += 1;
    }
    let behind = checkpoints.iter().map(|(_, checkpoint)| checkpoint).filter(|found| found.flow != Flow::Suspended);
    let pinned_by = behind.min_by_key(|checkpoint| checkpoint.through).map(|checkpoint| Pin {
        table: checkpoint.target.to_string(),
        flow: checkpoint.flow,
        log_position: checkpoint.through.to_string(),
    });
    let stream_bytes_max = task.stream.disk_bytes_max.or_else(|| disk_bound(config));
    let findings = record.errors.iter().chain(unless_told(&record)).chain(&record.target);
    let errors = findings.map(|finding| Told::of_task(config, &task.name, finding)).collect();
    let retained = record.retained.unwrap_or_default();
    let known = |bytes: u64| (!retained.status.is_empty()).then_some(bytes);
    Ok(TaskStatus {
        task: task.name.clone(),
        state: record.state,
        stop_reason: record.stop_reason,
        paused: record.paused,
        mode: task.mode.as_str(),
        source: task.source.clone(),
        target: task.target.clone(),
        position: record.position.map(|position| position.to_string()),
        changed: show_time(record.changed_us),
        retained_bytes: known(retained.retained_bytes),
        safe_bytes: retained.safe_bytes,
        slot_status: (!retained.status.is_empty()).then_some(retained.status),
        stream_bytes: folder_bytes(&config.state_dir.join("streams").join(&task.name)),
        stream_bytes_max,
        stream_full_in_seconds: stream_bytes_max.and_then(|bound| full_in_seconds(&live, bound)),
        pinned_by: pinned_by.filter(|_| task.mode.captures()),
        tables: by_state,
        dead_letters: checkpoints.iter().map(|(_, checkpoint)| checkpoint.dead_letters).sum(),
        live,
        errors,
        standing: tables
            .into_iter()
            .filter_map(|(_, table)| Some((table.table.name.to_string(), table.error?)))
            .collect(),
    })
}

/// What the guardian of the source's log says, unless it has become the task's own error.
fn unless_told(record: &TaskRecord) -> Option<&Finding> {
    record.guard.as_ref().filter(|guard| record.errors.iter().all(|error| error.code != guard.code))
}

/// The changes that wait came in as long as the oldest of them is old, and will go on coming like that. They are counted
/// before compression, so that it will be later rather than sooner. `None` while delivery keeps up.
fn full_in_seconds(live: &Live, bytes_max: u64) -> Option<f64> {
    let (waiting, lag) = (live.buffer_bytes? as f64, live.target_lag_seconds?);
    (lag >= STALLED_SECONDS && waiting > 0.0).then(|| (bytes_max as f64 - waiting).max(0.0) * lag / waiting)
}

/// Bytes of the files directly in a folder; 0 if it is not there.
fn folder_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(std::fs::Metadata::is_file).map(|found| found.len()).sum()
}

fn text(status: &TaskStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<10}{value}");
        }
    };
    let seconds = |value: f64| show_duration(Duration::from_secs_f64(value.clamp(0.0, 1e9)));
    let lag = status.live.source_lag_seconds.map_or(String::new(), |lag| format!(", {} behind", seconds(lag)));
    line("position", status.position.as_ref().map_or(String::new(), |position| format!("{position}{lag}")));
    if let Some(retained) = status.retained_bytes {
        let safe =
            status.safe_bytes.map_or("without a limit".into(), |safe| format!("{} more are safe", show_bytes(safe)));
        let slot = status.slot_status.as_deref().unwrap_or_default();
        let left = status.live.source_limit_seconds.filter(|left| *left >= 0.0);
        let left = left.map_or(String::new(), |left| format!(", used up in {}", seconds(left)));
        line("source", format!("keeps {} for us, {safe}{left} ({slot})", show_bytes(retained)));
    }
    if status.mode != "full-load" {
        let bound = status.stream_bytes_max.map_or(String::new(), |bytes| format!(" of {}", show_bytes(bytes)));
        let flow = |flow: Flow| if flow == Flow::Waiting { "waits for its load" } else { "farthest behind" };
        // With nothing undelivered, what is kept is kept for its retention only.
        let waits = status.live.buffer_bytes != Some(0);
        let pin = status.pinned_by.as_ref().filter(|pin| waits || pin.flow == Flow::Waiting);
        let pin = pin.map_or(String::new(), |pin| format!(", kept for {} ({})", pin.table, flow(pin.flow)));
        let full = status.stream_full_in_seconds;
        let full = full.map_or(String::new(), |left| format!(", full in {} at the earliest", seconds(left)));
        line("stream", format!("{}{bound}{pin}{full}", show_bytes(status.stream_bytes)));
    }
    let waits = status.live.buffer_bytes.and_then(|bytes| u64::try_from(bytes).ok());
    let waits = waits.map(|bytes| format!("{} wait", show_bytes(bytes)));
    let lag = status.live.target_lag_seconds.map(|lag| format!("{} behind", seconds(lag)));
    let paused = status.paused.then(|| "paused".to_string());
    line("delivery", [paused, lag, waits].into_iter().flatten().collect::<Vec<_>>().join(", "));
    let tables = status.tables.iter().map(|(state, count)| format!("{count} {state}"));
    line("tables", tables.collect::<Vec<_>>().join(", "));
    for (table, why) in status.standing.iter().take(STANDING_SHOWN) {
        line("", format!("{table}: {why}"));
    }
    if status.standing.len() > STANDING_SHOWN {
        line("", format!("and {} more: millrace tables {}", status.standing.len() - STANDING_SHOWN, status.task));
    }
    let unaccounted = status.live.unaccounted_rows.map_or(String::new(), |rows| format!("{rows} unaccounted, "));
    line("rows", format!("{unaccounted}{} in the dead letters", output::number(status.dead_letters)));
    let state = serde_json::to_string(&status.state).unwrap_or_default();
    let why = status.stop_reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let (task, mode) = (&status.task, status.mode);
    let head = format!("task {task}: {}{why}, {mode}, {} → {}", state.trim_matches('"'), status.source, status.target);
    let errors = status.errors.iter().map(|told| format!("{told}\n"));
    [format!("{head}\n"), text].into_iter().chain(errors).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_what_waits_and_since_when() {
        let live = |bytes, lag| Live { buffer_bytes: Some(bytes), target_lag_seconds: Some(lag), ..Live::default() };
        assert_eq!(full_in_seconds(&live(1 << 30, 3600.0), 11 << 30), Some(36_000.0));
        assert_eq!(full_in_seconds(&live(12 << 30, 3600.0), 11 << 30), Some(0.0));
        assert_eq!(full_in_seconds(&live(1 << 30, 5.0), 11 << 30), None);
        assert_eq!(full_in_seconds(&live(0, 3600.0), 11 << 30), None);
        assert_eq!(full_in_seconds(&Live::default(), 1), None);
    }
}
