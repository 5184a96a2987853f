//! `state_dir/reserve`: 64 MiB that are given up when a write of the state meets a full disk, so that checkpoints can
//! still be written while everything else waits for space.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use millrace_core::{Error, Result};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::{info, warn};

use super::{Put, StateStore, sqlite::SqliteState};

/// Size of the reserve.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// The reserve is made again when as much would be left beside it.
const ROOM_BYTES: u64 = 256 << 20;

/// The reserve file of a state folder.
#[derive(Debug, Clone)]
pub struct Reserve {
    file: PathBuf,
}

impl Reserve {
    /// Of this state folder; makes nothing yet.
    pub fn of(state_dir: &Path) -> Self {
        Self { file: state_dir.join("reserve") }
    }

    /// Makes the file if it is not there and the volume has room. Gives whether it is there.
    pub fn keep(&self) -> io::Result<bool> {
        if fs::metadata(&self.file).is_ok_and(|found| found.len() == RESERVE_BYTES) {
            return Ok(true);
        }
        let folder = self.file.parent().unwrap_or(Path::new("."));
        if volume(folder)?.free_bytes < RESERVE_BYTES + ROOM_BYTES {
            return Ok(false);
        }
        let mut file = File::create(&self.file)?;
        if fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).is_err() {
            // Some file systems cannot allocate ahead; written bytes are as good, unless they are compressed away.
            for _ in 0..RESERVE_BYTES >> 20 {
                file.write_all(&[0xa5; 1 << 20])?;
            }
        }
        file.sync_all()?;
        Ok(true)
    }

    /// Gives the space back to the volume. Gives false if there was nothing to give.
    pub fn release(&self) -> bool {
        let released = fs::remove_file(&self.file).is_ok();
        if released {
            warn!(file = %self.file.display(), bytes = RESERVE_BYTES, "the disk is full; the reserve is released");
        }
        released
    }
}

/// Space of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its size.
    pub bytes: u64,
    /// What an unprivileged process may still write.
    pub free_bytes: u64,
}

/// Space of the volume that holds a folder.
pub fn volume(folder: &Path) -> io::Result<Volume> {
    let found = statvfs(folder)?;
    Ok(Volume { bytes: found.f_blocks * found.f_frsize, free_bytes: found.f_bavail * found.f_frsize })
}

/// The state with the reserve behind it: a commit that meets a full disk is tried once more after the release.
#[derive(Debug)]
pub struct ReservedState {
    state: SqliteState,
    reserve: Reserve,
}

impl ReservedState {
    /// Opens `state_dir/state.db` and makes the reserve.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let reserve = Reserve::of(state_dir);
        match reserve.keep() {
            Ok(true) => {}
            Ok(false) => warn!(folder = %state_dir.display(), "the volume has no room for the reserve"),
            Err(error) => warn!(error = %error, "the reserve could not be made"),
        }
        Ok(Self { state: SqliteState::open(&state_dir.join("state.db"))?, reserve })
    }

    /// Makes the reserve again when there is room for it.
    pub fn keep_reserve(&self) {
        if let Ok(true) = self.reserve.keep() {
            return;
        }
        info!("the volume has no room for the reserve");
    }
}

impl StateStore for ReservedState {
    fn get(&self, key: &str) -> Result<Option<String>> {
        self.state.get(key)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        self.state.scan(prefix)
    }

    fn last(&self, prefix: &str) -> Result<Option<(String, String)>> {
        self.state.last(prefix)
    }

    fn commit(&self, puts: &[Put]) -> Result<()> {
        match self.state.commit(puts) {
            Err(error) if is_disk_full(&error) && self.reserve.release() => self.state.commit(puts),
            done => done,
        }
    }
}

/// Whether the state's file could not grow.
fn is_disk_full(error: &Error) -> bool {
    let cause = error.source.as_deref().and_then(|cause| cause.downcast_ref::<rusqlite::Error>());
    cause.and_then(rusqlite::Error::sqlite_error_code) == Some(rusqlite::ErrorCode::DiskFull)
}

#[cfg(test)]
mod tests {
    use millrace_core::{Kind, error::Context};

    use super::*;

    #[test]
    fn the_reserve_takes_space_and_gives_it_back_once() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(folder.path());
        if !reserve.keep().unwrap() {
            return assert!(volume(folder.path()).unwrap().free_bytes < RESERVE_BYTES + ROOM_BYTES);
        }
        use std::os::unix::fs::MetadataExt;
        let blocks = fs::metadata(folder.path().join("reserve")).unwrap().blocks();
        assert!(blocks * 512 >= RESERVE_BYTES, "it must be allocated, not sparse");
        assert!(reserve.release());
        assert!(!reserve.release());
    }

    #[test]
    fn a_full_disk_is_told_from_other_errors() {
        let failure = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        let error = |code| Err::<(), _>(failure(code)).context(Kind::Storage, || "committing").unwrap_err();
        assert!(is_disk_full(&error(rusqlite::ffi::SQLITE_FULL)));
        assert!(!is_disk_full(&error(rusqlite::ffi::SQLITE_BUSY)));
        assert!(!is_disk_full(&Error::new(Kind::Storage, "x")));
    }
}
