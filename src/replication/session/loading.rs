//! The load loop of a running task: tables that wait for their load, those that come to wait, and looks at the source meanwhile.

use std::{collections::BTreeSet, sync::Arc};

use millrace_core::{Error, Finding, Kind, Result, Severity, Table, error::Action};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Session;
use crate::{
    replication::{capture::Ask, task::Backoff},
    state::keys::table::{LoadRecord, TableRecord},
};

impl Session {
    /// Loads what waits, and then what comes to wait. True when nothing is captured and everything is loaded.
    pub(super) async fn load_loop(&self, cancel: &CancellationToken) -> Result<bool> {
        let (mut backoff, mut told, mut unseen) = (Backoff::new(), None, None);
        loop {
            if self.tables.to_load().is_empty() {
                if !self.task.wiring.config.mode.captures() {
                    return Ok(true);
                }
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Ok(false),
                    () = self.wake.notified() => {}
                    () = self.time_to_look() => {
                        let looked = self.discover().await.err();
                        if let Some(error) = &looked {
                            self.task.end_if_storage(error);
                            warn!(task = self.task.name(), error = %error, "looking for new tables failed");
                        }
                        // A source that is away is told of by the capture.
                        self.tell_trouble(looked.filter(|error| error.kind != Kind::Connection), &mut unseen)?;
                    }
                }
                continue;
            }
            let loaded = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(false),
                loaded = self.load_waiting() => loaded,
            };
            match loaded {
                Ok(()) => {
                    backoff = Backoff::new();
                    self.store_progress()?;
                    self.tell_trouble(None, &mut told)?;
                }
                Err(error) if !self.load_waits(&error) => return Err(error),
                Err(error) => {
                    // Capture goes on meanwhile, so this does not make the task fail.
                    warn!(task = self.task.name(), error = %error, "full load is tried again");
                    self.tell_trouble(Some(error), &mut told)?;
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(false),
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }

    /// What of this loop fails and is tried again, in the task's record; replaces what was told before.
    fn tell_trouble(&self, error: Option<Error>, told: &mut Option<Finding>) -> Result<()> {
        let finding = error.map(|error| {
            self.task.wiring.metrics.count_error(self.task.name(), error.kind.code());
            Finding { severity: Severity::Warning, ..Finding::from(&error) }
        });
        let before = std::mem::replace(told, finding.clone());
        self.task.update(|record| {
            record.errors.retain(|error| Some(error) != before.as_ref());
            record.errors.extend(finding);
        })
    }

    /// Whether a load that failed is tried again, while everything else goes on. What only the tables' owner may publish
    /// concerns those that wait for it.
    fn load_waits(&self, error: &Error) -> bool {
        let for_owner = error.kind == Kind::Permission && self.task.wiring.config.mode.captures();
        for_owner || !matches!(error.kind.action(), Action::StopTask | Action::Exit)
    }

    /// Looks at the waiting tables anew, has their changes published and captured, and only then takes the snapshot.
    async fn load_waiting(&self) -> Result<()> {
        let wiring = &self.task.wiring;
        self.verify_source().await?;
        let found = wiring.source.tables(&wiring.config.selection()).await?;
        if wiring.config.mode.captures() {
            self.reload_unpublished(&found).await?;
        }
        self.reconcile(&found).await?;
        self.renew_waiting(&found)?;
        // A table that comes to wait from here on is not loaded yet: its changes may not be captured.
        let mut taken_up = BTreeSet::new();
        let (mut for_owner, mut unpublished) = (None, BTreeSet::new());
        if wiring.config.mode.captures() {
            match wiring.source.prepare(&self.tables.captured()).await {
                Ok(()) => self.tell_published(None)?,
                Err(error) if error.kind == Kind::Permission => for_owner = Some(error),
                Err(error) => return Err(error),
            }
            // What somebody took out since the first look is back by now, and nothing else tells of it.
            self.reload_unpublished(&found).await?;
            self.follow_spellings().await?;
            self.renew_waiting(&found)?;
            // Asked behind that, so that none is loaded whose entry is not known by now.
            unpublished.extend(wiring.source.unpublished(&self.tables.captured()).await?);
            for record in self.tables.to_load() {
                if unpublished.contains(&record.table.name) {
                    continue;
                }
                let (answer, answered) = oneshot::channel();
                let ended = || Error::new(Kind::Connection, "waiting for the capture to take up a table");
                let name = record.table.name.clone();
                let since = record.load.as_ref().and_then(LoadRecord::kept_since);
                self.asks.send(Ask::AddTable(Arc::new(record.table), since, answer)).map_err(|_| ended())?;
                answered.await.map_err(|_| ended())?;
                taken_up.insert(name);
            }
        } else {
            taken_up = self.tables.to_load().into_iter().map(|record| record.table.name).collect();
        }
        self.load.run(&taken_up).await?;
        match for_owner {
            Some(error) => {
                let _gate = self.delivery.gate().await;
                unpublished.iter().try_for_each(|table| self.tables.let_go(table))?;
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// What waits for its load is loaded as the source has it now.
    fn renew_waiting(&self, found: &[Table]) -> Result<()> {
        let shape_of = |record: &TableRecord| found.iter().find(|shape| shape.name == record.table.name);
        let waiting = self.tables.to_load();
        waiting.iter().filter_map(shape_of).try_for_each(|shape| self.tables.renew(&shape.name, shape))
    }
}
