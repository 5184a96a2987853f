//! What a snapshot of MySQL has at least, where we may not hold commits to learn what it has exactly.
//!
//! A transaction is written to the binary log first and shown by its engine then; only after both it is in
//! `@@gtid_executed` (MySQL's source, `MYSQL_BIN_LOG::ordered_commit`). So a snapshot that is taken after that was read has
//! everything in it, and the log's first transaction that is not in it is the bound. The server finds it: it leaves out of a
//! dump what its reader says to have.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use futures::future::try_join_all;
use millrace_core::{Error, Kind, Position, Result, error::Context};

use crate::{
    MysqlConfig,
    gtid::Executed,
    log::events::{self, kind},
    server::{self, LogFile, Place},
    snapshot,
    wire::{
        Connection,
        binlog_dump::{self, HEADER_BYTES},
        code,
    },
};

/// Whether the server refused FLUSH TABLES WITH READ LOCK to the user. Amazon's servers refuse it to everybody, with the words
/// of a wrong password.
pub fn is_lock_refused(error: &Error) -> bool {
    matches!(code(error), Some(1045 | 1227))
}

/// Opens transactions in snapshots of now; everything before the place is in each of them, and perhaps more.
pub async fn begin_behind_bound(config: &MysqlConfig, sessions: &mut [Connection]) -> Result<Place> {
    let place = match sessions.first_mut() {
        Some(first) => bound(config, first).await?,
        None => Place::of(Position::default()),
    };
    try_join_all(sessions.iter_mut().map(snapshot::begin)).await?;
    Ok(place)
}

async fn bound(config: &MysqlConfig, session: &mut Connection) -> Result<Place> {
    let doing = || "finding what a snapshot has at least";
    let refused = |said: &str| {
        Error::new(Kind::SourceSetup, doing()).with(format!("{said}, and the user may not hold commits to learn it"))
    };
    if !server::has_gtids(session).await? {
        return Err(refused("gtid_mode is not ON, so the server does not tell what is committed")
            .fix(format!("GRANT RELOAD ON *.* TO '{}'@'%';", config.user))
            .fix("or set gtid_mode = ON"));
    }
    // What is committed is read first, the log's end behind it: none that is before the end is missed.
    let rows = server::status(session).await?;
    let Some([Some(file), Some(end), _, _, Some(committed), ..]) = rows.first().map(Vec::as_slice) else {
        return Err(refused("the server does not tell what is committed"));
    };
    let committed = Executed::parse_mysql(committed)
        .ok_or_else(|| Error::new(Kind::Protocol, doing()).with("what the server has committed cannot be read"))?;
    let end = end.parse().context(Kind::Protocol, doing)?;
    let end = server::place(config, file, end).await?;
    let first = first_beyond(config, &committed).await?;
    Ok(first.map_or(end, |first| first.min(end)))
}

/// Where the first transaction begins that is not in the set; `None` if there is none to the log's end.
async fn first_beyond(config: &MysqlConfig, committed: &Executed) -> Result<Option<Place>> {
    /// Nobody: whoever is not waited for gets an end, and ends no other reader.
    const NO_REPLICA: u32 = 0;
    let doing = || "looking for what is not committed in the binary log";
    let mut session = Connection::connect(config).await?;
    server::prepare_dump(&mut session).await?;
    session.dump_gtid(NO_REPLICA, &committed.encode()).await?;
    let (mut file, mut begun) = (0, 0);
    loop {
        let packet = session.packet().await?;
        let event = match packet.split_first() {
            Some((0, event)) => event,
            // EOF_Packet.
            Some((0xfe, _)) => return Ok(None),
            _ => return Err(Error::new(Kind::Protocol, doing()).with("a packet is no event")),
        };
        let (header, body) = binlog_dump::event(event).context(Kind::Protocol, doing)?;
        match header.kind {
            kind::ROTATE => {
                // The checksum is at its end, if the server computes them.
                let body = match event.split_last_chunk::<4>() {
                    Some((rest, sum)) if crc32fast::hash(rest) == u32::from_le_bytes(*sum) => {
                        rest.get(HEADER_BYTES..).unwrap_or_default()
                    }
                    _ => body,
                };
                let (_, name) = events::rotate(body).context(Kind::Protocol, doing)?;
                let unnumbered = || Error::new(Kind::Protocol, doing()).with("a file has no number");
                file = LogFile::number_of(name).ok_or_else(unnumbered)?;
            }
            kind::FORMAT_DESCRIPTION => begun = header.timestamp,
            kind::GTID | kind::ANONYMOUS_GTID | kind::GTID_TAGGED => {
                let offset = header.next.checked_sub(header.size);
                let offset = offset.ok_or_else(|| Error::new(Kind::Protocol, doing()).with("a file is too long"))?;
                return Ok(Some(Place { file, offset: offset.into(), begun }));
            }
            _ => {}
        }
    }
}
