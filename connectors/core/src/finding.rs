//! What `check` found: every problem at once, each with its remedy.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Works, but the operator should know.
    Warning,
    /// The task cannot start.
    Error,
}

/// One problem. Printed in at most twelve lines:
/// `error[CODE]: summary`, then detail lines, then `fix: …`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Error or warning.
    pub severity: Severity,
    /// A stable code such as `PG-WAL-LEVEL`.
    pub code: String,
    /// The endpoint it was found at, by its name in the config; `None` where it belongs to the task as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What is wrong, one sentence, lower case.
    pub summary: String,
    /// What the server said, and what it means; each entry is one line.
    pub detail: Vec<String>,
    /// What to do, in words that can be pasted (SQL, config, command); each entry is one line.
    pub fix: Vec<String>,
}

impl Finding {
    /// A finding that stops the task.
    pub fn error(code: &str, summary: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code: code.into(),
            endpoint: None,
            summary: summary.into(),
            detail: vec![],
            fix: vec![],
        }
    }

    /// A finding that does not.
    pub fn warning(code: &str, summary: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, summary) }
    }

    /// Says at which endpoint it was found.
    pub fn at(self, endpoint: &str) -> Self {
        Self { endpoint: Some(endpoint.into()), ..self }
    }

    /// Adds a line of detail.
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.detail.push(line.into());
        self
    }

    /// Adds a line of remedy.
    pub fn fix(mut self, line: impl Into<String>) -> Self {
        self.fix.push(line.into());
        self
    }
}

impl From<&Error> for Finding {
    fn from(error: &Error) -> Self {
        let mut finding = Self::error(error.kind.code(), error.doing.clone());
        if let Some(source) = &error.source {
            let mut said = source.to_string();
            let mut next = source.source();
            while let Some(cause) = next {
                said.push_str(": ");
                said.push_str(&cause.to_string());
                next = cause.source();
            }
            finding = finding.detail(format!("the other side said: {said}"));
        }
        let fix = if error.fix.is_empty() { error.kind.advice() } else { &error.fix };
        finding.fix.extend(fix.lines().map(String::from));
        finding
    }
}
