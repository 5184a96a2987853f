//! `millrace plan`: what the config would create, load, reload and drop, and which table is captured how.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use millrace_core::{Capture, Severity, Table, TableName};
use serde::Serialize;

use super::{Context, Failure, Outcome, block_on, check::throwaway, output};
use crate::{
    config::{Config, TaskConfig, units::show_bytes},
    daemon::tasks::{vanished, wire},
    registry,
    replication::{
        moved,
        rules::Rules,
        tables::{is_retyped, recaptured_as},
    },
    state::{
        StateStore,
        keys::table::{self, TableRecord, TableState},
        read_all,
    },
    telemetry::report::Told,
};

#[derive(Debug, Serialize)]
struct TaskPlan {
    task: String,
    mode: &'static str,
    source: String,
    target: String,
    /// What is to be made at the source; empty if it is there or nothing is captured.
    makes: Vec<String>,
    tables: Vec<TablePlan>,
    findings: Vec<Told>,
}

#[derive(Debug, Serialize)]
struct TablePlan {
    schema: String,
    name: String,
    target: String,
    action: &'static str,
    capture: &'static str,
    key: Vec<String>,
    estimated_rows: u64,
    estimated_bytes: u64,
    /// The statement that lets updates and deletes be captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

pub fn plan(context: &Context) -> Outcome {
    let config = context.config()?;
    let state = context.state_if_any(&config)?.map(|state| Arc::new(state) as Arc<dyn StateStore>);
    let tasks = config.tasks.values().filter(|task| !task.removed);
    let plans = block_on(futures::future::join_all(tasks.map(|task| plan_task(&config, task, state.as_ref()))))?;
    let mut told_of_all = match &state {
        Some(state) => vanished(&config, &**state)?,
        None => vec![],
    };
    let mut plans_made = vec![];
    for plan in plans {
        match plan {
            Ok(plan) => plans_made.push(plan),
            Err(failure) => told_of_all.extend(failure.told),
        }
    }
    let removed: Vec<&String> = config.tasks.values().filter(|task| task.removed).map(|task| &task.name).collect();
    let wrong = plans_made.iter().flat_map(|plan| &plan.findings).any(Told::is_error);
    let value = serde_json::json!({ "tasks": plans_made, "removes": removed, "findings": told_of_all });
    output::print(context, &value, || {
        let removed = removed.iter().map(|name| format!("task {name}: deleted, at its source too\n"));
        let told = told_of_all.iter().map(|told| format!("{told}\n"));
        plans_made.iter().map(text).chain(removed).chain(told).collect::<Vec<_>>().join("\n")
    });
    Ok(if told_of_all.is_empty() && !wrong { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

async fn plan_task(
    config: &Config,
    task: &TaskConfig,
    state: Option<&Arc<dyn StateStore>>,
) -> Result<TaskPlan, Failure> {
    let told = |error: millrace_core::Error, endpoint: &str| {
        let finding = millrace_core::Finding::from(&error).at(endpoint);
        Failure::world(vec![Told::of_task(config, &task.name, &finding)])
    };
    let wiring = wire(config, task, &throwaway()).map_err(|error| told(error, &task.target))?;
    let found = wiring.source.tables(&task.selection()).await.map_err(|error| told(error, &task.source))?;
    let there = wiring.source.retained().await.map_err(|error| told(error, &task.source))?;
    let records: Vec<(String, TableRecord)> = match state {
        Some(state) => read_all(&**state, &table::prefix(&task.name))?,
        None => vec![],
    };
    let records: BTreeMap<TableName, TableRecord> =
        records.into_iter().map(|(_, record)| (record.table.name.clone(), record)).collect();
    let endpoint = config.endpoints.get(&task.source);
    let makes = match (endpoint, task.mode.captures() && there.is_none()) {
        (Some(endpoint), true) => registry::made_at_source(endpoint, &task.name),
        _ => vec![],
    };
    let rules = Rules::new(task);
    let fix = |shape: &Table| endpoint.and_then(|endpoint| registry::capture_all(endpoint, shape));
    let mut tables: Vec<TablePlan> =
        found.iter().map(|shape| plan_table(task, &rules, shape, records.get(&shape.name), fix(shape))).collect();
    for record in records.values().filter(|record| !found.iter().any(|shape| shape.name == record.table.name)) {
        if record.state != TableState::Cancelled {
            let action = match task.selection().matches(&record.table.name) {
                true => "gone at the source",
                false => "leave the task; its files stay",
            };
            tables.push(TablePlan { action, ..plan_table(task, &rules, &record.table, Some(record), None) });
        }
    }
    let mut findings = rules.check(&found);
    if let Some(state) = state {
        findings.extend(moved::find(task, state, &*wiring.destination)?.map(|finding| finding.at(&task.target)));
    }
    Ok(TaskPlan {
        task: task.name.clone(),
        mode: task.mode.as_str(),
        source: task.source.clone(),
        target: task.target.clone(),
        makes,
        tables,
        findings: findings.iter().map(|finding| Told::of_task(config, &task.name, finding)).collect(),
    })
}

fn plan_table(
    task: &TaskConfig,
    rules: &Rules,
    shape: &Table,
    record: Option<&TableRecord>,
    fix: Option<String>,
) -> TablePlan {
    let mapped = rules.shape(shape);
    let key = mapped.target.key.iter().filter_map(|&key| mapped.target.columns.get(key)).map(|c| c.name.clone());
    let capture = match (task.mode.captures(), shape.capture) {
        (false, _) => "nothing",
        (true, Capture::All) => "all changes",
        (true, Capture::InsertsOnly) => "inserts only",
    };
    TablePlan {
        schema: shape.name.schema.clone(),
        name: shape.name.name.clone(),
        target: rules.target(&shape.name).to_string(),
        action: action(task, rules, shape, record),
        capture,
        key: key.collect(),
        estimated_rows: shape.estimated_rows,
        estimated_bytes: shape.estimated_bytes,
        fix: fix.filter(|_| capture == "inserts only"),
    }
}

fn action(task: &TaskConfig, rules: &Rules, shape: &Table, record: Option<&TableRecord>) -> &'static str {
    let loads = task.mode.loads();
    let Some(record) = record else { return if loads { "load" } else { "capture" } };
    match record.state {
        TableState::Cancelled | TableState::Missing if loads => "load",
        TableState::Cancelled | TableState::Missing => "capture",
        _ if record.target != rules.target(&shape.name)
            || record.rule != rules.text(&shape.name)
            || is_retyped(&record.table, shape) =>
        {
            "reload (new rules)"
        }
        TableState::BeforeLoad => "load",
        TableState::FullLoad | TableState::Reloading => "go on loading",
        TableState::Error => "stay suspended; millrace reload",
        TableState::Completed if loads && task.mode.captures() && recaptured_as(&record.table, shape).is_some() => {
            "reload (other changes can be captured)"
        }
        TableState::Completed => "go on",
    }
}

fn text(plan: &TaskPlan) -> String {
    let mut text = format!("task {}: {}, {} → {}\n", plan.task, plan.mode, plan.source, plan.target);
    for made in &plan.makes {
        text.push_str(&format!("  makes at {}: {made}\n", plan.source));
    }
    let rows = plan.tables.iter().map(|table| {
        vec![
            format!("  {}.{}", table.schema, table.name),
            table.target.clone(),
            table.action.to_string(),
            table.capture.to_string(),
            match (table.key.is_empty(), table.capture) {
                (false, _) => table.key.join(", "),
                (true, "all changes") => "none: whole rows".into(),
                (true, _) => "none: append-only".into(),
            },
            format!("~{}", output::number(table.estimated_rows)),
            show_bytes(table.estimated_bytes),
        ]
    });
    let header = ["  TABLE", "TARGET", "ACTION", "CAPTURES", "KEY", "ROWS", "BYTES"];
    text.push_str(&output::table(&header, &[5, 6], rows.collect()));
    text.push('\n');
    let fixes: Vec<&String> = plan.tables.iter().filter_map(|table| table.fix.as_ref()).collect();
    if !fixes.is_empty() {
        text.push_str("  not captured: updates and deletes of tables with \"inserts only\". To capture them, run at the source:\n");
        for fix in fixes {
            text.push_str(&format!("    {fix}\n"));
        }
    }
    for finding in plan.findings.iter().filter(|told| told.finding.severity >= Severity::Warning) {
        text.push_str(&format!("{finding}\n"));
    }
    text
}
