//! What the server as a whole must have: its settings, what it is (primary or standby), and what would hold us up.

use std::time::Duration;

use millrace_core::{Finding, Result};

use super::Check;
use crate::{
    discover::{CatalogRow, quote_literal},
    slot::FAILOVER_VERSION_MIN,
    snapshot::open_transactions,
};

/// An open transaction of this age is told of.
const LONG_TRANSACTION_SECONDS: u32 = 60;
/// One whose age the role may not see is told of when it is still open after this time.
const HIDDEN_TRANSACTION_WAIT: Duration = Duration::from_secs(1);
/// Logical decoding on a standby came with this version.
const STANDBY_VERSION_MIN: u32 = 16;

impl Check<'_> {
    pub(super) async fn server(&mut self) -> Result<()> {
        let slot = quote_literal(&self.names.slot);
        let row = self
            .one_row(&format!(
                "SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int, \
                 (SELECT count(*) FROM pg_replication_slots), \
                 EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot}), \
                 current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication), \
                 EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot} AND active), \
                 current_setting('max_slot_wal_keep_size'), pg_is_in_recovery(), \
                 current_setting('hot_standby_feedback')"
            ))
            .await?;
        let row = CatalogRow(&row);
        let level = row.word(0)?;
        if level != "logical" {
            self.add(
                Finding::error("PG-WAL-LEVEL", format!("wal_level is {level}; capturing changes needs logical"))
                    .fix("ALTER SYSTEM SET wal_level = logical;")
                    .fix("then restart the server"),
            );
        }
        self.is_standby = row.text(8) == Some("t");
        if self.is_standby {
            self.standby(row.text(9) == Some("on"));
        }
        let loading = i64::from(self.scope.full_load);
        let slots_needed = i64::from(row.text(3) != Some("t")) + loading;
        let limits = [
            ("PG-SLOTS", "replication slots", "max_replication_slots", row.number(1)?, row.number(2)?, slots_needed),
            (
                "PG-WALSENDERS",
                "wal senders",
                "max_wal_senders",
                row.number(4)?,
                row.number(5)?,
                i64::from(row.text(6) != Some("t")) + loading,
            ),
        ];
        for (code, what, setting, limit, used, needed) in limits {
            self.limit(code, what, setting, (limit, used, needed));
        }
        if row.text(7) == Some("-1") {
            self.add(
                Finding::warning("PG-WAL-KEEP", "max_slot_wal_keep_size has no limit")
                    .detail("A slot whose reader stays away for long then makes the server keep its log until the disk is full.")
                    .fix("ALTER SYSTEM SET max_slot_wal_keep_size = '8GB'; SELECT pg_reload_conf();"),
            );
        }
        Ok(())
    }

    fn limit(&mut self, code: &str, what: &str, setting: &str, (limit, used, needed): (i64, i64, i64)) {
        if limit - used >= needed {
            return;
        }
        self.add(
            Finding::error(code, format!("{needed} free {what} are needed, and {used} of {limit} are in use"))
                .detail("One is kept; another is used for a moment whenever tables are loaded.")
                .fix(format!("ALTER SYSTEM SET {setting} = {};", (used + needed).max(10)))
                .fix("then restart the server"),
        );
    }

    /// From 16 on a standby can be read from, where the primary does its part.
    fn standby(&mut self, has_feedback: bool) {
        if self.connection.major_version() < STANDBY_VERSION_MIN {
            let summary = "the server is a standby, whose log cannot be read before PostgreSQL 16";
            self.add(Finding::error("PG-STANDBY", summary).fix("set host to the primary"));
            return;
        }
        self.add(
            Finding::warning("PG-STANDBY", "the server is a standby")
                .detail(
                    "A new slot, and every load, waits until the primary next logs its running transactions: within",
                )
                .detail("15 s while it writes, and not at all while it is idle.")
                .fix("where that takes too long, run at the primary: SELECT pg_log_standby_snapshot();"),
        );
        if !has_feedback {
            self.add(
                Finding::error("PG-STANDBY-FEEDBACK", "hot_standby_feedback is off at this standby")
                    .detail("The primary then removes catalog rows that our slot needs, and the slot is invalidated.")
                    .fix("ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();")
                    .fix("and give the standby a physical slot at the primary (primary_slot_name)"),
            );
        }
    }

    /// `failover-slot`: whether the server can, and waits for its standbys.
    pub(super) async fn failover(&mut self) -> Result<()> {
        if !self.options.failover {
            return Ok(());
        }
        if self.connection.major_version() < FAILOVER_VERSION_MIN {
            let summary = format!("failover-slot needs PostgreSQL {FAILOVER_VERSION_MIN}; the slot is an ordinary one");
            self.add(
                Finding::warning("PG-FAILOVER", summary)
                    .detail("After a failover it is not there, unless something else carries it over.")
                    .fix("set failover-slot: false, or upgrade the server"),
            );
            return Ok(());
        }
        if self.is_standby {
            self.add(
                Finding::error("PG-FAILOVER", "a slot that is made at a standby cannot be a failover slot")
                    .fix("set host to the primary, or failover-slot: false"),
            );
            return Ok(());
        }
        let row = self.one_row("SELECT current_setting('synchronized_standby_slots')").await?;
        if CatalogRow(&row).text(0).unwrap_or_default().trim().is_empty() {
            self.add(
                Finding::warning("PG-FAILOVER", "synchronized_standby_slots is empty: we may be ahead of the standbys")
                    .detail("After a failover to a standby that has less than we do, everything must be loaded anew.")
                    .fix("ALTER SYSTEM SET synchronized_standby_slots = 'the standbys'' physical slots'; SELECT pg_reload_conf();")
                    .fix("and at the standbys: sync_replication_slots = on, hot_standby_feedback = on, dbname in primary_conninfo"),
            );
        }
        Ok(())
    }

    pub(super) async fn long_transactions(&mut self) -> Result<()> {
        let sql = open_transactions(0, LONG_TRANSACTION_SECONDS);
        let mut rows = self.connection.query(&sql).await?;
        let is_hidden = |row: &Vec<Option<String>>| row.get(1).is_some_and(Option::is_none);
        if rows.iter().any(is_hidden) {
            // An ordinary role does not see how old they are, but whether they stay.
            tokio::time::sleep(HIDDEN_TRANSACTION_WAIT).await;
            let later = self.connection.query(&sql).await?;
            rows.retain(|row| !is_hidden(row) || later.contains(row));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let mut finding = Finding::warning("PG-LONG-TRANSACTION", "open transactions will hold up a new slot or load");
        let (mut pids, mut prepared) = (vec![], vec![]);
        for row in &rows {
            let row = CatalogRow(row);
            let pid = row.word(0)?;
            let hidden = "age and state hidden from this role".to_string();
            let told = row.text(1).map_or(hidden, |age| {
                format!("open for {age} s, role {}, state {}", row.text(2).unwrap_or("?"), row.text(3).unwrap_or("?"))
            });
            match row.text(5) {
                Some(name) => {
                    finding = finding.detail(format!("prepared transaction {name:?}: {told}"));
                    prepared.push(quote_literal(name).trim_start().to_string());
                }
                None => {
                    finding = finding.detail(format!("pid {pid}: {told}"));
                    pids.push(pid.to_string());
                }
            }
        }
        if !pids.is_empty() {
            let pids = pids.join(",");
            let end = format!("end them, or: SELECT pg_terminate_backend(pid) FROM unnest('{{{pids}}}'::int[]) pid;");
            finding = finding.fix(end);
        }
        for name in prepared {
            finding = finding.fix(format!("COMMIT PREPARED {name}; or ROLLBACK PREPARED {name};"));
        }
        self.add(finding);
        Ok(())
    }
}
