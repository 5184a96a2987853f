//! The transaction that is being read.

use millrace_core::{Error, Kind, Order, Result};

use crate::wire::{begin::Begin, status_update::EPOCH_2000_US};

/// From its Begin to its Commit.
#[derive(Debug)]
pub struct Transaction {
    /// Where its commit record starts.
    pub commit: u64,
    /// When it committed; microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// Its number.
    pub xid: u32,
    /// It is behind the position that the log began at: all of it has been taken before.
    pub skipped: bool,
    /// The server took it over from elsewhere.
    pub is_foreign: bool,
    /// A row of it has cells that are still to be looked up.
    pub has_absent: bool,
    /// Changes since the last pull.
    pub rows: usize,
    /// About the bytes of them.
    pub bytes: usize,
    ordinal: u32,
}

impl Transaction {
    /// Begins.
    pub fn new(begin: Begin, from: u64) -> Self {
        Self {
            commit: begin.final_lsn,
            commit_time_us: begin.commit_time.saturating_add(EPOCH_2000_US),
            xid: begin.xid,
            skipped: begin.final_lsn < from,
            is_foreign: false,
            has_absent: false,
            rows: 0,
            bytes: 0,
            ordinal: 0,
        }
    }

    /// The place of the next change.
    pub fn next(&mut self) -> Result<Order> {
        self.ordinal = self.ordinal.checked_add(1).ok_or_else(|| {
            Error::new(Kind::Internal, "numbering the changes of a transaction").with("it has more than 2^32 changes")
        })?;
        Ok(Order { commit: u128::from(self.commit), ordinal: self.ordinal })
    }

    /// Whether it changed anything of ours.
    pub fn has_changes(&self) -> bool {
        self.ordinal > 0
    }

    /// Where the next change will be.
    pub fn here(&self) -> Order {
        Order { commit: u128::from(self.commit), ordinal: self.ordinal.saturating_add(1) }
    }

    /// Counts a change.
    pub fn count(&mut self, bytes: usize) {
        self.rows += 1;
        self.bytes += bytes;
    }
}
