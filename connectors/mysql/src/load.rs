//! One table being loaded: rows of the text protocol, decoded straight into columns.
//!
//! The text protocol is the cheaper of the two: of a table of 16 columns a client in C read 1,075,000 rows a second, and by
//! the binary protocol not more, for which the server spends more.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_core::{
    Columns, Error, Kind, Op, Order, Position, Reject, Result, Spare, Table, Unfit,
    batch::Cell,
    builder::BATCH_ROWS_MAX,
    error::Context,
    source::{LoadPlan, Loaded, Rows, Segment, TableLoad},
};

use crate::{
    Shared,
    discover::{quote_name, quote_table},
    sessions::{Session, Sessions},
    snapshot,
    types::{self, SqlType, direct::Direct, text},
    wire::{Connection, Reader, code},
};

/// A batch is closed above so many bytes, as they came.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// How long a segment waits for the table's metadata lock, in seconds. We have it already, so who waits has somebody between
/// the two who wants to alter the table.
const SEGMENT_LOCK_TIMEOUT: u32 = 1;

/// A table and its lock.
#[derive(Debug)]
pub struct MysqlLoad {
    shared: Arc<Shared>,
    position: Position,
    table: Arc<Table>,
    plan: LoadPlan,
    resumed: bool,
    sessions: Arc<Sessions>,
    /// Its open transaction keeps the table's shape.
    _lock: Connection,
}

impl MysqlLoad {
    /// Takes over what `open` found.
    pub fn new(
        shared: Arc<Shared>,
        position: Position,
        table: Table,
        plan: LoadPlan,
        resumed: bool,
        sessions: Arc<Sessions>,
        lock: Connection,
    ) -> Self {
        Self { shared, position, table: Arc::new(table), plan, resumed, sessions, _lock: lock }
    }
}

/// A part is not divided below so many rows.
const PART_ROWS_MIN: u64 = 20_000;

/// A range of the key's first column, both ends included, and about how many rows it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    first: i128,
    last: i128,
    rows: u64,
}

/// Divides the table by the first column of its key, where that is a whole number: the largest part is halved until there
/// are enough. The server's estimate of a range costs it a look into the index, so gaps of any size do no harm. Other keys
/// are in an order that depends on collations; such a table is read in one piece.
pub async fn divide(session: &mut Connection, table: &Table, wanted: usize) -> Result<LoadPlan> {
    let plan = |segments| LoadPlan { storage_id: table.storage_id, segments };
    let whole = vec![Segment { range: "TRUE".into(), estimated_rows: table.estimated_rows }];
    let column = table.key.first().and_then(|&index| table.columns.get(index));
    let Some(column) =
        column.filter(|column| wanted > 1 && matches!(SqlType::parse(&column.source_type), Some(SqlType::Int { .. })))
    else {
        return Ok(plan(whole));
    };
    let (name, from) = (quote_name(&column.name), quote_table(&table.name));
    let ends = session.query(&format!("SELECT MIN({name}), MAX({name}) FROM {from}")).await?;
    let number = |index: usize| ends.first()?.get(index)?.as_ref()?.parse::<i128>().ok();
    let (Some(first), Some(last)) = (number(0), number(1)) else { return Ok(plan(whole)) };
    let mut parts = vec![Part { first, last, rows: table.estimated_rows.max(1) }];
    while parts.len() < wanted {
        let largest = (0..parts.len()).max_by_key(|&index| parts[index].rows).unwrap_or_default();
        let part = parts[largest];
        if part.rows < 2 * PART_ROWS_MIN || part.first == part.last {
            break;
        }
        let middle = part.first + (part.last - part.first) / 2;
        let mut halves = [Part { last: middle, ..part }, Part { first: middle + 1, ..part }];
        for half in &mut halves {
            half.rows = estimate(session, &format!("SELECT 1 FROM {from} WHERE {}", between(&name, half))).await?;
        }
        parts.splice(largest..=largest, halves);
    }
    Ok(plan(ranges(&name, &parts)))
}

