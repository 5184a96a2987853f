//! Whether the source is who it was, and what follows when our place in its log is lost: a new place, and every table anew.

use std::sync::Arc;

use millrace_core::{Error, Kind, Result, Table, source::Source};
use tracing::warn;

use super::{LOOK_EVERY, Session};
use crate::{replication::reload, stream::Append, telemetry::events};

impl Session {
    /// Another server, or one that went back in time, has other tables, or none; nothing that it says of them is believed.
    pub(super) async fn verify_source(&self) -> Result<()> {
        let record = self.task.record()?;
        match (self.stream.last_mark(), record.identity) {
            (Some(mark), Some(known)) if !record.remake_log => {
                self.task.wiring.source.verify(&mark.resume(), &known).await
            }
            _ => Ok(()),
        }
    }

    /// What a first start finds under its name at the source is of another daemon whose task has the same name, or ours
    /// with a state that is gone. Nothing of it is touched: it is somebody's place in the log, and what lies behind it would
    /// be lost.
    pub(super) async fn find_no_other_log(&self) -> Result<()> {
        if self.task.record()?.slot_intent {
            return Ok(());
        }
        find_no_other_log(self.task.name(), &*self.task.wiring.source).await
    }

    /// The place in the source's log is lost. Every table is marked for its reload before the new place stands in the
    /// stream, so that nothing behind the gap is ever taken for what follows on what is before it. A crash in between
    /// begins this again.
    pub(super) async fn remake_log(&self, found: &[Table]) -> Result<()> {
        let wiring = &self.task.wiring;
        let tables: Vec<_> = found.iter().cloned().map(Arc::new).collect();
        wiring.source.prepare(&tables).await?;
        let identity = wiring.source.identity().await?;
        let gate = self.delivery.gate().await;
        let marked = reload::mark_for_new_log(&self.tables, self.task.name())?;
        drop(gate);
        fail::fail_point!("remake-before-slot");
        let mut begin = wiring.source.create_log().await?;
        fail::fail_point!("remake-after-slot");
        if self.stream.last_mark().is_some_and(|mark| begin.position <= mark.source) {
            let number = self.task.next_history()?;
            begin.position = begin.position.in_history(number);
        }
        let position = begin.position;
        self.task.update(|record| record.identity = Some(identity))?;
        while self.stream.append(Append::begin(begin.clone())).await?.is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        fail::fail_point!("remake-after-mark");
        self.task.update(|record| record.remake_log = false)?;
        let message = format!("the source's log is read anew from {position} on, and {marked} tables are loaded anew");
        warn!(task = self.task.name(), position = %position, tables = marked, "the source's log was made anew");
        events::record(&*wiring.state, events::Event::of_task("state change", self.task.name(), message));
        Ok(())
    }
}

/// Refuses what the source has under the name of a task that is new here.
pub async fn find_no_other_log(task: &str, source: &dyn Source) -> Result<()> {
    let Some(found) = source.retained().await? else { return Ok(()) };
    let doing = format!("making the slot of task {task}, which is new here");
    let fix = format!(
        "give the task another name: its slot is named after it\n\
         or, if it was this task's and its state is gone for good, and the task may load everything anew: {}",
        found.release
    );
    let whose = format!("the source has one of that name already ({})", found.status);
    Err(Error::new(Kind::SourceSetup, doing).with(whose).fix(fix))
}
