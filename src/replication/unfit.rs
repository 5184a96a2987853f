//! Tables of a running task that its rules do not fit any more, since the source or the config changed: each stands still
//! by itself, with its reason, and nothing of it is delivered; everything else goes on.

use std::collections::BTreeMap;

use millrace_core::{Finding, Severity, Table, TableName};

use super::{neighbours::Owners, rules::Known, tables::Tables};
use crate::{
    config::TaskConfig,
    state::keys::table::{TableRecord, TableState},
};

/// The tables, with what is wrong.
pub type Unfit = BTreeMap<TableName, Finding>;

/// What the findings may be called, to tell them from others of the task.
const CODES: [&str; 3] = ["CATALOG-NAME", "TABLE-COLUMN", "TABLE-KEY-DROPPED"];

/// Compares the rules with what the source has now. Of tables that would meet in one name the one stays that is there.
pub fn find(tables: &Tables, config: &TaskConfig, owners: &mut Owners, found: &[Table]) -> Unfit {
    let rules = tables.rules();
    let mut unfit = Unfit::new();
    for table in found {
        // One that was away for a while is still the one that it was.
        let known = tables.get(&table.name).filter(|known| known.state != TableState::Cancelled);
        let followed = known.as_ref().is_some_and(|known| is_followed(tables, known, table));
        let wrong = rules.check_columns(table, followed).into_iter().next();
        let lost = || known.as_ref().and_then(|known| lost_hold(tables, known, table));
        unfit.extend(wrong.or_else(lost).map(|finding| (table.name.clone(), finding)));
    }
    let is_known = |table: &Table| {
        let known = tables.get(&table.name).filter(|known| known.state.is_there());
        known.is_some_and(|known| known.target == rules.target(&table.name))
    };
    let (known, new): (Vec<&Table>, Vec<&Table>) = found.iter().partition(|table| is_known(table));
    for (table, finding) in rules.check_names(known.into_iter().chain(new)) {
        unfit.entry(table.clone()).or_insert(finding);
    }
    for (table, finding) in owners.add(config, found) {
        unfit.entry(table).or_insert(finding);
    }
    unfit
}

/// Whether the rules fitted the table before, with what it had then. Rules that are new speak of it as it is.
fn is_followed(tables: &Tables, known: &TableRecord, now: &Table) -> bool {
    known.table.source_id == now.source_id && known.rule == tables.rules().text(&now.name)
}

fn lost_hold(tables: &Tables, known: &TableRecord, now: &Table) -> Option<Finding> {
    let before = known.evolving.last().map_or(&known.table, |shape| &shape.table);
    // Where the source does not mark how a table was defined, its columns are known by their places only.
    let how = match (now.definition_id, known.state) {
        (0, TableState::Completed) => Known::ByName,
        (0, _) => Known::ByNameBeforeLoad,
        _ => Known::ById,
    };
    is_followed(tables, known, now).then(|| tables.rules().lost_hold(before, now, how))?
}

/// What is said of a table that stands still.
pub fn reason(finding: &Finding) -> String {
    [&finding.summary].into_iter().chain(&finding.fix).map(String::as_str).collect::<Vec<_>>().join("; ")
}

/// Replaces what the task's record says of such tables.
pub fn tell(errors: &mut Vec<Finding>, unfit: &Unfit) {
    errors.retain(|told| told.severity == Severity::Error || !CODES.contains(&told.code.as_str()));
    errors.extend(unfit.values().map(|finding| Finding { severity: Severity::Warning, ..finding.clone() }));
}
