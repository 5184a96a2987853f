//! Opening the log: is the server who it was, and does the slot still hold everything from our position on?
//!
//! Asked at every connect, not only at the first.

use std::{sync::Arc, time::Duration};

use millrace_core::{Error, Kind, Position, Result, Table, source::Identity};

use super::{LogOptions, announced, attributes, decoder::Decoder, shape};
use crate::{
    config::Names,
    discover::{CatalogRow, quote_identifier, quote_literal},
    slot::{FAILOVER_VERSION_MIN, parse_lsn},
    wire::{Connection, CopyBoth, sqlstate},
};

/// How long a slot may still be held by our own session before, which the server has yet to notice is gone.
const ACTIVE_PATIENCE: Duration = Duration::from_secs(3);
/// The option `origin` of pgoutput came with this version.
pub const ORIGIN_VERSION_MIN: u32 = 16;
/// How long until it is helped to notice. Where no packet arrives it would take its `wal_sender_timeout`.
const OWN_PATIENCE: Duration = Duration::from_millis(500);
const ACTIVE_PAUSE: Duration = Duration::from_millis(100);

/// Compares the server with the one that the position comes from; gives who it is now, as this very session sees it.
/// Another session may reach another server.
pub async fn verify_identity(
    session: &mut Connection,
    names: &Names,
    from: Position,
    known: &Identity,
) -> Result<Identity> {
    let rows = session.query("IDENTIFY_SYSTEM").await?;
    let row = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default());
    let (system, timeline, end) = (row.word(0)?, row.number::<u64>(1)?, parse_lsn(row.word(2)?)?);
    let database = row.text(3).unwrap_or_default();
    if system != known.system {
        return Err(changed(names, format!("its system identifier is {system}, and was {}", known.system)));
    }
    if database != known.database {
        return Err(changed(names, format!("the database is {database:?}, and was {:?}", known.database)));
    }
    let rows = session.query("SELECT extract(epoch FROM pg_postmaster_start_time())").await?;
    let started = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default()).word(0)?.to_string();
    // A standby that was promoted while we read from it went on in the open session, over the fork. It is the same process
    // still, and what it sent is what it has.
    let same_process = started == known.started && timeline > known.timeline;
    if timeline != known.timeline && known.timeline != 0 && !same_process {
        verify_timeline(session, names, from, (known.timeline, timeline)).await?;
    }
    if end < from {
        verify_end(session, names, from, end).await?;
    }
    let server = session.parameter("server_version").map(|version| format!("PostgreSQL {version}"));
    let server = server.unwrap_or_else(|| known.server.clone());
    Ok(Identity { system: system.into(), timeline, database: database.into(), server, started })
}

pub(super) fn changed(names: &Names, what: String) -> Error {
    Error::new(Kind::SourceChanged, "comparing the server with the one that was replicated from").with(what).fix(
        format!(
            "set host, port and database back to the server that was replicated from, then: millrace resume {0}\n\
         or, if this is meant, load everything anew: millrace reload {0}",
            names.task
        ),
    )
}

/// On another timeline everything up to our position must come from the one that we know.
async fn verify_timeline(
    session: &mut Connection,
    names: &Names,
    from: Position,
    (before, now): (u64, u64),
) -> Result<()> {
    if now < before {
        let what = format!("it is on timeline {now}, and was on {before}: it is a server from before a failover");
        return Err(changed(names, what));
    }
    let history = match session.query(&format!("TIMELINE_HISTORY {now}")).await {
        Ok(history) => history,
        // undefined_file: nobody can tell any more where the timeline comes from.
        Err(error) if sqlstate(&error) == Some("58P01") => {
            return Err(changed(names, format!("the history of its timeline {now} is missing: {error}")));
        }
        Err(error) => return Err(error),
    };
    let row = CatalogRow(history.first().map(Vec::as_slice).unwrap_or_default());
    match fork_point(row.word(1)?, before) {
        Some(fork) if from <= fork => {
            tracing::info!(timeline = now, before, %fork, "the server is on a new timeline that holds our position");
            Ok(())
        }
        Some(fork) => Err(changed(
            names,
            format!("the source went back in time: it left timeline {before} at {fork}, before our position {from}"),
        )),
        None => Err(changed(names, format!("its timeline {now} does not come from timeline {before}"))),
    }
}

/// A primary's log never ends before what it once sent: only what is flushed is sent. (A server with `fsync = off` that
/// lost power may break that.) A standby may be behind the one that was read from before.
async fn verify_end(session: &mut Connection, names: &Names, from: Position, end: Position) -> Result<()> {
    let rows = session.query("SELECT pg_is_in_recovery()").await?;
    if CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default()).text(0) == Some("t") {
        return Err(Error::new(Kind::Connection, format!("reading the log from {from}"))
            .with(format!("the standby has come to {end} only"))
            .fix("nothing: it is tried again until the standby has caught up"));
    }
    let what = format!(
        "the source went back in time: its log ends at {end}, before our position {from}, so it was restored from a backup"
    );
    Err(changed(names, what))
}

