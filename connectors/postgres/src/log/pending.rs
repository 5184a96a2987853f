//! Rows of a batch being built, by key: an unchanged TOAST value is taken from an earlier change of the same row.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use millrace_core::{BatchBuilder, ColumnVec, Values};

/// The newest row of each key in the builder. Built when the first value is missing, then kept.
#[derive(Debug, Default)]
pub struct PendingRows {
    /// Hash of the key → row number, or [`GONE`].
    newest: Option<HashMap<u64, u32>>,
    /// Rows before this one do not count: a later state of one of them was not put into the batch.
    floor: usize,
    /// Cells without a value, rising.
    absent: Vec<(u32, u16)>,
}

/// The key's newest change was a delete.
const GONE: u32 = u32::MAX;

impl PendingRows {
    /// The batch was closed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// A row was not put into the batch: what is in it of the same key is out of date.
    pub fn forget(&mut self, rows: usize) {
        self.newest = None;
        self.floor = rows;
    }

    /// The cell of the row being built has no value.
    pub fn note_absent(&mut self, row: usize, column: usize) {
        self.absent.push((row as u32, column as u16));
    }

    /// The row being built was taken back.
    pub fn abort_row(&mut self, row: usize) {
        while self.absent.last().is_some_and(|&(absent, _)| absent as usize >= row) {
            self.absent.pop();
        }
    }

    /// The row was ended.
    pub fn end_row(&mut self, builder: &mut BatchBuilder, key: &[usize], row: usize, deleted: bool) {
        if let Some(newest) = &mut self.newest {
            newest.insert(key_hash(builder, key, row), if deleted { GONE } else { row as u32 });
        }
    }

    /// The newest row with the key of the row being built, whose key cells are there.
    pub fn find(&mut self, builder: &mut BatchBuilder, key: &[usize], row: usize) -> Option<usize> {
        let floor = self.floor;
        if self.newest.is_none() {
            // Deletes cannot be told from other rows here; but only rows in front of the first missing value are
            // concerned, and a row that is updated after its delete was inserted in between.
            self.newest = Some((floor..row).map(|row| (key_hash(builder, key, row), row as u32)).collect());
        }
        let found = *self.newest.as_ref()?.get(&key_hash(builder, key, row))?;
        let equal = |&index: &usize| {
            let columns = builder.columns();
            columns.exact(found as usize, index) == columns.exact(row, index)
                && cells_equal(&columns.columns()[index], found as usize, row)
        };
        (found != GONE && key.iter().all(equal)).then_some(found as usize)
    }

    /// Whether the cell of an earlier row has its value.
    pub fn has_value(&self, row: usize, column: usize) -> bool {
        self.absent.binary_search(&(row as u32, column as u16)).is_err()
    }
}

fn key_hash(builder: &mut BatchBuilder, key: &[usize], row: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    let columns = builder.columns();
    for &index in key {
        columns.exact(row, index).hash(&mut hasher);
        let column: &ColumnVec = &columns.columns()[index];
        match column.values() {
            Values::Int16(v) => v[row].hash(&mut hasher),
            Values::Int32(v) => v[row].hash(&mut hasher),
            Values::Int64(v) => v[row].hash(&mut hasher),
            Values::Decimal(v) => v[row].hash(&mut hasher),
            Values::Bytes { .. } => column.bytes(row).hash(&mut hasher),
            Values::Boolean(_) | Values::Float32(_) | Values::Float64(_) | Values::List { .. } => {
                column.cell_text(row).hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

fn cells_equal(column: &ColumnVec, one: usize, other: usize) -> bool {
    match column.values() {
        Values::Int16(v) => v[one] == v[other],
        Values::Int32(v) => v[one] == v[other],
        Values::Int64(v) => v[one] == v[other],
        Values::Decimal(v) => v[one] == v[other],
        Values::Bytes { .. } => column.bytes(one) == column.bytes(other),
        Values::Boolean(_) | Values::Float32(_) | Values::Float64(_) | Values::List { .. } => {
            column.cell_text(one) == column.cell_text(other)
        }
    }
}