fn between(name: &str, part: &Part) -> String {
    format!("{name} BETWEEN {} AND {}", part.first, part.last)
}

/// The first part has no beginning and the last no end, so that rows that come later are in one of them.
fn ranges(name: &str, parts: &[Part]) -> Vec<Segment> {
    let segment = |(index, part): (usize, &Part)| {
        let range = match (index == 0, index + 1 == parts.len()) {
            (true, true) => "TRUE".to_string(),
            (true, false) => format!("{name} <= {}", part.last),
            (false, true) => format!("{name} >= {}", part.first),
            (false, false) => between(name, part),
        };
        Segment { range, estimated_rows: part.rows }
    };
    parts.iter().enumerate().map(segment).collect()
}

/// How many rows the server expects.
async fn estimate(session: &mut Connection, select: &str) -> Result<u64> {
    // MySQL has two columns more than MariaDB.
    let place = if session.is_mariadb() { 8 } else { 9 };
    let rows = session.query(&format!("EXPLAIN {select}")).await?;
    let number = rows.first().and_then(|row| row.get(place)?.as_ref()?.parse().ok());
    Ok(number.unwrap_or(1))
}

#[async_trait]
impl TableLoad for MysqlLoad {
    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn plan(&self) -> &LoadPlan {
        &self.plan
    }

    fn resumed(&self) -> bool {
        self.resumed
    }

    async fn rows(&self, segment: usize) -> Result<Box<dyn Rows>> {
        let doing = || format!("reading segment {segment} of table {}", self.table.name);
        let planned = self.plan.segments.get(segment).ok_or_else(|| Error::new(Kind::Internal, doing()))?;
        let types = types::of_table(&self.table).ok_or_else(|| Error::new(Kind::Internal, doing()))?;
        let selected: Vec<String> =
            self.table.columns.iter().zip(&types).map(|(column, ty)| ty.selected(&quote_name(&column.name))).collect();
        // A table without a column of its own that is captured has rows all the same.
        let selected = if selected.is_empty() { "1".to_string() } else { selected.join(", ") };
        let sql = format!("SELECT {selected} FROM {} WHERE {}", quote_table(&self.table.name), planned.range);
        let mut session = self.sessions.take().await?;
        let connection = session.connection();
        connection.execute(&snapshot::lock_timeout(SEGMENT_LOCK_TIMEOUT)).await?;
        if let Err(error) = connection.rows(&sql).await {
            // What the server refused is over.
            if code(&error).is_some() {
                session.give_back().await;
            }
            return Err(Error { doing: doing(), ..error });
        }
        let policies = types::policies(&self.shared.options.values, &self.table);
        let columns = Columns::new(self.table.columns.iter().map(|column| &column.ty));
        let direct = self.table.columns.iter().zip(&types).map(|(column, ty)| Direct::of(ty, &column.ty)).collect();
        let sink = Sink {
            table: self.table.clone(),
            types,
            direct,
            policies,
            order: Order { commit: self.position.0, ordinal: 0 },
            value_bytes_max: self.shared.options.value_bytes_max,
            columns,
            rejects: vec![],
        };
        Ok(Box::new(SegmentRows { session: Some(session), sink, spare: Spare::default(), batches: 0 }))
    }
}

/// The rows of one segment.
struct SegmentRows {
    /// None when all rows were read.
    session: Option<Session>,
    sink: Sink,
    spare: Spare,
    batches: u64,
}

/// What rows are decoded with and into.
struct Sink {
    table: Arc<Table>,
    types: Vec<SqlType>,
    direct: Vec<Direct>,
    policies: Vec<Unfit>,
    order: Order,
    value_bytes_max: usize,
    columns: Columns,
    rejects: Vec<Reject>,
}

