//! One table being loaded: binary COPY of ranges of its blocks, decoded straight into columns.
//!
//! The yardstick is `COPY … (FORMAT binary)` to nowhere; `examples/copy.rs` measures it.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_core::{
    Columns, Error, Kind, Op, Order, Position, Reject, Result, Spare, Table, TableName,
    batch::Cell,
    builder::BATCH_ROWS_MAX,
    source::{LoadPlan, Loaded, Rows, TableLoad},
};

use crate::{
    Shared,
    discover::{Shape, quote_identifier, quote_table},
    snapshot::{BlockRange, lock_table},
    types::{
        PgType,
        binary::{Malformed, Tuple, TupleDecoder, fields},
        block::{Block, MESSAGE_HEAD_BYTES},
        copy_data::CopyData,
        render, unfit,
    },
    wire::{Connection, CopyOut, Mode, sqlstate},
};

/// How long a segment waits for its lock, in milliseconds. The table is locked by us already, so it is there at once or
/// not before we let go.
const SEGMENT_LOCK_TIMEOUT_MS: u32 = 1_000;

/// A batch is closed above so many bytes, as they came: with smaller ones the encoder takes longer (6 % at 1 MiB), and three
/// of them are held per segment (being built, waiting, being encoded).
const BATCH_BYTES_MAX: usize = 2 << 20;

/// A table and its lock.
#[derive(Debug)]
pub struct PostgresLoad {
    shared: Arc<Shared>,
    /// The exported snapshot's name.
    snapshot: String,
    position: Position,
    shape: Shape,
    table: Arc<Table>,
    plan: LoadPlan,
    resumed: bool,
    /// Its open transaction holds ACCESS SHARE, so that nobody rewrites or alters the table between two segments.
    _lock: Connection,
}

impl PostgresLoad {
    /// Takes over what `open` found.
    pub fn new(
        shared: Arc<Shared>,
        snapshot: String,
        position: Position,
        shape: Shape,
        plan: LoadPlan,
        resumed: bool,
        lock: Connection,
    ) -> Self {
        let table = Arc::new(shape.table.clone());
        Self { shared, snapshot, position, shape, table, plan, resumed, _lock: lock }
    }
}

#[async_trait]
impl TableLoad for PostgresLoad {
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
        let range = BlockRange::parse(&planned.range)?;
        let oid = range.partition.unwrap_or(self.table.source_id);
        let storage = self.shape.storages.iter().find(|storage| storage.oid == oid);
        let storage = storage.ok_or_else(|| Error::new(Kind::Internal, doing()))?;
        let mut connection = Connection::connect(&self.shared.config, Mode::Plain, "millrace load").await?;
        // Somebody who wants to alter the table queues behind the table's own lock, and this session's lock queues behind
        // him: waiting for it would be waiting for ourselves, which the server cannot see as a deadlock. Nobody else can
        // be in the way, so the load steps back, lets him through, and comes again with a new snapshot.
        connection.execute(&format!("SET lock_timeout = {SEGMENT_LOCK_TIMEOUT_MS}")).await?;
        // The table's own lock should hold it; but should that session have been ended by somebody, a rewrite may have
        // slipped in, so each segment looks again under its own lock.
        let locked = lock_table(&mut connection, &self.snapshot, &self.table.name, std::slice::from_ref(storage)).await;
        locked.map_err(|error| match sqlstate(&error) {
            // lock_not_available
            Some("55P03") => Error { kind: Kind::SnapshotStale, ..error },
            _ => error,
        })?;
        let copy = connection.into_copy_out(&copy_statement(&self.shape, &storage.name, range)).await?;
        let types: Vec<PgType> = self.shape.types.iter().map(|ty| ty.after_cast()).collect();
        Ok(Box::new(SegmentRows {
            copy,
            data: CopyData::new(),
            sink: TupleSink {
                decoder: TupleDecoder::new(
                    types.clone(),
                    unfit::policies(&self.shared.options.values, &self.table),
                    self.shared.options.value_bytes_max,
                ),
                types,
                table: self.table.clone(),
                order: Order { commit: self.position.0, ordinal: 0 },
                batch: Batch::new(&self.table),
            },
            spare: Spare::default(),
            batches: 0,
        }))
    }
}

/// The whole table goes without a query where nothing is cast: that spares the server the executor.
fn copy_statement(shape: &Shape, storage: &TableName, range: BlockRange) -> String {
    let table = quote_table(storage);
    let columns: Vec<String> = shape.table.columns.iter().map(|column| quote_identifier(&column.name)).collect();
    let whole = range.start == 0 && range.end.is_none();
    if whole && !columns.is_empty() && !shape.types.iter().any(|ty| ty.is_cast()) {
        return format!("COPY {table} ({}) TO STDOUT (FORMAT binary)", columns.join(", "));
    }
    let casts: Vec<String> = columns.iter().zip(&shape.types).map(|(name, ty)| ty.selected(name)).collect();
    let condition = match (whole, range.end) {
        (true, _) => String::new(),
        (false, None) => format!(" WHERE ctid >= '({},0)'", range.start),
        (false, Some(end)) => format!(" WHERE ctid >= '({},0)' AND ctid < '({end},0)'", range.start),
    };
    format!("COPY (SELECT {} FROM ONLY {table}{condition}) TO STDOUT (FORMAT binary)", casts.join(", "))
}

