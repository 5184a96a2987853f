//! Fills cells that the source did not send because they did not change, before the stream, so that every row in a file
//! is whole.
//!
//! A value read later than its change is right: had it changed in between, a later change in the log carries it. If the
//! key is gone, a later delete, key change or truncate supersedes the row, and it is left out and counted.

use millrace_core::{
    ChangeBatch, ColumnType, ColumnVec, Columns, Error, Kind, Order, Reject, Result, Table,
    batch::Cell,
    source::{Lookup, Source},
};

/// A batch without absent cells.
#[derive(Debug)]
pub struct Filled {
    /// The whole rows; `None` if none is left.
    pub batch: Option<ChangeBatch>,
    /// Rows that were left out because a later change supersedes them.
    pub superseded: u64,
    /// Rows whose value can no longer be held by its column.
    pub rejects: Vec<Reject>,
}

/// Rows that are looked up first; then as many as give about [`LOOKUP_BYTES`].
const LOOKUP_ROWS_FIRST: usize = 256;
const LOOKUP_ROWS_MAX: usize = 4096;
const LOOKUP_BYTES: usize = 8 << 20;

/// Fills one batch, in pieces of bounded size.
#[derive(Debug)]
pub struct Filling {
    batch: ChangeBatch,
    cells: Vec<(u32, u16)>,
    next: usize,
    rows: usize,
}

impl Filling {
    /// A batch as the source gave it.
    pub fn new(mut batch: ChangeBatch) -> Self {
        let cells = batch.absent.take().unwrap_or_default().cells;
        Self { batch, cells, next: 0, rows: LOOKUP_ROWS_FIRST }
    }

    /// The next rows, whole; `None` at the end.
    pub async fn next(&mut self, source: &dyn Source) -> Result<Option<Filled>> {
        if self.next >= self.batch.rows() {
            return Ok(None);
        }
        if self.cells.is_empty() {
            let rest = self.slice(self.next, self.batch.rows());
            self.next = self.batch.rows();
            return Ok(Some(Filled { batch: Some(rest), superseded: 0, rejects: vec![] }));
        }
        let (from, to) = (self.next, (self.next + self.rows).min(self.batch.rows()));
        let shift = from as u32;
        let end = self.cells.partition_point(|cell| (cell.0 as usize) < to);
        let cells: Vec<(u32, u16)> = self.cells.drain(..end).map(|(row, column)| (row - shift, column)).collect();
        let filled = fill(source, self.slice(from, to), &cells).await?;
        self.next = to;
        let bytes = filled.batch.as_ref().map_or(0, ChangeBatch::byte_size).max(1);
        self.rows = (self.rows * LOOKUP_BYTES / bytes).clamp(1, LOOKUP_ROWS_MAX);
        Ok(Some(filled))
    }

    /// The table whose rows are filled.
    pub fn table(&self) -> &Table {
        &self.batch.table
    }

    /// The place of the first row that is not filled yet, and how many are not.
    pub fn rest(&self) -> Option<(Order, u64)> {
        Some((*self.batch.order.get(self.next)?, (self.batch.rows() - self.next) as u64))
    }

    fn slice(&self, from: usize, to: usize) -> ChangeBatch {
        if from == 0 && to == self.batch.rows() {
            return self.batch.clone();
        }
        let mut after = Columns::new(self.batch.table.columns.iter().map(|column| &column.ty));
        after.append_range(&self.batch.after, from, to - from);
        ChangeBatch {
            table: self.batch.table.clone(),
            ops: self.batch.ops[from..to].to_vec(),
            order: self.batch.order[from..to].to_vec(),
            commit_time_us: self.batch.commit_time_us[from..to].to_vec(),
            after,
            absent: None,
        }
    }
}

/// Fills what is absent by one lookup.
async fn fill(source: &dyn Source, batch: ChangeBatch, cells: &[(u32, u16)]) -> Result<Filled> {
    if cells.is_empty() {
        return Ok(Filled { batch: Some(batch), superseded: 0, rejects: vec![] });
    }
    if !batch.table.is_keyed() {
        let doing = format!("filling unchanged values of {}: it has no key", batch.table.name);
        return Err(Error::new(Kind::Internal, doing));
    }
    let mut rows: Vec<u32> = cells.iter().map(|cell| cell.0).collect();
    rows.dedup();
    let mut columns: Vec<u16> = cells.iter().map(|cell| cell.1).collect();
    columns.sort_unstable();
    columns.dedup();
    let wanted: Vec<usize> = columns.iter().map(|&column| column as usize).collect();
    let mut keys = Columns::new(batch.table.key.iter().map(|&key| &batch.table.columns[key].ty));
    let all_keys = batch.after.project(&batch.table.key);
    rows.iter().for_each(|&row| keys.append_range(&all_keys, row as usize, 1));
    let lookup = source.lookup(&batch.table, &keys, &wanted).await?;
    Ok(patch(batch, cells, &rows, &wanted, &lookup))
}

