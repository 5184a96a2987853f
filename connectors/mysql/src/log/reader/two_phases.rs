//! Transactions of two phases (XA). Their rows stand in the log where they were prepared, and count where they are committed:
//! behind others, hours later, at another server. Until then nothing is known of them here, and no position waits for them.
//!
//! While there is room their events are kept, so that most need not be read twice. The log itself has the others, and those
//! from before a restart: [`Wanted`] tells what is to be read once more.

use std::collections::{HashMap, HashSet};

use millrace_core::{Error, Kind, Result};

use super::{Reader, Taken, refused};
use crate::{
    log::{
        compressed::Payload,
        events::{self, RowsEvent, kind},
        xid::{Statement, Xid},
    },
    server::Place,
    types::charset::Charsets,
    wire::{
        Malformed,
        binlog_dump::{self, EventHeader},
    },
};

/// Events that are kept of all prepared transactions together; bytes.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// A committed transaction whose events are to be read where it was prepared.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub xid: Xid,
    /// Where its commit begins: the preparation is before that.
    pub before: Place,
}

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct TwoPhases {
    /// Of the transaction that is being read, if it is one that is prepared at its end.
    preparing: Option<Preparing>,
    /// Events of those that are prepared.
    kept: HashMap<Xid, Vec<u8>>,
    kept_bytes: usize,
    /// The rows of this one count now; the transaction that is being read ends with them.
    counting: Option<(Xid, EventHeader)>,
    wanted: Option<Wanted>,
    /// What was committed since the last handing out.
    committed: Vec<Xid>,
}

#[derive(Debug, Default)]
struct Preparing {
    /// The captured tables' numbers in its events.
    tables: HashSet<u64>,
    /// `None` where there is no room for them.
    events: Option<Vec<u8>>,
}

impl TwoPhases {
    /// A transaction begins that says nothing of itself yet.
    pub(super) fn begin(&mut self) {
        (self.preparing, self.counting, self.wanted) = (None, None, None);
    }

    /// What is being read is prepared at its end.
    pub(super) fn prepare(&mut self) {
        self.preparing = Some(Preparing { tables: HashSet::new(), events: Some(vec![]) });
    }

    /// Tables came or went: what was kept may lack their events.
    pub(super) fn forget_kept(&mut self) {
        (self.kept, self.kept_bytes) = (HashMap::new(), 0);
        if let Some(preparing) = &mut self.preparing {
            preparing.events = None;
        }
    }

    /// Those of which rows are handed out.
    pub(super) fn handed_out(&self) -> Vec<Xid> {
        self.committed.iter().chain(self.counting.as_ref().map(|(xid, _)| xid)).cloned().collect()
    }

    /// They are.
    pub(super) fn forget_committed(&mut self) {
        self.committed.clear();
    }

    fn take(&mut self, xid: &Xid) -> Option<Vec<u8>> {
        let events = self.kept.remove(xid)?;
        self.kept_bytes -= events.len();
        Some(events)
    }
}

