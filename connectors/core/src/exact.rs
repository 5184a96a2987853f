//! Values that their columns cannot hold, as the source's own text beside the columns: the typed cell is null, and what
//! stands here is exact. There are few of them as a rule, so they are a list and no column.

use crate::{
    columns::{ColumnVec, Columns},
    types::ColumnType,
};

/// The exact cells of some rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exact {
    /// (row, column), rising by row.
    cells: Vec<(u32, u16)>,
    /// Their texts, in the same order.
    texts: ColumnVec,
}

impl Exact {
    pub(crate) fn new() -> Self {
        Self { cells: vec![], texts: ColumnVec::new(&ColumnType::Text) }
    }

    pub(crate) fn push(&mut self, row: u32, column: u16, text: &str) {
        self.cells.push((row, column));
        self.texts.push_str(text);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub(crate) fn byte_size(&self) -> usize {
        self.cells.len() * size_of::<(u32, u16)>() + self.texts.byte_size()
    }

    /// Forgets the cells from a row on.
    pub(crate) fn truncate(&mut self, rows: usize) {
        let kept = self.at(rows);
        self.cells.truncate(kept);
        self.texts.truncate(kept);
    }

    /// Adds the cells of `count` rows from `from` on as those of the rows from `to` on.
    pub(crate) fn append_range(&mut self, other: &Exact, from: usize, count: usize, to: usize) {
        let (start, end) = (other.at(from), other.at(from + count));
        let moved = other.cells[start..end].iter().map(|&(row, column)| ((row as usize - from + to) as u32, column));
        self.cells.extend(moved);
        self.texts.append_range(&other.texts, start, end - start);
    }

    /// The cells of the columns whose new place `place` gives.
    pub(crate) fn project(&self, place: impl Fn(u16) -> Option<u16>) -> Self {
        let mut kept = Self::new();
        for (index, &(row, column)) in self.cells.iter().enumerate() {
            if let Some(column) = place(column) {
                kept.cells.push((row, column));
                kept.texts.push_from(&self.texts, index);
            }
        }
        kept
    }

    /// Where the cells of a row begin.
    fn at(&self, row: usize) -> usize {
        self.cells.partition_point(|cell| (cell.0 as usize) < row)
    }

    fn text(&self, index: usize) -> &str {
        // Only text was ever pushed.
        std::str::from_utf8(self.texts.bytes(index).unwrap_or_default()).unwrap_or_default()
    }
}

/// Exact cells: values that their columns cannot hold, as the source prints them. A cell that has one is null in its
/// column.
impl Columns {
    /// Gives column `index` of the row being built a value that it cannot hold: the column gets a null, and the text
    /// stands beside it.
    pub fn push_exact(&mut self, index: usize, text: &str) {
        self.column_mut(index).push_null();
        let row = self.rows() as u32;
        self.exact_mut().push(row, index as u16, text);
    }

    /// The exact text of a cell, where it has one.
    pub fn exact(&self, row: usize, column: usize) -> Option<&str> {
        let exact = self.exact_cells_held()?;
        let here = exact.cells.get(exact.at(row)..)?.iter().take_while(|cell| cell.0 as usize == row);
        let index = here.enumerate().find(|(_, cell)| usize::from(cell.1) == column)?.0;
        Some(exact.text(exact.at(row) + index))
    }

    /// All exact cells, rising by row: row, column, text.
    pub fn exact_cells(&self) -> impl Iterator<Item = (usize, usize, &str)> {
        let exact = self.exact_cells_held();
        let cells = exact.map(|exact| exact.cells.as_slice()).unwrap_or_default();
        cells.iter().enumerate().filter_map(move |(index, &(row, column))| {
            exact.map(|exact| (row as usize, usize::from(column), exact.text(index)))
        })
    }

    /// Number of exact cells.
    pub fn exact_count(&self) -> usize {
        self.exact_cells_held().map_or(0, |exact| exact.cells.len())
    }

    /// The texts of all exact cells as a column, for encoders.
    pub fn exact_texts(&self) -> Option<&ColumnVec> {
        self.exact_cells_held().map(|exact| &exact.texts)
    }

