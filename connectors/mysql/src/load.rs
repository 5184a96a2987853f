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
    source::{LoadPlan, Loaded, Rows, TableLoad},
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
