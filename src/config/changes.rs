//! `on-change` of a task: what changes at the source that are no row changes lead to.

use std::time::Duration;

use super::section::{Reader, Section, Shape};

/// `on-change`: what follows when the source changes the shape of a table, empties it, or has new tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnChange {
    /// `schema`: the catalog follows (`evolve`, the default), and where the log does not tell what became of the rows
    /// that were there the table is loaded anew; or the table is suspended (`suspend`); or the task stops as well (`stop`).
    pub schema: SchemaChange,
    /// `truncate`: the table is emptied at the target as well (`apply`, the default), the truncate is passed over
    /// (`ignore`), or the table is suspended (`suspend`).
    pub truncate: Truncate,
    /// `partition-attached`: a partition joined a partitioned table and may have brought rows: the table is loaded anew
    /// (`reload`, the default), the rows are left out (`ignore`), or the table is suspended (`suspend`).
    pub partition_attached: PartChange,
    /// `partition-gone`: a partition was detached, dropped, or truncated or rewritten by itself: the table is loaded anew
    /// (`reload`, the default), its rows stay at the target (`ignore`), or the table is suspended (`suspend`).
    pub partition_gone: PartChange,
    /// `discover`: how often it is looked for tables that are new, gone or renamed (default 1m; 0s: at the start only).
    pub discover: Duration,
}

impl Default for OnChange {
    fn default() -> Self {
        Self {
            schema: SchemaChange::Evolve,
            truncate: Truncate::Apply,
            partition_attached: PartChange::Reload,
            partition_gone: PartChange::Reload,
            discover: Duration::from_secs(60),
        }
    }
}

/// What a change of a table's shape leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaChange {
    /// It is followed.
    Evolve,
    /// The table is suspended until it is reloaded.
    Suspend,
    /// That, and the task stops.
    Stop,
}

/// What a truncate leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncate {
    /// The table is emptied at the target.
    Apply,
    /// The rows stay.
    Ignore,
    /// The table is suspended until it is reloaded.
    Suspend,
}

/// What rows lead to that come or go with a partition, without a change of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartChange {
    /// Nothing: the target differs from the source from then on.
    Ignore,
    /// The table is loaded anew.
    Reload,
    /// The table is suspended until it is reloaded.
    Suspend,
}

static ON_CHANGE: Shape =
    Shape { name: "on-change", keys: &["schema", "truncate", "partition-attached", "partition-gone", "discover"] };

pub(super) fn on_change(reader: &mut Reader, section: &Section<'_>) -> OnChange {
    let default = OnChange::default();
    let inner = section.get("on-change").and_then(|node| reader.section(node, &ON_CHANGE, section.name("on-change")));
    let Some(inner) = inner else { return default };
    let schema = [("evolve", SchemaChange::Evolve), ("suspend", SchemaChange::Suspend), ("stop", SchemaChange::Stop)];
    let truncate = [("apply", Truncate::Apply), ("ignore", Truncate::Ignore), ("suspend", Truncate::Suspend)];
    let parts = [("reload", PartChange::Reload), ("ignore", PartChange::Ignore), ("suspend", PartChange::Suspend)];
    let mut partition = |key, default| inner.read(reader, key, |r, n, w| r.word(n, w, &parts)).unwrap_or(default);
    OnChange {
        partition_attached: partition("partition-attached", default.partition_attached),
        partition_gone: partition("partition-gone", default.partition_gone),
        schema: inner.read(reader, "schema", |r, n, w| r.word(n, w, &schema)).unwrap_or(default.schema),
        truncate: inner.read(reader, "truncate", |r, n, w| r.word(n, w, &truncate)).unwrap_or(default.truncate),
        discover: inner.read(reader, "discover", Reader::duration).unwrap_or(default.discover),
    }
}
