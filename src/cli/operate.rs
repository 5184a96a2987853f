//! `millrace pause|resume|stop|reload|delete`: asked of the running daemon over its control socket.

use std::process::ExitCode;

use millrace_core::{Finding, TableName};
use serde_json::json;

use super::{Context, Failure, Outcome, output};
use crate::daemon::control::{Reply, Request, ask};

pub fn pause(context: &Context, task: String) -> Outcome {
    send(context, &Request::Pause { task })
}

pub fn resume(context: &Context, task: String) -> Outcome {
    send(context, &Request::Resume { task })
}

pub fn stop(context: &Context, task: String) -> Outcome {
    send(context, &Request::Stop { task })
}

pub fn reload(context: &Context, task: String, table: Option<&str>) -> Outcome {
    let table = table.map(|text| {
        let parts = text.split_once('.').filter(|(schema, name)| !schema.is_empty() && !name.is_empty());
        parts.map(|(schema, name)| TableName::new(schema, name)).ok_or_else(|| {
            let finding = Finding::error("TABLE-NAME", format!("{text} is no table's name"));
            Failure::of(finding.fix("write schema.table, as the source shows it"))
        })
    });
    send(context, &Request::Reload { task, table: table.transpose()? })
}

pub fn delete(context: &Context, task: String) -> Outcome {
    send(context, &Request::Delete { task })
}

fn send(context: &Context, request: &Request) -> Outcome {
    let config = context.config()?;
    let mut lines = vec![];
    let done = ask(&config.state_dir, request, |reply| {
        if let Reply::Line(line) = reply {
            lines.push(line);
        }
    });
    done?;
    output::print(context, &json!({ "done": true, "lines": lines }), || lines.join("\n"));
    Ok(ExitCode::SUCCESS)
}
