//! A local folder: an object appears by a hard link to a file that is whole and fsynced, and only if its name is free.
//!
//! Written here because `object_store` 0.13 does not fsync local files.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use millrace_core::{
    Error, Kind, Result,
    destination::{Published, Staged},
};

use crate::{
    footer::{self, Parsed},
    write::disk,
};

/// Holds staged files; the leading underscore hides it from readers that follow Hive's conventions.
const STAGING: &str = "_staging";

/// The target's folder.
#[derive(Debug, Clone)]
pub struct Folder {
    pub root: PathBuf,
    /// Where this daemon's objects are staged: on the same filesystem, so that a hard link can be made.
    pub staging: PathBuf,
}

impl Folder {
    /// `owner` tells apart who stages into the same target, so that sweeping takes one's own files only.
    pub fn new(root: PathBuf, owner: &Path) -> Self {
        let name: String =
            owner.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        // A file name has at most 255 bytes; the end of a path tells more than its beginning.
        let name = &name[name.len().saturating_sub(200)..];
        let staging = root.join(STAGING).join(format!("by{name}"));
        Self { root, staging }
    }

    /// Path of a key.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Blocking.
    pub fn publish(&self, staged: &Staged) -> Result<Published> {
        let to = self.path(&staged.key);
        let doing = || format!("publishing {}", to.display());
        let file = File::open(&staged.path).and_then(|file| file.sync_all());
        file.map_err(|e| disk(e, format!("syncing {}", staged.path.display())))?;
        fail::fail_point!("target-during-upload", |_| Err(Error::new(Kind::Target, "failpoint target-during-upload")));
        let folder = to.parent().unwrap_or(&self.root);
        make_durable(folder).map_err(|e| disk(e, doing()))?;
        let was_there = match fs::hard_link(&staged.path, &to) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(disk(error, doing())),
        };
        if was_there {
            self.compare(staged, &to)?;
        }
        sync_folder(folder).map_err(|e| disk(e, doing()))?;
        fail::fail_point!("target-after-upload", |_| Err(Error::new(Kind::Target, "failpoint target-after-upload")));
        let _ = fs::remove_file(&staged.path);
        Ok(Published {
            key: staged.key.clone(),
            location: to.to_string_lossy().into_owned(),
            rows: staged.rows,
            bytes: fs::metadata(&to).map_or(staged.bytes, |there| there.len()),
            was_there,
        })
    }

    fn compare(&self, staged: &Staged, there: &Path) -> Result<()> {
        let doing = || format!("comparing {} with what is there", there.display());
        let same = if staged.key.ends_with(".parquet") {
            read_footer(there, &staged.key)?.agrees(staged.rows, &staged.metadata)
        } else {
            let read = |path: &Path| fs::read(path).map_err(|e| disk(e, doing()));
            read(there)? == read(&staged.path)?
        };
        if same { Ok(()) } else { Err(conflict(&there.to_string_lossy())) }
    }

    /// Blocking.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        match fs::metadata(self.path(key)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk(error, format!("looking at {}", self.path(key).display()))),
        }
    }

    /// Blocking.
    pub fn delete(&self, key: &str) -> Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(disk(error, format!("deleting {}", self.path(key).display())))
            }
            _ => Ok(()),
        }
    }
}

/// An object that is not ours stands where one of ours should.
pub fn conflict(location: &str) -> Error {
    Error::new(Kind::TargetConflict, format!("{location} is there already, with other content"))
        .fix("find out who writes to this target besides this task; move the object away and the task goes on")
}

fn read_footer(path: &Path, key: &str) -> Result<footer::Footer> {
    let read_end = |wanted: u64| -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(wanted)))?;
        let mut end = vec![];
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    let doing = || format!("reading the footer of {}", path.display());
    let mut wanted = footer::FIRST_FETCH;
    loop {
        let end = read_end(wanted).map_err(|e| disk(e, doing()))?;
        match footer::parse(&end, key)? {
            Parsed::Footer(footer) => return Ok(footer),
            Parsed::Longer(needed) if (end.len() as u64) < wanted || needed <= wanted => {
                return Err(Error::new(Kind::TargetConflict, doing()).with("it is shorter than its footer"));
            }
            Parsed::Longer(needed) => wanted = needed,
        }
    }
}

/// Makes a folder and its parents, each durable in the one above it.
fn make_durable(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_durable(parent)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder(parent)?,
        }
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
