//! A whole task over a simulated source, disk, state and target.

mod simulated_lake;
mod simulated_source;
mod simulation;

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use millrace_core::{Error, Kind, Result};

use crate::{
    state::{Put, StateStore, memory::MemoryState},
    stream::tests::simulated::{Choices, SimulatedDisk},
};

/// When the process dies, whoever makes it die: it is dead when its disk is.
#[derive(Debug)]
struct Fuse {
    disk: SimulatedDisk,
    /// Steps of state, target and source until it dies.
    left: AtomicI64,
    choices: Mutex<Choices>,
}

impl Fuse {
    fn new(disk: SimulatedDisk, seed: u64) -> Self {
        Self { disk, left: AtomicI64::new(i64::MAX), choices: Mutex::new(Choices(seed)) }
    }

    fn burn_after(&self, steps: i64) {
        self.left.store(steps, Ordering::Relaxed);
    }

    /// A step before which, or behind which, the process may die. An error where it is dead.
    fn step(&self) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.disk.die();
        }
        match self.disk.is_dead() {
            true => Err(Error::new(Kind::Storage, "this process is dead")),
            false => Ok(()),
        }
    }

    /// A step that nobody learns the end of where the process dies, and that takes a moment.
    async fn wait(&self) {
        let ms = self.below(4);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        if self.step().is_err() {
            pending::<()>().await;
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.choices.lock().unwrap().below(bound)
    }
}

/// A state as SQLite keeps it: a commit is there whole or not at all, and for ever once it returned. What it read from is
/// not simulated below that.
struct SimulatedState {
    kept: Arc<MemoryState>,
    fuse: Arc<Fuse>,
    /// So many commits until one fails, though it may have been made.
    fails_after: AtomicI64,
}

impl StateStore for SimulatedState {
    fn get(&self, key: &str) -> Result<Option<String>> {
        self.kept.get(key)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        self.kept.scan(prefix)
    }

    fn commit(&self, puts: &[Put]) -> Result<()> {
        self.fuse.step()?;
        let fails = self.fails_after.fetch_sub(1, Ordering::Relaxed) == 0;
        if fails && self.fuse.below(2) == 0 {
            return Err(Error::new(Kind::Storage, "committing to a disk that fails"));
        }
        self.kept.commit(puts)?;
        self.fuse.step()?;
        match fails {
            true => Err(Error::new(Kind::Storage, "committing to a disk that fails behind it")),
            false => Ok(()),
        }
    }
}
