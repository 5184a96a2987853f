//! One captured table: its changes become rows of a batch, or rejects.
//!
//! A row is decoded straight into the batch. Of an update's unchanged TOAST values, those that the old image or an
//! earlier change in the same batch holds are filled here; the others stay absent, for a lookup.

use std::sync::Arc;

use millrace_core::{BatchBuilder, Change, Op, Order, Reject, Result, Table, Unfit, ValueRules, batch::Cell};

use super::{
    deferrable::{self, KeyTracker, Leaving},
    pending::PendingRows,
    transaction::Transaction,
};
use crate::{
    types::{text, unfit},
    wire::{
        delete::Old,
        tuple::{Tuple, Value},
    },
};

/// Whether the table's rows can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The log has not shown its shape, or it is still to be compared.
    Unresolved,
    /// Its shape is the table's.
    Matched,
    /// It was added while the log was running, and what the log showed before is not its shape: either it was changed since,
    /// which the log shows with the next row, or rows from before that are still to come.
    Outdated,
    /// Its shape changed in a way that is not applied; its rows are left out until it is as it was.
    Suspended,
}

/// A table and its pending rows.
#[derive(Debug)]
pub struct Captured {
    /// Its shape.
    pub table: Arc<Table>,
    /// Whether its rows can be taken.
    pub state: State,
    /// It came while the log was running, and takes the shape that the log shows first, until its load has one.
    pub adopting: bool,
    /// Rows that were left out while it was suspended.
    pub skipped: u64,
    /// Its shape was last shown within a transaction that was skipped, because it had been taken before.
    pub shown_before: bool,
    /// Set where the key is deferrable and the identity full.
    pub tracker: Option<KeyTracker>,
    builder: BatchBuilder,
    rejects: Vec<Reject>,
    pending: PendingRows,
    /// Columns of the row being built whose values are looked for last.
    unchanged: Vec<usize>,
    /// The earlier row of the key of the row being built is wanted.
    wants_base: bool,
    value_bytes_max: usize,
    values: Arc<ValueRules>,
    /// What becomes of values that do not fit, by column.
    policies: Vec<Unfit>,
}

/// A row to be written.
#[derive(Clone, Copy)]
struct Row<'a> {
    op: Op,
    tuple: Tuple<'a>,
    /// Where values that did not change may be found.
    old: Option<Old<'a>>,
    /// An earlier row of the batch that holds them.
    base: Option<usize>,
}

impl Captured {
    /// Nothing is known of its shape in the log yet.
    pub fn new(table: Arc<Table>, adopting: bool, value_bytes_max: usize, values: Arc<ValueRules>) -> Self {
        Self {
            policies: unfit::policies(&values, &table),
            builder: BatchBuilder::new(table.clone()),
            table,
            state: State::Unresolved,
            adopting,
            skipped: 0,
            shown_before: false,
            tracker: None,
            rejects: vec![],
            pending: PendingRows::default(),
            unchanged: vec![],
            wants_base: false,
            value_bytes_max,
            values,
        }
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.builder.rows() == 0 && self.rejects.is_empty()
    }

    /// Whether the batch must be closed.
    pub fn is_full(&self) -> bool {
        self.builder.is_full()
    }

    /// Moves what is pending to `items`.
    pub fn close(&mut self, items: &mut Vec<Change>) {
        items.extend(self.builder.take().map(Change::Rows));
        if !self.rejects.is_empty() {
            items.push(Change::Rejected(std::mem::take(&mut self.rejects)));
        }
        self.pending.clear();
    }

    /// From here on the table has this shape; what was pending has been closed.
    pub fn reshape(&mut self, table: Arc<Table>) {
        self.builder = BatchBuilder::new(table.clone());
        self.policies = unfit::policies(&self.values, &table);
        self.table = table;
    }

    /// The log shows it as it is here.
    pub fn settle(&mut self, tracker: Option<KeyTracker>) {
        self.state = State::Matched;
        self.adopting = false;
        self.tracker = tracker;
    }

    /// A new row.
    pub fn insert(&mut self, transaction: &mut Transaction, new: Tuple<'_>) -> Result<()> {
        if self.tracker.is_some() {
            return self.come(transaction, new, None);
        }
        let order = transaction.next()?;
        self.write(transaction, order, Row { op: Op::Insert, tuple: new, old: None, base: None });
        Ok(())
    }

