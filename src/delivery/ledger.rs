//! What becomes of every row that a round meets. A round works on its own copy of the task's checkpoints; what it wrote
//! there is stored by the round's commit, or forgotten with it.
//!
//! The invariant: of every table, the rows before `through` are accounted for, and those between `through` and the
//! scanned place are counted in `held`. So with every commit
//! `captured = filtered before the log + accounted + held`, up to the scanned mark; what lies behind it is in flight.

use std::collections::BTreeMap;

use millrace_core::{ChangeBatch, Op, Reject, Result, TableName};

use crate::{
    state::{
        Put, StateStore,
        keys::{
            checkpoint::{self, Checkpoint, Flow},
            delivery::{self, Scanned},
            intent::{Cut, Intent},
            table_part,
        },
        read, read_all,
    },
    stream::{LogPosition, Mark, Totals, Wanted},
};

/// Rows that committed before the table's load.
pub const BEFORE_LOAD: &str = "before-load";
/// Rows of a table that must be reloaded.
pub const SUSPENDED: &str = "suspended";

/// A task's checkpoints in the hands of one round.
#[derive(Debug, Clone)]
pub struct Ledger {
    task: String,
    scanned: Scanned,
    tables: BTreeMap<TableName, Line>,
}

/// One table.
#[derive(Debug, Clone)]
struct Line {
    before: Option<Checkpoint>,
    now: Checkpoint,
    /// Takes part in the round.
    active: bool,
    /// Was suspended by something that the round met.
    stopped: Option<String>,
}

/// Rows by fate, of a whole task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fates {
    pub delivered: u64,
    pub filtered: u64,
    pub dead_lettered: u64,
    pub held: u64,
}

impl Ledger {
    /// As the state has it. In a round that is done again only those tables take part that did the first time, and whose
    /// checkpoints nobody changed since.
    pub fn open(state: &dyn StateStore, task: &str, again: Option<&Intent>) -> Result<Self> {
        let scanned = read(state, &delivery::key(task))?.unwrap_or_default();
        let checkpoints: Vec<(String, Checkpoint)> = read_all(state, &checkpoint::prefix(task))?;
        let tables = checkpoints.into_iter().map(|(_, now)| {
            let cut = |intent: &Intent| intent.tables.get(&table_part(&now.target)) == Some(&cut(&now));
            let active = now.flow == Flow::Delivering && again.is_none_or(cut);
            (now.target.clone(), Line { before: Some(now.clone()), now, active, stopped: None })
        });
        Ok(Self { task: task.into(), scanned, tables: tables.collect() })
    }

    /// Up to where the stream was scanned.
    pub fn scanned(&self) -> &Scanned {
        &self.scanned
    }

    /// Where a round begins to read.
    pub fn from(&self) -> LogPosition {
        let active = self.tables.values().filter(|line| line.active).map(|line| line.now.through);
        active.fold(self.scanned.at, LogPosition::min)
    }

    /// Whether a table's changes lie behind what was scanned: its load has just been completed.
    pub fn is_behind(&self) -> bool {
        self.tables.values().any(|line| line.now.flow == Flow::Delivering && line.now.through < self.scanned.at)
    }

    /// The oldest place of the stream that is still needed. A suspended table needs none, but until a round has given up
    /// what it held, somebody may still begin to load it.
    pub fn pin(&self) -> LogPosition {
        self.tables.values().map(|line| line.now.through).fold(self.scanned.at, LogPosition::min)
    }

    /// The tables that take part and where their rows begin.
    pub fn cuts(&self) -> BTreeMap<String, Cut> {
        let active = self.tables.iter().filter(|(_, line)| line.active);
        active.map(|(table, line)| (table_part(table), cut(line.before.as_ref().unwrap_or(&line.now)))).collect()
    }

    /// Where the rows of one table that takes part begin.
    pub fn cut(&self, table: &TableName) -> Option<Cut> {
        self.tables.get(table).filter(|line| line.active).map(|line| cut(&line.now))
    }

    /// The frames that the round wants decoded.
    pub fn wanted(&self) -> Wanted {
        let active = self.tables.iter().filter(|(_, line)| line.active);
        let from: BTreeMap<TableName, LogPosition> = active.map(|(t, line)| (t.clone(), line.now.through)).collect();
        Box::new(move |table, at| from.get(table).is_some_and(|through| at >= *through))
    }

    /// Counts rows that were passed over undecoded.
    pub fn pass(&mut self, table: &TableName, at: LogPosition, rows: u64) {
        if at < self.scanned.at {
            return;
        }
        let line = self.tables.entry(table.clone()).or_insert_with(|| {
            // Whoever captures a table makes its checkpoint first. Without one, nothing is lost by waiting.
            tracing::warn!(table = %table, "changes of a table without a checkpoint");
            let now = Checkpoint::new(table.clone(), Flow::Waiting, self.scanned.at);
            Line { before: None, now, active: false, stopped: None }
        });
        if line.now.flow == Flow::Suspended {
            line.now.counts.filter(SUSPENDED, rows);
        } else if at < line.now.through {
            line.now.counts.filter(BEFORE_LOAD, rows);
        } else {
            line.now.held += rows;
        }
    }

