//! What delivery needs of a stream.

use millrace_core::Result;
use tokio::sync::watch;

use crate::stream::{Entry, LogPosition, Mark, Reader, Stream, Wanted};

/// A log that can be read from one mark to another.
pub trait ChangeLog: Send + Sync {
    fn last_mark(&self) -> Option<Mark>;
    fn marks(&self) -> watch::Receiver<Option<Mark>>;
    fn read(&self, from: LogPosition, to: LogPosition, wanted: Wanted) -> Result<Box<dyn Entries>>;
    fn set_pin(&self, pin: LogPosition);
    fn retain(&self) -> Result<()>;
}

/// What the range holds, in log order.
pub trait Entries {
    fn next_entry(&mut self) -> Result<Option<Entry>>;
}

impl ChangeLog for Stream {
    fn last_mark(&self) -> Option<Mark> {
        self.last_mark()
    }

    fn marks(&self) -> watch::Receiver<Option<Mark>> {
        self.marks()
    }

    fn read(&self, from: LogPosition, to: LogPosition, wanted: Wanted) -> Result<Box<dyn Entries>> {
        Ok(Box::new(self.read(from, to, wanted)?))
    }

    fn set_pin(&self, pin: LogPosition) {
        self.set_pin(pin);
    }

    fn retain(&self) -> Result<()> {
        self.retain()
    }
}

impl Entries for Reader {
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.next_entry()
    }
}