impl Reader {
    /// Keeps an event for later, if it belongs to a transaction that is being prepared.
    pub(super) fn keeps(&mut self, header: &EventHeader, body: &[u8]) -> Result<bool> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading a prepared transaction").with(error);
        let Some(preparing) = &mut self.two_phases.preparing else { return Ok(false) };
        let is_wanted = match header.kind {
            kind::TABLE_MAP => {
                let (id, _, rest) = events::table_id(body).map_err(malformed)?;
                let (schema, table, _) = events::table_name(rest).map_err(malformed)?;
                let is_captured =
                    self.tables.keys().any(|name| name.schema.as_bytes() == schema && name.name.as_bytes() == table);
                if is_captured {
                    preparing.tables.insert(id)
                } else {
                    preparing.tables.remove(&id)
                };
                is_captured
            }
            kind::QUERY | kind::MARIADB_QUERY_COMPRESSED => true,
            number if RowsEvent::kind_of(number).is_some() => {
                preparing.tables.contains(&events::table_id(body).map_err(malformed)?.0)
            }
            _ => return Ok(false),
        };
        if is_wanted && let Some(events) = &mut preparing.events {
            if self.two_phases.kept_bytes + events.len() + body.len() > KEPT_BYTES_MAX {
                preparing.events = None;
            } else {
                events.extend(header.event(body));
            }
        }
        Ok(true)
    }

    /// XA_PREPARE_LOG_EVENT: the transaction that is being read is prepared, or is at its end.
    pub(super) fn prepared(&mut self, header: &EventHeader, body: &[u8]) -> Result<()> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading a prepared transaction").with(error);
        let (at_once, xid) = Xid::of_prepare(body).map_err(malformed)?;
        let (Some(preparing), Some(transaction)) = (self.two_phases.preparing.take(), &self.transaction) else {
            return Err(refused("a transaction of two phases has no beginning"));
        };
        let place = Place::of(millrace_core::Position(transaction.commit));
        self.options.loads.note_prepared(&xid, place);
        self.two_phases.take(&xid);
        if let Some(events) = preparing.events {
            self.two_phases.kept_bytes += events.len();
            self.two_phases.kept.insert(xid.clone(), events);
        }
        if at_once { self.count(xid, header, place, true) } else { self.end_transaction(header) }
    }

    /// A statement about such a transaction; `start` is where it stands.
    pub(super) fn two_phases(&mut self, header: &EventHeader, start: Place, sql: &str) -> Result<()> {
        let statement = Statement::parse(sql);
        let statement = statement
            .ok_or_else(|| refused("it has a statement about a transaction of two phases that cannot be read"))?;
        if self.transaction.is_none() {
            self.begin(header, start)?;
        }
        match statement {
            Statement::Start => {
                self.standalone = false;
                self.two_phases.prepare();
                Ok(())
            }
            Statement::End => Ok(()),
            Statement::Commit(xid) => {
                let begun =
                    self.transaction.as_ref().map_or(start, |own| Place::of(millrace_core::Position(own.commit)));
                self.count(xid, header, begun, false)
            }
            Statement::Rollback(xid) => {
                self.two_phases.take(&xid);
                self.options.loads.forget_prepared(&xid);
                self.end_transaction(header)
            }
        }
    }

    /// The rows of a prepared transaction count from here on: `begun` is where the transaction begins that says so, which
    /// is the prepared one itself where it was committed `at_once`.
    fn count(&mut self, xid: Xid, header: &EventHeader, begun: Place, at_once: bool) -> Result<()> {
        // Whoever only wants to know what is behind a place has no tables.
        if self.tables.is_empty() {
            return self.end_transaction(header);
        }
        match self.two_phases.take(&xid) {
            Some(events) => self.payload = Some((Payload::of_events(events), begun)),
            None => {
                let before = Place { offset: begun.offset + u64::from(at_once), ..begun };
                self.two_phases.wanted = Some(Wanted { xid: xid.clone(), before });
                // This may be the last event of one: its end is not that of the transaction.
                self.payload = None;
            }
        }
        // Statements among its events end nothing.
        self.standalone = false;
        self.two_phases.counting = Some((xid, *header));
        Ok(())
    }

    /// The transaction whose events are to be read where it was prepared.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.two_phases.wanted.as_ref()
    }

    /// Takes one of its events.
    pub fn repeated(&mut self, bytes: &[u8], charsets: &Charsets) -> Result<Taken> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading a prepared transaction").with(error);
        let (header, body) = binlog_dump::event(bytes).map_err(malformed)?;
        self.dispatch(&header, self.place, body, charsets)
    }

    /// There are no more of them.
    pub fn counted(&mut self) -> Result<()> {
        self.two_phases.wanted = None;
        let Some((xid, header)) = self.two_phases.counting.take() else { return Ok(()) };
        self.options.loads.forget_prepared(&xid);
        self.two_phases.committed.push(xid);
        self.end_transaction(&header)
    }
}
