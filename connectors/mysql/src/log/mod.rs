//! The log of a server: the binary log as a replica reads it (manual, "COM_BINLOG_DUMP").
//!
//! A transaction's events stand together, from its GTID event to its end, so nothing is kept for one that has not
//! committed: the server writes it when it commits, or when it is prepared as the first of two phases (XA). Values are decoded from the receive buffer straight into batches.
//!
//! - [`lineage`], [`open`]: what the stream keeps with a position, and where the log is taken up again with it, after a
//!   failover on another server
//! - [`events`]: the events; [`compressed`]: those that are; [`statement_text`], [`ddl`], [`alter`]: what statements do; [`captured`]: a table's rows
//! - [`reader`]: which event belongs to what, and where it stands
//! - [`xid`], [`prepared`]: transactions of two phases, and their events where they were prepared

mod alter;
mod captured;
pub mod compressed;
pub mod ddl;
pub mod events;
pub mod lineage;
pub mod open;
mod prepared;
mod reader;
mod statement_text;
pub mod xid;

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use millrace_core::{
    Changes, Durable, Error, Kind, Position, Result, Table, TableName, ValueRules,
    source::{Budget, Identity, Log, Resume},
};

use self::{
    prepared::Prepared,
    reader::{Reader, Start, Taken},
    xid::Xid,
};
use crate::{
    MysqlConfig, discover,
    gtid::Executed,
    server::{self, Place},
    types::{SqlType, charset::Charsets},
    wire::{Connection, code},
};

/// What is known of a table's load.
#[derive(Debug, Clone, Copy, Default)]
struct Loading {
    /// What the log shows of the table before that does not concern its load.
    from: Option<Position>,
    /// Where the last change stands that was passed over, because the load had not begun.
    passed_over: Position,
}

/// What the log has handed out: a lookup must see it.
#[derive(Debug, Clone, Default)]
pub struct HandedOut {
    /// Everything before.
    pub position: Position,
    /// MySQL: the same by GTIDs, where everything has one.
    pub executed: Option<Executed>,
    /// MariaDB: commits of two phases among it. Their place shows a moment before their rows do.
    pub two_phases: Vec<Xid>,
}

/// What loads and the log must know of each other.
#[derive(Debug, Default)]
pub struct LoadPositions {
    loads: Mutex<HashMap<TableName, Loading>>,
    read: Mutex<Position>,
    handed_out: Mutex<HandedOut>,
    /// Transactions without an end.
    taken_back: Mutex<BTreeSet<Position>>,
    /// Rows in the log that were rolled back.
    rolled_back: Mutex<Vec<Range<Position>>>,
    /// Where transactions of two phases were prepared that have not ended.
    prepared: Mutex<HashMap<Xid, Place>>,
    /// The server whose log is read. Nothing while another one is taking over: until the daemon has given its positions the
    /// number of a new history, no place at it may be told.
    system: Mutex<Option<String>>,
}

impl LoadPositions {
    /// From here on places are of this server.
    pub fn follow(&self, system: &str) {
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = Some(system.into());
    }

