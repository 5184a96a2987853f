//! A server's binary log as a whole: which of the two systems it is, its files, and places in them.

use millrace_core::{Error, Kind, Position, Result, error::Context, source::Identity};

use crate::{
    MysqlConfig,
    wire::{Connection, TextRows, binlog_dump},
};

/// Where the events of a file begin, behind its magic number.
pub const FILE_START: u64 = 4;
/// ROTATE_EVENT.
pub const ROTATE: u8 = 4;

/// A place in the binary log. As a [`Position`] it has, from its highest bit below the history's number on: 8 bits that are
/// zero, 32 of the file's number, 40 of the byte in the file, and 32 of when the file was begun.
///
/// The last tells nothing of the order, because all places in one file have the same; but after `RESET MASTER`, or on
/// another server, a file of the same number was begun at another time, and a place in the old one is not taken for one in
/// the new one. An [`millrace_core::Order::commit`] is the place where the transaction's first event begins: transactions
/// do not mix in a binary log, so their beginnings are in the order of their commits, and are known before their rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the file: what stands behind the dot.
    pub file: u32,
    /// Byte in the file.
    pub offset: u64,
    /// When the file was begun, in seconds since 1970-01-01 UTC by the server's clock.
    pub begun: u32,
}

const OFFSET_BITS: u32 = 40;

impl Place {
    /// As the daemon keeps it.
    pub fn position(self) -> Position {
        let offset = self.offset & ((1 << OFFSET_BITS) - 1);
        Position(u128::from(self.file) << 72 | u128::from(offset) << 32 | u128::from(self.begun))
    }

    /// Reads what [`Self::position`] made.
    pub fn of(position: Position) -> Self {
        let offset = (position.0 >> 32) as u64 & ((1 << OFFSET_BITS) - 1);
        Self { file: (position.0 >> 72) as u32, offset, begun: position.0 as u32 }
    }
}

/// A file of the binary log, as `SHOW BINARY LOGS` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// What stands before the dot.
    pub base: String,
    /// What stands behind it.
    pub number: u32,
    /// As text: it has at least six digits.
    pub digits: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl LogFile {
    /// Its whole name.
    pub fn name(&self) -> String {
        format!("{}.{}", self.base, self.digits)
    }

    /// The number in a file's name.
    pub fn number_of(name: &[u8]) -> Option<u32> {
        let digits = name.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    fn parse(name: &str, bytes: u64) -> Option<Self> {
        let (base, digits) = name.rsplit_once('.')?;
        Some(Self { base: base.into(), number: digits.parse().ok()?, digits: digits.into(), bytes })
    }
}

/// The files that the server has, oldest first.
pub async fn log_files(connection: &mut Connection) -> Result<Vec<LogFile>> {
    let rows = connection.query("SHOW BINARY LOGS").await.map_err(|error| match crate::wire::code(&error) {
        // ER_NO_BINARY_LOGGING
        Some(1381) => Error { kind: Kind::SourceSetup, ..error }.fix("set log_bin in the server's configuration"),
        _ => error,
    })?;
    let file = |row: &Vec<Option<String>>| {
        let [Some(name), Some(bytes), ..] = row.as_slice() else { return None };
        LogFile::parse(name, bytes.parse().ok()?)
    };
    Ok(rows.iter().filter_map(file).collect())
}

/// The file of this number.
pub fn find(files: &[LogFile], number: u32) -> Option<&LogFile> {
    files.iter().find(|file| file.number == number)
}

/// What the server tells of its log: file, byte, and the databases that are in it alone and that are left out.
pub async fn status(connection: &mut Connection) -> Result<TextRows> {
    // MySQL 8.2 renamed it, and 8.4 forgot the old name.
    match connection.query("SHOW MASTER STATUS").await {
        Err(error) if crate::wire::code(&error) == Some(1064) => connection.query("SHOW BINARY LOG STATUS").await,
        rows => rows,
    }
}

/// Name of the file and byte where the server writes next, between two transactions.
pub async fn end_by_name(connection: &mut Connection) -> Result<(String, u64)> {
    let doing = || "asking where the binary log ends";
    let rows = status(connection).await?;
    let Some([Some(name), Some(offset), ..]) = rows.first().map(Vec::as_slice) else {
        return Err(Error::new(Kind::SourceSetup, doing())
            .with("the server writes none")
            .fix("set log_bin in the server's configuration"));
    };
    Ok((name.clone(), offset.parse().context(Kind::Protocol, doing)?))
}

/// The place where the server writes next, between two transactions.
pub async fn end(config: &MysqlConfig, connection: &mut Connection) -> Result<Place> {
    let (name, offset) = end_by_name(connection).await?;
    place(config, &name, offset).await
}

/// Whether no transaction stands between two places of MariaDB's binary log: new files, and what they begin with, may.
pub async fn is_nothing_between(session: &mut Connection, (file, offset): (&str, u64), to: Place) -> Result<bool> {
    let files = log_files(session).await?;
    let Some(end) = find(&files, to.file) else { return Ok(false) };
    let gtids =
        |file: &str, offset: u64| format!("BINLOG_GTID_POS({}, {offset})", crate::discover::quote_literal(file));
    let sql = format!("SELECT {} = {}", gtids(file, offset), gtids(&end.name(), to.offset));
    let rows = session.query(&sql).await?;
    Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some("1"))
}

