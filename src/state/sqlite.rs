//! The state in one SQLite file: WAL mode, `synchronous=FULL`, one table of keys and JSON values with their checksums.
//!
//! SQLite's pages have no checksums, so a bit that flips inside a value would leave it as readable as it was. Each row's
//! is verified at every read, and all of them when the daemon opens the file.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use millrace_core::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::{Put, StateStore, expectation_failed};

/// Goes up when the meaning of keys changes in a way that an older daemon would misread. Format 2 has the checksums; values
/// of format 1 get theirs when it is opened.
const FORMAT_VERSION: i64 = 2;
const CHECKSUMS_SINCE: i64 = 2;

/// `state_dir/state.db`.
#[derive(Debug)]
pub struct SqliteState {
    connection: Mutex<Connection>,
    /// Not so in a file of format 1 that is only looked at.
    has_checksums: bool,
}

/// A row as the file has it: whatever a damaged disk makes of it.
struct Row {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    checksum: Option<i64>,
}

impl SqliteState {
    /// Opens or makes the file, and verifies all of it: a key that is damaged would otherwise only be missing.
    pub fn open(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path).map_err(|e| storage(e, "opening the state", path))?;
        let set_up = |e| storage(e, "setting up the state", path);
        let version = prepare(&connection).map_err(set_up)?;
        refuse_newer(version, path)?;
        migrate(&mut connection, version).map_err(set_up)?;
        let state = Self { connection: Mutex::new(connection), has_checksums: true };
        state.verify()?;
        Ok(state)
    }

    /// Opens the file for looking only, also while a daemon writes to it.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|e| storage(e, "opening the state", path))?;
        let version = version_of(&connection).map_err(|e| storage(e, "reading the state", path))?;
        refuse_newer(version, path)?;
        Ok(Self { connection: Mutex::new(connection), has_checksums: version >= CHECKSUMS_SINCE })
    }

    fn with<T>(&self, doing: &str, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.connection.lock().expect("no panic while locked");
        work(&mut connection).map_err(|e| storage(e, doing, &path_of(&connection)))
    }

    fn verify(&self) -> Result<()> {
        let damaged = self.with("reading the state", |connection| {
            let mut statement = connection.prepare("SELECT key, value, checksum FROM state")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let row = Row::read(row)?;
                if !row.is_whole() {
                    return Ok(Some(row));
                }
            }
            Ok(None)
        })?;
        damaged.map_or(Ok(()), |row| Err(self.damaged(&row.key)))
    }

    fn select(&self, condition: &str) -> String {
        let checksum = if self.has_checksums { "checksum" } else { "NULL" };
        format!("SELECT key, value, {checksum} FROM state WHERE {condition}")
    }

    /// The row's value, if it is what was written.
    fn checked(&self, row: Row) -> Result<String> {
        if self.has_checksums && !row.is_whole() {
            return Err(self.damaged(&row.key));
        }
        let value = row.value.and_then(|bytes| String::from_utf8(bytes).ok());
        value.ok_or_else(|| self.damaged(&row.key))
    }

    fn damaged(&self, key: &[u8]) -> Error {
        let path = path_of(&self.connection.lock().expect("no panic while locked"));
        let key = String::from_utf8_lossy(key);
        let doing = format!("reading the state {}: key {key} is damaged, its checksum is wrong", path.display());
        Error::new(Kind::Storage, doing).fix(
            "check the disk (dmesg, smartctl), then put back a copy of the state folder as it was at its last stop\n\
             or move the folder away, start, and do what is said of the slot: everything is loaded anew",
        )
    }
}

impl Row {
    /// From `key, value, checksum`.
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let bytes =
            |index| Ok::<_, rusqlite::Error>(row.get_ref(index)?.as_bytes_or_null().ok().flatten().map(Vec::from));
        let checksum = row.get_ref(2)?.as_i64().ok();
        Ok(Self { key: bytes(0)?.unwrap_or_default(), value: bytes(1)?, checksum })
    }

    fn is_whole(&self) -> bool {
        self.value.as_ref().is_some_and(|value| self.checksum == Some(checksum(&self.key, value)))
    }
}

