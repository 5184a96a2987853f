//! What MariaDB shows of transactions of two phases (XA), and when.
//!
//! Such a commit is in the binary log, and a snapshot's place behind it, a moment before its rows are visible: the engine
//! commits it by itself (`trans_xa_commit` of `xa.cc`). `XA RECOVER` lists it until it did. MySQL has no such moment.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use std::time::Duration;

use millrace_core::{Error, Kind, Result, error::Context};
use tokio::time::Instant;

use crate::{
    log::xid::Xid,
    wire::{Connection, Reader},
};

/// Longer than this no commit takes.
const SHOWN_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// What may be between the log and the engine.
#[derive(Debug, PartialEq, Eq)]
pub struct UnderWay {
    prepared: Vec<Xid>,
    /// Statements that prepare or commit, as the server counted their beginnings.
    begun: Vec<Option<String>>,
}

impl UnderWay {
    /// Asks the server.
    pub async fn ask(session: &mut Connection) -> Result<Self> {
        let sql = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_xa_prepare', 'Com_xa_commit')";
        let counts = session.query(sql).await?;
        let begun = counts.iter().map(|row| row.get(1).cloned().flatten()).collect();
        Ok(Self { prepared: prepared(session).await?, begun })
    }

    /// Whether none was at its commit in between, asked before and `after` something.
    pub fn is_none(&self, after: &Self) -> bool {
        self.prepared.is_empty() && self == after
    }
}

/// The transactions that are prepared, or not yet shown.
async fn prepared(session: &mut Connection) -> Result<Vec<Xid>> {
    let doing = || "asking for prepared transactions";
    session.rows("XA RECOVER").await?;
    let mut found = vec![];
    while let Some(row) = session.next_row().await? {
        let mut row = Reader::new(row);
        let mut cell = || row.cell().map(Option::unwrap_or_default);
        let (format, global) = (cell().context(Kind::Protocol, doing)?, cell().context(Kind::Protocol, doing)?);
        let (_, data) = (cell().context(Kind::Protocol, doing)?, cell().context(Kind::Protocol, doing)?);
        let unread = || Error::new(Kind::Protocol, doing()).with("a name cannot be read");
        found.push(Xid::of_columns(format, global, data).ok_or_else(unread)?);
    }
    Ok(found)
}

/// Waits until the rows of all of them are visible.
pub async fn wait_until_shown(session: &mut Connection, committed: &[Xid]) -> Result<()> {
    if committed.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    while prepared(session).await?.iter().any(|xid| committed.contains(xid)) {
        if began.elapsed() > SHOWN_MAX {
            return Err(Error::new(Kind::Connection, "waiting for the rows of an XA COMMIT to be visible")
                .with("the server still lists the transaction, or another one under its name, as prepared"));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
