//! The state in one SQLite file: WAL mode, `synchronous=FULL`, one table of keys and JSON values.

use std::{path::Path, sync::Mutex};

use millrace_core::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Put, StateStore, expectation_failed};

/// Goes up when the meaning of keys changes in a way that an older daemon would misread.
const FORMAT_VERSION: i64 = 1;

/// `state_dir/state.db`.
#[derive(Debug)]
pub struct SqliteState {
    connection: Mutex<Connection>,
}

impl SqliteState {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path).map_err(|e| storage(e, "opening the state", path))?;
        let made = || -> rusqlite::Result<i64> {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.busy_timeout(std::time::Duration::from_secs(10))?;
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
            )?;
            let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == 0 {
                connection.pragma_update(None, "user_version", FORMAT_VERSION)?;
                return Ok(FORMAT_VERSION);
            }
            Ok(version)
        };
        let version = made().map_err(|e| storage(e, "setting up the state", path))?;
        Self::accept(connection, version, path)
    }

    /// Opens the file for looking only, also while a daemon writes to it.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|e| storage(e, "opening the state", path))?;
        let version = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|e| storage(e, "reading the state", path))?;
        Self::accept(connection, version, path)
    }

    fn accept(connection: Connection, version: i64, path: &Path) -> Result<Self> {
        if version > FORMAT_VERSION {
            let doing = format!(
                "opening the state {}: it has format {version}, this daemon knows {FORMAT_VERSION}",
                path.display()
            );
            return Err(
                Error::new(Kind::Config, doing).fix("use the newer daemon, or restore the state it was upgraded from")
            );
        }
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn with<T>(&self, doing: &str, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.connection.lock().expect("no panic while locked");
        work(&mut connection).map_err(|e| storage(e, doing, Path::new(connection.path().unwrap_or_default())))
    }
}

fn storage(error: rusqlite::Error, doing: &str, path: &Path) -> Error {
    Error::new(Kind::Storage, format!("{doing} {}", path.display())).with(error)
}

impl StateStore for SqliteState {
    fn get(&self, key: &str) -> Result<Option<String>> {
        self.with("reading the state", |connection| {
            let mut statement = connection.prepare_cached("SELECT value FROM state WHERE key = ?1")?;
            statement.query_row(params![key], |row| row.get(0)).optional()
        })
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        // No key of ours holds U+10FFFF, so it bounds every key with the prefix.
        let end = format!("{prefix}\u{10ffff}");
        self.with("scanning the state", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT key, value FROM state WHERE key >= ?1 AND key < ?2 ORDER BY key")?;
            statement.query_map(params![prefix, end], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    fn commit(&self, puts: &[Put]) -> Result<()> {
        let failed = self.with("committing to the state", |connection| {
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            for put in puts.iter().filter(|put| put.expect.is_some()) {
                let mut statement = transaction.prepare_cached("SELECT value FROM state WHERE key = ?1")?;
                let now: Option<String> = statement.query_row(params![put.key], |row| row.get(0)).optional()?;
                if put.expect.as_ref() != Some(&now) {
                    return Ok(Some(put.key.clone()));
                }
            }
            for put in puts {
                match &put.value {
                    Some(value) => transaction
                        .prepare_cached(
                            "INSERT INTO state (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
                        )?
                        .execute(params![put.key, value])?,
                    None => {
                        transaction.prepare_cached("DELETE FROM state WHERE key = ?1")?.execute(params![put.key])?
                    }
                };
            }
            transaction.commit()?;
            Ok(None)
        })?;
        failed.map_or(Ok(()), |key| Err(expectation_failed(&key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{memory::MemoryState, read_all};

    fn behaves(store: &dyn StateStore) {
        store.commit(&[Put::set("a/1", &1), Put::set("a/2", &2), Put::set("b/1", &3)]).unwrap();
        assert_eq!(store.get("a/2").unwrap().as_deref(), Some("2"));
        assert_eq!(read_all::<i32>(store, "a/").unwrap(), [("1".to_string(), 1), ("2".to_string(), 2)]);
        let conflict = Put { expect: Some(Some("9".into())), ..Put::set("a/1", &5) };
        assert!(store.commit(&[Put::delete("b/1"), conflict]).is_err());
        assert_eq!(store.get("b/1").unwrap().as_deref(), Some("3"), "nothing of a failed commit is applied");
        let swap = Put { expect: Some(Some("1".into())), ..Put::set("a/1", &5) };
        store.commit(&[swap, Put::delete("b/1")]).unwrap();
        assert_eq!(store.get("a/1").unwrap().as_deref(), Some("5"));
        assert_eq!(store.get("b/1").unwrap(), None);
    }

    #[test]
    fn memory_behaves() {
        behaves(&MemoryState::default());
    }

    #[test]
    fn sqlite_behaves_and_remembers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        behaves(&SqliteState::open(&path).unwrap());
        assert_eq!(SqliteState::open_read_only(&path).unwrap().get("a/1").unwrap().as_deref(), Some("5"));
        assert!(SqliteState::open_read_only(&path).unwrap().commit(&[Put::set("x", &1)]).is_err());
    }

    // trap: 45
    // fault: 49
    #[test]
    fn a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        drop(SqliteState::open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(SqliteState::open(&path).unwrap_err().kind, Kind::Config);
    }
}
