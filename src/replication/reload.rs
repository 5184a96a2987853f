//! Loading tables anew: what is changed before the load loop takes them up.
//!
//! The order matters. The table's delivery waits before the new snapshot is taken, so that no change behind its position
//! is filtered with the suspended ones; and the capture takes the table up before that too, so that every change behind
//! the position is in the stream.

use millrace_core::{Error, Kind, Result, TableName};

use super::tables::Tables;
use crate::state::{
    Put,
    keys::{
        checkpoint,
        table::{TableRecord, TableState},
    },
};

/// The source's log is made anew, and what lies between its old and its new place is lost: every table that is captured
/// begins its load again, whatever state it is in. May be called again after a crash. The delivery's gate must be held.
pub(super) fn mark_for_new_log(tables: &Tables, task: &str) -> Result<usize> {
    let mut count = 0;
    for record in tables.all() {
        if !record.state.is_there() {
            continue;
        }
        begin(tables, task, &record)?;
        count += 1;
    }
    Ok(count)
}

/// Marks one table, or all, for a reload. With a running delivery its gate must be held.
pub(super) fn mark(tables: &Tables, task: &str, only: Option<&TableName>) -> Result<Vec<String>> {
    let mut lines = vec![];
    for record in tables.all() {
        let name = &record.table.name;
        if only.is_some_and(|only| only != name) || record.state == TableState::Cancelled {
            continue;
        }
        if record.state == TableState::Missing {
            lines.push(format!("table {name} is not at the source; it is loaded when it is there again"));
            continue;
        }
        if matches!(record.state, TableState::FullLoad | TableState::BeforeLoad | TableState::Reloading) {
            lines.push(format!("table {name} is being loaded already"));
            continue;
        }
        begin(tables, task, &record)?;
        lines.push(format!("table {name} is loaded anew; readers see the old rows until it is complete"));
    }
    if lines.is_empty() {
        let what = only.map_or("it has no tables yet".into(), |table| format!("it has no table {table}"));
        return Err(Error::new(Kind::Config, format!("reloading in task {task}: {what}"))
            .fix(format!("see its tables: millrace tables {task}")));
    }
    Ok(lines)
}

/// From here on the table's delivery waits, and the load loop takes it up from its first segment.
fn begin(tables: &Tables, task: &str, record: &TableRecord) -> Result<()> {
    let mut puts = vec![];
    if let Some(mut delivery) = tables.checkpoint(&record.target)? {
        delivery.begin_load();
        puts.push(Put::set(checkpoint::key(task, &record.target), &delivery));
    }
    tables.update(&record.table.name, puts, |record| {
        if !matches!(record.state, TableState::BeforeLoad | TableState::FullLoad) {
            record.state = TableState::Reloading;
        }
        record.error = None;
        record.mends = false;
        record.unfit = false;
        // It is published anew for its load, if it is not.
        record.published = None;
        if let Some(load) = &mut record.load {
            load.forget_segments();
        }
    })
}
