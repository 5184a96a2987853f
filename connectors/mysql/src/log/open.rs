//! Where the log is taken up again, and whether the server that answers holds everything from there on; see [`super::lineage`].

use std::time::Duration;

use millrace_core::{
    Error, Kind, Result,
    error::Context,
    source::{Identity, Resume},
};

use super::{
    LogOptions,
    events::{self, kind},
    lineage::Lineage,
    reader::{Reader, Start, other_file},
};
use crate::{
    MysqlConfig,
    discover::quote_literal,
    gtid::{Executed, Gtid, Newest, mariadb_list},
    server::{self, LogFile, Place},
    types::charset::Charsets,
    wire::{Connection, binlog_dump},
};

/// A server that is about to take over may still have to execute what it has received.
const CATCH_UP: Duration = Duration::from_secs(10);

/// So much of a file is read to know which transactions stand in it.
const SCAN_BYTES_MAX: u64 = 64 << 20;
const SCAN_PATIENCE: Duration = Duration::from_secs(30);

/// Where and how the log goes on.
#[derive(Debug)]
pub struct Opening {
    /// Who answers.
    pub identity: Identity,
    /// What is behind the beginning; its server is the one that answers.
    pub lineage: Lineage,
    /// The beginning.
    pub start: Start,
    /// The file that holds it, where that is known.
    file: Option<LogFile>,
}

impl Opening {
    /// Whether the server has taken over from another one.
    pub fn takes_over(&self) -> bool {
        matches!(self.start, Start::Executed(None))
    }
}

/// Finds the place, or refuses: the other end is another server that does not hold what we have, or does not hold any more
/// what we do not have.
pub async fn find(config: &MysqlConfig, session: &mut Connection, from: &Resume, known: &Identity) -> Result<Opening> {
    let identity = server::identity(session, &config.database).await?;
    let mut lineage = kept(from, known)?;
    let place = Place::of(from.position);
    let is_same = identity.system == lineage.system;
    if is_same {
        let file = Some(find_file(config, session, place).await?);
        if lineage.overlap.is_none_or(|last| place.file > last) {
            lineage.overlap = None;
            return Ok(Opening { identity, lineage, start: Start::Place(place), file });
        }
        by_gtid(session, &lineage).await?;
        return Ok(Opening { identity, lineage, start: Start::Executed(Some(place)), file });
    }
    let doing = || format!("comparing the server at {} with the one that was replicated from", config.place());
    let other = |said: String| {
        let said = format!("it is another server: {} instead of {}{said}", identity.system, lineage.system);
        Error::new(Kind::SourceChanged, doing()).with(said)
    };
    let Some(executed) = &lineage.executed else {
        return Err(other(", and not everything that was replicated has a GTID".into()));
    };
    if matches!(executed, Executed::Mariadb(_)) != session.is_mariadb() {
        return Err(other(", and of the other product".into()));
    }
    by_gtid(session, &lineage).await.map_err(|error| Error { doing: doing(), ..error })?;
    holds(session, executed).await.map_err(|error| Error { doing: doing(), ..error })?;
    // What was executed there stands in one of the files that are there by now.
    lineage.overlap = server::log_files(session).await?.last().map(|file| file.number);
    lineage.system.clone_from(&identity.system);
    Ok(Opening { identity, lineage, start: Start::Executed(None), file: None })
}

/// What stands beside the position; a mark from before there was anything has the server's name in the task's record.
fn kept(from: &Resume, known: &Identity) -> Result<Lineage> {
    let Some(text) = &from.lineage else { return Ok(Lineage::new(&known.system)) };
    let doing = "reading what the stream keeps of the source's log";
    Lineage::parse(text).ok_or_else(|| {
        Error::new(Kind::Internal, doing).with("a mark was written by a newer millrace").fix("run the newer one again")
    })
}

/// The server whose files the position is of.
pub fn system_of(from: &Resume, known: &Identity) -> Result<String> {
    Ok(kept(from, known)?.system)
}

/// Whether the server can be asked for its log by GTID.
async fn by_gtid(session: &mut Connection, lineage: &Lineage) -> Result<()> {
    let refused = |said: &str| Err(Error::new(Kind::SourceChanged, "opening the binary log by GTID").with(said));
    if lineage.executed.is_none() || !server::has_gtids(session).await? {
        return refused("another server has taken over, and not every transaction of it has a GTID (gtid_mode)");
    }
    // Events have the lower half of their place only, and those in between are left out.
    if server::log_files(session).await?.iter().any(|file| file.bytes > u64::from(u32::MAX)) {
        return refused("another server has taken over, and has a log file beyond 4 GiB");
    }
    Ok(())
}