    /// A row's new state. `false` if the old row is needed and was not sent.
    pub fn update(&mut self, transaction: &mut Transaction, old: Option<Old<'_>>, new: Tuple<'_>) -> Result<bool> {
        let old = old.map(|old| self.trusted(old));
        if !self.table.is_keyed() {
            let Some(Old::Row(row)) = old else { return Ok(false) };
            let order = transaction.next()?;
            self.write(transaction, order, Row { op: Op::Delete, tuple: row, old: None, base: None });
            let order = transaction.next()?;
            self.write(transaction, order, Row { op: Op::Insert, tuple: new, old, base: None });
            return Ok(true);
        }
        if let Some(old) = old.filter(|old| self.key_changed(old.tuple(), new)) {
            self.change_key(transaction, old, new)?;
            return Ok(true);
        }
        if let (Some(tracker), Some(old)) = (&mut self.tracker, old) {
            tracker.begin(transaction.commit);
            let key = deferrable::key_hash(&self.table.key, old.tuple(), None);
            let images = (deferrable::image_hash(old.tuple(), None), deferrable::image_hash(new, Some(old)));
            if !tracker.change(key, images.0, images.1) {
                return self.ask(transaction, old.tuple()).map(|()| true);
            }
        }
        let order = transaction.next()?;
        self.write(transaction, order, Row { op: Op::Update, tuple: new, old, base: None });
        Ok(true)
    }

    /// A row is gone.
    pub fn delete(&mut self, transaction: &mut Transaction, old: Old<'_>) -> Result<()> {
        if self.tracker.is_some() {
            return self.leave(transaction, old.tuple());
        }
        let order = transaction.next()?;
        self.write(transaction, order, Row { op: Op::Delete, tuple: old.tuple(), old: None, base: None });
        Ok(())
    }

