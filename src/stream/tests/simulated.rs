//! A disk in memory that does to a log what a power cut may do to it: bytes that were not fsynced vanish, are torn at
//! 512 bytes, or are there while older ones are not; names of which the folder was not synced are the old ones or the
//! new ones, each for itself.
//!
//! A failed fsync is as nasty as Linux's: what it should have written counts as clean from then on, so that a later fsync
//! does not write it, but it can be read until the power goes.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use super::super::disk::{Disk, DiskFile};

/// A sector is written whole or not at all.
const SECTOR: u64 = 512;

/// What goes wrong at one of the next calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies: no call has an effect from there on.
    Death,
    /// The call fails, and the next ones do not: an error number. A write may have written a part; an fsync did nothing.
    Error(i32),
    /// The same, and at the next call the process dies.
    ErrorAndDeath(i32),
    /// Writes and new names find no space at as many calls.
    Full(u32),
    /// A write or read is interrupted by a signal.
    Interrupted,
    /// A write or read ends after a part.
    Short,
}

pub const IO_ERROR: i32 = 5;
pub const NO_SPACE: i32 = 28;

/// See the module's doc. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<Content>>);

/// Everything that a power cut leaves or takes.
#[derive(Debug, Clone, Default)]
struct Content {
    files: Vec<File>,
    /// As a process sees them.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
    now_us: i64,
    lived: Duration,
    /// Calls until the fault.
    fault: Option<(u32, Fault)>,
    /// Faults that happened.
    faults: u64,
    is_dead: bool,
    /// Files that were opened by an earlier process are of no use.
    process: u32,
    choices: Choices,
}

#[derive(Debug, Clone, Default)]
struct File {
    /// As a process sees it.
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Clone)]
enum NameChange {
    Put(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf),
}

/// Choices that a seed fixes: SplitMix64.
#[derive(Debug, Clone, Default)]
pub struct Choices(pub u64);

impl Choices {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

impl SimulatedDisk {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("no panic while locked")
    }

    /// The fault happens at the call after as many others.
    pub fn arm(&self, calls: u32, fault: Fault) {
        self.lock().fault = Some((calls, fault));
    }

    /// Calls that are made by a test itself do not meet the fault.
    pub fn quietly<T>(&self, look: impl FnOnce() -> T) -> T {
        let armed = self.lock().fault.take();
        let seen = look();
        self.lock().fault = armed;
        seen
    }

    /// How many faults happened so far.
    pub fn faults(&self) -> u64 {
        self.lock().faults
    }

    pub fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// The process dies now: no call has an effect from here on.
    pub fn die(&self) {
        self.lock().is_dead = true;
    }

    /// The next calls meet no fault.
    pub fn disarm(&self) {
        self.lock().fault = None;
    }

    /// The process is gone; what it wrote is still in the page cache. Nothing is armed any more.
    pub fn kill(&self) {
        let mut content = self.lock();
        content.process += 1;
        (content.is_dead, content.fault) = (false, None);
    }

    /// The power is gone. The seed says what was lost of what was not fsynced.
    pub fn cut_power(&self, seed: u64) {
        self.kill();
        let mut content = self.lock();
        let content = &mut *content;
        content.choices = Choices(seed);
        for file in &mut content.files {
            file.lose(&mut content.choices);
        }
        let fate = Fate::choose(&mut content.choices, content.unsynced_names.len());
        for (index, change) in std::mem::take(&mut content.unsynced_names).into_iter().enumerate() {
            if fate.keeps(index, &mut content.choices) {
                rename(&mut content.durable_names, change);
            }
        }
        content.names = content.durable_names.clone();
    }

    /// The clock jumps.
    pub fn move_clock(&self, us: i64) {
        self.lock().now_us += us;
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        let mut content = self.lock();
        content.now_us += time.as_micros() as i64;
        content.lived += time;
    }

    /// Flips a bit of a file, durably.
    pub fn flip(&self, path: &Path, offset: u64, bit: u8) {
        let mut content = self.lock();
        let file = content.names[path];
        let file = &mut content.files[file];
        for bytes in [&mut file.bytes, &mut file.durable] {
            bytes[offset as usize] ^= 1 << bit;
        }
    }

