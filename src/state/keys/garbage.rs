//! `garbage/<task>/<number>`: an object that left its manifest and is deleted after a grace period, so that readers
//! which hold the old list of files can finish.

use serde::{Deserialize, Serialize};

/// The key: by time, then by the object's key, which holds no `/` here.
pub fn key(task: &str, since_us: i64, object: &str) -> String {
    format!("{}{since_us:020}/{}", prefix(task), super::escape(object))
}

/// All garbage of a task's target.
pub fn prefix(task: &str) -> String {
    format!("garbage/{task}/")
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// Its key below the target's prefix.
    pub key: String,
    /// Where it lies, as its manifest said; `None` for one that never was in a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// When it left its manifest (microseconds since 1970-01-01 UTC).
    pub since_us: i64,
}
