//! Statements that may wait long for other sessions: a new slot waits for every open transaction, a lock for whoever
//! holds it. While that takes long, the log says for whom.

use std::{convert::Infallible, future::Future, time::Duration};

use millrace_core::Result;

use crate::{
    PostgresConfig, discover,
    wire::{Connection, Mode},
};

/// How long a statement may take before the log says what it waits for, and again each time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs what the session `process_id` is doing to its end. `what` names it.
pub async fn watch<T>(
    config: &PostgresConfig,
    process_id: u32,
    what: &str,
    doing: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Side by side: the statement's own session watches over its silence meanwhile.
    tokio::select! {
        done = doing => done,
        never = tell_blockers(config, process_id, what) => match never {},
    }
}

/// Says for whom it waits, again and again.
async fn tell_blockers(config: &PostgresConfig, process_id: u32, what: &str) -> Infallible {
    loop {
        tokio::time::sleep(PATIENCE).await;
        match blockers(config, process_id).await {
            Ok(pids) if pids.is_empty() => tracing::debug!(what, "a statement takes long, and waits for nobody"),
            Ok(pids) => tracing::info!(what, pids, "a statement waits for other sessions to end their transactions"),
            Err(error) => tracing::info!(what, %error, "a statement takes long; for whom it waits cannot be read"),
        }
    }
}

/// The sessions that the session waits for: their pids, 0 for a prepared transaction, with the names of those that there
/// are; empty if it does not wait.
pub async fn blockers(config: &PostgresConfig, process_id: u32) -> Result<String> {
    let mut session = Connection::connect(config, Mode::Plain, "millrace check").await?;
    let sql = format!(
        "SELECT concat(array_to_string(b.pids, ', '), CASE WHEN 0 = ANY (b.pids) THEN (SELECT ' (prepared: ' \
         || string_agg(gid, ', ' ORDER BY prepared) || ')' FROM pg_prepared_xacts) END) \
         FROM (SELECT pg_blocking_pids({process_id})) b(pids)"
    );
    let rows = session.query(&sql).await?;
    session.close().await;
    Ok(discover::first_cells(rows).join(", "))
}