    /// The companion of a column: its exact texts, null where it has none.
    pub fn companion(&self, column: usize) -> ColumnVec {
        let mut companion = ColumnVec::new(&ColumnType::Text);
        for (row, _, text) in self.exact_cells().filter(|cell| cell.1 == column) {
            (companion.len()..row).for_each(|_| companion.push_null());
            companion.push_str(text);
        }
        (companion.len()..self.rows()).for_each(|_| companion.push_null());
        companion
    }

    /// Adds exact cells to whole columns, for decoders and for who puts columns together: each cell must be null in its
    /// column, and rows must rise. `None` if they do not, or if there are not as many texts as cells.
    pub fn with_exact(mut self, cells: Vec<(u32, u16)>, texts: ColumnVec) -> Option<Self> {
        let sound = texts.ty() == &ColumnType::Text
            && texts.len() == cells.len()
            && texts.null_count() == 0
            && cells.windows(2).all(|pair| pair[0].0 <= pair[1].0)
            && cells.iter().all(|&(row, column)| {
                let column = self.columns().get(usize::from(column));
                (row as usize) < self.rows() && column.is_some_and(|column| column.is_null(row as usize))
            });
        if !sound {
            return None;
        }
        self.set_exact(Exact { cells, texts });
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Columns {
        let mut columns = Columns::new([&ColumnType::Int64, &ColumnType::Date]);
        for row in 0..6 {
            columns.column_mut(0).push_i64(row);
            if row % 2 == 1 {
                columns.push_exact(1, &format!("exact {row}"));
            } else {
                columns.column_mut(1).push_i32(row as i32);
            }
            columns.end_row();
        }
        columns
    }

    fn cells(columns: &Columns) -> Vec<(usize, usize, &str)> {
        columns.exact_cells().collect()
    }

    #[test]
    fn exact_cells_go_with_their_rows() {
        let columns = sample();
        assert_eq!(cells(&columns), [(1, 1, "exact 1"), (3, 1, "exact 3"), (5, 1, "exact 5")]);
        assert_eq!((columns.exact(3, 1), columns.exact(3, 0), columns.exact(2, 1)), (Some("exact 3"), None, None));
        let kept = columns.filter(&[true, true, false, true, false, false]);
        assert_eq!(cells(&kept), [(1, 1, "exact 1"), (2, 1, "exact 3")]);
        let mut twice = kept.clone();
        twice.append_range(&columns, 4, 2);
        assert_eq!(cells(&twice), [(1, 1, "exact 1"), (2, 1, "exact 3"), (4, 1, "exact 5")]);
        let text = |row| twice.companion(1).cell_text(row);
        assert_eq!((text(0), text(2).as_deref(), text(4).as_deref()), (None, Some("exact 3"), Some("exact 5")));
        assert_eq!(twice.companion(1).len(), 5);
    }

    #[test]
    fn columns_keep_their_exact_cells_when_they_move() {
        let columns = sample().project(&[1]);
        assert_eq!(cells(&columns), [(1, 0, "exact 1"), (3, 0, "exact 3"), (5, 0, "exact 5")]);
        let without = sample().project(&[0]);
        assert_eq!(without, without.clone().filter(&[true; 6]), "none is the same as none left");
    }

    #[test]
    fn a_row_that_is_taken_back_takes_its_exact_cells_along() {
        let mut columns = sample();
        columns.column_mut(0).push_i64(9);
        columns.push_exact(1, "gone");
        columns.abort_row();
        assert_eq!(columns, sample());
    }

    #[test]
    fn foreign_cells_are_checked() {
        let texts = |count: usize| {
            let mut texts = ColumnVec::new(&ColumnType::Text);
            (0..count).for_each(|_| texts.push_str("x"));
            texts
        };
        let plain = || Columns::from_columns(6, sample().into_columns());
        assert!(plain().with_exact(vec![(1, 1), (3, 1)], texts(2)).is_some());
        for (cells, count) in
            [(vec![(1, 1)], 2), (vec![(3, 1), (1, 1)], 2), (vec![(0, 1)], 1), (vec![(7, 1)], 1), (vec![(1, 2)], 1)]
        {
            assert!(plain().with_exact(cells.clone(), texts(count)).is_none(), "{cells:?}");
        }
    }
}
