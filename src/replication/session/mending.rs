//! Looking at the source's tables again while the task runs, and loading anew what its log does not tell.

use std::time::Duration;

use millrace_core::{Result, Severity, TableName};
use tokio::time::Instant;
use tracing::info;

use super::{LOOK_EVERY, Session, check, unpublished};
use crate::{replication::reload, telemetry::events};

/// Between two reloads of the same table that nobody asked for; doubles with each, up to 64 times as long.
const MEND_PAUSE: Duration = Duration::from_secs(10);
const MEND_FORGET: Duration = Duration::from_secs(3600);

impl Session {
    /// The time has come to look at the source's tables: as often as the config says, and soon when the log hints at it.
    pub(super) async fn time_to_look(&self) {
        let every = self.task.wiring.config.on_change.discover;
        let hinted = async {
            self.look_again.notified().await;
            // There may be one hint for each of many partitions.
            tokio::time::sleep(LOOK_EVERY).await;
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(every), if !every.is_zero() => {}
            () = hinted => {}
        }
    }

    /// Looks for tables that are new, gone or made again at the source, and for those that are not published any more.
    pub(super) async fn discover(&self) -> Result<()> {
        let wiring = &self.task.wiring;
        self.verify_source().await?;
        let found = wiring.source.tables(&wiring.config.selection()).await?;
        let mode = wiring.config.mode;
        if mode.captures() && self.reload_unpublished(&found).await? && !mode.loads() {
            // Nothing else will publish them again.
            wiring.source.prepare(&self.tables.captured()).await?;
        }
        if self.reconcile(&found).await? {
            self.warn_anew().await?;
        }
        if mode.captures() {
            // Of a table that is suspended for the loss of its key the application's own updates fail until they are not
            // published any more.
            self.publish(&found).await?;
            self.follow_spellings().await?;
        }
        Ok(())
    }

    /// The tables are others than when the task was last checked: what it warns of is told of those that are there now.
    pub(super) async fn warn_anew(&self) -> Result<()> {
        let findings = check(&self.task.wiring).await;
        if findings.iter().any(|finding| finding.severity == Severity::Error) {
            // That shows where it hurts, and a source that could not be asked says nothing about the others.
            return Ok(());
        }
        self.task.update(|record| {
            record.errors.retain(|told| told.severity == Severity::Error || unpublished::is_for_owner(told));
            record.errors.extend(findings);
        })
    }

    /// Loads tables anew of which the log showed a change that it does not tell: at once, and ever later if that happens
    /// again and again.
    pub(super) async fn mend(&self) -> Result<()> {
        if !self.mends() {
            return Ok(());
        }
        for table in self.tables.to_mend() {
            if !self.may_mend(&table) {
                continue;
            }
            let _gate = self.delivery.gate().await;
            reload::mark(&self.tables, self.task.name(), Some(&table))?;
            self.wake.notify_one();
            let message =
                format!("table {table} is loaded anew, because it changed in a way that its log does not tell");
            info!(task = self.task.name(), "{message}");
            events::record(
                &*self.task.wiring.state,
                events::Event::of_task("configuration change", self.task.name(), message),
            );
        }
        Ok(())
    }

    /// Whether a table may be loaded anew already without anybody asking for it, which is noted.
    pub(super) fn may_mend(&self, table: &TableName) -> bool {
        let mut mended = self.mended.lock().expect("no panic while locked");
        let (count, last) = mended.get(table).copied().unwrap_or((0, Instant::now()));
        if count > 0 && last.elapsed() < MEND_PAUSE.saturating_mul(1 << (count - 1).min(6)) {
            return false;
        }
        let count = if last.elapsed() > MEND_FORGET { 1 } else { count + 1 };
        mended.insert(table.clone(), (count, Instant::now()));
        true
    }
}
