//! Takes whole segments whose time has passed and which every delivery has behind it.
//!
//! Near the disk bound history gives way before the source does: what is delivered goes early, oldest first. What is not
//! delivered is never taken; when only that is left the writer waits.
//!
//! Age is the time that passed, not what the clock says: a clock that jumps ahead while the daemon runs takes nothing early,
//! and what it stamps meanwhile stays as much longer. Across a restart there is only the clock.

use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use millrace_core::Result;

use super::{
    segment::{self, SegmentInfo},
    shared::Shared,
};

/// From this share of the disk bound on, delivered segments go before their time: numerator and denominator.
const PRESSURE: (u64, u64) = (3, 4);

/// Removes, oldest first, every closed segment which ends at or before the pin and whose newest frame is older than the
/// retention, or as many as bring the log below three quarters of its bound.
pub(super) fn retain(shared: &Shared) -> Result<()> {
    let _held = shared.folder.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = &shared.options.folder;
    let pin = shared.pin.load(Ordering::Acquire);
    let now_us = shared.passed_us();
    let due: Vec<SegmentInfo> = {
        let segments = shared.segments();
        let closed = segments.len().saturating_sub(1);
        let is_due = |last_arrival_us: i64| {
            Duration::from_micros(now_us.saturating_sub(last_arrival_us).max(0) as u64) >= shared.options.retention
        };
        let bound = shared.options.disk_bytes_max / PRESSURE.1 * PRESSURE.0;
        let mut left = shared.bytes_held(&segments);
        let goes = |segment: &&SegmentInfo| {
            let goes = segment.end <= pin && (left > bound || is_due(segment.last_arrival_us));
            left -= segment.end - segment.base;
            goes
        };
        segments.iter().take(closed).take_while(goes).cloned().collect()
    };
    let Some(position) = due.last().map(|last| last.base) else { return Ok(()) };
    let count = due.len();
    for segment in due {
        // Out of sight first: a reader that begins now is told that the range is gone.
        shared.segments().remove(0);
        if let Err(error) = take(shared, &segment) {
            shared.segments().insert(0, segment);
            return Err(error);
        }
    }
    segment::sync_folder(&*shared.disk, folder)?;
    tracing::info!(folder = %folder.display(), segments = count, position, "removed delivered segments");
    shared.space_freed();
    Ok(())
}

/// Not before those ahead of it are durably gone: one that came back with this one missing would leave a gap.
fn take(shared: &Shared, segment: &SegmentInfo) -> Result<()> {
    let folder = &shared.options.folder;
    segment::sync_folder(&*shared.disk, folder)?;
    segment::remove(&*shared.disk, folder, segment.base)
}