fn patch(batch: ChangeBatch, cells: &[(u32, u16)], rows: &[u32], wanted: &[usize], lookup: &Lookup) -> Filled {
    // Row of the batch -> row of the lookup's answer.
    let mut answer: Vec<Option<usize>> = vec![None; batch.rows()];
    let mut keep = vec![true; batch.rows()];
    rows.iter().for_each(|&row| keep[row as usize] = false);
    for (position, &request) in lookup.found.iter().enumerate() {
        let row = rows[request as usize] as usize;
        answer[row] = Some(position);
        keep[row] = true;
    }
    let rejects: Vec<Reject> = lookup
        .rejected
        .iter()
        .map(|(request, reason)| reject(&batch, rows[*request as usize] as usize, reason))
        .collect();
    lookup.rejected.iter().for_each(|(request, _)| keep[rows[*request as usize] as usize] = false);
    let superseded = keep.iter().filter(|keep| !**keep).count() as u64 - rejects.len() as u64;

    let row_count = batch.rows();
    let mut columns = batch.after.clone().into_columns();
    for (found, &column) in wanted.iter().enumerate() {
        let here: Vec<usize> =
            cells.iter().filter(|cell| cell.1 as usize == column).map(|cell| cell.0 as usize).collect();
        let values = &lookup.columns.columns()[found];
        columns[column] = merge(&columns[column], &here, |row| answer[row].map(|at| (values, at)));
    }
    let after = with_exact(Columns::from_columns(row_count, columns), &batch.after, cells, wanted, lookup, &answer);
    let whole = ChangeBatch { after, ..batch };
    let whole = if keep.iter().all(|&keep| keep) { whole } else { whole.filter(&keep) };
    Filled { batch: (whole.rows() > 0).then_some(whole), superseded, rejects }
}

/// Puts the exact texts beside the columns: those that the batch has, and those that were found for its absent cells.
fn with_exact(
    columns: Columns,
    before: &Columns,
    cells: &[(u32, u16)],
    wanted: &[usize],
    lookup: &Lookup,
    answer: &[Option<usize>],
) -> Columns {
    let mut exact: Vec<(usize, usize, &str)> = before.exact_cells().collect();
    for &(row, column) in cells {
        let (row, column) = (row as usize, usize::from(column));
        let place = answer[row].zip(wanted.iter().position(|&wanted| wanted == column));
        exact.extend(place.and_then(|(at, index)| Some((row, column, lookup.columns.exact(at, index)?))));
    }
    if exact.is_empty() {
        return columns;
    }
    exact.sort_by_key(|&(row, ..)| row);
    let mut texts = ColumnVec::new(&ColumnType::Text);
    exact.iter().for_each(|(.., text)| texts.push_str(text));
    let cells = exact.iter().map(|&(row, column, _)| (row as u32, column as u16)).collect();
    columns.with_exact(cells, texts).expect("exact cells are null in their columns, in rising rows")
}

/// The column with the cells at `rows` (rising) replaced; a cell without an answer stays as it is.
fn merge<'a>(
    column: &ColumnVec,
    rows: &[usize],
    answer: impl Fn(usize) -> Option<(&'a ColumnVec, usize)>,
) -> ColumnVec {
    let mut merged = ColumnVec::new(column.ty());
    let mut next = 0;
    for &row in rows {
        merged.append_range(column, next, row - next);
        match answer(row) {
            Some((values, at)) => merged.push_from(values, at),
            None => merged.push_from(column, row),
        }
        next = row + 1;
    }
    merged.append_range(column, next, column.len() - next);
    merged
}

fn reject(batch: &ChangeBatch, row: usize, reason: &str) -> Reject {
    let table = &batch.table;
    let exact = |column: usize| batch.after.exact(row, column).map(str::to_string);
    let text = |column: usize| exact(column).or_else(|| batch.after.columns()[column].cell_text(row));
    Reject {
        table: table.name.clone(),
        key: table.key.iter().map(|&key| (table.columns[key].name.clone(), text(key))).collect(),
        op: batch.ops[row],
        order: Order { ..batch.order[row] },
        commit_time_us: Some(batch.commit_time_us[row]),
        column: String::new(),
        reason: reason.to_string(),
        row: (0..table.columns.len())
            .map(|column| (table.columns[column].name.clone(), text(column).map_or(Cell::Null, Cell::Text)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_core::{BatchBuilder, Capture, Column, Op, Table, TableName};

    use super::*;

    fn table() -> Arc<Table> {
        let column = |id, name: &str, ty| Column {
            id,
            name: name.into(),
            ty,
            source_type: String::new(),
            nullable: true,
            older_rows: None,
        };
        Arc::new(Table {
            name: TableName::new("public", "t"),
            source_id: 1,
            version: 1,
            columns: vec![
                column(1, "id", ColumnType::Int32),
                column(2, "n", ColumnType::Int32),
                column(3, "big", ColumnType::Text),
            ],
            key: vec![0],
            capture: Capture::All,
            storage_id: 1,
            definition_id: 1,
            columns_ever: 0,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        })
    }

    #[test]
    fn answers_fill_their_cells_and_missing_keys_leave() {
        let mut builder = BatchBuilder::new(table());
        for id in 0..4 {
            builder.column(0).push_i32(id);
            builder.column(1).push_i32(id * 10);
            if id % 2 == 0 {
                builder.absent(2)
            } else {
                builder.column(2).push_str("sent")
            }
            builder.end_row(Op::Update, Order { commit: 7, ordinal: id as u32 + 1 }, 0, 8);
        }
        let mut batch = builder.take().unwrap();
        let absent = batch.absent.take().unwrap();
        let mut columns = Columns::new([&ColumnType::Text]);
        columns.column_mut(0).push_str("looked up");
        columns.end_row();
        let lookup = Lookup { found: vec![1], columns, rejected: vec![] };
        let filled = patch(batch, &absent.cells, &[0, 2], &[2], &lookup);
        assert_eq!((filled.superseded, filled.rejects.len()), (1, 0));
        let batch = filled.batch.unwrap();
        let text = |row| batch.after.columns()[2].cell_text(row).unwrap();
        assert_eq!([text(0), text(1), text(2)], ["sent", "looked up", "sent"]);
        assert_eq!(batch.order[1].ordinal, 3);
    }
}
