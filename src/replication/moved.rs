//! Whether a task's target is where its files are. The catalog and the segments of a load under way name them where they were
//! written, so a task whose target is another place would be half here and half there.

use std::sync::Arc;

use millrace_core::{Finding, Result, TableName, destination::Destination};

use crate::{
    catalog::{Catalog, CatalogName},
    config::TaskConfig,
    delivery::layout,
    state::{
        StateStore,
        keys::{
            checkpoint::{self, Checkpoint},
            segment::{self, SegmentRecord},
            table::{self, TableRecord, TableState},
        },
        read, read_all,
    },
};

/// The finding, if files of the task lie elsewhere.
pub fn find(
    config: &TaskConfig,
    state: &Arc<dyn StateStore>,
    destination: &dyn Destination,
) -> Result<Option<Finding>> {
    let records: Vec<(String, TableRecord)> = read_all(&**state, &table::prefix(&config.name))?;
    for (_, record) in records {
        // A table that comes back is loaded anew.
        if !record.state.is_there() {
            continue;
        }
        if let Some(there) = elsewhere(config, state, destination, &record)? {
            return Ok(Some(finding(config, destination, &record.table.name, &there)));
        }
    }
    Ok(None)
}

/// Where the table's files lie, if not at the target.
fn elsewhere(
    config: &TaskConfig,
    state: &Arc<dyn StateStore>,
    destination: &dyn Destination,
    record: &TableRecord,
) -> Result<Option<String>> {
    // Of a table that nothing was delivered of the catalog may list what an earlier task left.
    let delivered = !matches!(record.state, TableState::BeforeLoad | TableState::FullLoad)
        && read::<Checkpoint>(&**state, &checkpoint::key(&config.name, &record.target))?
            .is_some_and(|delivery| delivery.counts.accounted() > 0 || delivery.counts.loaded > 0);
    let listed = Catalog::new(state.clone()).table(&CatalogName::of(&record.target))?.filter(|_| delivered);
    let here = destination.location(&layout::folder(&record.target));
    if let Some(table) = listed.filter(|table| table.files > 0 && table.location != here) {
        return Ok(Some(table.location));
    }
    let segments: Vec<(String, SegmentRecord)> =
        read_all(&**state, &segment::prefix(&config.name, &record.table.name))?;
    let mut files = segments.into_iter().flat_map(|(_, segment)| segment.files);
    Ok(files.find(|file| file.path != destination.location(&file.key)).map(|file| file.path))
}

fn finding(config: &TaskConfig, destination: &dyn Destination, table: &TableName, there: &str) -> Finding {
    let TaskConfig { name, target, .. } = config;
    let here = destination.location("");
    Finding::error("TARGET-MOVED", format!("task {name} delivers to another place than before: {here}"))
        .detail(format!("files of table {table} are in {there}, and the catalog lists them there"))
        .fix(format!("let target {target} name the place of before"))
        .fix(format!(
            "or have everything loaded anew: millrace delete {name}, with the old place still in the config; then the new one"
        ))
}
