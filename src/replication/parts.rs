//! Parts of tables (PostgreSQL: partitions) that come with rows, or go with theirs: no row change tells of them, so the
//! parts are compared with those of the load at each look at the source, and the table is loaded anew, or what the config
//! says.

use millrace_core::{Capture, Part, PartChanges, Result, Table, TableName};
use tracing::warn;

use super::{reload, tables::Tables};
use crate::{
    config::{OnChange, PartChange},
    state::keys::table::TableState,
};

/// Acts on what became of the tables' parts; `recaptured` as for [`Tables::reconcile`]. `may_reload` says whether a table may be loaded anew already. Called with the
/// delivery's gate held. Gives what changed, for the events.
pub(super) fn follow(
    tables: &Tables,
    task: &str,
    found: &[Table],
    (on_change, loads, recaptured): (&OnChange, bool, bool),
    mut may_reload: impl FnMut(&TableName) -> bool,
) -> Result<Vec<String>> {
    let mut events = vec![];
    for shape in found {
        let Some(now) = &shape.parts else { continue };
        let record = tables.get(&shape.name).filter(|record| record.state == TableState::Completed);
        let Some(record) = record else { continue };
        // Until it is published in another way it is captured as it was.
        let capture = if recaptured { shape.capture } else { record.table.capture };
        let before = record.table.parts.as_deref().unwrap_or_default();
        let changes = PartChanges::between(before, now);
        let emptied = changes.gone && is_emptied(before, now);
        let policy = policy(changes, emptied, on_change);
        let what = match (changes.came, changes.gone) {
            (true, false) => "a partition with rows was attached",
            (false, true) if emptied => "all its partitions were truncated or rewritten",
            (false, true) => "a partition was detached, dropped, truncated or rewritten by itself",
            (true, true) => "partitions were attached with rows, and others detached, dropped, truncated or rewritten",
            (false, false) if record.table.capture == capture => "",
            (false, false) => "what its partitions send of old rows is not what it was",
        };
        let name = &shape.name;
        match policy {
            _ if what.is_empty() => note(tables, shape, capture, before)?,
            PartChange::Reload if loads => {
                if may_reload(name) {
                    reload::mark(tables, task, Some(name))?;
                    events.push(format!("table {name} is loaded anew: {what}"));
                }
            }
            PartChange::Suspend => {
                tables.give_up(name, TableState::Error, what)?;
                events.push(format!("table {name} is suspended: {what}"));
            }
            PartChange::Reload | PartChange::Ignore => {
                warn!(task, table = %name, what, "rows came or went that no change tells of, and are passed over");
                note(tables, shape, capture, before)?;
                events.push(format!("table {name} differs from its source from now on: {what}"));
            }
        }
    }
    Ok(events)
}

/// Whether all parts are still there, and none as it was. That is what a TRUNCATE of the whole table looks like, which the
/// log does tell of; the load that follows all the same has little to read then.
fn is_emptied(before: &[Part], now: &[Part]) -> bool {
    let is_new = |part: &Part| now.iter().any(|n| n.id == part.id && n.storage_id != part.storage_id);
    before.iter().all(is_new)
}

/// The stricter one, where both happened.
fn policy(changes: PartChanges, emptied: bool, on_change: &OnChange) -> PartChange {
    match (changes.came, changes.gone) {
        (false, true) if emptied => on_change.partition_gone.min(PartChange::Reload),
        (true, false) => on_change.partition_attached,
        (false, true) => on_change.partition_gone,
        (true, true) => on_change.partition_attached.max(on_change.partition_gone),
        (false, false) => PartChange::Reload,
    }
}

/// From now on these are its parts, and this is what they send of old rows.
fn note(tables: &Tables, shape: &Table, capture: Capture, before: &[Part]) -> Result<()> {
    let now = shape.parts.as_deref().unwrap_or_default();
    let marks = |parts: &[Part]| -> Vec<_> { parts.iter().map(|p| (p.id, p.storage_id, p.attached_by)).collect() };
    let same_capture = tables.get(&shape.name).is_some_and(|record| record.table.capture == capture);
    if marks(before) == marks(now) && same_capture {
        return Ok(());
    }
    tables.update(&shape.name, vec![], |record| {
        record.table.parts = Some(now.to_vec());
        record.table.capture = capture;
    })
}
