//! Rows in the log that were rolled back at the source: MariaDB writes them where the transaction did something that cannot
//! be rolled back as well (a temporary table made or dropped, a table of another engine), and says so behind them.
//!
//! By then parts of them may be handed out. So the log is opened anew, and read once more without them.

use millrace_core::{Error, Kind, Position, Result};

use super::{Reader, refused};
use crate::{
    log::events::{RowsEvent, kind},
    server::Place,
};

/// A place in a transaction that may be gone back to.
#[derive(Debug)]
pub(super) struct Savepoint {
    name: String,
    start: Place,
    /// Changes of the transaction before it.
    ordinal: u32,
}

impl Reader {
    /// Whether an event has rows that are known not to count.
    pub(super) fn is_rolled_back(&self, number: u8, start: Place) -> bool {
        !self.rolled_back.is_empty()
            && (number == kind::TABLE_MAP || RowsEvent::kind_of(number).is_some())
            && self.rolled_back.iter().any(|range| range.contains(&start.position()))
    }

    /// SAVEPOINT: one of the same name is given up.
    pub(super) fn savepoint(&mut self, start: Place, name: &str) {
        let Some(transaction) = &self.transaction else { return };
        let (name, ordinal) = (name.to_lowercase(), transaction.ordinal);
        self.savepoints.retain(|own| own.name != name);
        self.savepoints.push(Savepoint { name, start, ordinal });
    }

    /// ROLLBACK TO SAVEPOINT: what stands behind that does not count.
    pub(super) fn roll_back_to(&mut self, start: Place, name: &str) -> Result<()> {
        let name = name.to_lowercase();
        let Some(index) = self.savepoints.iter().position(|own| own.name == name) else {
            return Err(refused("a part of a transaction was taken back, and where it begins is not in the log"));
        };
        self.savepoints.truncate(index + 1);
        match self.savepoints.last() {
            Some(savepoint) if self.transaction.as_ref().is_some_and(|own| own.ordinal > savepoint.ordinal) => {
                self.read_without(savepoint.start.position(), start)
            }
            _ => Ok(()),
        }
    }

    /// Whether the transaction that ends with ROLLBACK has rows that count for us.
    pub(super) fn roll_back(&mut self, start: Place) -> Result<()> {
        match &self.transaction {
            Some(transaction) if transaction.ordinal > 0 => self.read_without(Position(transaction.commit), start),
            _ => Ok(()),
        }
    }

    fn read_without(&self, from: Position, to: Place) -> Result<()> {
        let range = from..to.position();
        if range.is_empty() {
            return Err(refused("a part of a transaction of two phases was taken back that the log has all the same"));
        }
        // What counts all the same is no row: a table is loaded anew in vain.
        if self.rolled_back.contains(&range) {
            return Ok(());
        }
        self.options.loads.note_rolled_back(range);
        Err(Error::new(Kind::Connection, "reading the binary log")
            .with("it has rows that were rolled back; it is read once more without them"))
    }
}
