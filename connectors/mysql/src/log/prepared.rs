//! The events of a transaction of two phases (XA), read once more where it was prepared, in a session of their own: it was
//! too large to be kept, was prepared before the daemon was started, or while another server was the source.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use millrace_core::{Error, Kind, Result, error::Context};

use super::{
    LoadPositions, SILENCE_MAX,
    compressed::Payload,
    events::{self, Query, RowsEvent, kind},
    reader::Wanted,
    xid::{Statement, Xid},
};
use crate::{
    MysqlConfig,
    server::{self, LogFile, Place},
    wire::{
        Connection, Malformed,
        binlog_dump::{self, EventHeader, HEADER_BYTES},
    },
};

const DOING: &str = "looking for a prepared transaction in the binary log";

fn malformed(error: Malformed) -> Error {
    Error::new(Kind::Protocol, DOING).with(error)
}

/// Where a prepared transaction is read.
#[derive(Debug)]
pub struct Prepared {
    events: Events,
    /// Its own events have begun.
    is_inside: bool,
}

impl Prepared {
    /// Finds it, and stands before it.
    pub async fn find(config: &MysqlConfig, loads: &LoadPositions, wanted: &Wanted) -> Result<Self> {
        let files = server::log_files(&mut loads.connect(config).await?).await?;
        let known = loads.prepared(&wanted.xid).filter(|place| *place < wanted.before);
        let place = match known {
            Some(place) => place,
            None => search(config, loads, &files, wanted).await?,
        };
        loads.note_prepared(&wanted.xid, place);
        let Some(file) = server::find(&files, place.file) else { return Err(lost(&wanted.xid)) };
        let events = Events::open(config, loads, file, place.offset).await?;
        Ok(Self { events, is_inside: false })
    }

    /// The next of its events that may be of rows; `None` at its end. Safe to cancel.
    pub async fn next_event(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let ended = || Error::new(Kind::LogLost, DOING).with("its events end too early");
            let event = self.events.next().await?.ok_or_else(ended)?;
            match event.header.kind {
                kind::XA_PREPARE => return Ok(None),
                // At MySQL its name comes first, at MariaDB only this.
                kind::GTID | kind::ANONYMOUS_GTID | kind::GTID_TAGGED | kind::MARIADB_GTID
                    if std::mem::replace(&mut self.is_inside, true) =>
                {
                    return Err(ended());
                }
                kind::QUERY if matches!(event.statement(), Some(Statement::Start | Statement::End)) => {}
                kind::TABLE_MAP | kind::QUERY | kind::MARIADB_QUERY_COMPRESSED => return Ok(Some(event.bytes)),
                number if RowsEvent::kind_of(number).is_some() => return Ok(Some(event.bytes)),
                _ => {}
            }
        }
    }
}

/// What a file tells of a transaction.
enum Told {
    /// Nothing.
    Nothing,
    /// It was prepared there.
    Prepared(Place),
    /// One of its name ended there, and none began behind that: names may be used again.
    Ended,
}

/// Its name does not show where it is, so files are read from the newest backwards. Most stand shortly before their commit.
async fn search(config: &MysqlConfig, loads: &LoadPositions, files: &[LogFile], wanted: &Wanted) -> Result<Place> {
    tracing::info!(before = %wanted.before.position(), "{DOING}");
    for file in files.iter().rev().filter(|file| file.number <= wanted.before.file) {
        match search_file(config, loads, file, wanted).await? {
            Told::Nothing => {}
            Told::Prepared(place) => return Ok(place),
            Told::Ended => break,
        }
    }
    Err(lost(&wanted.xid))
}