impl Sink {
    /// Decodes one row.
    fn take(&mut self, row: &[u8]) -> Result<()> {
        let doing = || format!("reading table {}", self.table.name);
        let mut reader = Reader::new(row);
        for (index, direct) in self.direct.iter().enumerate() {
            let Some(bytes) = reader.cell().context(Kind::Protocol, doing)? else {
                self.columns.column_mut(index).push_null();
                continue;
            };
            let too_long = bytes.len() > self.value_bytes_max;
            if !too_long && direct.push(bytes, self.columns.column_mut(index)) {
                continue;
            }
            let pushed = match too_long {
                true => Err("it is longer than max-value"),
                false => text::decode(&self.types[index], bytes)
                    .and_then(|value| value.push(index, self.policies[index], &mut self.columns)),
            };
            if let Err(reason) = pushed {
                self.columns.abort_row();
                let reject = self.reject(row, index, reason).context(Kind::Protocol, doing)?;
                self.rejects.push(reject);
                return Ok(());
            }
        }
        self.columns.end_row();
        Ok(())
    }

    /// A row for the dead letters, with every column as the server's text.
    fn reject(&self, row: &[u8], column: usize, reason: &str) -> Result<Reject, crate::wire::Malformed> {
        let mut reader = Reader::new(row);
        let mut cells = vec![];
        for (ty, column) in self.types.iter().zip(&self.table.columns) {
            let cell = match reader.cell()? {
                None => Cell::Null,
                Some(bytes) => match text::decode(ty, bytes) {
                    Ok(value) => value.cell(),
                    Err(_) => Cell::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
                },
            };
            cells.push((column.name.clone(), cell));
        }
        let key = self.table.key.iter().filter_map(|&index| {
            let (name, cell) = cells.get(index)?;
            let text = match cell {
                Cell::Text(text) | Cell::Hex(text) => Some(text.clone()),
                Cell::Null | Cell::Absent => None,
            };
            Some((name.clone(), text))
        });
        Ok(Reject {
            table: self.table.name.clone(),
            key: key.collect(),
            op: Op::Load,
            order: self.order,
            commit_time_us: None,
            column: self.table.columns[column].name.clone(),
            reason: reason.to_string(),
            row: cells,
        })
    }
}

#[async_trait]
impl Rows for SegmentRows {
    async fn next(&mut self) -> Result<Option<Loaded>> {
        let mut wire_bytes = 0;
        let Self { session: held, sink, .. } = self;
        while wire_bytes < BATCH_BYTES_MAX && sink.columns.rows() + sink.rejects.len() < BATCH_ROWS_MAX {
            let Some(session) = held else { break };
            let ended = match session.connection().next_row().await {
                Ok(Some(row)) => {
                    wire_bytes += row.len();
                    sink.take(row)?;
                    continue;
                }
                Ok(None) => Ok(()),
                // What the server refused is over.
                Err(error) if code(&error).is_some() => Err(error),
                Err(error) => return Err(error),
            };
            if let Some(session) = held.take() {
                session.give_back().await;
            }
            ended?;
        }
        if sink.columns.rows() + sink.rejects.len() == 0 {
            return Ok(None);
        }
        if self.batches > 0 {
            fail::fail_point!("mysql-load-inside-segment");
        }
        self.batches += 1;
        let next = self.spare.like(&sink.columns);
        let columns = std::mem::replace(&mut sink.columns, next);
        Ok(Some(Loaded { columns, rejects: std::mem::take(&mut sink.rejects), wire_bytes }))
    }

    fn give_back(&mut self, columns: Columns) {
        self.spare.keep(columns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_key() {
        let part = |first, last| Part { first, last, rows: 1 };
        let of = |parts: &[Part]| ranges("`k`", parts).into_iter().map(|segment| segment.range).collect::<Vec<_>>();
        assert_eq!(of(&[part(1, 9)]), ["TRUE"]);
        assert_eq!(of(&[part(-5, 3), part(4, 6), part(7, 1 << 64)]), ["`k` <= 3", "`k` BETWEEN 4 AND 6", "`k` >= 7"]);
    }
}
