//! The one form in which trouble is told, by `check`, by `run`, and as JSON: what happened, where, what the server said,
//! what it means and what to do, in at most twelve lines.

use std::fmt;

use millrace_core::{Finding, Severity};
use serde::Serialize;

use crate::config::{Config, Problem};

const LINES_MAX: usize = 12;

/// A finding and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The task, if it belongs to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
    /// The config file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

impl Told {
    /// A finding about the daemon as a whole.
    pub fn of_daemon(finding: Finding) -> Self {
        Self { task: None, finding, file: None, line: None, column: None }
    }

    /// A problem of a config file.
    pub fn of_config(file: &std::path::Path, problem: &Problem) -> Self {
        Self {
            file: Some(file.display().to_string()),
            line: problem.at.map(|at| at.line),
            column: problem.at.map(|at| at.column),
            ..Self::of_daemon(problem.finding.clone())
        }
    }

    /// A finding about a task: the line is its endpoint's, or its own.
    pub fn of_task(config: &Config, task: &str, finding: &Finding) -> Self {
        let endpoint = finding.endpoint.as_ref().and_then(|name| config.endpoints.get(name));
        let line = endpoint.map(|endpoint| endpoint.line).or_else(|| config.tasks.get(task).map(|task| task.line));
        Self {
            task: Some(task.into()),
            file: Some(config.file.display().to_string()),
            line,
            ..Self::of_daemon(finding.clone())
        }
    }

    /// Whether it keeps something from working.
    pub fn is_error(&self) -> bool {
        self.finding.severity == Severity::Error
    }

    fn origin(&self) -> Option<String> {
        let mut origin = vec![];
        if let Some(task) = &self.task {
            origin.push(format!("task {task}"));
        }
        if let Some(endpoint) = &self.finding.endpoint {
            origin.push(format!("endpoint {endpoint}"));
        }
        let place = self.file.as_ref().map(|file| {
            let number = |number: Option<usize>| number.map_or(String::new(), |number| format!(":{number}"));
            format!("{file}{}{}", number(self.line), number(self.column))
        });
        match (origin.is_empty(), place) {
            (true, place) => place,
            (false, Some(place)) => Some(format!("{} ({place})", origin.join(", "))),
            (false, None) => Some(origin.join(", ")),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.is_error() { "error" } else { "warning" };
        write!(f, "{severity}[{}]: {}", self.finding.code, self.finding.summary)?;
        let mut lines: Vec<String> = self.origin().into_iter().collect();
        lines.extend(self.finding.detail.iter().flat_map(|detail| detail.lines()).map(String::from));
        let fix = self.finding.fix.iter().flat_map(|fix| fix.lines());
        let fix: Vec<String> = fix
            .enumerate()
            .map(|(index, line)| if index == 0 { format!("fix: {line}") } else { format!("     {line}") })
            .collect();
        // The remedy goes before the details when both are too long, and the place before either.
        let room = LINES_MAX - 1;
        if lines.len() + fix.len() > room {
            lines.truncate(room.saturating_sub(fix.len() + 1).max(2));
        }
        let shown = fix.len().min(room - lines.len());
        let cut = shown < fix.len() || lines.len() + fix.len() < self.length();
        let shown = if cut { shown.min(room - lines.len() - 1) } else { shown };
        for line in lines.iter().chain(&fix[..shown]) {
            write!(f, "\n  {line}")?;
        }
        if cut {
            write!(f, "\n  (more of it: millrace check --json)")?;
        }
        Ok(())
    }
}

impl Told {
    /// Lines below the first, uncut.
    fn length(&self) -> usize {
        let count = |lines: &[String]| lines.iter().map(|text| text.lines().count()).sum::<usize>();
        usize::from(self.origin().is_some()) + count(&self.finding.detail) + count(&self.finding.fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(details: usize, fixes: usize) -> Told {
        let mut finding = Finding::error("PG-SLOT-LOST", "the slot is gone").at("shop-pg");
        finding.detail = (0..details).map(|n| format!("detail {n}")).collect();
        finding.fix = (0..fixes).map(|n| format!("fix {n};")).collect();
        let place = Some("millrace.yaml".to_string());
        Told { task: Some("t".into()), file: place, line: Some(3), ..Told::of_daemon(finding) }
    }

    #[test]
    fn it_says_what_where_why_and_what_to_do() {
        assert_eq!(
            told(1, 2).to_string(),
            "error[PG-SLOT-LOST]: the slot is gone\n  task t, endpoint shop-pg (millrace.yaml:3)\n  detail 0\n  \
             fix: fix 0;\n       fix 1;"
        );
        let alone = Told { task: None, finding: Finding::warning("X", "y"), column: Some(7), ..told(0, 0) };
        assert_eq!(alone.to_string(), "warning[X]: y\n  millrace.yaml:3:7");
    }

    #[test]
    fn twelve_lines_are_enough() {
        for details in 0..20 {
            for fixes in 0..20 {
                let text = told(details, fixes).to_string();
                let lines = text.lines().count();
                assert!(lines <= 12, "{text}");
                assert_eq!(text.contains("(more of it"), 2 + details + fixes > 12, "{details} {fixes}\n{text}");
                assert_eq!(text.contains("fix: fix 0;"), fixes > 0);
                assert!(text.contains("millrace.yaml:3"));
            }
        }
    }
}
