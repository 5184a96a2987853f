//! Whether the log still holds what was read of it. A server that was put back to an earlier state, and has written on since,
//! has another log at the same places, and the same system identifier and timeline; its slot stands where it was then.
//!
//! Beside each position stands what was read up to there. Where the slot is behind our position, the server is asked for
//! what lies between, which it sends after its own crash or ours: the last transaction that we took must be among it, and
//! none that committed after we had read to our position.

use std::{fmt, str::FromStr};

use millrace_core::{Position, Result};

use super::open;
use crate::config::Names;

/// What was read up to a position; it stands in the stream's marks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// The end of the last transaction that changed something of ours, and when it committed; 0 before there was one.
    last: (u64, i64),
    /// The server's clock when it had sent all of it. Times are PostgreSQL's: microseconds since 2000-01-01 UTC.
    clock: i64,
}

impl Past {
    /// The server sent something at this time.
    #[inline]
    pub fn note_clock(&mut self, clock: i64) {
        self.clock = self.clock.max(clock);
    }

    /// A transaction with changes was taken.
    pub fn note_commit(&mut self, end: u64, time: i64) {
        self.last = (end, time);
        self.note_clock(time);
    }
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

/// The comparison of what is sent again with what was read.
#[derive(Debug)]
pub struct Comparing {
    names: Names,
    past: Past,
    from: u64,
    /// The last transaction is to come, and has not yet.
    awaits_last: bool,
}

impl Comparing {
    /// From where the slot stands up to our position.
    pub fn new(names: &Names, past: Past, confirmed: u64, from: u64) -> Self {
        Self { names: names.clone(), past, from, awaits_last: confirmed < past.last.0 && past.last.0 <= from }
    }

    /// What was read up to our position.
    pub fn past(&self) -> Past {
        self.past
    }

    /// A transaction from before our position was sent again.
    pub fn commit(&mut self, end: u64, time: i64) -> Result<()> {
        if self.awaits_last && (end, time) == self.past.last {
            self.awaits_last = false;
        }
        if time > self.past.clock {
            let at = Position(u128::from(end));
            return Err(self.changed(format!("a transaction at {at} committed after the log had been read beyond it")));
        }
        self.reach(end.saturating_add(1))
    }

    /// Everything that ends before was sent.
    pub fn reach(&mut self, end: u64) -> Result<()> {
        let last = self.past.last.0;
        match self.awaits_last && end > last {
            true => {
                Err(self
                    .changed(format!("the transaction that was read at {} is not there", Position(u128::from(last)))))
            }
            false => Ok(()),
        }
    }

    /// Whether all was sent that we have, up to here.
    pub fn is_over(&self, end: u64) -> bool {
        end >= self.from
    }

    fn changed(&self, what: String) -> millrace_core::Error {
        open::changed(&self.names, format!("the source went back in time, and has another log now: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::Kind;

    use super::*;

    fn comparing(confirmed: u64) -> Comparing {
        let mut past = Past::default();
        past.note_clock(50);
        past.note_commit(100, 60);
        past.note_clock(70);
        Comparing::new(&Names::of_task("shop"), past, confirmed, 200)
    }

    #[test]
    fn what_was_read_comes_again() {
        let mut same = comparing(10);
        for (end, time) in [(50, 40), (100, 60), (150, 65)] {
            same.commit(end, time).unwrap();
        }
        same.reach(250).unwrap();
        assert!(same.is_over(250) && !same.is_over(150));
        // The slot is behind the last one: nothing of ours is to come.
        comparing(100).reach(250).unwrap();
    }

    #[test]
    fn another_log_is_told_apart() {
        let refused = |done: Result<()>, words: &str| {
            let error = done.unwrap_err();
            let said = format!("{error} {:?}", error.source);
            assert!(error.kind == Kind::SourceChanged && said.contains(words), "{said}");
        };
        refused(comparing(10).commit(100, 61), "0/64 is not there");
        refused(comparing(10).commit(150, 65), "0/64 is not there");
        refused(comparing(10).reach(250), "0/64 is not there");
        refused(comparing(10).commit(50, 71), "0/32 committed after");
        refused(comparing(100).commit(150, 71), "0/96 committed after");
    }

    #[test]
    fn a_past_is_read_as_it_is_written() {
        let past = Past { last: (1 << 40, -5), clock: 7 };
        assert_eq!(past.to_string().parse(), Ok(past));
        assert!("".parse::<Past>().is_err() && "1 2".parse::<Past>().is_err());
    }
}
