//! What the log has come to, as its writer counts.

use std::collections::BTreeMap;

use super::{Mark, Totals, draft::Drafts};

/// What the log has counted so far.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// The newest mark that was written.
    pub(super) mark: Option<Mark>,
    /// Counts up to here.
    pub(super) totals: Totals,
    /// Commit time of the newest transaction.
    pub(super) newest_commit_us: i64,
    /// The next sequence counter of every shard.
    pub(super) counters: Vec<u64>,
    /// Whether frames follow the newest mark: a huge transaction is being written, or its own mark is still to come.
    pub(super) is_unmarked: bool,
    /// Shapes in the segment.
    pub(super) shape_count: u32,
}

/// What an append counts besides its rows.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) captured: u64,
    pub(super) filtered: BTreeMap<String, u64>,
    pub(super) newest_commit_us: Option<i64>,
}

impl State {
    /// Adds an append.
    pub(super) fn count(&mut self, counts: Counts, drafts: &Drafts) {
        for (reason, rows) in counts.filtered {
            *self.totals.filtered.entry(reason).or_default() += rows;
        }
        self.totals.captured += counts.captured;
        self.totals.rows += drafts.rows;
        self.totals.bytes += drafts.raw_bytes;
        if let Some(newest) = counts.newest_commit_us.or(drafts.newest_commit_us) {
            self.newest_commit_us = newest;
        }
    }
}