    /// Another disk with the same content.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Counts a call, and gives the fault that happens at it.
    fn call(&self, process: Option<u32>) -> io::Result<(MutexGuard<'_, Content>, Option<Fault>)> {
        let mut content = self.lock();
        if content.is_dead || process.is_some_and(|process| process != content.process) {
            return Err(io::Error::other("this process is dead"));
        }
        let fault = match &mut content.fault {
            None => None,
            Some((0, fault)) => {
                let fault = *fault;
                content.faults += 1;
                content.fault = match fault {
                    Fault::ErrorAndDeath(_) => Some((0, Fault::Death)),
                    Fault::Full(calls @ 1..) => Some((0, Fault::Full(calls - 1))),
                    _ => None,
                };
                Some(fault)
            }
            Some((calls, _)) => {
                *calls -= 1;
                None
            }
        };
        if fault == Some(Fault::Death) {
            content.is_dead = true;
            return Err(io::Error::other("this process dies"));
        }
        Ok((content, fault))
    }

    /// A call that fails whole or is done whole.
    fn whole_call(&self, process: Option<u32>, has_room: bool) -> io::Result<MutexGuard<'_, Content>> {
        match self.call(process)? {
            (_, Some(Fault::Error(number) | Fault::ErrorAndDeath(number))) if has_room || number != NO_SPACE => {
                Err(io::Error::from_raw_os_error(number))
            }
            (_, Some(Fault::Full(_))) if has_room => Err(io::Error::from_raw_os_error(NO_SPACE)),
            (content, _) => Ok(content),
        }
    }

    fn handle(&self, content: &Content, file: usize) -> Box<dyn DiskFile> {
        Box::new(SimulatedFile { disk: self.clone(), file, process: content.process })
    }
}

/// How much of what was not synced survives.
enum Fate {
    /// As many of the changes, in their order.
    First(usize),
    /// Any of them.
    Any,
}

impl Fate {
    fn choose(choices: &mut Choices, changes: usize) -> Self {
        match choices.below(4) {
            0 => Self::First(0),
            1 => Self::First(changes),
            2 => Self::First(choices.below(changes as u64 + 1) as usize),
            _ => Self::Any,
        }
    }

    fn keeps(&self, index: usize, choices: &mut Choices) -> bool {
        match self {
            Self::First(count) => index < *count,
            Self::Any => choices.coin(),
        }
    }
}

impl File {
    /// What was written and not fsynced is lost, or a part of it.
    fn lose(&mut self, choices: &mut Choices) {
        let fate = Fate::choose(choices, self.unsynced.len());
        for (index, change) in std::mem::take(&mut self.unsynced).into_iter().enumerate() {
            let Change::Write(mut offset, bytes) = change else {
                if fate.keeps(index, choices) {
                    apply(&mut self.durable, &change);
                }
                continue;
            };
            let is_torn = matches!(fate, Fate::First(count) if count == index) && choices.coin();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (sector, behind) = rest.split_at(rest.len().min((SECTOR - offset % SECTOR) as usize));
                if is_torn && choices.below(4) == 0 {
                    break;
                }
                if is_torn || fate.keeps(index, choices) {
                    apply(&mut self.durable, &Change::Write(offset, sector.to_vec()));
                }
                offset += sector.len() as u64;
                rest = behind;
            }
        }
        self.bytes.clone_from(&self.durable);
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::SetLen(len) => bytes.resize(*len as usize, 0),
        Change::Write(offset, written) => {
            let (from, to) = (*offset as usize, *offset as usize + written.len());
            bytes.resize(bytes.len().max(to), 0);
            bytes[from..to].copy_from_slice(written);
        }
    }
}

