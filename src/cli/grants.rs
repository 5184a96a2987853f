//! `millrace grants`: the SQL of a role with no more rights than the tasks need.

use std::process::ExitCode;

use serde_json::json;

use super::{Context, Outcome, known_task, output};
use crate::registry;

pub fn grants(context: &Context, task: Option<&str>, own_publications: bool, ddl_trigger: bool) -> Outcome {
    let config = context.config()?;
    let tasks = match task {
        Some(name) => vec![known_task(&config, name)?],
        None => config.tasks.values().filter(|task| !task.removed).collect(),
    };
    let of = |task: &&crate::config::TaskConfig| {
        let mut statements = vec![];
        if let Some(source) = config.endpoints.get(&task.source) {
            statements = registry::grants(source, task, own_publications);
            if ddl_trigger {
                statements.extend(registry::ddl_trigger(source));
            }
        }
        (task.name.clone(), statements)
    };
    let grants: Vec<(String, Vec<String>)> = tasks.iter().map(of).collect();
    let json: Vec<_> = grants.iter().map(|(task, sql)| json!({ "task": task, "statements": sql })).collect();
    output::print(context, &json, || {
        let text = |(task, sql): &(String, Vec<String>)| format!("-- task {task}\n{}\n", sql.join("\n"));
        grants.iter().map(text).collect::<Vec<_>>().join("\n")
    });
    Ok(ExitCode::SUCCESS)
}
