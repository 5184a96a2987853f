//! Which event belongs to what: files, transactions, tables; and the changes that are to be handed out.

mod files;
mod rolled_back;
mod statements;
mod two_phases;

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use millrace_core::{Change, Changes, Error, Kind, Order, Position, Result, Table, TableName, source::Budget};

pub use self::two_phases::Wanted;
use self::{rolled_back::Savepoint, statements::Altered, two_phases::TwoPhases};
use super::{
    HandedOut, LoadPositions, LogOptions,
    captured::{Captured, Mapping, Transaction},
    compressed::{self, Payload},
    events::{self, Query, RowsEvent, TableMap, kind},
    lineage::Lineage,
};
use crate::{
    gtid::Gtid,
    server::Place,
    types::charset::Charsets,
    wire::{
        Malformed,
        binlog_dump::{EventHeader, FLAG_ARTIFICIAL, FLAG_IGNORABLE, HEADER_BYTES, event},
    },
};

/// Inside a transaction so many times the budget is collected before a part of it is handed out.
const INSIDE_TRANSACTION: usize = 4;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is done with.
    Done,
    /// The catalog is to be asked first.
    Unresolved,
}

/// Where a log is read from.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    /// A place between two transactions.
    Place(Place),
    /// Behind what was executed, wherever that is; at the server that was read before, not before this place.
    Executed(Option<Place>),
}

/// What the events so far have come to.
#[derive(Debug)]
pub struct Reader {
    options: LogOptions,
    mariadb: bool,
    lineage: Lineage,
    /// The server leaves transactions out that were executed.
    skips: bool,
    /// Everything before it was read already.
    floor: Position,
    /// Of the transaction that is being read.
    gtid: Option<Gtid>,
    /// Statements may write names in any case (`lower_case_table_names`).
    ignores_case: bool,
    /// Of the file that is being read.
    has_checksum: bool,
    /// Where the next event begins.
    place: Place,
    /// A new file was named, and its head has not come.
    between_files: bool,
    /// Where the last transaction ended. A snapshot's place stays behind where files follow each other without any.
    committed: Position,
    /// What is being read has no end: the server took it back.
    taken_back: bool,
    /// What was rolled back at the source, though it is in the log.
    rolled_back: Vec<Range<Position>>,
    /// Of the transaction that is being read.
    savepoints: Vec<Savepoint>,
    transaction: Option<Transaction>,
    /// Events of it that came compressed, or were prepared before, and where it is.
    payload: Option<(Payload, Place)>,
    two_phases: TwoPhases,
    /// The transaction ends with its only statement.
    standalone: bool,
    tables: HashMap<TableName, Captured>,
    /// By the log's number, for the statement that is being read; nothing where its rows are of before the table's load.
    mapped: HashMap<u64, (TableName, Option<Arc<Mapping>>)>,
    /// The captured tables' TABLE_MAP_EVENTs of the transaction that is being read, by number.
    maps: HashMap<u64, (TableName, Arc<[u8]>)>,
    /// TABLE_MAP_EVENTs whose tables the catalog is to be asked about.
    unresolved: VecDeque<(TableName, u64, Arc<[u8]>)>,
    /// What the catalog is to be asked about before anything else is read.
    altered: Option<Altered>,
    items: Vec<Change>,
    rows: usize,
    bytes: usize,
    newest_commit_us: Option<i64>,
    look_again: bool,
}

impl Reader {
    /// Begins where it is said.
    pub fn new(
        tables: &[Arc<Table>],
        (start, lineage): (Start, Lineage),
        mariadb: bool,
        has_checksum: bool,
        options: LogOptions,
    ) -> Self {
        let nowhere = Place { file: 0, offset: 0, begun: 0 };
        let (place, floor, skips) = match start {
            Start::Place(place) => (place, place.position(), false),
            Start::Executed(floor) => (nowhere, floor.map(Place::position).unwrap_or_default(), true),
        };
        let captured = |table: &Arc<Table>| {
            let captured = Captured::new(table.clone(), false, &options.values, options.value_bytes_max);
            (table.name.clone(), captured)
        };
        Self {
            tables: tables.iter().map(captured).collect(),
            mariadb,
            lineage,
            skips,
            floor,
            gtid: None,
            ignores_case: false,
            has_checksum,
            place,
            between_files: skips,
            committed: Position::default(),
            taken_back: false,
            rolled_back: options.loads.rolled_back(),
            savepoints: vec![],
            transaction: None,
            payload: None,
            two_phases: TwoPhases::default(),
            standalone: false,
            mapped: HashMap::new(),
            maps: HashMap::new(),
            unresolved: VecDeque::new(),
            altered: None,
            items: vec![],
            rows: 0,
            bytes: 0,
            newest_commit_us: None,
            look_again: false,
            options,
        }
    }

