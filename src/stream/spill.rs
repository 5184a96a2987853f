//! Room for rows of transactions that have not committed, which the source sends ahead: a folder beside the segments, whose
//! bytes count in the stream's disk bound.
//!
//! Appends wait at the bound until retention frees something; so does whoever writes here. But nothing frees these bytes
//! except the end of their transactions, which stands behind the commits that appends bring. So an eighth of the bound
//! stays the log's, however much is kept here; and where no closed segment is left that could go, more is admitted beyond
//! the bound: one transaction that is larger than the bound is no reason never to go on, as it is none in the log itself.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use millrace_core::source::SpillRoom;

use super::shared::{Shared, bytes_on_disk};

/// The folder's name beside the segments.
const FOLDER: &str = "spill";
/// The log's own share of the bound is one of so many parts.
const LOG_SHARE: u64 = 8;

/// How the last request for room was answered, so that a change is told once.
const ADMITTED: u8 = 0;
const WAITING: u8 = 1;
const BEYOND: u8 = 2;

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Room {
    shared: Arc<Shared>,
    folder: PathBuf,
    answer: AtomicU8,
}

/// What of the spilled bytes stands against the log's.
pub(super) fn counted(spilled: u64, bytes_max: u64) -> u64 {
    spilled.min(bytes_max - bytes_max / LOG_SHARE)
}

impl Room {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let folder = shared.options.folder.join(FOLDER);
        Self { shared, folder, answer: AtomicU8::new(ADMITTED) }
    }

    /// Whether the answer is another one than before.
    fn is_news(&self, answer: u8) -> bool {
        self.answer.swap(answer, Ordering::Relaxed) != answer
    }
}

impl SpillRoom for Room {
    fn folder(&self) -> &Path {
        &self.folder
    }

    fn hold(&self, bytes: u64) {
        if self.shared.spilled.swap(bytes, Ordering::AcqRel) > bytes {
            self.shared.space_freed();
        }
    }

    fn admits(&self, bytes: u64) -> bool {
        let bytes_max = self.shared.options.disk_bytes_max;
        let (used, may_be_freed) = {
            let segments = self.shared.segments();
            (bytes_on_disk(&segments) + self.shared.spilled.load(Ordering::Acquire), segments.len() > 1)
        };
        let folder = self.folder.display();
        match (used.saturating_add(bytes) <= bytes_max, may_be_freed) {
            (true, _) => {
                if self.is_news(ADMITTED) {
                    tracing::info!(%folder, "the stream is below its disk bound again");
                }
                true
            }
            (false, true) => {
                if self.is_news(WAITING) {
                    tracing::warn!(%folder, bytes_max, "the stream is at its disk bound; an open transaction waits for space");
                }
                false
            }
            (false, false) => {
                if self.is_news(BEYOND) {
                    tracing::warn!(%folder, bytes_max, used, "an open transaction takes the stream beyond its disk bound");
                }
                true
            }
        }
    }
}
