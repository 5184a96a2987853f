//! `event/<number>`: what happened that an operator may ask about later: creations, deletions, failures, changes of state
//! and of the config (DMS's event categories). Kept for 14 days, at most 10,000. Row values never get here.

use std::sync::atomic::{AtomicI64, Ordering};

use millrace_core::Result;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::now_us;
use crate::state::{Put, StateStore, read_all};

/// All events; the numbers behind it rise with time.
pub const PREFIX: &str = "event/";

const KEPT_US: i64 = 14 * 86_400 * 1_000_000;
const KEPT_MAX: usize = 10_000;
/// Events between two looks for old ones.
const PRUNE_EVERY: i64 = 500;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When (microseconds since 1970-01-01 UTC).
    pub time_us: i64,
    /// `creation`, `deletion`, `failure`, `state change`, `configuration change` or `low storage`.
    pub category: String,
    /// The task it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The table it belongs to, as the source shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The code of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What happened, one sentence.
    pub message: String,
}

impl Event {
    /// Of the daemon itself.
    pub fn of_daemon(category: &str, message: impl Into<String>) -> Self {
        Self { time_us: now_us(), category: category.into(), message: message.into(), ..Self::default() }
    }

    /// Of a task.
    pub fn of_task(category: &str, task: &str, message: impl Into<String>) -> Self {
        Self { task: Some(task.into()), ..Self::of_daemon(category, message) }
    }

    /// The same of one of its tables.
    pub fn table(self, table: &str) -> Self {
        Self { table: Some(table.into()), ..self }
    }

    /// The same with the code of an error.
    pub fn code(self, code: &str) -> Self {
        Self { code: Some(code.into()), ..self }
    }
}

/// Stores an event. Never fails the caller: what cannot be stored is logged.
pub fn record(state: &dyn StateStore, event: Event) {
    let number = next_number(event.time_us);
    let stored = state.commit(&[Put::set(format!("{PREFIX}{number:020}"), &event)]);
    if let Err(error) = stored {
        warn!(error = %error, event = event.message, "an event could not be stored");
    }
    static COUNT: AtomicI64 = AtomicI64::new(0);
    if COUNT.fetch_add(1, Ordering::Relaxed) % PRUNE_EVERY == 0 {
        prune(state, now_us());
    }
}

/// The time in microseconds, or the next number that this process has not used.
fn next_number(time_us: i64) -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let next = |last: i64| Some(time_us.max(last + 1));
    LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(time_us, |last| time_us.max(last + 1))
}

/// All events, oldest first.
pub fn list(state: &dyn StateStore) -> Result<Vec<Event>> {
    Ok(read_all(state, PREFIX)?.into_iter().map(|(_, event)| event).collect())
}

/// Removes events that are too old or too many.
fn prune(state: &dyn StateStore, now: i64) {
    let pruned = state.scan(PREFIX).and_then(|rows| {
        let too_many = rows.len().saturating_sub(KEPT_MAX);
        let oldest = format!("{PREFIX}{:020}", now - KEPT_US);
        let old = rows.iter().enumerate().take_while(|(index, (key, _))| *index < too_many || *key < oldest);
        let puts: Vec<Put> = old.map(|(_, (key, _))| Put::delete(key)).collect();
        if puts.is_empty() { Ok(()) } else { state.commit(&puts) }
    });
    if let Err(error) = pruned {
        warn!(error = %error, "old events could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::memory::MemoryState;

    #[test]
    fn events_keep_their_order_and_old_ones_go() {
        let state = MemoryState::default();
        for number in 0..20 {
            record(&state, Event::of_task("failure", "t", number.to_string()).code("CONNECTION").table("a.b"));
        }
        let events = list(&state).unwrap();
        assert_eq!(events.iter().map(|event| event.message.clone()).collect::<Vec<_>>(), {
            (0..20).map(|number: i32| number.to_string()).collect::<Vec<_>>()
        });
        assert_eq!((events[0].code.as_deref(), events[0].table.as_deref()), (Some("CONNECTION"), Some("a.b")));

        prune(&state, now_us());
        assert_eq!(list(&state).unwrap().len(), 20);
        let many: Vec<Put> =
            (0..KEPT_MAX).map(|n| Put::set(format!("{PREFIX}{:020}", now_us() + n as i64), &events[0])).collect();
        state.commit(&many).unwrap();
        prune(&state, now_us());
        assert_eq!(list(&state).unwrap().len(), KEPT_MAX);
        prune(&state, now_us() + KEPT_US + 3_600_000_000);
        assert_eq!(list(&state).unwrap(), []);
    }
}
