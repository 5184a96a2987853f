//! Tables that somebody took out of our publications: their changes since then are in no log that we read.

use millrace_core::{Result, Table};
use tracing::warn;

use super::Session;
use crate::{replication::reload, state::keys::table::TableState, telemetry::events};

impl Session {
    /// Has the tables loaded anew whose changes were not published for a while, and says whether there are any. Asked before
    /// the publications are mended, because nothing tells of it afterwards. Where nothing is ever loaded, it is only told.
    pub(super) async fn reload_unpublished(&self, found: &[Table]) -> Result<bool> {
        let wiring = &self.task.wiring;
        let loads = wiring.config.mode.loads();
        let mut any = false;
        for name in wiring.source.unpublished(&self.tables.captured()).await? {
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
        Ok(any)
    }
}