/// The file that a place is in, if the server still has it up to there.
async fn find_file(config: &MysqlConfig, session: &mut Connection, place: Place) -> Result<LogFile> {
    let files = server::log_files(session).await?;
    let Some(file) = server::find(&files, place.file) else {
        let (first, last) = (files.first().map(LogFile::name), files.last().map(LogFile::name));
        let doing = format!("opening the binary log at file {}, byte {}", place.file, place.offset);
        let said = format!(
            "the server has the files {} to {} only: it purged the one that is needed, or began its log anew",
            first.unwrap_or_default(),
            last.unwrap_or_default()
        );
        return Err(Error::new(Kind::LogLost, doing)
            .with(said)
            .fix("raise binlog_expire_logs_seconds (MariaDB also: expire_logs_days), then: millrace reload TASK"));
    };
    if file.bytes < place.offset {
        let doing = format!("comparing the server at {} with the one that was replicated from", config.place());
        return Err(Error::new(Kind::SourceChanged, doing).with(format!(
            "file {} ends at byte {}, and was read to byte {}: the server went back in time",
            file.name(),
            file.bytes,
            place.offset
        )));
    }
    Ok(file.clone())
}

/// Whether another server has executed everything that we have, and its files hold everything that we do not have.
async fn holds(session: &mut Connection, executed: &Executed) -> Result<()> {
    let deadline = tokio::time::Instant::now() + CATCH_UP;
    loop {
        let (missing, purged) = compare(session, executed).await?;
        if !purged.is_empty() {
            return Err(Error::new(Kind::LogLost, "")
                .with(format!("it is another server, and has purged transactions that were not replicated: {purged}"))
                .fix("raise binlog_expire_logs_seconds at all servers, then: millrace reload TASK"));
        }
        if missing.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let fix = "point the endpoint at a server that has them (of MariaDB's replicas only those with \
                       log_slave_updates have any); or, if they are given up, load everything anew: millrace reload TASK";
            return Err(Error::new(Kind::SourceChanged, "")
                .with(format!("it is another server, without transactions that were replicated: {missing}"))
                .fix(fix));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What the server lacks of the executed transactions, and what it has purged of the others, as its own words.
async fn compare(session: &mut Connection, executed: &Executed) -> Result<(String, String)> {
    let ours = match executed {
        Executed::Mysql(_) => quote_literal(&executed.to_string()),
        Executed::Mariadb(_) => {
            let state = binlog_state(session).await?;
            let has = |(domain, newest): &(u32, Newest)| {
                state.iter().any(|(d, own)| d == domain && own.server == newest.server && own.number >= newest.number)
            };
            let missing = executed.newest().into_iter().filter(|newest| !has(newest));
            let missing = Executed::Mariadb(missing.map(|(domain, newest)| (domain, vec![newest])).collect());
            // What is purged the server says itself when it is asked for the log.
            return Ok((missing.to_string(), String::new()));
        }
    };
    let sql =
        format!("SELECT GTID_SUBTRACT({ours}, @@global.gtid_executed), GTID_SUBTRACT(@@global.gtid_purged, {ours})");
    let rows = session.query(&sql).await?;
    let cell = |index: usize| rows.first().and_then(|row| row.get(index)?.clone()).unwrap_or_default();
    Ok((cell(0), cell(1)))
}

/// The newest transaction of each domain and server in MariaDB's log.
async fn binlog_state(session: &mut Connection) -> Result<Vec<(u32, Newest)>> {
    let rows = session.query("SELECT @@global.gtid_binlog_state").await?;
    Ok(rows.first().and_then(|row| row.first()?.as_deref()).and_then(mariadb_list).unwrap_or_default())
}

/// MariaDB sends what stands in a domain behind the newest transaction that we have. What stands before that and was in no
/// log that was read (somebody wrote to the replica) would never come: it is refused. `file` is where the server begins.
pub async fn refuse_foreign(config: &MysqlConfig, file: u32, executed: &Executed) -> Result<()> {
    let doing = || Error::new(Kind::SourceChanged, "comparing the log of the server that took over");
    let mut session = Connection::connect(config).await?;
    let files = server::log_files(&mut session).await?;
    let name = server::find(&files, file).ok_or_else(|| doing().with("its file is gone"))?.name();
    server::prepare_dump(&mut session).await?;
    session.dump(server::passing_reader(&session), &name, server::FILE_START as u32).await?;
    let mut waited = executed.newest();
    while !waited.is_empty() {
        let packet = tokio::time::timeout(SCAN_PATIENCE, session.packet()).await;
        let silent = |_| Error { kind: Kind::Connection, ..doing() }.with("what we have does not come");
        let packet = packet.map_err(silent)??;
        let (header, body) = binlog_dump::event(packet.get(1..).unwrap_or_default()).context(Kind::Protocol, || "")?;
        let gtids = match header.kind {
            kind::MARIADB_GTID_LIST => events::gtid_list(body),
            kind::MARIADB_GTID => events::mariadb_gtid(header.server_id, body).map(|begins| vec![begins.gtid]),
            _ => continue,
        };
        for gtid in gtids.context(Kind::Protocol, || "comparing the log of the server that took over")? {
            let Gtid::Mariadb(domain, newest) = gtid else { continue };
            if waited.contains_key(&domain) && !executed.has_seen(domain, newest) {
                let said = format!("{domain}-{}-{} was written to it alone", newest.server, newest.number);
                let fix = "write to one server of a domain at a time (gtid_strict_mode); millrace reload TASK";
                return Err(doing().with(said).fix(fix));
            }
            if waited.get(&domain) == Some(&newest) {
                waited.remove(&domain);
            }
        }
    }
    Ok(())
}

/// Asks for the log; what follows are its events.
pub async fn dump(config: &MysqlConfig, session: &mut Connection, opening: &Opening, server_id: u32) -> Result<()> {
    server::prepare_dump(session).await?;
    let file = opening.file.as_ref().map(LogFile::name).unwrap_or_default();
    let before = match opening.start {
        Start::Place(place) => return dump_from(session, server_id, &file, place).await,
        Start::Executed(before) => before,
    };
    if let Some(before) = before {
        let now = server::place(config, &file, before.offset).await?;
        if now.begun != before.begun {
            return Err(other_file());
        }
    }
    match &opening.lineage.executed {
        Some(executed @ Executed::Mysql(_)) => session.dump_gtid(server_id, &executed.encode()).await,
        Some(executed @ Executed::Mariadb(_)) => {
            session
                .execute(&format!("SET @slave_connect_state = {}", quote_literal(&executed.connect_state())))
                .await?;
            // Without it the server takes the next number where it does not have ours.
            session.execute("SET @slave_gtid_strict_mode = 1, @slave_gtid_ignore_duplicates = 0").await?;
            session.dump(server_id, "", server::FILE_START as u32).await
        }
        None => Err(Error::new(Kind::Internal, "opening the binary log nowhere")),
    }
}

async fn dump_from(session: &mut Connection, server_id: u32, file: &str, place: Place) -> Result<()> {
    let offset = u32::try_from(place.offset).map_err(|_| {
        Error::new(Kind::LogLost, format!("opening the binary log beyond 4 GiB of file {file}"))
            .with("a server can be asked for the first 4 GiB of a file only, and this one has a larger transaction")
            .fix("keep transactions smaller; then: millrace reload TASK")
    })?;
    session.dump(server_id, file, offset).await
}

/// What is behind a place, as far as it can be told. MariaDB says it; of MySQL the head of the file is read, where it is short:
/// `gtid_executed` beside a place is not exact, because a transaction is in the log a moment before it is in the set.
pub async fn lineage_at(config: &MysqlConfig, session: &mut Connection, system: &str, place: Place) -> Result<Lineage> {
    let mut lineage = Lineage::new(system);
    let files = server::log_files(session).await?;
    let Some(file) = server::find(&files, place.file) else { return Ok(lineage) };
    if session.is_mariadb() {
        let sql = format!("SELECT BINLOG_GTID_POS({}, {})", quote_literal(&file.name()), place.offset);
        let rows = session.query(&sql).await?;
        let text = rows.first().and_then(|row| row.first()?.as_deref()).unwrap_or_default();
        let mut executed = Executed::parse_mariadb(text).filter(|executed| !executed.is_empty());
        if let Some(executed) = &mut executed {
            binlog_state(session).await?.into_iter().for_each(|(domain, seen)| executed.note_seen(domain, seen));
        }
        lineage.executed = executed;
    } else if place.offset <= SCAN_BYTES_MAX && server::has_gtids(session).await? {
        match tokio::time::timeout(SCAN_PATIENCE, scan(config, &file.name(), system, place)).await {
            Ok(Ok(found)) => lineage = found,
            Ok(Err(error)) => tracing::info!(error = %error, "GTIDs are known from the next file of the log on"),
            Err(_) => tracing::info!("GTIDs are known from the next file of the log on"),
        }
    }
    Ok(lineage)
}

/// Reads a file of the log from its head to a place.
async fn scan(config: &MysqlConfig, file: &str, system: &str, place: Place) -> Result<Lineage> {
    let mut session = Connection::connect(config).await?;
    server::prepare_dump(&mut session).await?;
    session.dump(server::passing_reader(&session), file, server::FILE_START as u32).await?;
    let charsets = Charsets::default();
    let head = Start::Place(Place { offset: server::FILE_START, ..place });
    let mut reader = Reader::new(&[], (head, Lineage::new(system)), session.is_mariadb(), false, LogOptions::default());
    while reader.position() < place.position() {
        let packet = session.packet().await?;
        reader.event(packet.get(1..).unwrap_or_default(), &charsets)?;
        while reader.unpack(&charsets)?.is_some() {}
    }
    Ok(reader.lineage().clone())
}

/// Where a log that is made now begins.
pub async fn create(config: &MysqlConfig, session: &mut Connection) -> Result<(Resume, String)> {
    let system = server::identity(session, &config.database).await?.system;
    let place = server::end(config, session).await?;
    let mut lineage = lineage_at(config, session, &system, place).await?;
    if let Some(executed @ Executed::Mysql(_)) = &mut lineage.executed {
        // What was executed and is in no file (a dump was read in, or the server was cloned) is in the load, which comes
        // later.
        let rows = session.query("SELECT @@global.gtid_purged").await?;
        let purged = rows.first().and_then(|row| row.first()?.as_deref()).and_then(Executed::parse_mysql);
        if let Some(purged) = purged {
            executed.unite(purged);
        }
    }
    let resume = Resume { position: place.position(), lineage: Some(lineage.to_string().into()) };
    Ok((resume, system))
}
