//! Every metric by name, in one place: `millrace_<noun>_<unit>[_total]` with bounded labels. Row values never get here.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use serde::{Deserialize, Serialize};

/// Labels of what belongs to a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TaskLabel {
    /// Its name.
    pub task: String,
}

/// Labels of rows: where on their way they were counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RowLabel {
    /// The task.
    pub task: String,
    /// `captured`, `loaded`, `delivered`, `filtered` or `dead_lettered`.
    pub stage: &'static str,
}

/// Labels of errors.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabel {
    /// The task.
    pub task: String,
    /// The error kind's code.
    pub code: &'static str,
}

type Float = Gauge<f64, AtomicU64>;

/// All metrics of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Seconds from the newest captured commit to now; 0 when the source told us that we have everything.
    pub source_lag_seconds: Family<TaskLabel, Float>,
    /// Seconds since the oldest change that is not in the catalog yet was written to the stream.
    pub target_lag_seconds: Family<TaskLabel, Float>,
    /// Bytes of log that the source keeps because of us.
    pub source_retained_bytes: Family<TaskLabel, Gauge>,
    /// Bytes that the source may still write before it gives up on us; -1 without a limit.
    pub source_safe_bytes: Family<TaskLabel, Gauge>,
    /// Seconds until the first limit for it is reached at the rate of the last minutes; -1 while it does not grow.
    pub source_limit_seconds: Family<TaskLabel, Float>,
    /// Bytes between the end of the source's log and our confirmed position.
    pub confirmed_lag_bytes: Family<TaskLabel, Gauge>,
    /// Rows by stage.
    pub rows: Family<RowLabel, Counter>,
    /// Captured rows that are neither delivered, filtered, dead-lettered nor in flight: must be 0.
    pub unaccounted_rows: Family<TaskLabel, Gauge>,
    /// Bytes of changes in the stream that are not delivered yet, before compression.
    pub buffer_bytes: Family<TaskLabel, Gauge>,
    /// Bytes of the stream on disk.
    pub stream_bytes: Family<TaskLabel, Gauge>,
    /// Duration of a delivery round.
    pub flush_seconds: Family<TaskLabel, Histogram>,
    /// Size of delivered objects.
    pub object_bytes: Family<TaskLabel, Histogram>,
    /// Rows loaded by full loads that are under way.
    pub full_load_rows: Family<TaskLabel, Gauge>,
    /// Rows that these loads are estimated to have.
    pub full_load_rows_estimated: Family<TaskLabel, Gauge>,
    /// Tables that are suspended.
    pub suspended_tables: Family<TaskLabel, Gauge>,
    /// 1 while a task runs without an error.
    pub task_up: Family<TaskLabel, Gauge>,
    /// Errors by kind.
    pub errors: Family<ErrorLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("millrace");
        macro_rules! family {
            ($name:literal, $help:literal) => {{
                let family = Family::default();
                registry.register($name, $help, family.clone());
                family
            }};
        }
        let flush_seconds =
            Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.01, 2.0, 14))) as fn() -> Histogram);
        registry.register("flush_seconds", "Duration of a delivery round", flush_seconds.clone());
        let object_bytes = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(1024.0, 4.0, 10))) as fn() -> Histogram,
        );
        registry.register("object_bytes", "Size of delivered objects", object_bytes.clone());
        Self {
            source_lag_seconds: family!(
                "source_lag_seconds",
                "From the newest captured commit to now, or from when the log could last be read"
            ),
            target_lag_seconds: family!("target_lag_seconds", "Age of the oldest change that is not delivered"),
            source_retained_bytes: family!("source_retained_bytes", "Log that the source keeps because of us"),
            source_safe_bytes: family!("source_safe_bytes", "What the source may write before it gives up on us"),
            source_limit_seconds: family!(
                "source_limit_seconds",
                "Until the first limit of the source's log is reached"
            ),
            confirmed_lag_bytes: family!("confirmed_lag_bytes", "Source log that is not confirmed"),
            rows: family!("rows", "Rows by stage"),
            unaccounted_rows: family!("unaccounted_rows", "Captured rows whose fate is unknown; must be 0"),
            buffer_bytes: family!("buffer_bytes", "Changes in the stream that are not delivered"),
            stream_bytes: family!("stream_bytes", "The stream on disk"),
            full_load_rows: family!("full_load_rows", "Rows loaded so far by loads under way"),
            full_load_rows_estimated: family!("full_load_rows_estimated", "Rows that these loads will have"),
            suspended_tables: family!("suspended_tables", "Tables that must be reloaded"),
            task_up: family!("task_up", "Whether the task runs without an error"),
            errors: family!("errors", "Errors by kind"),
            flush_seconds,
            object_bytes,
            registry,
        }
    }
}

impl Metrics {
    /// All metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// Counts rows at a stage.
    pub fn count_rows(&self, task: &str, stage: &'static str, rows: u64) {
        self.rows.get_or_create(&RowLabel { task: task.into(), stage }).inc_by(rows);
    }

    /// Counts an error.
    pub fn count_error(&self, task: &str, code: &'static str) {
        self.errors.get_or_create(&ErrorLabel { task: task.into(), code }).inc();
    }
}

/// What only the running daemon knows of a task; `None` where nothing was measured yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Seconds from the newest captured commit to now, or from when the log could last be read.
    pub source_lag_seconds: Option<f64>,
    /// Age of the oldest change that is not delivered, in seconds.
    pub target_lag_seconds: Option<f64>,
    /// Seconds until the first limit of what the source keeps for us is reached; -1 while it does not grow.
    pub source_limit_seconds: Option<f64>,
    /// Bytes of log at the source that are not confirmed.
    pub confirmed_lag_bytes: Option<i64>,
    /// Bytes of changes that are not delivered.
    pub buffer_bytes: Option<i64>,
    /// Captured rows whose fate is unknown; must be 0.
    pub unaccounted_rows: Option<i64>,
}

impl Metrics {
    /// A task's live figures.
    pub fn live(&self, task: &str) -> Live {
        let label = task_label(task);
        let integer = |family: &Family<TaskLabel, Gauge>| family.get(&label).map(|gauge| gauge.get());
        let float = |family: &Family<TaskLabel, Float>| family.get(&label).map(|gauge| gauge.get());
        Live {
            source_lag_seconds: float(&self.source_lag_seconds),
            target_lag_seconds: float(&self.target_lag_seconds),
            source_limit_seconds: float(&self.source_limit_seconds),
            confirmed_lag_bytes: integer(&self.confirmed_lag_bytes),
            buffer_bytes: integer(&self.buffer_bytes),
            unaccounted_rows: integer(&self.unaccounted_rows),
        }
    }
}

/// The label of a task.
pub fn task_label(task: &str) -> TaskLabel {
    TaskLabel { task: task.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefixed_and_values_shown() {
        let metrics = Metrics::default();
        metrics.count_rows("t", "captured", 3);
        metrics.unaccounted_rows.get_or_create(&task_label("t")).set(0);
        let text = metrics.render();
        assert!(text.contains("millrace_rows_total{task=\"t\",stage=\"captured\"} 3"), "{text}");
        assert!(text.contains("millrace_unaccounted_rows{task=\"t\"} 0"), "{text}");
    }
}
