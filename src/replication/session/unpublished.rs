//! Tables that somebody took out of our publications, for a while or still: their changes since then are in no log that we
//! read. And tables that only their owner may publish.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_core::{Error, Finding, Kind, Result, Severity, Table, TableName};
use tracing::warn;

use super::Session;
use crate::{replication::reload, state::keys::table::TableState, telemetry::events};

impl Session {
    /// Has the tables loaded anew whose changes were not published for a while, and says whether there are any. Asked before
    /// the publications are mended, because nothing tells of it afterwards. Where nothing is ever loaded, it is only told.
    pub(super) async fn reload_unpublished(&self, found: &[Table]) -> Result<bool> {
        let wiring = &self.task.wiring;
        let loads = wiring.config.mode.loads();
        let captured = self.tables.captured();
        let ids = wiring.source.publication_ids(&captured).await?;
        let mut missed: BTreeSet<TableName> = wiring.source.unpublished(&captured).await?.into_iter().collect();
        missed.extend(self.put_back(&ids));
        let mut any = false;
        for name in missed {
            let gate = self.delivery.gate().await;
            let Some(record) = self.tables.get(&name) else { continue };
            if !found.iter().any(|shape| shape.name == name && shape.source_id == record.table.source_id) {
                // It is gone, or another table has its name.
                continue;
            }
            if record.state != TableState::Completed {
                // A load that is under way is worth nothing; one that waits takes its snapshot when it is published.
                self.tables.outdate(&name)?;
                continue;
            }
            any = true;
            if loads {
                reload::mark(&self.tables, self.task.name(), Some(&name))?;
                self.wake.notify_one();
            }
            drop(gate);
            let follows = if loads { "it is loaded anew" } else { "they are missing" };
            let message = format!("changes of table {name} were not published for a while: {follows}");
            warn!(task = self.task.name(), table = %name, "changes of the table were not published for a while");
            let event = events::Event::of_task("configuration change", self.task.name(), message);
            events::record(&*wiring.state, event);
        }
        // What follows from it is in the state by now.
        self.tables.note_published(&ids)?;
        Ok(any)
    }

    /// Tables that are published, but not as they were all the time.
    fn put_back(&self, ids: &BTreeMap<TableName, u64>) -> Vec<TableName> {
        let was_other = |(name, id): &(&TableName, &u64)| {
            self.tables.get(name).and_then(|record| record.published).is_some_and(|known| known != **id)
        };
        ids.iter().filter(was_other).map(|(name, _)| name.clone()).collect()
    }

    /// Has the changes of all captured tables published as they can be captured now, and those of no others. Where only the
    /// tables' owner may change that, what is published goes on, the task says what is to be run, and this is false.
    pub(super) async fn publish(&self, found: &[Table]) -> Result<bool> {
        let captured = self.tables.captured();
        let wanted: Vec<Arc<Table>> = captured.iter().map(|table| as_found(table, found)).collect();
        let Err(error) = self.task.wiring.source.prepare(&wanted).await else {
            self.tell_published(None)?;
            return Ok(true);
        };
        if error.kind != Kind::Permission {
            return Err(error);
        }
        let unpublished = self.task.wiring.source.unpublished(&captured).await?;
        let is_complete =
            |name: &&TableName| self.tables.get(name).is_some_and(|record| record.state == TableState::Completed);
        if unpublished.iter().any(|name| is_complete(&name)) {
            return Err(error);
        }
        self.tell_published(Some(&error))?;
        Ok(false)
    }

    /// Tables whose updates and deletes can be captured now, or cannot any more.
    pub(super) fn any_recaptured(&self, found: &[Table]) -> bool {
        let captured = self.tables.captured();
        captured.iter().any(|table| as_found(table, found).capture != table.capture)
    }

    /// What the task's record says of the publications.
    pub(super) fn tell_published(&self, error: Option<&Error>) -> Result<()> {
        let finding = error.map(|error| Finding { severity: Severity::Warning, ..Finding::from(error) });
        let record = self.task.record()?;
        if let (Some(error), Some(finding)) = (error, &finding)
            && !record.errors.contains(finding)
        {
            warn!(task = self.task.name(), error = %error, "the publications stay as they are");
        }
        self.task.update(|record| {
            record.errors.retain(|told| !is_for_owner(told));
            record.errors.extend(finding);
        })
    }
}

/// The table as it is captured, but that its changes are published as the source's shape allows now.
fn as_found(table: &Arc<Table>, found: &[Table]) -> Arc<Table> {
    let same = found.iter().find(|shape| shape.name == table.name && shape.source_id == table.source_id);
    match same.filter(|shape| shape.capture != table.capture) {
        Some(shape) => Arc::new(Table { capture: shape.capture, ..(**table).clone() }),
        None => table.clone(),
    }
}

pub(super) fn is_for_owner(told: &Finding) -> bool {
    told.severity == Severity::Warning && told.code == Kind::Permission.code()
}