    /// Whether statements may write the names of tables in any case.
    pub fn set_ignores_case(&mut self, ignores_case: bool) {
        self.ignores_case = ignores_case;
    }

    /// What loads say of themselves.
    pub fn loads(&self) -> &LoadPositions {
        &self.options.loads
    }

    /// The shapes of all tables.
    pub fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.values().map(|captured| captured.table.clone()).collect()
    }

    /// Takes a table from here on; while it is `adopting`, rows of another shape are of before its load.
    pub fn add_table(&mut self, table: Arc<Table>, adopting: bool) {
        if let Some(mut captured) = self.tables.remove(&table.name) {
            captured.close(&mut self.items);
        }
        if adopting {
            let read = if self.transaction.is_some() { self.position() } else { self.committed.max(self.floor) };
            self.options.loads.note_read(read);
        }
        let captured = Captured::new(table.clone(), adopting, &self.options.values, self.options.value_bytes_max);
        self.tables.insert(table.name.clone(), captured);
        self.mapped.retain(|_, (name, _)| *name != table.name);
        self.two_phases.forget_kept();
        // Its rows may follow events that came before this.
        self.unresolved.retain(|(name, ..)| *name != table.name);
        let maps = self.maps.iter().filter(|(_, (name, _))| *name == table.name);
        self.unresolved.extend(maps.map(|(id, (name, bytes))| (name.clone(), *id, bytes.clone())));
    }

    /// Leaves a table out from here on.
    pub fn remove_table(&mut self, table: &TableName) {
        self.tables.remove(table);
        self.mapped.retain(|_, (name, _)| name != table);
    }

    /// The table that the catalog is to be asked about.
    pub fn unresolved(&self) -> Option<&TableName> {
        self.unresolved.front().map(|(name, ..)| name)
    }

    /// What the catalog said.
    pub fn note_generated(&mut self, table: &TableName, generated: Vec<String>) {
        if let Some(captured) = self.tables.get_mut(table) {
            captured.generated = Some(generated);
        }
    }

    /// Where the next event begins, once the file is known.
    pub fn position(&self) -> Position {
        self.place.position().max(self.floor)
    }

    /// Whether a file was named, or none yet, and its head has not come.
    pub fn is_between_files(&self) -> bool {
        self.between_files
    }

    /// What is behind the last transaction that was read.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Whether there are whole transactions to hand out.
    pub fn is_ready(&self) -> bool {
        self.transaction.is_none() && (self.rows > 0 || !self.items.is_empty())
    }

    /// Whether there is enough to hand out.
    pub fn is_full(&self, budget: &Budget) -> bool {
        let times = if self.transaction.is_some() { INSIDE_TRANSACTION } else { 1 };
        self.rows >= budget.rows.saturating_mul(times) || self.bytes >= budget.bytes.saturating_mul(times)
    }

    /// Everything so far.
    pub fn hand_out(&mut self) -> Changes {
        self.tables.values_mut().for_each(|captured| captured.close(&mut self.items));
        (self.rows, self.bytes) = (0, 0);
        self.options.loads.note_handed_out(self.handed_out());
        self.two_phases.forget_committed();
        let is_resolved = self.unresolved.is_empty() && self.altered.is_none();
        let whole = self.transaction.is_none() && is_resolved && !self.between_files;
        Changes {
            items: std::mem::take(&mut self.items),
            upto: whole.then(|| self.position()),
            lineage: whole.then(|| self.lineage.to_string().into()),
            newest_commit_us: self.newest_commit_us.take(),
            look_again: std::mem::take(&mut self.look_again),
            ..Changes::default()
        }
    }

    /// What a lookup of what was read must see. Of a transaction, rows may be looked up before all of it was read.
    fn handed_out(&self) -> HandedOut {
        let position = if self.transaction.is_some() { self.position() } else { self.committed };
        let mut executed = self.lineage.executed.clone().filter(|_| !self.mariadb);
        if self.transaction.is_some() {
            executed = executed.zip(self.gtid.clone()).map(|(mut executed, gtid)| {
                executed.add(gtid);
                executed
            });
        }
        HandedOut { position, executed, two_phases: self.two_phases.handed_out() }
    }

    /// Takes one event.
    pub fn event(&mut self, bytes: &[u8], charsets: &Charsets) -> Result<Taken> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading the binary log").with(error);
        let (header, _) = event(bytes).map_err(malformed)?;
        let wrong = |error: Malformed| refused(&error.to_string());
        let bytes = header.verified(bytes, self.has_checksum).map_err(wrong)?;
        let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let mut start = self.place;
        let made_up = header.flags & FLAG_ARTIFICIAL != 0 || header.next == 0;
        if !made_up && header.kind != kind::HEARTBEAT && header.kind != kind::HEARTBEAT_V2 {
            self.advance(header.next)?;
            if self.skips {
                start.offset = self.place.offset.saturating_sub(header.size.into());
            }
        }
        if self.is_rolled_back(header.kind, start) || self.taken_back && is_inside_transaction(header.kind) {
            return Ok(Taken::Done);
        }
        self.dispatch(&header, start, body, charsets).map_err(|error| at(start, error))
    }

    /// Takes the next event of a transaction that came compressed or was kept; `None` where there is none.
    pub fn unpack(&mut self, charsets: &Charsets) -> Result<Option<Taken>> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading a compressed transaction").with(error);
        let Some((payload, start)) = &mut self.payload else { return Ok(None) };
        let start = *start;
        let Some(bytes) = payload.next_event().map_err(|error| at(start, malformed(error)))? else {
            self.payload = None;
            self.counted()?;
            return Ok(None);
        };
        let (header, body) = event(&bytes).map_err(malformed)?;
        self.dispatch(&header, start, body, charsets).map(Some).map_err(|error| at(start, error))
    }

    fn dispatch(&mut self, header: &EventHeader, start: Place, body: &[u8], charsets: &Charsets) -> Result<Taken> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading the binary log").with(error);
        if self.keeps(header, body)? {
            return Ok(Taken::Done);
        }
        let done = match header.kind {
            kind::FORMAT_DESCRIPTION => self.file_begins(header, body),
            kind::ROTATE => self.file_ends(body),
            kind::TABLE_MAP => return self.table_map(body, charsets),
            kind::QUERY => self.query(header, start, Query::parse(body).map_err(malformed)?, charsets),
            kind::MARIADB_QUERY_COMPRESSED if self.mariadb => {
                let query = Query::parse(body).map_err(malformed)?;
                let sql = compressed::unpack(query.sql).map_err(malformed)?;
                self.query(header, start, Query { sql: &sql, ..query }, charsets)
            }
            kind::XID => self.end_transaction(header),
            kind::XA_PREPARE => self.prepared(header, body),
            kind::MARIADB_GTID if self.mariadb => {
                let begins = events::mariadb_gtid(header.server_id, body).map_err(malformed)?;
                self.begin(header, start)?;
                (self.standalone, self.gtid) = (begins.standalone, Some(begins.gtid));
                if begins.prepares {
                    self.two_phases.prepare();
                }
                Ok(())
            }
            kind::GTID | kind::ANONYMOUS_GTID | kind::GTID_TAGGED => {
                self.begin(header, start)?;
                self.standalone = true;
                self.gtid = match header.kind {
                    kind::GTID => Some(events::gtid(body).map_err(malformed)?),
                    // Without it nothing is known of what is behind: the next file tells it again.
                    kind::GTID_TAGGED => events::tagged_gtid(body).ok(),
                    _ => None,
                };
                Ok(())
            }
            kind::PREVIOUS_GTIDS | kind::MARIADB_GTID_LIST if header.flags & FLAG_ARTIFICIAL == 0 => {
                self.executed_before(header.kind, body).map_err(malformed)
            }
            kind::TRANSACTION_PAYLOAD if !self.mariadb => {
                self.payload = Some((Payload::open(body).map_err(malformed)?, start));
                Ok(())
            }
            number => match RowsEvent::kind_of(number) {
                Some(kind) => self.rows_event(kind, is_compressed(number), body),
                None => self.other(header),
            },
        };
        done.map(|()| Taken::Done)
    }

    fn begin(&mut self, header: &EventHeader, start: Place) -> Result<()> {
        self.end_taken_back()?;
        if start.position() < self.floor {
            return Err(refused("a transaction stands before those that were read"));
        }
        self.gtid = None;
        self.two_phases.begin();
        self.savepoints.clear();
        let time_us = i64::from(header.timestamp) * 1_000_000;
        self.transaction = Some(Transaction { commit: start.position().0, time_us, ordinal: 0 });
        self.taken_back = self.options.loads.is_taken_back(start.position());
        self.mapped.clear();
        self.maps.clear();
        Ok(())
    }

    /// A transaction whose end is not in the log when the next one begins was cut off by a crash, and the server took it
    /// back. Parts of it may be handed out, which nothing marks: the log is opened anew, and then it is passed over.
    fn end_taken_back(&mut self) -> Result<()> {
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        if std::mem::take(&mut self.taken_back) {
            return Ok(());
        }
        self.options.loads.note_taken_back(Position(transaction.commit));
        Err(Error::new(Kind::Connection, "reading the binary log").with(
            "a transaction has no end, so the server took it back when it was started again; it is read once more without it",
        ))
    }

    fn end_transaction(&mut self, header: &EventHeader) -> Result<()> {
        if self.transaction.take().is_some() {
            self.committed = self.position();
            match (&mut self.lineage.executed, self.gtid.take()) {
                (Some(executed), Some(gtid)) => executed.add(gtid),
                (executed, _) => *executed = None,
            }
            self.newest_commit_us = Some(i64::from(header.timestamp) * 1_000_000);
        }
        self.mapped.clear();
        self.maps.clear();
        Ok(())
    }

    fn next_order(&mut self) -> Result<Order> {
        match &mut self.transaction {
            Some(transaction) => transaction.next(),
            None => Err(refused("a change stands outside of a transaction")),
        }
    }

    fn close(&mut self, table: &TableName) {
        if let Some(captured) = self.tables.get_mut(table) {
            captured.close(&mut self.items);
        }
    }

    fn table_map(&mut self, body: &[u8], charsets: &Charsets) -> Result<Taken> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading a table's shape in the log").with(error);
        let (id, _, rest) = events::table_id(body).map_err(malformed)?;
        self.mapped.remove(&id);
        self.maps.remove(&id);
        let (schema, table, _) = events::table_name(rest).map_err(malformed)?;
        let (Ok(schema), Ok(table)) = (std::str::from_utf8(schema), std::str::from_utf8(table)) else {
            return Ok(Taken::Done);
        };
        let name = TableName::new(schema, table);
        let Some(captured) = self.tables.get_mut(&name) else { return Ok(Taken::Done) };
        if let Some((bytes, mapping)) = captured.known(rest) {
            self.maps.insert(id, (name.clone(), bytes));
            self.mapped.insert(id, (name, Some(mapping)));
            return Ok(Taken::Done);
        }
        let bytes: Arc<[u8]> = rest.into();
        self.maps.insert(id, (name.clone(), bytes.clone()));
        let has_catalog = captured.generated.is_some();
        self.unresolved.push_back((name, id, bytes));
        if has_catalog || self.try_map(charsets)? {
            self.resolve(charsets)?;
            return Ok(Taken::Done);
        }
        Ok(Taken::Unresolved)
    }

    /// Whether the table's shape is as we know it, so that the catalog need not be asked.
    fn try_map(&mut self, charsets: &Charsets) -> Result<bool> {
        let Some((name, _, bytes)) = self.unresolved.front() else { return Ok(true) };
        // What is wrong with it, the catalog does not know either.
        let Ok(map) = TableMap::parse(bytes) else { return Ok(true) };
        let Some(captured) = self.tables.get_mut(name) else { return Ok(true) };
        Ok(captured.map(bytes, &map, charsets).is_ok())
    }

    /// Goes on with the first table that the catalog was asked about.
    pub fn resolve(&mut self, charsets: &Charsets) -> Result<()> {
        let Some((name, id, bytes)) = self.unresolved.pop_front() else { return Ok(()) };
        let Some(captured) = self.tables.get_mut(&name) else { return Ok(()) };
        let map = TableMap::parse(&bytes).map_err(|malformed| malformed.to_string());
        match map.and_then(|map| captured.map(&bytes, &map, charsets)) {
            Ok(mapping) => {
                self.mapped.insert(id, (name, Some(mapping)));
                Ok(())
            }
            Err(what) => {
                self.mapped.insert(id, (name.clone(), None));
                self.unsupported(&name, what)
            }
        }
    }

    fn rows_event(&mut self, rows: (events::RowsKind, u8), is_compressed: bool, body: &[u8]) -> Result<()> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading rows in the log").with(error);
        let (id, _, rest) = events::table_id(body).map_err(malformed)?;
        let Some((name, _)) = self.maps.get(&id) else { return Ok(()) };
        let Some(captured) = self.tables.get_mut(name).filter(|captured| !captured.suspended) else { return Ok(()) };
        let Some(transaction) = &mut self.transaction else {
            return Err(refused("rows stand outside of a transaction"));
        };
        let Some((_, mapping)) = self.mapped.get(&id) else {
            let doing = format!("reading rows of {name} in the log");
            return Err(Error::new(Kind::Internal, doing).with("nobody looked at the table's shape"));
        };
        let Some(mapping) = mapping else { return Ok(()) };
        let before = transaction.ordinal;
        let event = RowsEvent::parse(rows, rest).map_err(malformed);
        let taken = event.and_then(|event| match is_compressed {
            false => captured.take(transaction, mapping, event),
            true => {
                let unpacked = compressed::unpack(event.rows.rest()).map_err(malformed)?;
                let rows = crate::wire::Reader::new(&unpacked);
                captured.take(transaction, mapping, RowsEvent { rows, ..event })
            }
        });
        self.rows += (transaction.ordinal - before) as usize;
        if captured.is_full() {
            captured.close(&mut self.items);
        }
        match taken {
            Ok(bytes) => {
                self.bytes += bytes;
                Ok(())
            }
            // What stands in the log stays there: only a load gets past it, and the other tables need not wait for that.
            Err(error) => {
                captured.abort_row();
                let name = name.clone();
                self.unsupported(&name, error.to_string())
            }
        }
    }

    /// Events that concern nobody here, and those that must not be passed over.
    fn other(&self, header: &EventHeader) -> Result<()> {
        match header.kind {
            kind::STOP
            | kind::INTVAR
            | kind::RAND
            | kind::USER_VAR
            | kind::HEARTBEAT
            | kind::HEARTBEAT_V2
            | kind::IGNORABLE
            | kind::ROWS_QUERY
            | kind::PREVIOUS_GTIDS
            | kind::TRANSACTION_CONTEXT
            | kind::VIEW_CHANGE
            | kind::MARIADB_ANNOTATE
            | kind::MARIADB_CHECKPOINT
            | kind::MARIADB_GTID_LIST
            | kind::MARIADB_START_ENCRYPTION => Ok(()),
            17 | 18 => Err(refused("it has LOAD DATA as a statement instead of its rows")),
            26 => Err(refused("the server notes an incident: changes are missing from its log")),
            _ if header.flags & FLAG_IGNORABLE != 0 => Ok(()),
            kind => Err(refused(&format!("it has an event of a kind that is not known ({kind})"))),
        }
    }
}

