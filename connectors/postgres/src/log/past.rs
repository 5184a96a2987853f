//! Whether the log still holds what was read of it. A server that was put back to an earlier state, and has written on since,
//! has another log at the same places, and the same system identifier and timeline; its slot stands where it was then.
//!
//! Beside each position stands what was read up to there. Where the slot is behind our position, the server is asked for
//! what lies between, which it sends after its own crash or ours: the last transaction that we took must be among it, and
//! none that committed after we had read to our position.

use std::{fmt, str::FromStr, sync::Arc};

use millrace_core::{Position, Result};

use super::open;
use crate::config::Names;

/// A transaction that was sent ahead does not always say that it comes from elsewhere, where another clock may go; and so may a
/// standby's.
const CLOCK_SKEW_US: i64 = 10_000_000;

/// What was read up to a position; it stands in the stream's marks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// The end of the last transaction that changed something of ours, and when it committed; 0 before there was one.
    last: (u64, i64),
    /// The server's clock when it had sent all of it. Times are PostgreSQL's: microseconds since 2000-01-01 UTC.
    clock: i64,
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.last.0, self.last.1, self.clock)
    }
}

impl FromStr for Past {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let mut fields = text.split(' ');
        let mut next = || fields.next().ok_or(());
        let last = (next()?.parse().map_err(drop)?, next()?.parse().map_err(drop)?);
        Ok(Self { last, clock: next()?.parse().map_err(drop)? })
    }
}

/// What was read, and while the server sends some of it again, the comparison.
#[derive(Debug, Default)]
pub struct Memory {
    past: Past,
    comparing: Option<Comparing>,
}

impl Memory {
    /// Of a log that is asked for from where the slot stands, and was read up to our position.
    pub fn new(names: &Names, past: Past, (confirmed, from): (u64, u64)) -> Self {
        Self { past, comparing: (confirmed < from).then(|| Comparing::new(names, past, confirmed, from)) }
    }

    /// Whether it is still open that this is the log that was read.
    pub fn is_comparing(&self) -> bool {
        self.comparing.is_some()
    }

    /// What stands beside the position.
    pub fn text(&self) -> Arc<str> {
        // Before it is known to be the same log nothing of it is noted.
        self.comparing.as_ref().map_or(self.past, |comparing| comparing.past).to_string().into()
    }

    /// The server sent something at this time.
    #[inline]
    pub fn note_clock(&mut self, clock: i64) {
        self.past.clock = self.past.clock.max(clock);
    }

    /// A transaction with changes was taken.
    pub fn note_commit(&mut self, end: u64, time: i64) {
        self.past.last = (end, time);
        self.note_clock(time);
    }

    /// A transaction was sent, perhaps again; `time` is this server's: of one that it took over from elsewhere there is none.
    pub fn sent(&mut self, end: u64, time: Option<i64>) -> Result<()> {
        let Some(comparing) = &mut self.comparing else { return Ok(()) };
        comparing.commit(end, time)?;
        self.reach(end)
    }

    /// Everything that ends before was sent.
    pub fn reach(&mut self, end: u64) -> Result<()> {
        let Some(comparing) = &mut self.comparing else { return Ok(()) };
        comparing.reach(end)?;
        if end >= comparing.from {
            self.comparing = None;
        }
        Ok(())
    }
}

/// The comparison of what is sent again with what was read.
#[derive(Debug)]
struct Comparing {
    names: Names,
    past: Past,
    from: u64,
    /// The last transaction is to come, and has not yet.
    awaits_last: bool,
}

impl Comparing {
    fn new(names: &Names, past: Past, confirmed: u64, from: u64) -> Self {
        Self { names: names.clone(), past, from, awaits_last: confirmed < past.last.0 && past.last.0 <= from }
    }

    /// A transaction from before our position was sent again.
    fn commit(&mut self, end: u64, time: Option<i64>) -> Result<()> {
        if self.awaits_last && end == self.past.last.0 && time == Some(self.past.last.1) {
            self.awaits_last = false;
        }
        if time.is_some_and(|time| time > self.past.clock.saturating_add(CLOCK_SKEW_US)) {
            let at = Position(u128::from(end));
            return Err(self.changed(format!("a transaction at {at} committed after the log had been read beyond it")));
        }
        self.reach(end.saturating_add(1))
    }

    fn reach(&self, end: u64) -> Result<()> {
        let last = self.past.last.0;
        match self.awaits_last && (end > last || end >= self.from) {
            true => {
                Err(self
                    .changed(format!("the transaction that was read at {} is not there", Position(u128::from(last)))))
            }
            false => Ok(()),
        }
    }

    fn changed(&self, what: String) -> millrace_core::Error {
        open::changed(&self.names, format!("the source went back in time, and has another log now: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::Kind;

    use super::*;

    fn comparing(confirmed: u64) -> Memory {
        let mut read = Memory::default();
        read.note_clock(50);
        read.note_commit(100, 60);
        read.note_clock(70);
        Memory::new(&Names::of_task("shop"), read.text().parse().unwrap(), (confirmed, 200))
    }

    #[test]
    fn what_was_read_comes_again() {
        let mut same = comparing(10);
        for (end, time) in [(50, 40), (100, 60), (150, 65)] {
            same.sent(end, Some(time)).unwrap();
            same.note_clock(1000);
        }
        assert!(same.is_comparing() && same.text().ends_with(" 70"));
        same.reach(250).unwrap();
        assert!(!same.is_comparing() && same.text().ends_with(" 1000"));
        // The slot is behind the last one: nothing of ours is to come.
        comparing(100).reach(250).unwrap();
        // Of another server's clock nothing follows, nor from a little.
        comparing(100).sent(150, None).unwrap();
        comparing(100).sent(150, Some(70 + CLOCK_SKEW_US)).unwrap();
        assert!(!comparing(200).is_comparing());
    }

    #[test]
    fn another_log_is_told_apart() {
        let refused = |done: Result<()>, words: &str| {
            let error = done.unwrap_err();
            let said = format!("{error} {:?}", error.source);
            assert!(error.kind == Kind::SourceChanged && said.contains(words), "{said}");
        };
        refused(comparing(10).sent(100, Some(61)), "0/64 is not there");
        refused(comparing(10).sent(150, Some(65)), "0/64 is not there");
        refused(comparing(10).reach(250), "0/64 is not there");
        refused(comparing(10).reach(200), "0/64 is not there");
        let late = Some(71 + CLOCK_SKEW_US);
        refused(comparing(10).sent(50, late), "0/32 committed after");
        refused(comparing(100).sent(150, late), "0/96 committed after");
    }

    #[test]
    fn a_past_is_read_as_it_is_written() {
        let past = Past { last: (1 << 40, -5), clock: 7 };
        assert_eq!(past.to_string().parse(), Ok(past));
        assert!("".parse::<Past>().is_err() && "1 2".parse::<Past>().is_err());
    }
}
