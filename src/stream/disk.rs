//! How the log reaches its disk, so that tests can put one in its place that forgets, tears and fails.
//!
//! Called for each write, fsync and window that is read, never for a row.

use std::{
    fmt::Debug,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::LazyLock,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Files by their paths, and the time of day. A change of names is durable once the folder is synced.
pub(super) trait Disk: Debug + Send + Sync {
    /// The names in a folder, in any order.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Opens a file for reading, and where `writes` for writing too.
    fn open(&self, path: &Path, writes: bool) -> io::Result<Box<dyn DiskFile>>;

    /// Makes an empty file, or empties the one that is there, and opens it for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, replacing what had that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes changes of names durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Microseconds since 1970-01-01 UTC, by a clock that may jump.
    fn now_us(&self) -> i64;

    /// How long the process has lived, by a clock that never jumps.
    fn lived(&self) -> Duration;
}

/// An open file.
pub(super) trait DiskFile: Debug + Send + Sync {
    /// Bytes in it.
    fn len(&self) -> io::Result<u64>;

    /// Reads what is at the offset: how many bytes, 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at the offset: how many of the bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Shortens or lengthens it, with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes bytes and length durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes everything about it durable, but not its name.
    fn sync_all(&self) -> io::Result<()>;
}

/// The volume is full for the log when as many bytes are left: the state lies beside it and is the last to stop. Where the
/// state gives its reserve up (`state/reserve.rs`), the log would take that too.
const LEFT_FREE_BYTES: u64 = 16 << 20;

fn leave_room(volume: rustix::fs::StatVfs, bytes: u64) -> io::Result<()> {
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    if free < LEFT_FREE_BYTES + bytes { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

/// Writes all of the bytes.
pub(super) fn write_all_at(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; gives how many bytes.
pub(super) fn read_up_to(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(buffer.get_mut(filled..).unwrap_or_default(), offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The real one.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name().into_string()));
        // No file of ours has a name that is not Unicode.
        names.filter_map(|name| name.map(Result::ok).transpose()).collect()
    }

    fn open(&self, path: &Path, writes: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(open_patiently(|| File::options().read(true).write(writes).open(path))?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let create = || File::options().read(true).write(true).create(true).truncate(true).open(path);
        Ok(Box::new(open_patiently(create)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        open_patiently(|| File::open(folder))?.sync_all()
    }

    fn now_us(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    fn lived(&self) -> Duration {
        BEGUN.elapsed()
    }
}

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A file that cannot be opened is tried again for as long, every so often, where only a descriptor is missing.
const DESCRIPTOR_PATIENCE: Duration = Duration::from_secs(60);
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);

/// Opens a file. Where no descriptor is left it waits for one, as appends wait at the disk bound: connections come and go,
/// and nothing is lost meanwhile.
fn open_patiently(open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match open() {
            Err(error) if lacks_descriptors(&error) && begun.elapsed() < DESCRIPTOR_PATIENCE => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = %error, "no file descriptor is left; opening a file of the log waits for one");
                }
                thread::sleep(DESCRIPTOR_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Whether the process or the system has no file descriptor left (EMFILE, ENFILE).
pub(super) fn lacks_descriptors(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(number, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        leave_room(rustix::fs::fstatvfs(self)?, bytes.len() as u64)?;
        FileExt::write_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_missing_descriptor_is_waited_for_and_nothing_else() {
        let tries = Cell::new(0);
        let opened = open_patiently(|| {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => Err(rustix::io::Errno::MFILE.into()),
                2 => Err(rustix::io::Errno::NFILE.into()),
                _ => File::open("/dev/null"),
            }
        });
        assert!(opened.is_ok() && tries.get() == 3);
        let refused = open_patiently(|| Err(rustix::io::Errno::ACCESS.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
