//! The task's replication slot: the place that the server keeps for us in its log (manual, "Logical Decoding Concepts").

use millrace_core::{
    Error, Kind, Position, Result,
    source::{Identity, Retained},
};

use crate::{
    PostgresConfig,
    config::Names,
    discover::{CatalogRow, quote_identifier, quote_literal},
    waiting,
    wire::{Connection, Mode, sqlstate},
};

/// How long a slot that is in use is tried to be dropped.
const DROP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
const DROP_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// An LSN as the server prints it: two hexadecimal halves.
pub fn parse_lsn(text: &str) -> Result<Position> {
    let halves = text.split_once('/').and_then(|(high, low)| {
        let high = u32::from_str_radix(high, 16).ok()?;
        let low = u32::from_str_radix(low, 16).ok()?;
        Some(u64::from(high) << 32 | u64::from(low))
    });
    let lsn = halves.ok_or_else(|| Error::new(Kind::Protocol, format!("reading the LSN {text:?}")))?;
    Ok(Position(u128::from(lsn)))
}

/// `FAILOVER` of CREATE_REPLICATION_SLOT came with this version.
pub const FAILOVER_VERSION_MIN: u32 = 17;

/// Makes the permanent slot; one of the same name that nobody uses is dropped first. With `failover`, standbys that
/// synchronize slots keep it too, where the server knows how.
pub async fn create(config: &PostgresConfig, names: &Names, failover: bool) -> Result<Position> {
    let mut walsender = Connection::connect(config, Mode::Replication, "millrace slot").await?;
    drop_unused(&mut walsender, names).await?;
    fail::fail_point!("pg-before-slot");
    let failover = failover && walsender.major_version() >= FAILOVER_VERSION_MIN;
    let options = if failover { "SNAPSHOT 'nothing', FAILOVER true" } else { "SNAPSHOT 'nothing'" };
    let position = create_with(config, &mut walsender, &names.slot, "", options, "NOEXPORT_SNAPSHOT").await?.0;
    fail::fail_point!("pg-after-slot");
    tracing::info!(slot = names.slot, %position, failover, "replication slot was made");
    walsender.close().await;
    Ok(position)
}

/// `CREATE_REPLICATION_SLOT`: its consistent point, and the name of the snapshot if one was asked for. Never
/// `two_phase`: only committed transactions are to arrive.
pub async fn create_with(
    config: &PostgresConfig,
    walsender: &mut Connection,
    slot: &str,
    temporary: &str,
    options: &str,
    options_before_15: &str,
) -> Result<(Position, Option<String>)> {
    let options = if walsender.major_version() >= 15 { format!("({options})") } else { options_before_15.into() };
    let sql = format!("CREATE_REPLICATION_SLOT {} {temporary} LOGICAL pgoutput {options}", quote_identifier(slot));
    let process_id = walsender.process_id();
    let created = waiting::watch(config, process_id, "making a replication slot", walsender.query(&sql)).await;
    let rows = created.map_err(|error| explain(error, slot))?;
    let row = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default());
    Ok((parse_lsn(row.word(1)?)?, row.text(2).map(String::from)))
}

fn explain(error: Error, slot: &str) -> Error {
    let fix = match sqlstate(&error) {
        // configuration_limit_exceeded
        Some("53400") => "raise the limit: ALTER SYSTEM SET max_replication_slots = 20; then restart the server",
        Some("42501") => "let a superuser run: ALTER ROLE <role> REPLICATION;",
        Some("55000") => "ALTER SYSTEM SET wal_level = logical; then restart the server",
        _ => "",
    };
    let kind = if sqlstate(&error) == Some("55000") { Kind::SourceSetup } else { error.kind };
    Error { kind, doing: format!("making replication slot {slot:?}"), ..error }.fix(fix)
}

async fn drop_unused(session: &mut Connection, names: &Names) -> Result<()> {
    let rows = session
        .query(&format!(
            "SELECT active_pid, slot_type, plugin, database, current_database() FROM pg_replication_slots \
             WHERE slot_name = {}",
            quote_literal(&names.slot)
        ))
        .await?;
    let Some(row) = rows.first().map(|row| CatalogRow(row)) else { return Ok(()) };
    let doing = format!("making replication slot {:?} anew", names.slot);
    if row.text(1) != Some("logical") || row.text(2) != Some("pgoutput") || row.text(3) != row.text(4) {
        let whose = format!("it is of another database ({}) or kind", row.text(3).unwrap_or("none"));
        return Err(Error::new(Kind::SourceSetup, doing)
            .with(whose)
            .fix("give the task another name: its slot is named after it"));
    }
    if let Some(pid) = row.text(0) {
        return Err(Error::new(Kind::LogBusy, doing)
            .with(format!("the server process {pid} is reading from it"))
            .fix(format!("stop the other reader, or run: SELECT pg_terminate_backend({pid});")));
    }
    session.execute(&format!("SELECT pg_drop_replication_slot({})", quote_literal(&names.slot))).await
}

