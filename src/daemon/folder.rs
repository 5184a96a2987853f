//! The state folder: mode 0700, and one daemon at a time.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use millrace_core::Finding;
use rustix::fs::Access;
use tracing::warn;

/// The lock on a state folder; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Makes the folder if it is not there, and locks it.
pub fn open(state_dir: &Path) -> Result<FolderLock, Box<Finding>> {
    let cannot = |what: &str, error: io::Error| {
        let summary = format!("the state folder {} cannot be {what}", state_dir.display());
        let finding = Finding::error("STATE-DIR", summary).detail(format!("the system said: {error}"));
        Box::new(finding.fix("give it to the user that runs the daemon, or name another one: state-dir: /path"))
    };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.map_err(|error| cannot("made", error))?;
    let mode = fs::metadata(state_dir).map_err(|error| cannot("read", error))?.permissions().mode();
    if mode & 0o077 != 0 {
        warn!(folder = %state_dir.display(), "the state folder was open to others; it is closed to them");
        let closed = fs::set_permissions(state_dir, fs::Permissions::from_mode(0o700));
        closed.map_err(|error| cannot("closed to others", error))?;
    }
    let path = state_dir.join("lock");
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = options.map_err(|error| cannot("locked", error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let finding = Finding::error("DAEMON-RUNS", "another daemon runs on this state folder")
                .detail(format!("{} is locked by process {}", path.display(), pid.trim()))
                .fix("stop it first, or give this one a folder of its own: state-dir: /path");
            return Err(Box::new(finding));
        }
        Err(TryLockError::Error(error)) => return Err(cannot("locked", error)),
    }
    // The process id is for people; the lock is what counts.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(FolderLock { _file: file })
}

/// Whether this user could start a daemon on the folder; leaves no trace.
pub fn look(state_dir: &Path) -> Result<(), Box<Finding>> {
    let cannot = |error: io::Error| {
        let summary = format!("this user cannot use the state folder {}", state_dir.display());
        let finding = Finding::warning("STATE-DIR", summary).detail(format!("the system said: {error}"));
        Box::new(finding.fix(
            "check as the user that runs the daemon, give the folder to it, or name another one: state-dir: /path",
        ))
    };
    let there = state_dir.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    if !fs::metadata(there).map_err(cannot)?.is_dir() {
        return Err(cannot(io::ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| cannot(error.into()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // trap: 44
    #[test]
    fn one_daemon_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/state");
        look(&folder).unwrap();
        assert!(!folder.exists(), "a look leaves no trace");
        let lock = open(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let refused = open(&folder).unwrap_err();
        assert_eq!(refused.code, "DAEMON-RUNS");
        assert!(refused.detail[0].contains(&format!("process {}", std::process::id())), "{refused:?}");
        drop(lock);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let _lock = open(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(open(&file.path().join("state")).unwrap_err().code, "STATE-DIR");
        assert_eq!(look(&file.path().join("state")).unwrap_err().code, "STATE-DIR");
    }
}
