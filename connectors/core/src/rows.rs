//! All columns of some rows.

use crate::{columns::ColumnVec, exact::Exact, types::ColumnType};

/// All columns of some rows, with the exact texts of values that their columns cannot hold ([`Columns::push_exact`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    rows: usize,
    columns: Vec<ColumnVec>,
    /// Never empty.
    exact: Option<Box<Exact>>,
}

impl Columns {
    /// No rows of these types.
    pub fn new<'a>(types: impl IntoIterator<Item = &'a ColumnType>) -> Self {
        Self { rows: 0, columns: types.into_iter().map(ColumnVec::new).collect(), exact: None }
    }

    /// From whole columns; panics if their lengths differ.
    pub fn from_columns(rows: usize, columns: Vec<ColumnVec>) -> Self {
        assert!(columns.iter().all(|column| column.len() == rows), "columns of one batch are equally long");
        Self { rows, columns, exact: None }
    }

    /// No rows of the same types, with room for as many as these: growing a batch from nothing copies it twice.
    pub fn with_room_of(like: &Columns) -> Self {
        Self { rows: 0, columns: like.columns.iter().map(ColumnVec::with_room_of).collect(), exact: None }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// All columns in the table's order.
    pub fn columns(&self) -> &[ColumnVec] {
        &self.columns
    }

    /// One column for the next value of the row being built; the caller pushes exactly one value to each column and then
    /// calls [`Self::end_row`].
    #[inline]
    pub fn column_mut(&mut self, index: usize) -> &mut ColumnVec {
        &mut self.columns[index]
    }

    /// Counts the row that was pushed; every column must have got its value.
    #[inline]
    pub fn end_row(&mut self) {
        self.end_rows(1);
    }

    /// The same for several rows, which were pushed column by column.
    #[inline]
    pub fn end_rows(&mut self, count: usize) {
        self.rows += count;
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows), "a column got no value");
    }

    /// Takes back what was pushed of rows that were not ended.
    pub fn abort_row(&mut self) {
        let rows = self.rows;
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
        if let Some(mut exact) = self.exact.take() {
            exact.truncate(rows);
            self.set_exact(*exact);
        }
    }

    /// Bytes held.
    pub fn byte_size(&self) -> usize {
        let exact = self.exact.as_ref().map_or(0, |exact| exact.byte_size());
        self.columns.iter().map(ColumnVec::byte_size).sum::<usize>() + exact
    }

    /// Copies all rows of columns of the same types to the end.
    pub fn append(&mut self, other: &Columns) {
        self.append_range(other, 0, other.rows);
    }

    /// Copies `count` rows from `from` on to the end.
    pub fn append_range(&mut self, other: &Columns, from: usize, count: usize) {
        assert_eq!(self.columns.len(), other.columns.len(), "appending rows of another shape");
        for (to, column) in self.columns.iter_mut().zip(&other.columns) {
            to.append_range(column, from, count);
        }
        if let Some(exact) = &other.exact {
            let mut kept = self.exact.take().map_or_else(Exact::new, |exact| *exact);
            kept.append_range(exact, from, count, self.rows);
            self.set_exact(kept);
        }
        self.rows += count;
    }

    /// The rows for which `keep` is true.
    pub fn filter(&self, keep: &[bool]) -> Columns {
        let mut kept = Self::new(self.columns.iter().map(ColumnVec::ty));
        let mut row = 0;
        while row < self.rows {
            let run = keep[row..self.rows].iter().take_while(|&&k| k == keep[row]).count();
            if keep[row] {
                kept.append_range(self, row, run);
            }
            row += run;
        }
        kept
    }

    /// These columns alone, in this order.
    pub fn project(&self, indexes: &[usize]) -> Columns {
        let columns = indexes.iter().map(|&index| self.columns[index].clone()).collect();
        let mut projected = Self::from_columns(self.rows, columns);
        if let Some(exact) = &self.exact {
            let place = |column| indexes.iter().position(|&index| index == usize::from(column)).map(|at| at as u16);
            projected.set_exact(exact.project(place));
        }
        projected
    }

    /// Takes the columns apart; the exact cells are to be read before.
    pub fn into_columns(self) -> Vec<ColumnVec> {
        self.columns
    }

    pub(crate) fn exact_cells_held(&self) -> Option<&Exact> {
        self.exact.as_deref()
    }

    pub(crate) fn exact_mut(&mut self) -> &mut Exact {
        self.exact.get_or_insert_with(|| Box::new(Exact::new()))
    }

    pub(crate) fn set_exact(&mut self, exact: Exact) {
        self.exact = (!exact.is_empty()).then(|| Box::new(exact));
    }
}