/// CRC32C of the key, a zero and the value, so that a value does not pass under another key.
fn checksum(key: &[u8], value: &[u8]) -> i64 {
    let crc = [&[0], value].iter().fold(crc32c::crc32c(key), |crc, part| crc32c::crc32c_append(crc, part));
    i64::from(crc)
}

/// Settings of a connection that writes. Gives the file's format; 0 for a new file.
fn prepare(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    version_of(connection)
}

fn version_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes the table, or brings it to the present format, in one transaction.
fn migrate(connection: &mut Connection, version: i64) -> rusqlite::Result<()> {
    if version == FORMAT_VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER) WITHOUT ROWID",
    )?;
    if !transaction.column_exists(None, "state", "checksum")? {
        transaction.execute_batch("ALTER TABLE state ADD COLUMN checksum INTEGER")?;
    }
    let bare = "SELECT key, value, checksum FROM state WHERE checksum IS NULL";
    let rows: Vec<Row> = transaction.prepare(bare)?.query_map([], Row::read)?.collect::<rusqlite::Result<_>>()?;
    for row in rows {
        let (key, value) = (String::from_utf8_lossy(&row.key), row.value.unwrap_or_default());
        transaction
            .prepare_cached("UPDATE state SET checksum = ?2 WHERE key = ?1")?
            .execute(params![key, checksum(&row.key, &value)])?;
    }
    transaction.pragma_update(None, "user_version", FORMAT_VERSION)?;
    transaction.commit()
}

fn refuse_newer(version: i64, path: &Path) -> Result<()> {
    if version <= FORMAT_VERSION {
        return Ok(());
    }
    let doing =
        format!("opening the state {}: it has format {version}, this daemon knows {FORMAT_VERSION}", path.display());
    Err(Error::new(Kind::Config, doing).fix("use the newer daemon, or restore the state it was upgraded from"))
}

fn path_of(connection: &Connection) -> PathBuf {
    connection.path().unwrap_or_default().into()
}

fn storage(error: rusqlite::Error, doing: &str, path: &Path) -> Error {
    Error::new(Kind::Storage, format!("{doing} {}", path.display())).with(error)
}

impl SqliteState {
    /// The rows whose keys begin with `prefix`.
    fn below(&self, prefix: &str, order: &str) -> Result<Vec<(String, String)>> {
        // No key of ours holds U+10FFFF, so it bounds every key with the prefix.
        let end = format!("{prefix}\u{10ffff}");
        let select = self.select(&format!("key >= ?1 AND key < ?2 {order}"));
        let rows: Vec<Row> = self.with("scanning the state", |connection| {
            connection.prepare_cached(&select)?.query_map(params![prefix, end], Row::read)?.collect()
        })?;
        let whole = |row: Row| Ok((String::from_utf8_lossy(&row.key).into_owned(), self.checked(row)?));
        rows.into_iter().map(whole).collect()
    }
}

impl StateStore for SqliteState {
    fn get(&self, key: &str) -> Result<Option<String>> {
        let select = self.select("key = ?1");
        let row = self.with("reading the state", |connection| {
            connection.prepare_cached(&select)?.query_row(params![key], Row::read).optional()
        })?;
        row.map(|row| self.checked(row)).transpose()
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        self.below(prefix, "ORDER BY key")
    }

    fn last(&self, prefix: &str) -> Result<Option<(String, String)>> {
        Ok(self.below(prefix, "ORDER BY key DESC LIMIT 1")?.pop())
    }

