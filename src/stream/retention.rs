//! Takes whole segments whose time has passed and which every delivery has behind it. Nothing is ever taken early: at
//! the disk bound it is the writer that waits.

use std::{sync::atomic::Ordering, time::Duration};

use millrace_core::Result;

use super::{segment, shared::Shared};

/// Removes, oldest first, every closed segment whose newest frame is older than the retention and which ends at or
/// before the pin.
pub(super) fn retain(shared: &Shared) -> Result<()> {
    let folder = &shared.options.folder;
    let pin = shared.pin.load(Ordering::Acquire);
    let now_us = shared.now_us();
    let mut bases = vec![];
    {
        let mut segments = shared.segments();
        let closed = segments.len().saturating_sub(1);
        let is_due = |last_arrival_us: i64| {
            Duration::from_micros(now_us.saturating_sub(last_arrival_us).max(0) as u64) >= shared.options.retention
        };
        let due = segments.iter().take(closed).take_while(|s| s.end <= pin && is_due(s.last_arrival_us)).count();
        // Out of sight first: a reader that begins now is told that the range is gone.
        bases.extend(segments.drain(..due).map(|segment| segment.base));
    }
    for &base in &bases {
        segment::remove(folder, base)?;
    }
    if let Some(&position) = bases.last() {
        segment::sync_folder(folder)?;
        tracing::info!(folder = %folder.display(), segments = bases.len(), position, "removed delivered segments");
        shared.space_freed();
    }
    Ok(())
}
