//! `millrace follow`: a line whenever more of a task's changes is durable in its stream.

use std::process::ExitCode;

use super::{Context, Outcome, output};
use crate::{
    daemon::control::{Reply, Request, ask},
    telemetry::show_time,
};

pub fn follow(context: &Context, task: String) -> Outcome {
    let config = context.config()?;
    ask(&config.state_dir, &Request::Follow { task }, |reply| {
        let Reply::Head(head) = reply else { return };
        if context.json {
            // One line each, for programs that read them as they come.
            return output::line(&serde_json::to_string(&head).unwrap_or_default());
        }
        let (time, rows) = (show_time(head.arrival_us), output::number(head.captured));
        output::line(&format!("{time}  {}  {rows} changes", head.position));
    })?;
    Ok(ExitCode::SUCCESS)
}