/// Whether an event of this kind belongs to the transaction that is being read.
fn is_inside_transaction(number: u8) -> bool {
    let others = [
        kind::QUERY,
        kind::MARIADB_QUERY_COMPRESSED,
        kind::XID,
        kind::XA_PREPARE,
        kind::TABLE_MAP,
        kind::TRANSACTION_PAYLOAD,
    ];
    others.contains(&number) || RowsEvent::kind_of(number).is_some()
}

fn is_compressed(number: u8) -> bool {
    (kind::MARIADB_QUERY_COMPRESSED..=kind::MARIADB_DELETE_ROWS_COMPRESSED).contains(&number)
}

fn at(start: Place, error: Error) -> Error {
    let doing = format!("{} (file {}, byte {})", error.doing, start.file, start.offset);
    Error { doing, ..error }
}

/// A file that is not the one that was read.
pub fn other_file() -> Error {
    Error::new(Kind::SourceChanged, "opening the binary log")
        .with("the file of this name was begun at another time: the server began its log anew, or is another one")
}

/// Something stands in the log that is not read: what it changed is unknown, so everything is to be loaded anew.
fn refused(what: &str) -> Error {
    Error::new(Kind::LogLost, "reading the binary log").with(what.to_string()).fix(
        "see the runbook of MySQL and MariaDB for what is not read, then load everything anew: millrace reload TASK",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an event with this number and these flags.
    fn taken(kind: u8, flags: u16) -> Result<Taken> {
        let place = Place { file: 1, offset: 4, begun: 1 };
        let start = (Start::Place(place), Lineage::new("s"));
        let mut reader = Reader::new(&[], start, false, false, LogOptions::default());
        let header = EventHeader { timestamp: 1, kind, server_id: 1, size: 0, next: 40, flags };
        reader.event(&header.event(&[0; 8]), &Charsets::default())
    }

    // trap: 29
    #[test]
    fn what_must_not_be_passed_over_ends_the_log() {
        let lost = |kind, flags, words: &str| {
            let error = taken(kind, flags).unwrap_err();
            assert_eq!(error.kind, Kind::LogLost, "{error}");
            assert!(error.to_string().contains(words) && error.fix.contains("reload"), "{error}");
        };
        lost(26, 0, "the server notes an incident: changes are missing from its log");
        lost(17, 0, "LOAD DATA as a statement");
        lost(222, 0, "a kind that is not known (222)");
        for (kind, flags) in [(222, FLAG_IGNORABLE), (kind::STOP, 0), (kind::HEARTBEAT, 0), (kind::ROWS_QUERY, 0)] {
            assert_eq!(taken(kind, flags).unwrap(), Taken::Done, "{kind}");
        }
    }
}
