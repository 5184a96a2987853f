//! Test builds only: `MILLRACE_CRASH_AT=name` or `name:n` makes the process send itself SIGKILL when it passes the named
//! failpoint for the n-th time. Nothing is flushed and no destructor runs, as in a real kill.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Arms the failpoint that the environment names. What it gives must live as long as the process.
pub fn arm() -> fail::FailScenario<'static> {
    let scenario = fail::FailScenario::setup();
    if let Ok(wanted) = std::env::var("MILLRACE_CRASH_AT") {
        let (name, times) = wanted.rsplit_once(':').unwrap_or((&wanted, "1"));
        let left = AtomicU32::new(times.parse().expect("MILLRACE_CRASH_AT is name or name:n"));
        let crash = move || {
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                let _ = kill_process(getpid(), Signal::KILL);
            }
        };
        fail::cfg_callback(name, crash).expect("a failpoint can be configured");
    }
    scenario
}
