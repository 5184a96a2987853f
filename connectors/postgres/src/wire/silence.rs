//! Sessions from which nothing comes any more. A network that drops everything, or a machine in between that forgot the
//! connection, tells neither side; the server may also be silent for good reasons: it waits for a lock, or reads through
//! rows that nobody wants. So after a silence another session asks what this one is doing, and only where the server has
//! long said everything, or cannot be reached either, the connection is given up.

use std::time::Duration;

use futures::future::BoxFuture;
use millrace_core::{Error, Kind, Result};

use super::{Connection, Mode, sqlstate};
use crate::{PostgresConfig, discover::CatalogRow};

/// After so long a silence it is looked, and again each time.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// A connection is given up at so many looks in a row that found nothing to wait for: what the server had just said may
/// have been on its way at the first. With [`PATIENCE`] and [`LOOK_MAX`] that is after 30 to 50 s.
const LOOKS: u32 = 2;

/// What is known of a session's silence.
#[derive(Debug, Default)]
pub struct Silence {
    /// Looks in a row that found nothing to wait for.
    vain: u32,
}

impl Silence {
    /// Something came.
    pub fn is_over(&mut self) {
        self.vain = 0;
    }

    /// To be called after each [`PATIENCE`] without a byte; an error when there is nothing to wait for.
    pub async fn look(&mut self, config: &PostgresConfig, process_id: u32) -> Result<()> {
        let Some(why) = why_in_vain(config, process_id).await else {
            self.vain = 0;
            return Ok(());
        };
        self.vain += 1;
        if self.vain < LOOKS {
            tracing::info!(process_id, why, "nothing comes from the server");
            return Ok(());
        }
        Err(Error::new(Kind::Connection, "waiting for the server")
            .with(format!("nothing came for {} s, and {why}", (PATIENCE * self.vain).as_secs())))
    }
}

/// Why nothing will come from the session any more; `None` where it works, or where nobody can tell.
fn why_in_vain(config: &PostgresConfig, process_id: u32) -> BoxFuture<'_, Option<String>> {
    // Boxed, because a session is what asks about a session; that one is bounded here, and not asked about.
    Box::pin(async move {
        match tokio::time::timeout(LOOK_MAX, ask(config, process_id)).await {
            Ok(Ok(why)) => why,
            // cannot_connect_now: it starts, recovers from a crash, or shuts down, and all sessions are gone.
            Ok(Err(error)) if sqlstate(&error) == Some("57P03") => Some(error.to_string()),
            // It answers, and has no connection left, or other sorrows.
            Ok(Err(error)) if sqlstate(&error).is_some() => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer another session either".into()),
        }
    })
}

async fn ask(config: &PostgresConfig, process_id: u32) -> Result<Option<String>> {
    let mut session = Connection::connect_unwatched(config, Mode::Plain, "millrace check").await?;
    let asking = session.process_id();
    let sql = format!(
        "SELECT pg_backend_pid() = {asking}, \
         (SELECT coalesce(lower(wait_event), '') FROM pg_stat_activity WHERE pid = {process_id})"
    );
    let rows = session.query(&sql).await?;
    session.close().await;
    let row = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default());
    if row.text(0) != Some("t") {
        // A pooler is in between, whose numbers mean nothing to the server.
        return Ok(None);
    }
    Ok(match row.text(1) {
        None => Some("the server process is gone".into()),
        // It has sent everything, or cannot get rid of it. A walsender without work answers at once when it is asked to.
        Some("clientread" | "clientwrite" | "walsendermain" | "walsenderwritedata" | "walsenderwaitforwal") => {
            Some("the server waits for us: what it sends does not arrive, and nobody was told".into())
        }
        Some(_) => None,
    })
}