    /// Of a partitioned table the log says what its root's identity is, and sends what that of the partition gives: where
    /// the root's is full and the partition's is not, all but the key are null.
    fn trusted<'a>(&self, old: Old<'a>) -> Old<'a> {
        let is_key = self.table.parts.is_some() && self.table.is_keyed();
        if is_key { Old::Key(old.tuple()) } else { old }
    }

    fn key_changed(&self, old: Tuple<'_>, new: Tuple<'_>) -> bool {
        self.table.key.iter().any(|&index| {
            let now = new.cell(index);
            now != Value::Unchanged && now != old.cell(index)
        })
    }

    /// The row moves: it is deleted under its old key and inserted under the new one.
    fn change_key(&mut self, transaction: &mut Transaction, old: Old<'_>, new: Tuple<'_>) -> Result<()> {
        if self.tracker.is_some() {
            self.leave(transaction, old.tuple())?;
            return self.come(transaction, new, Some(old));
        }
        let order = transaction.next()?;
        self.wants_base = matches!(old, Old::Key(_)) && new.cells().any(|value| value == Value::Unchanged);
        let base = self.write(transaction, order, Row { op: Op::Delete, tuple: old.tuple(), old: None, base: None });
        self.wants_base = false;
        let order = transaction.next()?;
        self.write(transaction, order, Row { op: Op::Insert, tuple: new, old: Some(old), base });
        Ok(())
    }

    /// A row comes to a key of a table whose keys are checked at the end of the statement or transaction.
    fn come(&mut self, transaction: &mut Transaction, new: Tuple<'_>, old: Option<Old<'_>>) -> Result<()> {
        let reserved = transaction.next()?.ordinal;
        let order = transaction.next()?;
        if let Some(tracker) = &mut self.tracker {
            tracker.begin(transaction.commit);
            let key = deferrable::key_hash(&self.table.key, new, old);
            tracker.come(key, deferrable::image_hash(new, old), reserved);
        }
        self.write(transaction, order, Row { op: Op::Insert, tuple: new, old, base: None });
        Ok(())
    }

    /// A row leaves a key of such a table.
    fn leave(&mut self, transaction: &mut Transaction, old: Tuple<'_>) -> Result<()> {
        let leaving = match &mut self.tracker {
            Some(tracker) => {
                tracker.begin(transaction.commit);
                let key = deferrable::key_hash(&self.table.key, old, None);
                tracker.leave(key, deferrable::image_hash(old, None))
            }
            None => Leaving::Alone,
        };
        let row = Row { op: Op::Delete, tuple: old, old: None, base: None };
        match leaving {
            Leaving::Former(Some(ordinal)) => {
                let order = Order { commit: u128::from(transaction.commit), ordinal };
                self.write(transaction, order, row);
                Ok(())
            }
            Leaving::Former(None) => self.ask(transaction, old),
            Leaving::Alone | Leaving::Ours => {
                let order = transaction.next()?;
                self.write(transaction, order, row);
                // Another row may be there still, from before the transaction.
                if leaving == Leaving::Ours { self.ask(transaction, old) } else { Ok(()) }
            }
        }
    }

    /// What is left under the key cannot be told from the log: it is looked up like an unchanged value. If nothing is
    /// there, the lookup leaves the row out.
    fn ask(&mut self, transaction: &mut Transaction, old: Tuple<'_>) -> Result<()> {
        let order = transaction.next()?;
        let row = self.builder.rows();
        for (index, value) in old.cells().enumerate() {
            let is_key = self.table.key.contains(&index);
            let decoded = match value {
                Value::Text(text) if is_key => self.value(index, text),
                _ => {
                    self.absent(row, index);
                    Ok(())
                }
            };
            if decoded.is_err() {
                // A key that cannot be taken never got into the lake.
                self.abort(row);
                return Ok(());
            }
        }
        self.end_row(transaction, order, Op::Update, row, 0);
        Ok(())
    }

    /// Writes one row to the batch; one that its columns cannot hold becomes a reject. Gives the earlier row of the same
    /// key, if it is wanted.
    fn write(&mut self, transaction: &mut Transaction, order: Order, row: Row<'_>) -> Option<usize> {
        let number = self.builder.rows();
        match self.decode(number, row) {
            Ok(()) => {
                let find = || self.pending.find(&mut self.builder, &self.table.key, number);
                let base = self.wants_base.then(find).flatten();
                self.end_row(transaction, order, row.op, number, row.tuple.byte_size());
                base
            }
            Err((column, reason)) => {
                self.abort(number);
                self.pending.forget(number);
                self.rejects.push(self.reject(transaction, order, row, column, reason));
                transaction.count(row.tuple.byte_size());
                None
            }
        }
    }

    /// Decodes the cells; an error names the column.
    fn decode(&mut self, number: usize, row: Row<'_>) -> Result<(), (usize, String)> {
        self.unchanged.clear();
        for (index, value) in row.tuple.cells().enumerate() {
            let value = if value == Value::Unchanged { self.value_in(index, row.old) } else { value };
            match value {
                Value::Text(text) if text.len() > self.value_bytes_max => {
                    return Err((index, format!("it is longer than max-value ({} bytes)", self.value_bytes_max)));
                }
                Value::Text(text) => self.value(index, text).map_err(|reason| (index, reason))?,
                Value::Null => self.builder.column(index).push_null(),
                Value::Unchanged => self.unchanged.push(index),
            }
        }
        if self.unchanged.is_empty() {
            return Ok(());
        }
        if let Some(&index) = self.unchanged.iter().find(|index| self.table.key.contains(index)) {
            return Err((index, "it is part of the key and the source did not send it".into()));
        }
        let base = row.base.or_else(|| match row.op {
            Op::Update => self.pending.find(&mut self.builder, &self.table.key, number),
            _ => None,
        });
        for position in 0..self.unchanged.len() {
            let index = self.unchanged[position];
            match base.filter(|&base| self.pending.has_value(base, index)) {
                Some(base) => self.builder.copy_cell(index, base),
                None => self.absent(number, index),
            }
        }
        Ok(())
    }

    /// Adds a value to its column, or beside it where the column cannot hold it.
    #[inline]
    fn value(&mut self, index: usize, text: &[u8]) -> std::result::Result<(), String> {
        let ty = &self.table.columns[index].ty;
        let Err(reason) = text::decode(ty, text, self.builder.column(index)) else { return Ok(()) };
        let taken = unfit::settle(self.policies[index], index, ty, text, self.builder.columns());
        if taken { Ok(()) } else { Err(reason) }
    }

    /// The cell of the old row, where the old row holds it.
    fn value_in<'a>(&self, index: usize, old: Option<Old<'a>>) -> Value<'a> {
        match old {
            Some(Old::Row(row)) => row.cell(index),
            Some(Old::Key(key)) if self.table.key.contains(&index) => key.cell(index),
            _ => Value::Unchanged,
        }
    }

    fn absent(&mut self, row: usize, column: usize) {
        self.builder.absent(column);
        self.pending.note_absent(row, column);
    }

    fn abort(&mut self, row: usize) {
        self.builder.abort_row();
        self.pending.abort_row(row);
    }

    fn end_row(&mut self, transaction: &mut Transaction, order: Order, op: Op, row: usize, bytes: usize) {
        if self.builder.row_has_absent() {
            transaction.has_absent = true;
        }
        self.builder.end_row(op, order, transaction.commit_time_us, bytes);
        self.pending.end_row(&mut self.builder, &self.table.key, row, op == Op::Delete);
        transaction.count(bytes);
    }

    fn reject(&self, transaction: &Transaction, order: Order, row: Row<'_>, column: usize, reason: String) -> Reject {
        let cells = row.tuple.cells().enumerate().map(|(index, value)| match value {
            Value::Unchanged => self.value_in(index, row.old),
            value => value,
        });
        let cells: Vec<(String, Cell)> =
            self.table.columns.iter().zip(cells).map(|(column, value)| (column.name.clone(), cell(value))).collect();
        let key = self.table.key.iter().filter_map(|&index| {
            let (name, cell) = cells.get(index)?;
            let text = match cell {
                Cell::Text(text) | Cell::Hex(text) => Some(text.clone()),
                Cell::Null | Cell::Absent => None,
            };
            Some((name.clone(), text))
        });
        Reject {
            table: self.table.name.clone(),
            key: key.collect(),
            op: row.op,
            order,
            commit_time_us: Some(transaction.commit_time_us),
            column: self.table.columns[column].name.clone(),
            reason,
            row: cells,
        }
    }
}

fn cell(value: Value<'_>) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Unchanged => Cell::Absent,
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Cell::Text(text.to_string()),
            Err(_) => Cell::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        },
    }
}