    fn commit(&self, puts: &[Put]) -> Result<()> {
        let failed = self.with("committing to the state", |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
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
                            "INSERT INTO state (key, value, checksum) VALUES (?1, ?2, ?3)
                             ON CONFLICT (key) DO UPDATE SET value = ?2, checksum = ?3",
                        )?
                        .execute(params![put.key, value, checksum(put.key.as_bytes(), value.as_bytes())])?,
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
    use crate::state::{memory::MemoryState, read_all, read_last};

    fn behaves(store: &dyn StateStore) {
        store.commit(&[Put::set("a/1", &1), Put::set("a/2", &2), Put::set("b/1", &3)]).unwrap();
        assert_eq!(store.get("a/2").unwrap().as_deref(), Some("2"));
        assert_eq!(read_all::<i32>(store, "a/").unwrap(), [("1".to_string(), 1), ("2".to_string(), 2)]);
        assert_eq!(read_last::<i32>(store, "a/").unwrap(), Some(2));
        assert_eq!(read_last::<i32>(store, "aa/").unwrap(), None);
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

    /// A state with some rows, and something done to its file by other hands.
    fn altered(sql: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let state = SqliteState::open(&path).unwrap();
        state.commit(&[Put::set("a/1", &17), Put::set("a/2", &"x"), Put::set("b/1", &3)]).unwrap();
        drop(state);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        (folder, path)
    }

    // fault: 9
    #[test]
    fn a_row_that_is_not_as_it_was_written_is_told_by_its_key() {
        for (sql, key) in [
            ("UPDATE state SET value = '16' WHERE key = 'a/1'", "a/1"),
            ("UPDATE state SET value = CAST(x'2278ff' AS TEXT) WHERE key = 'a/2'", "a/2"),
            ("UPDATE state SET value = 17 WHERE key = 'a/1'; UPDATE state SET value = 2.5 WHERE key = 'a/1'", "a/1"),
            ("UPDATE state SET checksum = checksum + 1 WHERE key = 'b/1'", "b/1"),
            ("UPDATE state SET checksum = NULL WHERE key = 'b/1'", "b/1"),
            ("UPDATE state SET key = 'a/3' WHERE key = 'a/1'", "a/3"),
            (
                "UPDATE state SET value = (SELECT value FROM state WHERE key = 'b/1'),
              checksum = (SELECT checksum FROM state WHERE key = 'b/1') WHERE key = 'a/1'",
                "a/1",
            ),
        ] {
            let (_folder, path) = altered(sql);
            let error = SqliteState::open(&path).unwrap_err();
            assert_eq!(error.kind, Kind::Storage, "{sql}");
            assert!(error.doing.contains(&format!("key {key} is damaged")), "{sql}: {error}");
            assert!(error.fix.contains("loaded anew"), "{error}");
            let looked = SqliteState::open_read_only(&path).unwrap();
            assert_eq!(looked.get(key).unwrap_err().kind, Kind::Storage, "{sql}");
            assert_eq!(looked.scan(&key[..2]).unwrap_err().kind, Kind::Storage, "{sql}");
        }
    }

    #[test]
    fn a_value_is_checked_again_whenever_it_is_read() {
        let (_folder, path) = altered("");
        let state = SqliteState::open(&path).unwrap();
        assert_eq!(state.get("a/1").unwrap().as_deref(), Some("17"));
        Connection::open(&path).unwrap().execute_batch("UPDATE state SET value = '18' WHERE key = 'a/1'").unwrap();
        assert!(state.get("a/1").unwrap_err().doing.contains("a/1"));
        assert_eq!(state.get("b/1").unwrap().as_deref(), Some("3"));
        state.commit(&[Put::set("a/1", &19)]).unwrap();
        assert_eq!(state.get("a/1").unwrap().as_deref(), Some("19"));
    }

    #[test]
    fn a_state_from_before_the_checksums_is_read_and_gets_them() {
        let old = "DROP TABLE state; PRAGMA user_version = 1;
                   CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                   INSERT INTO state VALUES ('a/1', '17'), ('a/2', '\"x\"')";
        let (_folder, path) = altered(old);
        let looked = SqliteState::open_read_only(&path).unwrap();
        assert_eq!(looked.get("a/1").unwrap().as_deref(), Some("17"));
        assert_eq!(looked.scan("a/").unwrap().len(), 2);
        let state = SqliteState::open(&path).unwrap();
        assert_eq!(state.get("a/2").unwrap().as_deref(), Some("\"x\""));
        state.commit(&[Put::set("a/3", &1)]).unwrap();
        drop(state);
        SqliteState::open(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("UPDATE state SET value = '16' WHERE key = 'a/1'").unwrap();
        assert!(SqliteState::open(&path).unwrap_err().doing.contains("a/1"), "its checksum was made by the migration");
    }
}