/// What the slot makes the server keep.
pub async fn retained(connection: &mut Connection, names: &Names) -> Result<Option<Retained>> {
    let rows = connection
        .query(&format!(
            "SELECT confirmed_flush_lsn, wal_status, safe_wal_size, active, e.lsn, \
             coalesce(pg_wal_lsn_diff(e.lsn, restart_lsn), 0)::bigint \
             FROM pg_replication_slots, LATERAL (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_flush_lsn() END) e(lsn) WHERE slot_name = {}",
            quote_literal(&names.slot)
        ))
        .await?;
    let Some(row) = rows.first().map(|row| CatalogRow(row)) else { return Ok(None) };
    let active = if row.text(3) == Some("t") { "active" } else { "inactive" };
    Ok(Some(Retained {
        retained_bytes: row.number::<i64>(5)?.try_into().unwrap_or(0),
        // Null without a limit, negative just before the slot is given up.
        safe_bytes: row.text(2).map(|text| text.parse::<i64>().unwrap_or(0).try_into().unwrap_or(0)),
        confirmed: row.text(0).map(parse_lsn).transpose()?,
        end: row.text(4).map(parse_lsn).transpose()?,
        status: format!("{}, {active}", row.text(1).unwrap_or("lost")),
        release: format!("SELECT pg_drop_replication_slot({});", quote_literal(&names.slot).trim()),
    }))
}

/// Drops the slot; gives the statement that could not be run.
pub async fn remove(connection: &mut Connection, names: &Names) -> Result<Vec<String>> {
    let slot = quote_literal(&names.slot);
    let drop_it =
        format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {slot};");
    match connection.execute(&drop_it).await {
        Ok(()) => Ok(vec![]),
        // Missing right, or in use.
        Err(error) if matches!(sqlstate(&error), Some("42501" | "55006")) => Ok(vec![drop_it]),
        Err(error) => Err(error),
    }
}

/// Who the server is. By SQL, not `IDENTIFY_SYSTEM`, so that a task that only loads needs no REPLICATION right. Of a
/// standby it does not tell the timeline (0): that of its control file is of its last restart point.
pub async fn identity(connection: &mut Connection) -> Result<Identity> {
    let rows = connection
        .query(
            "SELECT system_identifier, CASE WHEN NOT pg_is_in_recovery() \
             THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END, \
             current_database(), current_setting('server_version') FROM pg_control_system()",
        )
        .await?;
    let row = CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default());
    Ok(Identity {
        system: row.word(0)?.into(),
        timeline: if row.text(1).is_some() { row.number(1)? } else { 0 },
        database: row.word(2)?.into(),
        server: format!("PostgreSQL {}", row.word(3)?),
        started: String::new(),
    })
}

/// The timeline that a standby follows.
pub async fn replayed_timeline(config: &PostgresConfig) -> Result<u64> {
    let mut walsender = Connection::connect(config, Mode::Replication, "millrace identity").await?;
    let rows = walsender.query("IDENTIFY_SYSTEM").await?;
    walsender.close().await;
    CatalogRow(rows.first().map(Vec::as_slice).unwrap_or_default()).number(1)
}

/// A commit of our own in the database, which moves its log on. The message is not asked for when the log is read.
pub async fn heartbeat(connection: &mut Connection, names: &Names) -> Result<()> {
    let sql = format!("SELECT pg_logical_emit_message(true, 'millrace heartbeat', {})", quote_literal(&names.task));
    connection.execute(&sql).await
}

/// Drops our slot, whoever reads from it in our name, so that the server lets its log go.
pub async fn drop_for_good(connection: &mut Connection, names: &Names) -> Result<()> {
    let slot = quote_literal(&names.slot);
    let drop_it = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_name = {slot} AND database = current_database()"
    );
    let began = tokio::time::Instant::now();
    loop {
        match connection.execute(&drop_it).await {
            // object_in_use: the server has yet to notice that our session is gone.
            Err(error) if sqlstate(&error) == Some("55006") && began.elapsed() < DROP_PATIENCE => {
                let end_it = format!(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots s \
                     JOIN pg_stat_activity a ON a.pid = s.active_pid \
                     WHERE slot_name = {slot} AND a.usename = current_user"
                );
                connection.execute(&end_it).await?;
                tokio::time::sleep(DROP_PAUSE).await;
            }
            Err(error) => {
                let doing = format!("dropping replication slot {:?}", names.slot);
                return Err(Error { doing, ..error }.fix(format!("let a superuser run: {drop_it};")));
            }
            Ok(()) => break,
        }
    }
    tracing::warn!(slot = names.slot, "replication slot was dropped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsns_round_trip() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(parse_lsn(text).unwrap().to_string(), text);
        }
        assert!(parse_lsn("16B374D848").is_err() && parse_lsn("x/1").is_err());
    }
}
