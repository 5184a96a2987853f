//! `millrace events`: what happened, oldest first.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Context, Outcome, known_task, output};
use crate::telemetry::{
    events::{Event, list},
    show_time,
};

pub fn events(context: &Context, last: usize, task: Option<&str>) -> Outcome {
    let config = context.config()?;
    if let Some(task) = task {
        known_task(&config, task)?;
    }
    let state = context.state(&config)?;
    let mut events = list(&state)?;
    events.retain(|event| task.is_none() || event.task.as_deref() == task);
    let events = &events[events.len().saturating_sub(last)..];
    let json: Vec<Value> = events.iter().map(to_json).collect();
    output::print(context, &json, || {
        let row = |event: &Event| {
            let of =
                [&event.task, &event.table].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
            let code = event.code.as_ref().map_or(String::new(), |code| format!("[{code}] "));
            vec![show_time(event.time_us), event.category.clone(), of, format!("{code}{}", event.message)]
        };
        output::table(&["TIME", "CATEGORY", "OF", "WHAT"], &[], events.iter().map(row).collect())
    });
    Ok(ExitCode::SUCCESS)
}

fn to_json(event: &Event) -> Value {
    let mut value = json!(event);
    value["time"] = json!(show_time(event.time_us));
    value
}
