//! Tables of whose old rows the source prints something else by now, though none of them was written.

use millrace_core::Result;
use tracing::warn;

use super::Session;
use crate::{
    replication::reload,
    state::keys::table::{TableRecord, TableState},
    telemetry::events,
};

impl Session {
    /// Has them loaded anew. Asked before each load too, so that what changes while it runs is seen behind it.
    pub(super) async fn follow_spellings(&self) -> Result<()> {
        let wiring = &self.task.wiring;
        for (name, now) in wiring.source.spellings(&self.tables.captured()).await? {
            let is_other = |record: &TableRecord| record.spelling.as_ref() != Some(&now);
            if !self.tables.get(&name).as_ref().is_some_and(is_other) {
                continue;
            }
            let gate = self.delivery.gate().await;
            let Some(record) = self.tables.get(&name).filter(is_other) else { continue };
            let differ = record.spelling.as_ref().is_some_and(|before| wiring.source.spellings_differ(before, &now));
            let loads = wiring.config.mode.loads();
            match record.state {
                TableState::Completed if differ && loads => {
                    reload::mark(&self.tables, self.task.name(), Some(&name))?;
                    self.wake.notify_one();
                }
                TableState::FullLoad | TableState::Reloading if differ => self.tables.outdate(&name)?,
                _ => {}
            }
            self.tables.update(&name, vec![], |record| record.spelling = Some(now))?;
            drop(gate);
            if differ && record.state == TableState::Completed {
                let follows = if loads { "it is loaded anew" } else { "old rows keep what it was" };
                warn!(task = self.task.name(), table = %name, "a type of the table was altered: {follows}");
                let message = format!("table {name}: a type of its columns has other labels or attributes: {follows}");
                let event = events::Event::of_task("configuration change", self.task.name(), message);
                events::record(&*wiring.state, event);
            }
        }
        Ok(())
    }
}