/// A place in a file of which only the name is known.
pub async fn place(config: &MysqlConfig, name: &str, offset: u64) -> Result<Place> {
    let doing = || format!("reading the head of the binary log {name:?}");
    let file = LogFile::parse(name, 0).ok_or_else(|| Error::new(Kind::Protocol, doing()))?;
    let mut session = Connection::connect(config).await?;
    prepare_dump(&mut session).await?;
    session.dump(passing_reader(&session), name, FILE_START as u32).await?;
    loop {
        let packet = session.packet().await?;
        let event = packet.get(1..).unwrap_or_default();
        let (header, _) = binlog_dump::event(event).context(Kind::Protocol, doing)?;
        if header.kind == binlog_dump::FORMAT_DESCRIPTION {
            return Ok(Place { file: file.number, offset, begun: header.timestamp });
        }
    }
}

/// A number for a reader that is soon gone: the server ends an older reader of the same number.
pub fn passing_reader(session: &Connection) -> u32 {
    0x2000_0000 | (session.thread_id() & 0x0fff_ffff)
}

/// Whether every transaction has a GTID.
pub async fn has_gtids(session: &mut Connection) -> Result<bool> {
    if session.is_mariadb() {
        return Ok(true);
    }
    let rows = session.query("SHOW GLOBAL VARIABLES LIKE 'gtid_mode'").await?;
    Ok(rows.first().and_then(|row| row.get(1)?.as_deref()) == Some("ON"))
}

/// What a session says before it asks for the log: it understands checksums and MariaDB's own events, and wants a sign of
/// life every five seconds, which also tells where the log ends.
pub async fn prepare_dump(session: &mut Connection) -> Result<()> {
    session.execute("SET @master_binlog_checksum = @@global.binlog_checksum").await?;
    session.execute("SET @source_binlog_checksum = @@global.binlog_checksum").await?;
    session.execute("SET @master_heartbeat_period = 5000000000, @source_heartbeat_period = 5000000000").await?;
    session.execute("SET @mariadb_slave_capability = 4").await
}

/// Who answers.
pub async fn identity(connection: &mut Connection, database: &str) -> Result<Identity> {
    let own = if connection.is_mariadb() { "server_uid" } else { "server_uuid" };
    let sql = format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('{own}', 'server_id', 'hostname', 'port')");
    let rows = connection.query(&sql).await?;
    let value = |name: &str| {
        let row = rows.iter().find(|row| row.first().and_then(Option::as_deref) == Some(name));
        row.and_then(|row| row.get(1)?.clone())
    };
    // Servers before 10.5.26 and its contemporaries have no number of their own.
    let fallback = || ["server_id", "hostname", "port"].map(|name| value(name).unwrap_or_default()).join("/");
    let system = value(own).filter(|uid| !uid.is_empty()).unwrap_or_else(fallback);
    let product = if connection.is_mariadb() { "MariaDB" } else { "MySQL" };
    let server = format!("{product} {}", connection.server_version());
    Ok(Identity { system, timeline: 0, database: database.into(), server, started: String::new() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // trap: 27
    #[test]
    fn files_are_in_the_order_of_their_numbers() {
        let file = |name: &str| LogFile::parse(name, 0).unwrap();
        assert!(file("db.example.999999").number < file("db.example.1000000").number);
        assert_eq!(file("db.example.000007").name(), "db.example.000007");
        assert_eq!(LogFile::parse("binlog.index", 0), None);
    }

    proptest! {
        #[test]
        fn places_round_trip_and_keep_their_order(
            (a, b) in ((any::<u32>(), 0..1_u64 << 40), (any::<u32>(), 0..1_u64 << 40)), begun: u32,
        ) {
            let place = |(file, offset)| Place { file, offset, begun };
            prop_assert_eq!(Place::of(place(a).position()), place(a));
            prop_assert_eq!(place(a).position() < place(b).position(), a < b);
            prop_assert_eq!(place(a).position().history(), 0);
        }
    }
}
