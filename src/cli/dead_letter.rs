//! `millrace dead-letter list`: rows that their columns could not hold, as the source sent them.

use std::{process::ExitCode, sync::Arc};

use clap::Subcommand;
use millrace_core::{Error, Kind, error::Context as _};
use serde_json::{Value, json};

use super::{Context, Failure, Outcome, block_on, known_task, output};
use crate::{
    catalog::{Catalog, CatalogName, DataFile},
    config::{Config, TaskConfig},
    daemon::tasks::wire,
    state::{
        keys::table::{self, TableRecord},
        read_all,
        sqlite::SqliteState,
    },
};

#[derive(Debug, Subcommand)]
pub enum Look {
    /// Each row with its table, key, place, reason and the source's own text
    List {
        /// Of this task only
        task: Option<String>,
    },
}

pub fn dead_letter(context: &Context, look: Look) -> Outcome {
    let Look::List { task } = look;
    let config = context.config()?;
    let tasks = match &task {
        Some(name) => vec![known_task(&config, name)?],
        None => config.tasks.values().collect(),
    };
    let state = Arc::new(context.state(&config)?);
    let mut letters = vec![];
    for task in tasks {
        letters.extend(block_on(list(&config, task, &state))??);
    }
    output::print(context, &letters, || {
        let row = |letter: &Value| {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
            let table = format!("{}.{}", text(&letter["table"]["schema"]), text(&letter["table"]["name"]));
            vec![
                text(&letter["task"]),
                table,
                key(letter),
                text(&letter["op"]),
                text(&letter["column"]),
                text(&letter["reason"]),
            ]
        };
        output::table(&["TASK", "TABLE", "KEY", "OP", "COLUMN", "REASON"], &[], letters.iter().map(row).collect())
    });
    Ok(ExitCode::SUCCESS)
}

fn key(letter: &Value) -> String {
    let parts = letter["key"].as_array().into_iter().flatten();
    let part = |part: &Value| format!("{}={}", part[0].as_str().unwrap_or("?"), part[1].as_str().unwrap_or("null"));
    parts.map(part).collect::<Vec<_>>().join(" ")
}

async fn list(config: &Config, task: &TaskConfig, state: &Arc<SqliteState>) -> Result<Vec<Value>, Failure> {
    let catalog = Catalog::new(state.clone());
    let records: Vec<(String, TableRecord)> = read_all(&**state, &table::prefix(&task.name))?;
    let mut files: Vec<DataFile> = vec![];
    for (_, record) in records {
        files.extend(catalog.dead_letters(&CatalogName::of(&record.target))?);
    }
    if files.is_empty() {
        return Ok(vec![]);
    }
    let target = wire(config, task, &super::check::throwaway())?.destination;
    let mut letters = vec![];
    for file in files {
        let bytes = target.read(&file.key).await?;
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let doing = || format!("reading the dead letters {}", file.path);
            let mut letter: Value = serde_json::from_slice(line).context(Kind::Target, doing)?;
            if !letter.is_object() {
                return Err(Error::new(Kind::Target, format!("{}: a line is no object", doing())).into());
            }
            letter["task"] = json!(task.name);
            letter["file"] = json!(file.path);
            letters.push(letter);
        }
    }
    Ok(letters)
}
