//! Opening the log: is the server who it was, and does the slot still hold everything from our position on?
//!
//! Asked at every connect, not only at the first.

use std::{sync::Arc, time::Duration};

use millrace_core::{Error, Kind, Position, Result, Table, source::Identity};

use super::{LogOptions, decoder::Decoder, shape};
use crate::{
    config::Names,
    discover::{CatalogRow, quote_literal},
    slot::parse_lsn,
    wire::{Connection, CopyBoth, sqlstate},
};

/// How long a slot may still be held by our own session before, which the server has yet to notice is gone.
const ACTIVE_PATIENCE: Duration = Duration::from_secs(3);
const ACTIVE_PAUSE: Duration = Duration::from_millis(100);

/// Compares the server with the one that the position comes from.
pub async fn verify_identity(session: &mut Connection, from: Position, known: &Identity) -> Result<()> {
    let rows = session.query("IDENTIFY_SYSTEM").await?;
    let row = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default());
    let (system, timeline) = (row.word(0)?, row.number::<u64>(1)?);
    let database = row.text(3).unwrap_or_default();
    let doing = "comparing the server with the one that was replicated from";
    let reload = "if this is meant, reload the task: everything is loaded again";
    if system != known.system {
        let what = format!("its system identifier is {system}, and was {}", known.system);
        return Err(Error::new(Kind::LogLost, doing).with(what).fix(reload));
    }
    if database != known.database {
        let what = format!("the database is {database:?}, and was {:?}", known.database);
        return Err(Error::new(Kind::LogLost, doing).with(what).fix(reload));
    }
    if timeline == known.timeline || known.timeline == 0 {
        return Ok(());
    }
    let history = session.query(&format!("TIMELINE_HISTORY {timeline}")).await;
    let history = history.map_err(|error| Error { kind: Kind::LogLost, doing: doing.into(), ..error }.fix(reload))?;
    let row = CatalogRow(history.first().map(Vec::as_slice).unwrap_or_default());
    let fork = fork_point(row.word(1)?, known.timeline);
    if fork.is_some_and(|fork| from <= fork) {
        tracing::info!(timeline, before = known.timeline, "the server is on a new timeline that holds our position");
        return Ok(());
    }
    let what = match fork {
        Some(fork) => format!("it left timeline {} at {fork}, before our position {from}", known.timeline),
        None => format!("its timeline {timeline} does not come from timeline {}", known.timeline),
    };
    Err(Error::new(Kind::LogLost, doing).with(what).fix(reload))
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
    wal_status: String,
    confirmed: Option<Position>,
}

/// Makes sure that the slot is ours, free, and holds everything from the position on.
pub async fn verify_slot(session: &mut Connection, names: &Names, from: Position) -> Result<()> {
    let began = tokio::time::Instant::now();
    let lost = |what: String| {
        Error::new(Kind::LogLost, format!("reading the log from replication slot {:?}", names.slot)).with(what)
    };
    let slot = loop {
        let Some(slot) = read_slot(session, names).await? else {
            return Err(lost("the slot does not exist: it was dropped, or not carried over to this server".into())
                .fix("reload the task: a new slot is made, and everything is loaded again"));
        };
        match slot.active_process {
            None => break slot,
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
        return Err(lost(what).fix("somebody else's slot has this name: drop it, or rename the task; then reload"));
    }
    if slot.wal_status == "lost" {
        return Err(invalidated(names, from, "wal_status=lost"));
    }
    match slot.confirmed {
        Some(confirmed) if confirmed <= from => Ok(()),
        Some(confirmed) => Err(lost(format!(
            "it was confirmed up to {confirmed}, but we have only what committed before {from}: it was made again, \
             somebody else read with it, or our state is older than it"
        ))
        .fix("changes in between are gone: reload the task")),
        None => Err(lost("it has no confirmed position".into()).fix("reload the task")),
    }
}

async fn read_slot(session: &mut Connection, names: &Names) -> Result<Option<Slot>> {
    let sql = format!(
        "SELECT slot_type, coalesce(plugin, ''), coalesce(database, ''), current_database(), active_pid, \
         coalesce(wal_status, 'lost'), confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
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
        wal_status: row.word(5)?.into(),
        confirmed: row.text(6).map(parse_lsn).transpose()?,
    }))
}

fn invalidated(names: &Names, from: Position, said: &str) -> Error {
    Error::new(Kind::LogLost, format!("replication slot {:?} was invalidated by the server", names.slot))
        .with(format!("{said}; changes between {from} and now cannot be read, and nothing was skipped"))
        .fix("raise max_slot_wal_keep_size (suggest 8GB), then reload the task")
}

/// Learns the types of the tables, so that their shapes can be compared as the log shows them.
pub async fn learn_types(session: &mut Connection, tables: &[Arc<Table>], decoder: &mut Decoder) -> Result<()> {
    let oids: Vec<u64> = tables.iter().map(|table| table.source_id).collect();
    shape::learn_tables(session, &oids, &mut decoder.types).await
}

/// `START_REPLICATION`: the newest protocol of the server, only committed transactions, values as text.
pub async fn start(mut session: Connection, names: &Names, from: u64, options: &LogOptions) -> Result<CopyBoth> {
    let timeout_ms = options.sender_timeout.as_millis();
    session.execute(&format!("SET wal_sender_timeout = '{timeout_ms}ms'")).await?;
    let publications = [&names.publication, &names.publication_inserts];
    let sql = format!(
        "START_REPLICATION SLOT \"{}\" LOGICAL {} (proto_version '{}', publication_names {})",
        names.slot.replace('"', "\"\""),
        Position(u128::from(from)),
        protocol_version(session.major_version()),
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

fn protocol_version(major: u32) -> u8 {
    match major {
        16.. => 4,
        15 => 3,
        14 => 2,
        _ => 1,
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
