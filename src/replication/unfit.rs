//! Tables of a running task that its rules do not fit any more, since the source or the config changed: each stands still
//! by itself, with its reason, and nothing of it is delivered; everything else goes on.

use std::collections::BTreeMap;

use millrace_core::{Finding, Severity, Table, TableName};

use super::{neighbours::Owners, tables::Tables};
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
        let wrong = rules.check_columns(table).into_iter().next();
        let lost = || tables.get(&table.name).filter(is_there).and_then(|known| lost_hold(tables, &known, table));
        unfit.extend(wrong.or_else(lost).map(|finding| (table.name.clone(), finding)));
    }
    let is_known = |table: &Table| {
        tables.get(&table.name).filter(is_there).is_some_and(|known| known.target == rules.target(&table.name))
    };
    let (known, new): (Vec<&Table>, Vec<&Table>) = found.iter().partition(|table| is_known(table));
    let mut taken: Vec<&Table> = vec![];
    for table in known.into_iter().chain(new) {
        match taken.iter().find(|other| rules.are_one(other, table)) {
            Some(twin) => {
                unfit.entry(table.name.clone()).or_insert_with(|| rules.twins(&twin.name, &table.name));
            }
            None => taken.push(table),
        }
    }
    for (table, finding) in owners.add(config, found) {
        unfit.entry(table).or_insert(finding);
    }
    unfit
}

fn is_there(record: &TableRecord) -> bool {
    !matches!(record.state, TableState::Cancelled | TableState::Missing)
}

/// Rules that are new speak of the table as it is.
fn lost_hold(tables: &Tables, known: &TableRecord, now: &Table) -> Option<Finding> {
    let before = known.evolving.last().map_or(&known.table, |shape| &shape.table);
    let is_same = before.source_id == now.source_id && known.rule == tables.rules().text(&now.name);
    // Where the source does not mark how a table was defined, its columns are known by their places only.
    is_same.then(|| tables.rules().lost_hold(before, now, now.definition_id != 0))?
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