fn rename(names: &mut BTreeMap<PathBuf, usize>, change: NameChange) {
    match change {
        NameChange::Put(path, file) => {
            names.insert(path, file);
        }
        NameChange::Rename(from, to, file) => {
            names.remove(&from);
            names.insert(to, file);
        }
        NameChange::Remove(path) => {
            names.remove(&path);
        }
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Content {
    fn change_names(&mut self, change: NameChange) {
        rename(&mut self.names, change.clone());
        self.unsynced_names.push(change);
    }

    fn change(&mut self, file: usize, change: Change) {
        apply(&mut self.files[file].bytes, &change);
        self.files[file].unsynced.push(change);
    }
}

impl Disk for SimulatedDisk {
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let content = self.whole_call(None, false)?;
        let names = content.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect())
    }

    fn open(&self, path: &Path, _writes: bool) -> io::Result<Box<dyn DiskFile>> {
        let content = self.whole_call(None, false)?;
        let file = *content.names.get(path).ok_or_else(not_found)?;
        Ok(self.handle(&content, file))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut content = self.whole_call(None, true)?;
        let known = content.names.get(path).copied();
        let file = known.unwrap_or(content.files.len());
        match known {
            Some(file) => content.change(file, Change::SetLen(0)),
            None => {
                content.files.push(File::default());
                content.change_names(NameChange::Put(path.into(), file));
            }
        }
        Ok(self.handle(&content, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut content = self.whole_call(None, true)?;
        let file = *content.names.get(from).ok_or_else(not_found)?;
        content.change_names(NameChange::Rename(from.into(), to.into(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut content = self.whole_call(None, true)?;
        content.names.get(path).ok_or_else(not_found)?;
        content.change_names(NameChange::Remove(path.into()));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut content = self.whole_call(None, true)?;
        // There is one folder.
        assert!(content.names.keys().all(|path| path.parent() == Some(folder)));
        for change in std::mem::take(&mut content.unsynced_names) {
            rename(&mut content.durable_names, change);
        }
        Ok(())
    }

    fn now_us(&self) -> i64 {
        let mut content = self.lock();
        content.now_us += 1;
        content.now_us
    }

    fn lived(&self) -> Duration {
        self.lock().lived
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    file: usize,
    process: u32,
}

impl SimulatedFile {
    fn whole_call(&self, has_room: bool) -> io::Result<MutexGuard<'_, Content>> {
        self.disk.whole_call(Some(self.process), has_room)
    }

    /// A call for so many bytes, and how many of them are to be read or written before it fails or ends.
    fn partial_call(&self, len: usize, is_write: bool) -> io::Result<(MutexGuard<'_, Content>, usize, io::Result<()>)> {
        let (mut content, fault) = self.disk.call(Some(self.process))?;
        let part = content.choices.below(len as u64) as usize;
        let fault_of = |number| Err(io::Error::from_raw_os_error(number));
        Ok(match fault {
            Some(Fault::Interrupted) => (content, 0, Err(io::ErrorKind::Interrupted.into())),
            Some(Fault::Short) => (content, part.max(1), Ok(())),
            Some(Fault::Error(number) | Fault::ErrorAndDeath(number)) if is_write || number != NO_SPACE => {
                (content, if is_write { part } else { 0 }, fault_of(number))
            }
            Some(Fault::Full(_)) if is_write => (content, part, fault_of(NO_SPACE)),
            _ => (content, len, Ok(())),
        })
    }

    fn sync(&self) -> io::Result<()> {
        let (mut content, fault) = self.disk.call(Some(self.process))?;
        let content = &mut *content;
        let file = &mut content.files[self.file];
        if let Some(Fault::Error(number) | Fault::ErrorAndDeath(number)) = fault {
            let cached = file.bytes.clone();
            file.lose(&mut content.choices);
            file.bytes = cached;
            return Err(io::Error::from_raw_os_error(number));
        }
        for change in std::mem::take(&mut file.unsynced) {
            apply(&mut file.durable, &change);
        }
        Ok(())
    }
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        let content = self.whole_call(false)?;
        Ok(content.files[self.file].bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (content, part, outcome) = self.partial_call(buffer.len(), false)?;
        outcome?;
        let found = content.files[self.file].bytes.get(offset as usize..).unwrap_or_default();
        let read = found.len().min(part);
        buffer[..read].copy_from_slice(&found[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (mut content, part, outcome) = self.partial_call(bytes.len(), true)?;
        if part > 0 {
            content.change(self.file, Change::Write(offset, bytes[..part].to_vec()));
        }
        outcome.map(|()| part)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.whole_call(true)?;
        content.change(self.file, Change::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}
