//! Status updates: a task that tells the walsender how far we are, whether or not anybody pulls.
//!
//! The server gives up on a reader that is silent for `wal_sender_timeout`. It listens also while its own sends are
//! stuck because nobody reads, so updates on a timer keep the session alive through any pause.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use millrace_core::Position;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use crate::wire::{LogWriter, status_update::status_update};

/// Confirmed positions are sent at most this often; the server writes its slot to disk for them.
const CONFIRM_PAUSE: Duration = Duration::from_millis(250);

/// The task's handle; dropping it ends the task and closes the writing half of the socket.
#[derive(Debug)]
pub struct StatusSender {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    confirmed: AtomicU64,
    urgent: AtomicBool,
    wake: Notify,
}

impl StatusSender {
    /// Sends at least every `interval`, beginning with `confirmed`.
    pub fn spawn(writer: LogWriter, confirmed: u64, interval: Duration) -> Self {
        let shared = Arc::new(Shared {
            confirmed: AtomicU64::new(confirmed),
            urgent: AtomicBool::new(false),
            wake: Notify::new(),
        });
        let task = tokio::spawn(run(writer, shared.clone(), interval));
        Self { shared, task }
    }

    /// Everything before the position may be forgotten; never goes back.
    pub fn confirm(&self, position: u64) {
        self.shared.confirmed.fetch_max(position, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }

    /// The server wants to hear from us.
    pub fn answer_now(&self) {
        self.shared.urgent.store(true, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }

    /// What was confirmed last.
    pub fn confirmed(&self) -> Position {
        Position(u128::from(self.shared.confirmed.load(Ordering::Relaxed)))
    }
}

impl Drop for StatusSender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut writer: LogWriter, shared: Arc<Shared>, interval: Duration) {
    let mut sent = 0;
    let mut last = Instant::now();
    let mut urgent = true;
    loop {
        urgent |= shared.urgent.swap(false, Ordering::Relaxed);
        let confirmed = shared.confirmed.load(Ordering::Relaxed);
        let due = match (urgent, confirmed > sent) {
            (true, _) => last,
            (_, true) => last + CONFIRM_PAUSE,
            _ => last + interval,
        };
        let now = Instant::now();
        if due > now {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = shared.wake.notified() => {}
            }
            continue;
        }
        // On the timer the server is asked for a keepalive: it tells how far an idle log has come.
        let ask = now >= last + interval;
        if let Err(error) = writer.send(&status_update(confirmed, now_us(), ask)).await {
            // Whoever reads the other half meets the same end, and reports it.
            tracing::debug!(%error, "a status update could not be sent");
            return;
        }
        (sent, last, urgent) = (confirmed, now, false);
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
