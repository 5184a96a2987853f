//! The tables of a task: their records in the state, and what a new look at the source changes about them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use millrace_core::{Capture, Column, Finding, Order, Position, Result, Table, TableName};

use super::{
    rules::Rules,
    unfit::{self, Unfit},
};
use crate::{
    state::{
        Put, StateStore,
        keys::{
            checkpoint::{self, Checkpoint, Flow},
            delivery::{self, Scanned},
            table::{self, Evolving, TableRecord, TableState},
        },
        read, read_all,
    },
    stream::Mark,
};

/// Why a table is suspended where its log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It changed in a way that is not applied; a reload puts it right.
    Shape,
    /// The task's rules do not fit it any more.
    Rules,
    /// The config wants it.
    Policy,
}

/// All tables of one task, in memory as in the state. The state is written first.
pub struct Tables {
    task: String,
    state: Arc<dyn StateStore>,
    rules: Rules,
    records: Mutex<BTreeMap<TableName, TableRecord>>,
    /// Whether a record may hold shapes to come; changed while the records are locked. Asked at every durable append.
    may_evolve: AtomicBool,
}

impl Tables {
    /// As the state has them.
    pub fn open(task: &str, state: Arc<dyn StateStore>, rules: Rules) -> Result<Self> {
        let rows: Vec<(String, TableRecord)> = read_all(&*state, &table::prefix(task))?;
        let records = rows.into_iter().map(|(_, record)| (record.table.name.clone(), record)).collect();
        Ok(Self { task: task.into(), state, rules, records: Mutex::new(records), may_evolve: AtomicBool::new(true) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TableName, TableRecord>> {
        self.records.lock().expect("no panic while locked")
    }

    /// The task's rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// One table.
    pub fn get(&self, table: &TableName) -> Option<TableRecord> {
        self.lock().get(table).cloned()
    }

    /// All tables.
    pub fn all(&self) -> Vec<TableRecord> {
        self.lock().values().cloned().collect()
    }

    /// Tables whose changes go into the stream: all that are neither suspended nor gone.
    pub fn captured(&self) -> Vec<Arc<Table>> {
        let captured = |record: &&TableRecord| is_captured(record.state);
        self.lock().values().filter(captured).map(|record| Arc::new(record.table.clone())).collect()
    }

    /// Whether the table's changes go into the stream.
    pub fn is_captured(&self, table: &TableName) -> bool {
        self.lock().get(table).is_some_and(|record| is_captured(record.state))
    }

    /// Tables that wait for their load or are in the middle of it.
    pub fn to_load(&self) -> Vec<TableRecord> {
        let waits = |record: &&TableRecord| {
            matches!(record.state, TableState::BeforeLoad | TableState::FullLoad | TableState::Reloading)
        };
        self.lock().values().filter(waits).cloned().collect()
    }

    /// Changes one table's record, in the state and here. `extra` goes into the same commit.
    pub fn update(&self, table: &TableName, extra: Vec<Put>, change: impl FnOnce(&mut TableRecord)) -> Result<()> {
        self.update_if(table, extra, |_| true, change).map(|_| ())
    }

    /// The same where the record, as it is now, fulfils the condition; else nothing is committed, and this is false.
    pub fn update_if(
        &self,
        table: &TableName,
        extra: Vec<Put>,
        condition: impl FnOnce(&TableRecord) -> bool,
        change: impl FnOnce(&mut TableRecord),
    ) -> Result<bool> {
        let mut records = self.lock();
        let Some(record) = records.get(table).filter(|record| condition(record)) else { return Ok(false) };
        let mut changed = record.clone();
        change(&mut changed);
        let mut puts = extra;
        puts.push(Put::set(table::key(&self.task, table), &changed));
        self.state.commit(&puts)?;
        records.insert(table.clone(), changed);
        Ok(true)
    }

    /// A table has another shape from there on, which goes into the stream now.
    pub fn evolve(&self, table: &Table, order: Order) -> Result<()> {
        let shape = Evolving { order, table: table.clone() };
        self.update(&table.name, vec![], |record| {
            record.evolving.push(shape);
            self.may_evolve.store(true, Ordering::Relaxed);
        })
    }

    /// Everything before the position is durable, and with it the shapes that tables have from there on.
    pub fn settle(&self, position: Position) -> Result<()> {
        if !self.may_evolve.load(Ordering::Relaxed) {
            return Ok(());
        }
        let is_settled =
            |record: &&TableRecord| record.evolving.first().is_some_and(|s| position.covers(s.order.commit));
        let settled: Vec<TableName> =
            self.lock().values().filter(is_settled).map(|record| record.table.name.clone()).collect();
        settled.iter().try_for_each(|name| self.update(name, vec![], |record| record.settle(position)))?;
        let records = self.lock();
        let evolve = records.values().any(|record| !record.evolving.is_empty());
        self.may_evolve.store(evolve, Ordering::Relaxed);
        Ok(())
    }

    /// The stream ends at the position: shapes behind it come again.
    pub fn resume(&self, position: Position) -> Result<()> {
        self.settle(position)?;
        let left: Vec<TableName> = self
            .all()
            .into_iter()
            .filter(|record| !record.evolving.is_empty())
            .map(|record| record.table.name)
            .collect();
        left.iter().try_for_each(|name| self.update(name, vec![], |record| record.evolving.clear()))
    }

    /// Suspends a table that is delivered: it must be reloaded. Gives false if it is in another state, such as being
    /// reloaded already.
    pub fn suspend(&self, table: &TableName, why: &str, cause: Cause) -> Result<bool> {
        let error = format!("{why}; reload it: millrace reload {} {table}", self.task);
        let completed = |record: &TableRecord| record.state == TableState::Completed;
        self.update_if(table, vec![], completed, |record| {
            record.state = TableState::Error;
            record.error = Some(error);
            record.mends = cause == Cause::Shape;
            record.unfit = cause == Cause::Rules;
        })
    }

    /// Tables that are suspended.
    pub fn suspended(&self) -> Vec<TableRecord> {
        self.lock().values().filter(|record| record.state == TableState::Error).cloned().collect()
    }

    /// Suspended tables that a reload mends.
    pub fn to_mend(&self) -> Vec<TableName> {
        let mends = |record: &&TableRecord| record.state == TableState::Error && record.mends;
        self.lock().values().filter(mends).map(|record| record.table.name.clone()).collect()
    }

    /// A load that is under way, or begins from a snapshot taken before now, cannot be completed.
    pub fn outdate(&self, table: &TableName) -> Result<()> {
        self.update(table, vec![], |record| record.stale = true)
    }

    /// The entries of the tables among what the source publishes are these now.
    pub fn note_published(&self, ids: &BTreeMap<TableName, u64>) -> Result<()> {
        for (table, id) in ids {
            self.update_if(
                table,
                vec![],
                |record| record.published != Some(*id),
                |record| {
                    record.published = Some(*id);
                },
            )?;
        }
        Ok(())
    }

    /// A new snapshot will be taken, and the capture has taken the table up for it: the load begins anew if it was
    /// outdated.
    pub fn renew(&self, table: &TableName, shape: &Table) -> Result<()> {
        self.update(table, vec![], |record| {
            record.table = shape.clone();
            record.evolving.clear();
            if std::mem::take(&mut record.stale)
                && let Some(load) = &mut record.load
            {
                load.forget_segments();
            }
        })
    }

    /// A table that waits for its load cannot be loaded: nothing waits for it in the stream any more. Called with the
    /// delivery's gate held.
    pub fn give_up(&self, table: &TableName, state: TableState, why: &str) -> Result<()> {
        let Some(record) = self.get(table) else { return Ok(()) };
        let mut puts = vec![];
        self.suspend_delivery(&record.target, why, &mut puts)?;
        let errored = self.errored(&record, state, why);
        self.update(table, puts, |record| {
            record.state = errored.state;
            record.error = errored.error;
            record.mends = false;
            if let Some(load) = &mut record.load {
                load.forget_segments();
            }
        })
    }

    /// The table's delivery.
    pub fn checkpoint(&self, target: &TableName) -> Result<Option<Checkpoint>> {
        read(&*self.state, &checkpoint::key(&self.task, target))
    }

    /// A table that waits and of which nothing is captured yet needs nothing of the stream up to here. Called with the
    /// delivery's gate held.
    pub fn let_go(&self, table: &TableName) -> Result<()> {
        let Some(record) = self.get(table) else { return Ok(()) };
        let scanned: Scanned = read(&*self.state, &delivery::key(&self.task))?.unwrap_or_default();
        let waits = |at: &Checkpoint| at.flow == Flow::Waiting && at.held == 0 && at.through < scanned.at;
        let Some(mut waiting) = self.checkpoint(&record.target)?.filter(waits) else { return Ok(()) };
        waiting.through = scanned.at;
        self.state.commit(&[Put::set(checkpoint::key(&self.task, &record.target), &waiting)])
    }

    /// Compares what the source has now with the records. New tables wait for their load, or are delivered from `mark` on
    /// where nothing is loaded. `recaptured`: what can be captured now of each is published. Called with the delivery's gate
    /// held. Tables that are `unfit` stand still. Gives what changed, for the events.
    pub fn reconcile(
        &self,
        found: &[Table],
        unfit: &Unfit,
        mark: Option<&Mark>,
        loads: bool,
        recaptured: bool,
    ) -> Result<Vec<String>> {
        if let Some(mark) = mark {
            self.settle(mark.source)?;
        }
        let mut events = vec![];
        let mut records = self.lock();
        // What is suspended goes before what begins: the target that one table leaves may be another one's from now on.
        let (mut suspended, mut puts) = (vec![], vec![]);
        for shape in found {
            let known = records.get(&shape.name);
            if let Some(finding) = unfit.get(&shape.name) {
                if let Some((record, why)) = known.and_then(|known| self.stand_still(known, finding)) {
                    events.push(format!("table {}: {why}", shape.name));
                    self.suspend_own(&records, &record, &why, &mut suspended)?;
                    puts.push(Put::set(table::key(&self.task, &shape.name), &record));
                    records.insert(shape.name.clone(), record);
                }
                continue;
            }
            let fresh = match known.map(|record| record.state) {
                None | Some(TableState::Cancelled | TableState::Missing) => true,
                Some(TableState::BeforeLoad) => known.is_some_and(|record| record.table != *shape),
                // Another target, or other columns: the rows that are there do not fit the rules any more.
                Some(_) => known.is_some_and(|record| {
                    record.target != self.rules.target(&shape.name)
                        || record.rule != self.rules.text(&shape.name)
                        || is_retyped(&record.table, shape)
                }),
            };
            if fresh {
                if let Some(left) = known.filter(|record| record.target != self.rules.target(&shape.name)) {
                    self.suspend_own(&records, left, "the table goes to another target now", &mut suspended)?;
                }
                let record = self.fresh(shape, known, mark, loads, &mut puts)?;
                events.push(format!("table {} joins the task", shape.name));
                records.insert(shape.name.clone(), record);
                continue;
            }
            let other = known.and_then(|known| self.otherwise(known, shape, loads, recaptured));
            if let Some((record, why)) = other {
                events.push(format!("table {}: {why}", shape.name));
                if record.state == TableState::Error {
                    self.suspend_own(&records, &record, &why, &mut suspended)?;
                }
                puts.push(Put::set(table::key(&self.task, &shape.name), &record));
                records.insert(shape.name.clone(), record);
            }
        }
        let selection = self.rules.selection();
        for name in gone(&records, found) {
            let (state, why) = match selection.matches(&name) {
                true => (
                    TableState::Missing,
                    "the table is not at the source any more, cannot be captured, or our role may not read it any more",
                ),
                false => (TableState::Cancelled, "the config does not select the table any more"),
            };
            let record = self.errored(&records[&name], state, why);
            events.push(format!("table {name}: {why}"));
            puts.push(Put::set(table::key(&self.task, &name), &record));
            self.suspend_own(&records, &record, why, &mut suspended)?;
            records.insert(name, record);
        }
        suspended.extend(puts);
        if !suspended.is_empty() {
            self.state.commit(&suspended)?;
        }
        Ok(events)
    }

    /// What becomes of a table that the rules do not fit; nothing if that is known already, or the task has it no more.
    fn stand_still(&self, known: &TableRecord, finding: &Finding) -> Option<(TableRecord, String)> {
        let why = unfit::reason(finding);
        let mut record = self.errored(known, TableState::Error, &why);
        record.unfit = true;
        if let Some(load) = &mut record.load {
            load.forget_segments();
        }
        (known.state.is_there() && record != *known).then_some((record, why))
    }

    /// What becomes of a table that the source has otherwise than its record, or that the rules fit again, and why.
    fn otherwise(
        &self,
        known: &TableRecord,
        shape: &Table,
        loads: bool,
        recaptured: bool,
    ) -> Option<(TableRecord, String)> {
        if known.state == TableState::Error && known.unfit {
            let record = TableRecord { mends: true, unfit: false, ..known.clone() };
            return Some((record, "the rules fit it again".into()));
        }
        if known.state != TableState::Completed {
            return None;
        }
        let rewritten = match known.table.source_id == shape.source_id {
            true => known.table.rewritten_as(shape),
            false => Some("the table was dropped and made again at the source".into()),
        };
        let captured = recaptured_as(&known.table, shape).filter(|_| recaptured);
        if let (None, Some(what), false) = (&rewritten, &captured, loads) {
            // Nothing is ever loaded: what was not captured is missing, and from here on it is captured.
            let table = Table { capture: shape.capture, key: shape.key.clone(), ..known.table.clone() };
            return Some((TableRecord { table, ..known.clone() }, what.clone()));
        }
        let why = rewritten.or(captured)?;
        Some((TableRecord { mends: true, ..self.errored(known, TableState::Error, &why) }, why))
    }

    /// Nothing waits for the table in the stream any more, unless its target is that of another table by now.
    fn suspend_own(
        &self,
        records: &BTreeMap<TableName, TableRecord>,
        record: &TableRecord,
        why: &str,
        puts: &mut Vec<Put>,
    ) -> Result<()> {
        let has_it = |other: &TableRecord| {
            other.table.name != record.table.name && other.target == record.target && other.state.is_there()
        };
        match records.values().any(has_it) {
            true => Ok(()),
            false => self.suspend_delivery(&record.target, why, puts),
        }
    }

    fn suspend_delivery(&self, target: &TableName, why: &str, puts: &mut Vec<Put>) -> Result<()> {
        if let Some(mut delivery) = self.checkpoint(target)? {
            delivery.suspend(why);
            puts.push(Put::set(checkpoint::key(&self.task, target), &delivery));
        }
        Ok(())
    }

    fn fresh(
        &self,
        shape: &Table,
        known: Option<&TableRecord>,
        mark: Option<&Mark>,
        loads: bool,
        puts: &mut Vec<Put>,
    ) -> Result<TableRecord> {
        // The files of a load that was under way must go when the next one begins, under the name they have.
        let mut load =
            known.filter(|known| known.target == self.rules.target(&shape.name)).and_then(|k| k.load.clone());
        if let Some(load) = &mut load {
            load.forget_segments();
        }
        let target = self.rules.target(&shape.name);
        let key = checkpoint::key(&self.task, &target);
        let through = mark.map(|mark| mark.at).unwrap_or_default();
        let mut delivery =
            self.checkpoint(&target)?.unwrap_or_else(|| Checkpoint::new(target.clone(), Flow::Waiting, through));
        delivery.begin_load();
        if !loads {
            delivery.flow = Flow::Delivering;
        }
        let record = TableRecord {
            state: if loads { TableState::BeforeLoad } else { TableState::Completed },
            table: shape.clone(),
            target,
            rule: self.rules.text(&shape.name),
            stale: false,
            published: None,
            spelling: None,
            read_to: Position::default(),
            evolving: vec![],
            load,
            error: None,
            mends: false,
            unfit: false,
            loaded_rows: 0,
            load_elapsed_ms: 0,
        };
        puts.push(Put::set(key, &delivery));
        puts.push(Put::set(table::key(&self.task, &shape.name), &record));
        Ok(record)
    }

    fn errored(&self, record: &TableRecord, state: TableState, why: &str) -> TableRecord {
        let error = match state {
            TableState::Cancelled => None,
            TableState::Missing => Some(format!("{why}; take it out of the config, or let it be there again")),
            _ => Some(format!("{why}; reload it: millrace reload {} {}", self.task, record.table.name)),
        };
        TableRecord { state, error, mends: false, ..record.clone() }
    }

    /// Suspends tables that delivery suspended at their place in the log, should the record not say so yet.
    pub fn follow_delivery(&self) -> Result<()> {
        for record in self.all().iter().filter(|record| record.state == TableState::Completed) {
            let delivery = self.checkpoint(&record.target)?;
            if let Some(delivery) = delivery.filter(|delivery| delivery.flow == Flow::Suspended) {
                let why = delivery.suspended.unwrap_or_else(|| "the table changed in a way that is not applied".into());
                self.suspend(&record.table.name, &why, Cause::Shape)?;
            }
        }
        Ok(())
    }
}

/// Tables that the task has and the source has not, or the task does not take any more.
fn gone(records: &BTreeMap<TableName, TableRecord>, found: &[Table]) -> Vec<TableName> {
    let there = records.values().filter(|record| record.state.is_there());
    let gone = there.filter(|record| !found.iter().any(|shape| shape.name == record.table.name));
    gone.map(|record| record.table.name.clone()).collect()
}

/// Whether columns that are the same at the source get another type now: by the task's `values`, or a newer mapping.
pub fn is_retyped(known: &Table, found: &Table) -> bool {
    let same = |column: &Column| {
        let known = known.columns.iter().find(|known| known.id == column.id && known.name == column.name);
        known.is_none_or(|known| known.source_type != column.source_type || known.ty == column.ty)
    };
    known.source_id == found.source_id && !found.columns.iter().all(same)
}

/// Whether other changes of the table can be captured than before. Those that could not be are in no log.
pub fn recaptured_as(known: &Table, found: &Table) -> Option<String> {
    let now = match (known.capture, found.capture) {
        (Capture::InsertsOnly, Capture::All) => "can be captured now, which they could not before",
        (Capture::All, Capture::InsertsOnly) => "cannot be captured any more",
        _ => return None,
    };
    Some(format!("its updates and deletes {now}"))
}

fn is_captured(state: TableState) -> bool {
    !matches!(state, TableState::Error | TableState::Missing | TableState::Cancelled)
}
