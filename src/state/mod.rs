//! The state: what the daemon knows across restarts, except for the streams' own logs.
//!
//! Keys are text that `sqlite3` can show, values JSON. A commit is all or nothing and fsynced. One file per kind of key
//! stands in [`keys`].

pub mod keys;
pub mod memory;
pub mod reserve;
pub mod sqlite;

use millrace_core::{Error, Kind, Result, error::Context};
use serde::{Serialize, de::DeserializeOwned};

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: String,
    /// The new value; `None` deletes.
    pub value: Option<String>,
    /// Compare-and-set: the commit fails as a whole unless the key has this value now (`Some(None)`: is not there).
    pub expect: Option<Option<String>>,
}

impl Put {
    /// Sets a key.
    pub fn set<T: Serialize>(key: impl Into<String>, value: &T) -> Self {
        let value = serde_json::to_string(value).expect("our own records serialise");
        Self { key: key.into(), value: Some(value), expect: None }
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, expect: None }
    }
}

/// A small, ordered key-value store. Calls block for the disk (a commit: one fsync).
pub trait StateStore: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &str) -> Result<Option<String>>;

    /// All keys that begin with `prefix`, rising.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>>;

    /// The last of them.
    fn last(&self, prefix: &str) -> Result<Option<(String, String)>> {
        Ok(self.scan(prefix)?.pop())
    }

    /// Applies all or nothing; durable when it returns. A failed expectation is [`Kind::Internal`].
    fn commit(&self, puts: &[Put]) -> Result<()>;
}

/// Reads one record.
pub fn read<T: DeserializeOwned>(store: &dyn StateStore, key: &str) -> Result<Option<T>> {
    store.get(key)?.map(|json| parse(key, &json)).transpose()
}

/// Reads the last record below a prefix.
pub fn read_last<T: DeserializeOwned>(store: &dyn StateStore, prefix: &str) -> Result<Option<T>> {
    store.last(prefix)?.map(|(key, json)| parse(&key, &json)).transpose()
}

/// Reads all records below a prefix, with the rest of their keys.
pub fn read_all<T: DeserializeOwned>(store: &dyn StateStore, prefix: &str) -> Result<Vec<(String, T)>> {
    let rows = store.scan(prefix)?;
    rows.iter().map(|(key, json)| Ok((key[prefix.len()..].to_string(), parse(key, json)?))).collect()
}

fn parse<T: DeserializeOwned>(key: &str, json: &str) -> Result<T> {
    serde_json::from_str(json).context(Kind::Storage, || format!("reading the state's key {key}"))
}

fn expectation_failed(key: &str) -> Error {
    Error::new(Kind::Internal, format!("committing to the state: key {key} was changed by somebody else"))
}
