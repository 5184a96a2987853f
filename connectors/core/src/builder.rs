//! Builds change batches row by row; columns are built behind it.

use std::sync::Arc;

use crate::{
    batch::{Absent, ChangeBatch, Op},
    columns::{ColumnVec, Columns},
    position::Order,
    table::Table,
};

/// A batch closes at this many rows.
pub const BATCH_ROWS_MAX: usize = 65_536;
/// A batch closes at this many bytes.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// Collects rows of one table at one schema version. Per row: [`Self::column`] once for every column (or
/// [`Self::absent`]), then [`Self::end_row`], or [`Self::abort_row`] to take it back.
#[derive(Debug)]
pub struct BatchBuilder {
    batch: ChangeBatch,
    absent: Absent,
    bytes: usize,
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new(table: Arc<Table>) -> Self {
        let after = Columns::new(table.columns.iter().map(|column| &column.ty));
        let batch = ChangeBatch { table, ops: vec![], order: vec![], commit_time_us: vec![], after, absent: None };
        Self { batch, absent: Absent::default(), bytes: 0 }
    }

    /// The table whose rows are built.
    pub fn table(&self) -> &Arc<Table> {
        &self.batch.table
    }

    /// Column `index` of the row being built.
    pub fn column(&mut self, index: usize) -> &mut ColumnVec {
        self.batch.after.column_mut(index)
    }

    /// All columns of the row being built.
    pub fn columns(&mut self) -> &mut Columns {
        &mut self.batch.after
    }

    /// Gives column `index` of the row being built the value of an earlier row, exact text included.
    pub fn copy_cell(&mut self, index: usize, row: usize) {
        if let Some(text) = self.batch.after.exact(row, index).map(str::to_string) {
            return self.batch.after.push_exact(index, &text);
        }
        let column = self.column(index);
        let mut one = ColumnVec::new(column.ty());
        one.append_range(column, row, 1);
        column.append(&one);
    }

    /// The source did not send column `index` of the row being built, because it did not change.
    pub fn absent(&mut self, index: usize) {
        self.absent.cells.push((self.batch.after.rows() as u32, index as u16));
        self.column(index).push_null();
    }

    /// Whether the row being built has absent cells.
    pub fn row_has_absent(&self) -> bool {
        self.absent.cells.last().is_some_and(|&(row, _)| row as usize == self.batch.after.rows())
    }

    /// The row is complete; `row_bytes` is about what it holds.
    pub fn end_row(&mut self, op: Op, order: Order, commit_time_us: i64, row_bytes: usize) {
        self.batch.after.end_row();
        self.batch.ops.push(op);
        self.batch.order.push(order);
        self.batch.commit_time_us.push(commit_time_us);
        self.bytes += row_bytes;
    }

    /// Takes back what was pushed of the row being built.
    pub fn abort_row(&mut self) {
        let row = self.batch.after.rows() as u32;
        self.batch.after.abort_row();
        while self.absent.cells.last().is_some_and(|&(r, _)| r == row) {
            self.absent.cells.pop();
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.batch.ops.len()
    }

    /// Whether the batch must be closed.
    pub fn is_full(&self) -> bool {
        self.rows() >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// The batch so far, leaving an empty builder; `None` without rows.
    pub fn take(&mut self) -> Option<ChangeBatch> {
        if self.batch.ops.is_empty() {
            return None;
        }
        let next = Self::new(self.batch.table.clone());
        let done = std::mem::replace(self, next);
        let absent = (!done.absent.cells.is_empty()).then_some(done.absent);
        Some(ChangeBatch { absent, ..done.batch })
    }
}
