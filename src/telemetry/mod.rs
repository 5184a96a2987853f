//! Logs, metrics and events.

pub mod events;
pub mod metrics;

/// Microseconds since 1970-01-01 UTC.
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_micros() as i64)
}