    /// Counts decoded rows and gives those that are to be delivered.
    pub fn take(&mut self, at: LogPosition, batch: ChangeBatch) -> Option<ChangeBatch> {
        let line = self.release(&batch.table.name, at, batch.rows())?;
        if line.stopped.is_some() {
            line.now.counts.filter(SUSPENDED, batch.rows() as u64);
            return None;
        }
        // Rows are in commit order, so those of the load stand in front.
        let loaded = batch.order.partition_point(|order| line.now.start.covers(order.commit));
        line.now.counts.filter(BEFORE_LOAD, loaded as u64);
        let batch = match loaded {
            0 => batch,
            all if all == batch.rows() => return None,
            _ => batch.filter(&(0..batch.rows()).map(|row| row >= loaded).collect::<Vec<_>>()),
        };
        let counts = &mut line.now.counts;
        for op in &batch.ops {
            match op {
                Op::Load | Op::Insert => counts.inserts += 1,
                Op::Update => counts.updates += 1,
                Op::Delete => counts.deletes += 1,
            }
        }
        Some(batch)
    }

    /// Counts rejected rows of one table and gives those that go to the dead letters.
    pub fn reject(&mut self, at: LogPosition, mut rejects: Vec<Reject>) -> Vec<Reject> {
        let Some(table) = rejects.first().map(|reject| reject.table.clone()) else { return rejects };
        let Some(line) = self.release(&table, at, rejects.len()) else { return vec![] };
        if line.stopped.is_some() {
            line.now.counts.filter(SUSPENDED, rejects.len() as u64);
            return vec![];
        }
        let all = rejects.len();
        rejects.retain(|reject| !line.now.start.covers(reject.order.commit));
        line.now.counts.filter(BEFORE_LOAD, (all - rejects.len()) as u64);
        line.now.counts.dead_lettered += rejects.len() as u64;
        line.now.dead_letters += rejects.len() as u64;
        rejects
    }

    /// The line of rows that are no longer in flight; those before the scanned place were held.
    fn release(&mut self, table: &TableName, at: LogPosition, rows: usize) -> Option<&mut Line> {
        let line = self.tables.get_mut(table).filter(|line| line.active)?;
        if at < self.scanned.at {
            line.now.held = line.now.held.saturating_sub(rows as u64);
        }
        Some(line)
    }

    /// Whether something that the log says about a table at this place concerns the round: not when the table takes no
    /// part, was stopped before, or when its load shows it already.
    pub fn concerns(&self, table: &TableName, at: LogPosition, commit: u128) -> bool {
        let line = self.tables.get(table).filter(|line| line.active && line.stopped.is_none());
        line.is_some_and(|line| at >= line.now.through && !line.now.start.covers(commit))
    }

    /// What stands behind this place is not delivered; the table must be reloaded.
    pub fn stop(&mut self, table: &TableName, why: String) {
        if let Some(line) = self.tables.get_mut(table) {
            line.stopped = Some(why);
        }
    }

    /// Everything up to the mark is counted. Gives the tables that are complete up to it.
    pub fn close(&mut self, mark: &Mark) -> Vec<TableName> {
        if mark.at > self.scanned.at {
            self.scanned = Scanned { at: mark.at, arrival_us: mark.arrival_us, totals: mark.totals.clone() };
        }
        let scanned = self.scanned.at;
        let mut complete = vec![];
        for (table, line) in &mut self.tables {
            let now = &mut line.now;
            if let Some(why) = line.stopped.take() {
                now.suspend(why);
            }
            if now.flow == Flow::Suspended {
                now.counts.filter(SUSPENDED, std::mem::take(&mut now.held));
                now.through = scanned;
            } else if line.active {
                if now.through < mark.at {
                    now.through = mark.at;
                    complete.push(table.clone());
                }
                if now.through >= scanned {
                    // Left over only where somebody moved `through` past rows that were held.
                    now.counts.filter(BEFORE_LOAD, std::mem::take(&mut now.held));
                }
            }
        }
        complete.sort();
        complete
    }

    /// Whether the checkpoints that the commit would write are still those that the round began with.
    pub fn is_current(&self, state: &dyn StateStore) -> Result<bool> {
        for line in self.changed() {
            let stored: Option<Checkpoint> = read(state, &checkpoint::key(&self.task, &line.now.target))?;
            if stored != line.before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn changed(&self) -> impl Iterator<Item = &Line> {
        self.tables.values().filter(|line| line.before.as_ref() != Some(&line.now))
    }

    /// What the commit stores.
    pub fn puts(&self) -> Vec<Put> {
        let mut puts: Vec<Put> =
            self.changed().map(|line| Put::set(checkpoint::key(&self.task, &line.now.target), &line.now)).collect();
        puts.push(Put::set(delivery::key(&self.task), &self.scanned));
        puts
    }

    /// Rows by fate since the task began.
    pub fn fates(&self) -> Fates {
        self.tables.values().fold(Fates::default(), |sum, Line { now, .. }| {
            let counts = &now.counts;
            Fates {
                delivered: sum.delivered + counts.inserts + counts.updates + counts.deletes,
                filtered: sum.filtered + counts.filtered.values().sum::<u64>(),
                dead_lettered: sum.dead_lettered + counts.dead_lettered,
                held: sum.held + now.held,
            }
        })
    }

    /// Captured rows up to the scanned mark whose fate is unknown: must be 0.
    pub fn unaccounted(&self) -> i64 {
        let Totals { captured, filtered, .. } = &self.scanned.totals;
        let Fates { delivered, filtered: left_out, dead_lettered, held } = self.fates();
        let known = filtered.values().sum::<u64>() + delivered + left_out + dead_lettered + held;
        *captured as i64 - known as i64
    }

    /// Tables that the round suspended, and why.
    pub fn suspended(&self) -> Vec<(&TableName, &str)> {
        let stopped = self.tables.iter().filter(|(_, line)| line.active && line.now.flow == Flow::Suspended);
        stopped.filter_map(|(table, line)| Some((table, line.now.suspended.as_deref()?))).collect()
    }
}

fn cut(checkpoint: &Checkpoint) -> Cut {
    Cut { through: checkpoint.through, start: checkpoint.start }
}