/// The rows of one segment.
#[derive(Debug)]
struct SegmentRows {
    copy: CopyOut<Connection>,
    data: CopyData,
    sink: TupleSink,
    spare: Spare,
    batches: u64,
}

/// The batch that is being built.
#[derive(Debug)]
struct Batch {
    columns: Columns,
    rejects: Vec<Reject>,
    bytes: usize,
}

impl Batch {
    fn new(table: &Table) -> Self {
        Self { columns: Columns::new(table.columns.iter().map(|column| &column.ty)), rejects: vec![], bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX || self.columns.rows() + self.rejects.len() >= BATCH_ROWS_MAX
    }

    fn is_empty(&self) -> bool {
        self.columns.rows() == 0 && self.rejects.is_empty()
    }
}

/// What tuples are decoded with and into.
#[derive(Debug)]
struct TupleSink {
    decoder: TupleDecoder,
    types: Vec<PgType>,
    table: Arc<Table>,
    order: Order,
    batch: Batch,
}

impl TupleSink {
    /// Decodes the usual ones of the messages at the front of the bytes.
    fn take_block(&mut self, bytes: &[u8]) -> Block {
        let batch = &mut self.batch;
        let rows = BATCH_ROWS_MAX.saturating_sub(batch.columns.rows() + batch.rejects.len());
        let block =
            self.decoder.decode_block(bytes, rows, BATCH_BYTES_MAX.saturating_sub(batch.bytes), &mut batch.columns);
        batch.bytes += block.bytes - block.rows * MESSAGE_HEAD_BYTES;
        block
    }

    /// Decodes the tuple at the front of the bytes.
    #[inline]
    fn take(&mut self, bytes: &[u8]) -> Result<Tuple, Malformed> {
        let tuple = self.decoder.decode(bytes, &mut self.batch.columns)?;
        match tuple {
            Tuple::Row(count) => self.batch.bytes += count,
            Tuple::Unfit { bytes: count, column, reason } => {
                let reason = self.decoder.explain(reason);
                let tuple = bytes.get(..count).unwrap_or_default();
                self.batch.rejects.push(reject(&self.table, &self.types, self.order, tuple, column, reason));
                self.batch.bytes += count;
            }
            Tuple::Incomplete | Tuple::End => {}
        }
        Ok(tuple)
    }
}

impl SegmentRows {
    /// Fills the batch, or reads to the end.
    async fn fill(&mut self) -> Result<()> {
        let Self { copy, data, sink, .. } = self;
        let name = sink.table.name.clone();
        let wrong = |error: Malformed| Error::new(Kind::Protocol, format!("reading table {name}")).with(error);
        // Rows of a block that one of them kept from being taken as a whole.
        let mut one_by_one = 0;
        while !sink.batch.is_full() {
            if one_by_one == 0 && data.is_between_tuples() {
                let block = sink.take_block(copy.waiting());
                copy.pass(block.bytes);
                one_by_one = block.refused;
                if block.rows > 0 {
                    continue;
                }
            }
            if let Some(payload) = copy.at_hand()? {
                one_by_one = one_by_one.saturating_sub(1);
                data.take(payload, |bytes| sink.take(bytes)).map_err(wrong)?;
            } else if !copy.more().await? {
                return data.finish().map_err(wrong);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Rows for SegmentRows {
    async fn next(&mut self) -> Result<Option<Loaded>> {
        self.fill().await?;
        let batch = &mut self.sink.batch;
        if batch.is_empty() {
            return Ok(None);
        }
        if self.batches > 0 {
            fail::fail_point!("pg-load-inside-segment");
        }
        self.batches += 1;
        let columns = self.spare.like(&batch.columns);
        let next = Batch { columns, rejects: vec![], bytes: 0 };
        let Batch { columns, rejects, bytes } = std::mem::replace(batch, next);
        Ok(Some(Loaded { columns, rejects, wire_bytes: bytes }))
    }

    fn give_back(&mut self, columns: Columns) {
        self.spare.keep(columns);
    }
}

/// A row for the dead letters, with every column as the server's text.
fn reject(table: &Table, types: &[PgType], order: Order, tuple: &[u8], column: usize, reason: String) -> Reject {
    let cells: Vec<Cell> = fields(tuple)
        .zip(types)
        .map(|(value, ty)| {
            let Some(value) = value else { return Cell::Null };
            let mut text = String::new();
            if render::value(*ty, value, &mut text).is_ok() {
                return Cell::Text(text);
            }
            text.clear();
            render::hex(value, &mut text);
            Cell::Hex(text)
        })
        .collect();
    let name = |index: usize| table.columns.get(index).map(|column| column.name.clone()).unwrap_or_default();
    let key = table.key.iter().map(|&index| {
        let text = match cells.get(index) {
            Some(Cell::Text(text) | Cell::Hex(text)) => Some(text.clone()),
            _ => None,
        };
        (name(index), text)
    });
    Reject {
        table: table.name.clone(),
        key: key.collect(),
        op: Op::Load,
        order,
        commit_time_us: None,
        column: name(column),
        reason,
        row: cells.into_iter().enumerate().map(|(index, cell)| (name(index), cell)).collect(),
    }
}