/// The last that a file tells of it before its commit.
async fn search_file(config: &MysqlConfig, loads: &LoadPositions, file: &LogFile, wanted: &Wanted) -> Result<Told> {
    let mut events = Events::open(config, loads, file, server::FILE_START).await?;
    let (mut told, mut begun) = (Told::Nothing, 0);
    while let Some(event) = events.next().await? {
        if file.number == wanted.before.file && event.offset >= wanted.before.offset {
            break;
        }
        match event.header.kind {
            kind::GTID | kind::ANONYMOUS_GTID | kind::GTID_TAGGED | kind::MARIADB_GTID => begun = event.offset,
            kind::XA_PREPARE => {
                let (at_once, xid) = Xid::of_prepare(event.body()).map_err(malformed)?;
                if xid == wanted.xid {
                    let place = Place { file: file.number, offset: begun, begun: events.file_begun };
                    told = if at_once { Told::Ended } else { Told::Prepared(place) };
                }
            }
            kind::QUERY => match event.statement() {
                Some(Statement::Commit(xid) | Statement::Rollback(xid)) if xid == wanted.xid => told = Told::Ended,
                _ => {}
            },
            _ => {}
        }
    }
    Ok(told)
}

fn lost(xid: &Xid) -> Error {
    Error::new(Kind::LogLost, DOING)
        .with(format!("the log does not have the changes of {xid:?}, which was committed: it was prepared in a file that was purged, or with sql_log_bin = 0"))
        .fix("keep binary logs for as long as transactions may be prepared (binlog_expire_logs_seconds); then: millrace reload TASK")
}

/// An event without its checksum.
struct Event {
    header: EventHeader,
    /// Where it begins in its file; that of the whole, if it came compressed.
    offset: u64,
    bytes: Vec<u8>,
}

impl Event {
    fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    fn statement(&self) -> Option<Statement> {
        Statement::parse(std::str::from_utf8(Query::parse(self.body()).ok()?.sql).ok()?)
    }
}

/// The events of one file.
#[derive(Debug)]
struct Events {
    session: Connection,
    number: u32,
    file_begun: u32,
    has_checksum: bool,
    /// Where the next one begins.
    offset: u64,
    payload: Option<(Payload, u64)>,
}

impl Events {
    async fn open(config: &MysqlConfig, loads: &LoadPositions, file: &LogFile, offset: u64) -> Result<Self> {
        let mut session = loads.connect(config).await?;
        server::prepare_dump(&mut session).await?;
        let from = u32::try_from(offset).context(Kind::LogLost, || DOING)?;
        session.dump(server::passing_reader(&session), &file.name(), from).await?;
        Ok(Self { session, number: file.number, file_begun: 0, has_checksum: false, offset, payload: None })
    }

    /// The next one; `None` behind the file's last. Safe to cancel.
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some((payload, offset)) = &mut self.payload {
                let offset = *offset;
                if let Some(bytes) = payload.next_event().map_err(malformed)? {
                    let (header, _) = binlog_dump::event(&bytes).map_err(malformed)?;
                    return Ok(Some(Event { header, offset, bytes }));
                }
                self.payload = None;
            }
            let silent = |_| Error::new(Kind::Connection, DOING).with("the server does not answer");
            let packet = tokio::time::timeout(SILENCE_MAX, self.session.packet()).await.map_err(silent)??;
            let Some((0, bytes)) = packet.split_first() else {
                return Err(Error::new(Kind::Connection, DOING).with("the server ended it"));
            };
            let (header, _) = binlog_dump::event(bytes).map_err(malformed)?;
            let verified = header.verified(bytes, self.has_checksum).map_err(malformed)?;
            let body = verified.get(HEADER_BYTES..).unwrap_or_default();
            let offset = self.offset;
            if header.next != 0 {
                // Its upper half is counted.
                let next = (self.offset & !u64::from(u32::MAX)) | u64::from(header.next);
                self.offset = if next < self.offset { next + (1 << 32) } else { next };
            }
            match header.kind {
                kind::FORMAT_DESCRIPTION => {
                    (self.has_checksum, self.file_begun) = (events::has_checksum(body), header.timestamp);
                }
                kind::ROTATE => {
                    let (_, name) = events::rotate(body).map_err(malformed)?;
                    if LogFile::number_of(name) != Some(self.number) {
                        return Ok(None);
                    }
                }
                kind::HEARTBEAT | kind::HEARTBEAT_V2 => self.offset = offset,
                kind::TRANSACTION_PAYLOAD => {
                    self.payload = Some((Payload::open(body).map_err(malformed)?, offset));
                }
                _ => return Ok(Some(Event { header, offset, bytes: header.event(body) })),
            }
        }
    }
}
