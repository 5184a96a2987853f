//! `millrace tables`: the tables of the tasks, with DMS's words for their states.

use std::{collections::BTreeMap, process::ExitCode};

use millrace_core::{Capture, Result};
use serde::Serialize;

use super::{Context, Outcome, known_task, output};
use crate::{
    config::{Config, TaskConfig},
    registry,
    state::{
        StateStore,
        keys::{
            checkpoint::{self, Checkpoint, Counts},
            progress::{self, LoadProgress},
            table::{self, TableRecord},
        },
        read, read_all,
    },
};

#[derive(Debug, Serialize)]
struct TableStatus {
    task: String,
    schema: String,
    name: String,
    target: String,
    state: &'static str,
    capture: &'static str,
    key: Vec<String>,
    #[serde(flatten)]
    counts: Counts,
    /// Rows in the dead letters: as many keys may be stale.
    dead_letters: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<LoadProgress>,
    load_elapsed_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The statement that lets updates and deletes be captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

pub fn tables(context: &Context, task: Option<&str>) -> Outcome {
    let config = context.config()?;
    let tasks = match task {
        Some(name) => vec![known_task(&config, name)?],
        None => config.tasks.values().collect(),
    };
    let state = context.state(&config)?;
    let mut tables = vec![];
    for task in tasks {
        tables.extend(look(&config, task, &state)?);
    }
    output::print(context, &tables, || text(&tables));
    Ok(ExitCode::SUCCESS)
}

fn look(config: &Config, task: &TaskConfig, state: &dyn StateStore) -> Result<Vec<TableStatus>> {
    let records: Vec<(String, TableRecord)> = read_all(state, &table::prefix(&task.name))?;
    let loads: BTreeMap<String, LoadProgress> = read(state, &progress::key(&task.name))?.unwrap_or_default();
    let endpoint = config.endpoints.get(&task.source);
    let mut tables = vec![];
    for (_, record) in records {
        let shape = &record.table;
        let delivery: Checkpoint = read(state, &checkpoint::key(&task.name, &record.target))?.unwrap_or_default();
        let inserts_only = task.mode.captures() && shape.capture == Capture::InsertsOnly;
        let fix = endpoint.filter(|_| inserts_only).and_then(|endpoint| registry::capture_all(endpoint, shape));
        let key = shape.key.iter().filter_map(|&key| shape.columns.get(key)).map(|column| column.name.clone());
        tables.push(TableStatus {
            task: task.name.clone(),
            schema: shape.name.schema.clone(),
            name: shape.name.name.clone(),
            target: record.target.to_string(),
            state: record.state.as_str(),
            capture: match (task.mode.captures(), inserts_only) {
                (false, _) => "nothing",
                (true, true) => "inserts only",
                (true, false) => "all changes",
            },
            key: key.collect(),
            counts: delivery.counts,
            dead_letters: delivery.dead_letters,
            progress: loads.get(&shape.name.to_string()).cloned(),
            load_elapsed_ms: record.load_elapsed_ms,
            error: record.error,
            fix,
        });
    }
    Ok(tables)
}

fn text(tables: &[TableStatus]) -> String {
    let row = |table: &TableStatus| {
        let counts = &table.counts;
        let progress = table.progress.as_ref().map(|load| match load.rows_estimated {
            0 => format!(": {} rows", output::number(load.rows)),
            estimated => {
                format!(": {} % of ~{} rows", (100 * load.rows / estimated).min(99), output::number(estimated))
            }
        });
        let mut row = vec![
            table.task.clone(),
            format!("{}.{}", table.schema, table.name),
            table.target.clone(),
            format!("{}{}", table.state, progress.unwrap_or_default()),
            table.capture.to_string(),
        ];
        let filtered = counts.filtered.values().sum();
        for count in [counts.loaded, counts.inserts, counts.updates, counts.deletes, filtered, table.dead_letters] {
            row.push(output::number(count));
        }
        row
    };
    let header =
        ["TASK", "TABLE", "TARGET", "STATE", "CAPTURES", "LOADED", "INSERTS", "UPDATES", "DELETES", "FILTERED", "DEAD"];
    let mut text = output::table(&header, &[5, 6, 7, 8, 9, 10], tables.iter().map(row).collect());
    text.push('\n');
    for table in tables {
        if let Some(error) = &table.error {
            text.push_str(&format!("{}.{}: {error}\n", table.schema, table.name));
        }
    }
    let fixes: Vec<&String> = tables.iter().filter_map(|table| table.fix.as_ref()).collect();
    if !fixes.is_empty() {
        text.push_str("updates and deletes of tables with \"inserts only\" are not captured; to capture them, run at the source:\n");
        for fix in fixes {
            text.push_str(&format!("  {fix}\n"));
        }
    }
    text
}
