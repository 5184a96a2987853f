//! Logs, metrics and events.

pub mod metrics;