/// Where a history file (lines of timeline, LSN, reason) says that this timeline was left.
fn fork_point(history: &str, timeline: u64) -> Option<Position> {
    history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let left: u64 = fields.next()?.parse().ok()?;
        (left == timeline).then(|| parse_lsn(fields.next()?).ok())?
    })
}

/// What the server says about our slot.
struct Slot {
    kind: String,
    plugin: String,
    database: String,
    own_database: String,
    active_process: Option<u32>,
    /// Why the server gave it up, in its own words; empty while it is good.
    invalid: String,
    /// The server is a standby that keeps it up to date for a failover.
    synced: bool,
    confirmed: Option<Position>,
}

/// Makes sure that the slot is ours, free, and holds everything from the position on; gives where it stands.
/// `before` is the server process of our own last session: one that has not noticed yet that we are gone is ended.
pub async fn verify_slot(session: &mut Connection, names: &Names, from: Position, before: u32) -> Result<Position> {
    let mut ended = false;
    let began = tokio::time::Instant::now();
    let lost = |what: String| {
        Error::new(Kind::LogLost, format!("reading the log from replication slot {:?}", names.slot)).with(what)
    };
    let slot = loop {
        let Some(slot) = read_slot(session, names).await? else {
            return Err(lost("the slot does not exist: it was dropped, or not carried over to this server".into())
                .fix(format!("a new slot is made, and everything is loaded anew: millrace reload {}", names.task)));
        };
        match slot.active_process {
            None => break slot,
            Some(process) if process == before && !ended && began.elapsed() >= OWN_PATIENCE => {
                tracing::info!(process, slot = names.slot, "our last session is still there, and is ended");
                // Where it may not be, it goes by itself once the server notices.
                if let Err(error) = session.execute(&format!("SELECT pg_terminate_backend({process})")).await {
                    tracing::info!(process, error = %error, "our last session could not be ended");
                }
                ended = true;
            }
            Some(_) if began.elapsed() < ACTIVE_PATIENCE => tokio::time::sleep(ACTIVE_PAUSE).await,
            Some(process) => {
                return Err(Error::new(Kind::LogBusy, format!("taking replication slot {:?}", names.slot))
                    .with(format!("it is in use by server process {process}"))
                    .fix(format!(
                        "stop whoever else reads with it (SELECT * FROM pg_stat_activity WHERE pid = {process};)"
                    )));
            }
        }
    };
    if slot.kind != "logical" || slot.plugin != "pgoutput" || slot.database != slot.own_database {
        let what = format!("it is a {} slot of {:?} in database {:?}", slot.kind, slot.plugin, slot.database);
        return Err(Error { kind: Kind::SourceChanged, ..lost(what) }.fix(format!(
            "somebody else's slot has this name: rename the task, or have its owner drop it \
             (SELECT pg_drop_replication_slot({});), then: millrace reload {}",
            quote_literal(&names.slot),
            names.task
        )));
    }
    if slot.synced {
        return Err(Error::new(Kind::SourceSetup, format!("reading the log from replication slot {:?}", names.slot))
            .with("the server is a standby, and keeps this slot for the day when it is promoted")
            .fix("set host to the primary, or to a name that always leads there"));
    }
    if !slot.invalid.is_empty() {
        return Err(invalidated(names, from, &slot.invalid));
    }
    match slot.confirmed {
        Some(confirmed) if confirmed <= from => Ok(confirmed),
        Some(confirmed) => Err(lost(format!(
            "it was confirmed up to {confirmed}, but we have only what committed before {from}: it was made again, \
             somebody else read with it, or our state is older than it"
        ))
        .fix(format!("changes in between are gone; load everything anew: millrace reload {}", names.task))),
        None => Err(lost("it has no confirmed position".into()).fix(format!("millrace reload {}", names.task))),
    }
}

async fn read_slot(session: &mut Connection, names: &Names) -> Result<Option<Slot>> {
    // By way of JSON, because `conflicting` came with 16, `synced` and `invalidation_reason` with 17.
    let sql = format!(
        "SELECT slot_type, coalesce(plugin, ''), coalesce(database, ''), current_database(), active_pid, \
         CASE WHEN coalesce(wal_status, 'lost') = 'lost' OR j ->> 'conflicting' = 'true' \
         OR j ->> 'invalidation_reason' IS NOT NULL THEN concat('wal_status=', coalesce(wal_status, 'lost'), \
         CASE WHEN j ->> 'conflicting' = 'true' THEN ', conflicting with recovery' END, \
         ', invalidation_reason=' || (j ->> 'invalidation_reason')) ELSE '' END, \
         pg_is_in_recovery() AND coalesce((j ->> 'synced')::bool, false), confirmed_flush_lsn \
         FROM pg_replication_slots s, LATERAL (SELECT to_jsonb(s)) t(j) WHERE slot_name = {}",
        quote_literal(&names.slot)
    );
    let rows = session.query(&sql).await?;
    let Some(row) = rows.first().map(|row| CatalogRow(row)) else { return Ok(None) };
    Ok(Some(Slot {
        kind: row.word(0)?.into(),
        plugin: row.word(1)?.into(),
        database: row.word(2)?.into(),
        own_database: row.word(3)?.into(),
        active_process: row.text(4).and_then(|process| process.parse().ok()),
        invalid: row.word(5)?.into(),
        synced: row.text(6) == Some("t"),
        confirmed: row.text(7).map(parse_lsn).transpose()?,
    }))
}

