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
pub const PATIENCE: Duration = Duration::from_secs(12);
/// How long a look may take behind the time that connecting may take.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// A connection is given up at so many looks in a row that found nothing to wait for: what the server had just said may
/// have been on its way at the first. With [`PATIENCE`] and what a look may take that is after 24 to 50 s.
const LOOKS: u32 = 2;

/// What the server process of a session waits for when there is nothing to wait for: it has sent everything, or cannot
/// get rid of it (`wait_event` of `pg_stat_activity`, whose case changed between versions).
const IN_VAIN: &[&str] = &["clientread", "clientwrite"];
/// The same of one that streams the log, and answers at once when it is asked to.
const IN_VAIN_LOG: &[&str] =
    &["clientread", "clientwrite", "walsendermain", "walsenderwritedata", "walsenderwaitforwal"];

/// What is known of a session's silence.
#[derive(Debug)]
pub struct Silence {
    in_vain: &'static [&'static str],
    /// Looks in a row that found nothing to wait for.
    vain: u32,
}

impl Silence {
    /// Of a session that answers statements.
    pub fn of_statements() -> Self {
        Self { in_vain: IN_VAIN, vain: 0 }
    }

    /// Of a session that streams the log, and was asked for an answer meanwhile.
    pub fn of_log() -> Self {
        Self { in_vain: IN_VAIN_LOG, vain: 0 }
    }

    /// Something came.
    pub fn is_over(&mut self) {
        self.vain = 0;
    }

    /// To be called after each [`PATIENCE`] without a byte; an error when there is nothing to wait for.
    pub async fn look(&mut self, config: &PostgresConfig, process_id: u32) -> Result<()> {
        let Some(why) = why_in_vain(config, process_id, self.in_vain).await else {
            self.vain = 0;
            return Ok(());
        };
        self.vain += 1;
        if self.vain < LOOKS {
            tracing::info!(
                process_id,
                why,
                "nothing comes from the server; it is asked again before the session is given up"
            );
            return Ok(());
        }
        Err(Error::new(Kind::Connection, "waiting for the server")
            .with(format!("nothing came for {} s, and {why}", (PATIENCE * self.vain).as_secs())))
    }
}

/// Why nothing will come from the session any more; `None` where it works, or where nobody can tell.
fn why_in_vain<'a>(
    config: &'a PostgresConfig,
    process_id: u32,
    in_vain: &'static [&'static str],
) -> BoxFuture<'a, Option<String>> {
    // Boxed, because a session is what asks about a session; that one is bounded here, and not asked about.
    Box::pin(async move {
        match tokio::time::timeout(config.connect_timeout + LOOK_MAX, ask(config, process_id, in_vain)).await {
            Ok(Ok(why)) => why,
            // cannot_connect_now: it starts, recovers from a crash, or shuts down, and all sessions are gone.
            Ok(Err(error)) if sqlstate(&error) == Some("57P03") => Some(error.to_string()),
            // It answers, and has no connection left, or other sorrows.
            Ok(Err(error)) if sqlstate(&error).is_some() => None,
            // Our own: a password file that cannot be read just now, say.
            Ok(Err(error)) if error.kind != Kind::Connection => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer another session either".into()),
        }
    })
}

async fn ask(config: &PostgresConfig, process_id: u32, in_vain: &[&str]) -> Result<Option<String>> {
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
        Some(event) if in_vain.contains(&event) => {
            Some("it waits for us to read: what it sends may have been lost on the way".into())
        }
        Some(_) => None,
    })
}