    /// Another server is taking over. Places at the one before say nothing of places at this one, and everything that is
    /// known of them is before its log.
    fn begin_takeover(&self) {
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Position(0);
        self.note_handed_out(HandedOut::default());
        self.taken_back.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for loading in self.loads.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            *loading = Loading { from: loading.from.map(|_| Position(0)), passed_over: Position(0) };
        }
    }

    fn system(&self) -> Option<String> {
        self.system.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connects to the server whose log is read: what another one that answers under the same name shows has no place in it.
    pub async fn connect(&self, config: &MysqlConfig) -> Result<Connection> {
        let mut session = Connection::connect(config).await?;
        let system = server::identity(&mut session, &config.database).await?.system;
        match self.system() {
            Some(known) if known == system => Ok(session),
            _ => Err(Error::new(Kind::Connection, format!("connecting to {}", config.place()))
                .with("another server answers there than the one whose log is read")),
        }
    }

    /// The table's load has everything before that: what the log shows of it before need not have its shape.
    pub fn note(&self, table: &TableName, position: Position) {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        loads.entry(table.clone()).or_default().from = Some(position);
    }

    /// A load of the table begins, in a snapshot that was taken some time ago: hours, where it waited for its turn. Gives
    /// false if the table changed behind it.
    pub fn begin(&self, table: &TableName, position: Position) -> bool {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let loading = loads.entry(table.clone()).or_default();
        if loading.passed_over >= position {
            return false;
        }
        loading.from = Some(position);
        true
    }

    /// Whether a change of the table at this commit does not concern its load, which has not begun if it is `adopting` and
    /// nothing is known of it. Such a change is remembered.
    fn passes_over(&self, table: &TableName, commit: u128, adopting: bool) -> bool {
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let loading = loads.entry(table.clone()).or_default();
        match loading.from {
            Some(from) => from.covers(commit),
            None if adopting => {
                loading.passed_over = loading.passed_over.max(Position(commit));
                true
            }
            None => false,
        }
    }

    /// The transaction that begins there has no end.
    fn note_taken_back(&self, begin: Position) {
        self.taken_back.lock().unwrap_or_else(PoisonError::into_inner).insert(begin);
    }

    fn is_taken_back(&self, begin: Position) -> bool {
        self.taken_back.lock().unwrap_or_else(PoisonError::into_inner).contains(&begin)
    }

    fn note_rolled_back(&self, range: Range<Position>) {
        self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner).push(range);
    }

    /// Before a place that is read no more nothing is asked for; those from there on are few.
    fn rolled_back(&self) -> Vec<Range<Position>> {
        self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_prepared(&self, xid: &Xid, place: Place) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(xid.clone(), place);
    }

    fn forget_prepared(&self, xid: &Xid) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(xid);
    }

    fn prepared(&self, xid: &Xid) -> Option<Place> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(xid).copied()
    }

    /// The log takes a table up, and has read so far without it: its load must have everything before that. A transaction is
    /// in the log a moment before a snapshot has it.
    fn note_read(&self, position: Position) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = position;
    }

    fn note_handed_out(&self, handed_out: HandedOut) {
        *self.handed_out.lock().unwrap_or_else(PoisonError::into_inner) = handed_out;
    }

    /// What a lookup must see at least.
    pub fn handed_out(&self) -> HandedOut {
        self.handed_out.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a snapshot must have at least.
    pub fn snapshot_min(&self) -> Position {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the log is read.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// The reader's number among the server's replicas.
    pub server_id: u32,
    /// A row with a longer value is rejected; bytes.
    pub value_bytes_max: usize,
    /// What becomes of values that their columns cannot hold.
    pub values: Arc<ValueRules>,
    /// Where loads stand.
    pub loads: Arc<LoadPositions>,
}

/// An open log.
#[derive(Debug)]
pub struct MysqlLog {
    config: MysqlConfig,
    session: Connection,
    reader: Reader,
    charsets: Charsets,
    identity: Identity,
    /// The events of a transaction of two phases, while its rows are read.
    prepared: Option<Prepared>,
    /// Where it begins, if another server took over.
    begun: Option<Resume>,
    /// When the server last sent something; it is asked for a sign of life every five seconds.
    heard: tokio::time::Instant,
}

/// After so long a silence, six signs of life that did not come, the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(30);

impl MysqlLog {
    /// Connects, makes sure that nothing from `from` on is lost, and starts the stream.
    pub async fn open(
        config: &MysqlConfig,
        tables: &[Arc<Table>],
        from: &Resume,
        known: &Identity,
        options: LogOptions,
    ) -> Result<Self> {
        let mut session = Connection::connect(config).await?;
        let mut opening = open::find(config, &mut session, from, known).await?;
        if let (Start::Place(place), None) = (opening.start, &opening.lineage.executed) {
            opening.lineage = open::lineage_at(config, &mut session, &opening.identity.system, place).await?;
        }
        let charsets = Charsets::read(&mut session, &charsets_of(tables)).await?;
        let checksums = session.query("SELECT @@global.binlog_checksum").await?;
        let has_checksum = checksums.first().and_then(|row| row.first()?.as_deref()) == Some("CRC32");
        let cases = session.query("SELECT @@global.lower_case_table_names").await?;
        open::dump(config, &mut session, &opening, options.server_id).await?;
        let takes_over = opening.takes_over();
        match takes_over {
            true => options.loads.begin_takeover(),
            false => options.loads.follow(&opening.identity.system),
        }
        let start = (opening.start, opening.lineage);
        let mut reader = Reader::new(tables, start, session.is_mariadb(), has_checksum, options);
        reader.set_ignores_case(cases.first().and_then(|row| row.first()?.as_deref()) != Some("0"));
        let (config, identity, heard) = (config.clone(), opening.identity, tokio::time::Instant::now());
        let mut log = Self { config, session, reader, charsets, identity, prepared: None, begun: None, heard };
        while log.reader.is_between_files() {
            log.take_head().await?;
        }
        let position = log.reader.position();
        if let (true, Some(executed @ Executed::Mariadb(_))) = (takes_over, &log.reader.lineage().executed) {
            open::refuse_foreign(&log.config, Place::of(position).file, executed).await?;
        }
        let lineage = log.reader.lineage().to_string();
        tracing::info!(%position, lineage, "the log is open");
        log.begun = takes_over.then(|| Resume { position, lineage: Some(lineage.into()) });
        Ok(log)
    }

    /// Takes the events that name the file: they come at once.
    async fn take_head(&mut self) -> Result<()> {
        let packet = tokio::time::timeout(SILENCE_MAX, self.session.packet()).await;
        let silent = |_| Error::new(Kind::Connection, "opening the binary log").with("the server does not answer");
        let body = packet.map_err(silent)?.map_err(log_error)?;
        self.reader.event(body.get(1..).unwrap_or_default(), &self.charsets).map(|_| ())
    }

    /// Asks the catalog about a table whose shape the log shows otherwise. Safe to cancel: it is asked for again.
    async fn look_at(&mut self, name: &TableName) -> Result<()> {
        let mut catalog = self.reader.loads().connect(&self.config).await?;
        for charset in charsets_of(&self.reader.tables()) {
            self.charsets.learn(&mut catalog, &charset).await?;
        }
        let generated = discover::generated_columns(&mut catalog, name).await?;
        self.reader.note_generated(name, generated);
        Ok(())
    }

    /// Asks the catalog about a table that was altered. Safe to cancel, likewise.
    async fn look_at_altered(&mut self, name: &TableName) -> Result<()> {
        let mut catalog = self.reader.loads().connect(&self.config).await?;
        let mut shapes = discover::named(&mut catalog, std::slice::from_ref(name)).await?;
        let shape = shapes.pop().and_then(|shape| shape.known().ok());
        for charset in shape.iter().flat_map(|shape| charsets_of(std::slice::from_ref(shape))) {
            self.charsets.learn(&mut catalog, &charset).await?;
        }
        let charset = discover::default_charset(&mut catalog, name).await?;
        self.reader.reshape(shape.as_ref(), &charset);
        Ok(())
    }

    /// Takes the next event of a transaction of two phases where it was prepared; false if there is none. Safe to cancel.
    async fn repeat(&mut self) -> Result<bool> {
        let Some(wanted) = self.reader.wanted() else { return Ok(false) };
        let prepared = match &mut self.prepared {
            Some(prepared) => prepared,
            None => self.prepared.insert(Prepared::find(&self.config, self.reader.loads(), wanted).await?),
        };
        match prepared.next_event().await? {
            Some(event) => drop(self.reader.repeated(&event, &self.charsets)?),
            None => {
                self.prepared = None;
                self.reader.counted()?;
            }
        }
        Ok(true)
    }

    /// Takes everything that has been received, until there is enough.
    async fn take(&mut self, budget: &Budget) -> Result<bool> {
        loop {
            while let Some(table) = self.reader.altered().cloned() {
                self.look_at_altered(&table).await?;
            }
            while let Some(table) = self.reader.unresolved().cloned() {
                self.look_at(&table).await?;
                self.reader.resolve(&self.charsets)?;
            }
            if self.reader.is_full(budget) {
                return Ok(true);
            }
            if self.reader.unpack(&self.charsets)?.is_some() || self.repeat().await? {
                continue;
            }
            let has_packet = self.session.packet_at_hand()?;
            if !has_packet {
                return Ok(false);
            }
            let body = self.session.body().map_err(log_error)?;
            if body.first() == Some(&0xfe) && body.len() < 9 {
                return Err(Error::new(Kind::Connection, "reading the binary log").with("the server ended it"));
            }
            let event = body.get(1..).unwrap_or_default();
            if self.reader.event(event, &self.charsets)? == Taken::Unresolved {
                continue;
            }
        }
    }
}

/// The server cannot read its log on, or from there.
fn log_error(error: Error) -> Error {
    let said = error.to_string();
    let kind = match code(&error) {
        // MariaDB has a number of its own for it.
        Some(_) if said.contains("same server_uuid/server_id") => Kind::LogBusy,
        Some(1236) => Kind::LogLost,
        _ => return error,
    };
    let fix = match kind {
        Kind::LogBusy => "give each reader a number of its own: server-id in the endpoint's section",
        _ => "see that binary logs are kept long enough (binlog_expire_logs_seconds), then: millrace reload TASK",
    };
    Error { kind, doing: "reading the binary log".into(), ..error }.fix(fix)
}

fn charsets_of<T: Borrow<Table>>(tables: &[T]) -> BTreeSet<String> {
    let columns = tables.iter().flat_map(|table| &table.borrow().columns);
    let charset = |ty| match ty {
        SqlType::Text(charset) => Some(charset.to_string()),
        _ => None,
    };
    columns.filter_map(|column| charset(SqlType::parse(&column.source_type)?)).collect()
}

#[async_trait]
impl Log for MysqlLog {
    async fn pull(&mut self, budget: Budget) -> Result<Changes> {
        if self.begun.take().is_some() {
            self.reader.loads().follow(&self.identity.system);
        }
        let deadline = tokio::time::Instant::now() + budget.wait;
        while !self.take(&budget).await? && !self.reader.is_ready() {
            match tokio::time::timeout_at(deadline, self.session.receive()).await {
                Ok(received) => {
                    received?;
                    self.heard = tokio::time::Instant::now();
                }
                Err(_) if self.heard.elapsed() > SILENCE_MAX => {
                    let said = format!("the server was silent for {} s", SILENCE_MAX.as_secs());
                    return Err(Error::new(Kind::Connection, "reading the binary log").with(said));
                }
                Err(_) => break,
            }
        }
        Ok(self.reader.hand_out())
    }

    fn identity(&self) -> Option<&Identity> {
        Some(&self.identity)
    }

    fn begins_anew(&self) -> Option<Resume> {
        self.begun.clone()
    }

    async fn confirm(&mut self, _: Durable<Position>) -> Result<()> {
        // The server keeps its files by age and by size, whoever reads them.
        fail::fail_point!("mysql-log-before-confirm");
        Ok(())
    }

    fn add_table(&mut self, table: Arc<Table>, since: Option<Position>) {
        if let Some(since) = since {
            self.reader.loads().note(&table.name, since);
        }
        self.reader.add_table(table, true);
    }

    fn settle_table(&mut self, table: Arc<Table>) {
        self.reader.add_table(table, false);
    }

    fn remove_table(&mut self, table: &TableName) {
        self.reader.remove_table(table);
    }
}