fn invalidated(names: &Names, from: Position, said: &str) -> Error {
    let remedy = match said {
        said if said.contains("conflict") || said.contains("rows_removed") => {
            "on the standby: ALTER SYSTEM SET hot_standby_feedback = on; and give it a physical slot at the primary"
        }
        said if said.contains("wal_level") => "ALTER SYSTEM SET wal_level = logical; at the primary, and restart it",
        said if said.contains("idle_timeout") => "raise idle_replication_slot_timeout above the longest outage",
        _ => "raise the limit (suggest): ALTER SYSTEM SET max_slot_wal_keep_size = '8GB'; SELECT pg_reload_conf();",
    };
    Error::new(Kind::LogLost, format!("replication slot {:?} was invalidated by the server", names.slot))
        .with(format!("{said}; changes between {from} and now cannot be read, and nothing was skipped"))
        .fix(format!("{remedy}\nthen load everything anew: millrace reload {}", names.task))
}

/// Learns the types of the tables and how they are stored now, so that their shapes can be compared as the log shows them.
pub async fn learn_tables(session: &mut Connection, tables: &[Arc<Table>], decoder: &mut Decoder) -> Result<()> {
    let oids: Vec<u64> = tables.iter().map(|table| table.source_id).collect();
    let upto = attributes::position(session).await?;
    decoder.note_stored(&attributes::read(session, &oids).await?, upto);
    shape::learn_tables(session, &oids, &mut decoder.types).await
}

/// `START_REPLICATION`: the newest protocol of the server that we need, with `ahead` large transactions before they
/// commit, values as text.
pub async fn start(
    mut session: Connection,
    names: &Names,
    from: u64,
    options: &LogOptions,
    ahead: bool,
) -> Result<CopyBoth> {
    let timeout_ms = options.sender_timeout.as_millis();
    session.execute(&format!("SET wal_sender_timeout = '{timeout_ms}ms'")).await?;
    if options.failover && session.major_version() >= FAILOVER_VERSION_MIN {
        let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote_identifier(&names.slot));
        session.execute(&alter).await?;
    }
    let publications = [&names.publication, &names.publication_inserts];
    let messages = if announced::is_installed(&mut session).await? { ", messages 'true'" } else { "" };
    // Older servers send everything with its origin, and the decoder leaves it out. That misses an origin that was dropped
    // meanwhile, of which they send nothing.
    let origin =
        if options.own_changes_only && session.major_version() >= ORIGIN_VERSION_MIN { ", origin 'none'" } else { "" };
    let sql = format!(
        "START_REPLICATION SLOT \"{}\" LOGICAL {} ({}, publication_names {}{origin}{messages})",
        names.slot.replace('"', "\"\""),
        Position(u128::from(from)),
        protocol(session.major_version(), ahead),
        quote_literal(&publications.map(|name| format!("\"{}\"", name.replace('"', "\"\""))).join(",")).trim(),
    );
    session.copy_both(&sql).await.map_err(|error| match sqlstate(&error) {
        // object_not_in_prerequisite_state, undefined_file
        Some("55000" | "58P01") => {
            let said = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
            invalidated(names, Position(u128::from(from)), &format!("server said: {said}"))
        }
        Some("42704") => Error { kind: Kind::LogLost, ..error },
        _ => error,
    })
}

/// The protocol's version, and the option by which large transactions are sent before they commit. Version 3 only adds
/// two-phase commits, which are not asked for; `parallel` only adds what several appliers of a subscriber need.
fn protocol(major: u32, ahead: bool) -> &'static str {
    match (major, ahead) {
        (16.., true) => "proto_version '4', streaming 'on'",
        (16.., false) => "proto_version '4', streaming 'off'",
        (14 | 15, true) => "proto_version '2', streaming 'on'",
        (14 | 15, false) => "proto_version '2', streaming 'off'",
        _ => "proto_version '1'",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_where_a_timeline_was_left() {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t1/5A\tbefore 2026-01-01\n";
        assert_eq!(fork_point(history, 1), Some(Position(0x300_0148)));
        assert_eq!(fork_point(history, 2), Some(Position(0x1_0000_005A)));
        assert_eq!(fork_point(history, 3), None);
        assert_eq!(fork_point("", 1), None);
    }

    #[test]
    fn an_invalidated_slot_is_told_with_its_remedy() {
        let names = Names::of_task("shop");
        let error = invalidated(&names, Position(0x69D_B5B8), "wal_status=lost");
        assert_eq!(error.kind, Kind::LogLost);
        assert!(error.to_string().starts_with("replication slot \"millrace_shop\" was invalidated by the server"));
        assert!(error.to_string().contains("0/69DB5B8") && error.fix.contains("max_slot_wal_keep_size"));
    }
}
