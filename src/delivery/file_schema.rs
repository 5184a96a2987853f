//! The columns of our files: `Op` first, the table's columns, their companions, `commit_timestamp`, `change_order` last.
//!
//! A companion is a text column for the values that its column cannot hold. A file has those that the catalog's table has
//! already, and those that it needs itself. But for that, load and change files of a table have the same columns. Every field is nullable: a deleted row may carry its key
//! only. The source's own types stand in the fields' metadata, its column identities are Parquet's field ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow_array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use millrace_core::{
    Column, ColumnType, Columns, Error, Kind, Op, Order, Position, Result, Table, destination::ObjectSpec,
    error::Context,
};

use crate::catalog::{OwnNames, companion_id, companion_names};

/// Field metadata: the source's type with its modifiers.
pub const SOURCE_TYPE: &str = "millrace.source_type";
/// Field metadata that becomes Parquet's field id.
const FIELD_ID: &str = "PARQUET:field_id";
/// Field metadata of a companion: identity of its column.
const EXACT_OF: &str = "millrace.exact_of";
/// Text columns that are declared longer than this are taken for free text, which a dictionary only makes slower.
const DICTIONARY_TEXT_CHARS_MAX: u32 = 32;
/// Hexadecimal digits of an [`Order`].
const ORDER_CHARS: usize = 40;

/// The columns of a table that have a companion in one file, by identity.
pub type Companions = BTreeSet<i32>;

/// The columns whose values these rows have beside them.
pub fn companions_of(table: &Table, columns: &Columns) -> Companions {
    columns.exact_cells().filter_map(|(_, column, _)| Some(table.columns.get(column)?.id)).collect()
}

/// The Arrow schema of a table's files (field ids, source types in the fields' metadata).
pub fn arrow_schema(table: &Table, companions: &Companions) -> Arc<Schema> {
    let own = OwnNames::of(&table.columns);
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let field = |name: String, ty, id: i32, more: Vec<(String, String)>| {
        let metadata = more.into_iter().chain([(FIELD_ID.to_string(), id.to_string())]).collect();
        Field::new(name, ty, true).with_metadata(metadata)
    };
    let [op, commit_timestamp, change_order] = OwnNames::IDS;
    let mut fields = vec![field(own.op, DataType::Utf8, op, vec![])];
    fields.extend(table.columns.iter().map(|column| {
        let source_type = vec![(SOURCE_TYPE.to_string(), column.source_type.clone())];
        field(column.name.clone(), column.ty.to_arrow(), column.id, source_type)
    }));
    if !companions.is_empty() {
        let named = table.columns.iter().zip(companion_names(&table.columns));
        fields.extend(named.filter(|(column, _)| companions.contains(&column.id)).map(|(column, name)| {
            let of = (EXACT_OF.to_string(), column.id.to_string());
            let more = vec![of, (SOURCE_TYPE.to_string(), column.source_type.clone())];
            field(name, DataType::Utf8, companion_id(column), more)
        }));
    }
    fields.push(field(own.commit_timestamp, timestamp, commit_timestamp, vec![]));
    fields.push(field(own.change_order, DataType::Utf8, change_order, vec![]));
    Arc::new(Schema::new(fields))
}

/// A spec for an object of loaded rows of this table.
pub fn object_spec(
    table: &Table,
    companions: &Companions,
    key: String,
    metadata: BTreeMap<String, String>,
) -> ObjectSpec {
    let plain =
        table.columns.iter().enumerate().filter(|(index, column)| table.key.contains(index) || is_free_text(column));
    let plain_columns = plain.map(|(_, column)| column.name.clone()).collect();
    ObjectSpec { key, schema: arrow_schema(table, companions), plain_columns, metadata }
}

/// The same for an object of changes, in which no two rows have the same order.
pub fn change_spec(
    table: &Table,
    companions: &Companions,
    key: String,
    metadata: BTreeMap<String, String>,
) -> ObjectSpec {
    let mut spec = object_spec(table, companions, key, metadata);
    spec.plain_columns.push(OwnNames::of(&table.columns).change_order);
    spec
}

fn is_free_text(column: &Column) -> bool {
    match column.ty {
        ColumnType::Binary => true,
        ColumnType::Text => {
            // `character varying(44)`, `char(10)`; a type without a length (text, json, uuid) may be anything.
            let length = column.source_type.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
            let length: Option<u32> = length.and_then(|(digits, _)| digits.parse().ok());
            length.is_none_or(|chars| chars > DICTIONARY_TEXT_CHARS_MAX)
        }
        _ => false,
    }
}

/// Makes batches of the rows of one load. Our own columns are the same in all its rows, so they are built once.
pub struct LoadedRows {
    /// The load's, as text.
    order: String,
    /// As many rows of our own columns as the largest batch had.
    own: Option<Own>,
}

impl LoadedRows {
    /// For the rows of a load at that position.
    pub fn new(position: Position) -> Self {
        Self { order: Order { commit: position.0, ordinal: 0 }.to_string(), own: None }
    }

    /// Loaded rows as a batch of that schema.
    pub fn batch(&mut self, schema: &Arc<Schema>, columns: Columns) -> Result<RecordBatch> {
        let rows = columns.rows();
        let own = match self.own.take() {
            Some(own) if own.op.len() >= rows => own,
            _ => Own {
                op: repeated(Op::Load.letter(), rows)?,
                commit_timestamp: Arc::new(TimestampMicrosecondArray::new_null(rows).with_timezone("UTC")),
                change_order: repeated(&self.order, rows)?,
            },
        };
        let own = self.own.insert(own);
        assemble(schema, columns, own.first(rows))
    }
}

/// The memory of a written batch, for rows of the table.
pub fn reclaim(table: &Table, batch: RecordBatch) -> Columns {
    let (_, mut arrays, _) = batch.into_parts();
    // The first is our own, and so are those behind the table's.
    arrays.remove(0);
    Columns::reclaim(table.columns.iter().map(|column| &column.ty), arrays)
}

/// Changes as a batch of that schema. A row that was loaded has no commit time.
pub fn change_batch(
    schema: &Arc<Schema>,
    ops: &[Op],
    order: &[Order],
    commit_time_us: Vec<i64>,
    columns: Columns,
) -> Result<RecordBatch> {
    let letters: Vec<u8> = ops.iter().flat_map(|op| op.letter().bytes()).collect();
    let nulls = ops.contains(&Op::Load).then(|| NullBuffer::from_iter(ops.iter().map(|op| *op != Op::Load)));
    let times = TimestampMicrosecondArray::try_new(commit_time_us.into(), nulls).context(Kind::Internal, building)?;
    let own = Own {
        op: fixed_text(letters, 1, ops.len())?,
        commit_timestamp: Arc::new(times.with_timezone("UTC")),
        change_order: fixed_text(order_text(order), ORDER_CHARS, order.len())?,
    };
    assemble(schema, columns, own)
}

struct Own {
    op: ArrayRef,
    commit_timestamp: ArrayRef,
    change_order: ArrayRef,
}

impl Own {
    fn first(&self, rows: usize) -> Self {
        Self {
            op: self.op.slice(0, rows),
            commit_timestamp: self.commit_timestamp.slice(0, rows),
            change_order: self.change_order.slice(0, rows),
        }
    }
}

fn building() -> &'static str {
    "building a batch for a file"
}

fn assemble(schema: &Arc<Schema>, columns: Columns, own: Own) -> Result<RecordBatch> {
    let mut arrays = Vec::with_capacity(schema.fields().len());
    arrays.push(own.op);
    let companions = companion_arrays(schema, &columns)?;
    for column in columns.into_columns() {
        arrays.push(column.into_arrow().context(Kind::Internal, building)?);
    }
    arrays.extend(companions);
    arrays.push(own.commit_timestamp);
    arrays.push(own.change_order);
    RecordBatch::try_new(schema.clone(), arrays).context(Kind::Internal, building)
}

/// The schema's companions, from the rows' exact texts. A text without a companion would be lost: that is an error.
fn companion_arrays(schema: &Arc<Schema>, columns: &Columns) -> Result<Vec<ArrayRef>> {
    let mut left = columns.exact_count();
    let mut arrays: Vec<ArrayRef> = vec![];
    // The fields of the table's own columns stand behind `Op`.
    let own = schema.fields().get(1..=columns.columns().len()).unwrap_or_default();
    for of in schema.fields().iter().filter_map(|field| field.metadata().get(EXACT_OF)) {
        let index = own.iter().position(|field| field.metadata().get(FIELD_ID) == Some(of));
        let index = index.ok_or_else(|| Error::new(Kind::Internal, "building a companion without its column"))?;
        let count = columns.exact_cells().filter(|cell| cell.1 == index).count();
        left -= count;
        arrays.push(match count {
            0 => Arc::new(StringArray::new_null(columns.rows())),
            _ => columns.companion(index).into_arrow().context(Kind::Internal, building)?,
        });
    }
    match left {
        0 => Ok(arrays),
        _ => Err(Error::new(Kind::Internal, "building a batch: exact values have no companion in its file")),
    }
}

fn repeated(text: &str, rows: usize) -> Result<ArrayRef> {
    fixed_text(text.as_bytes().repeat(rows), text.len(), rows)
}

/// Text values that all have the same length.
fn fixed_text(bytes: Vec<u8>, length: usize, rows: usize) -> Result<ArrayRef> {
    let too_many = || Error::new(Kind::Internal, "building a batch of more than 2 GiB");
    let offset = |row: usize| i32::try_from(row * length).map_err(|_| too_many());
    let offsets: Vec<i32> = (0..=rows).map(offset).collect::<Result<_>>()?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let array = StringArray::try_new(offsets, Buffer::from_vec(bytes), None).context(Kind::Internal, building)?;
    Ok(Arc::new(array))
}

/// What [`Order`]'s `Display` writes, for all rows behind each other: this is done for every change, so by hand.
fn order_text(order: &[Order]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Vec::with_capacity(order.len() * ORDER_CHARS);
    for row in order {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&row.commit.to_be_bytes());
        bytes[16..].copy_from_slice(&row.ordinal.to_be_bytes());
        for byte in bytes {
            text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use arrow_array::{Array, cast::AsArray, types::TimestampMicrosecondType};
    use millrace_core::{Capture, TableName};
    use proptest::prelude::*;

    use super::*;

    fn column(id: i32, name: &str, ty: ColumnType, source_type: &str) -> Column {
        Column { id, name: name.into(), ty, source_type: source_type.into(), nullable: true, older_rows: None }
    }

    fn table(columns: Vec<Column>) -> Table {
        Table {
            name: TableName::new("public", "t"),
            source_id: 1,
            version: 1,
            columns,
            key: vec![0],
            capture: Capture::All,
            storage_id: 1,
            definition_id: 1,
            columns_ever: 0,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        }
    }

    fn sample() -> Table {
        table(vec![
            column(1, "id", ColumnType::Int64, "bigint"),
            column(4, "note", ColumnType::Text, "text"),
            column(5, "mode", ColumnType::Text, "character(10)"),
        ])
    }

    fn rows(count: i64) -> Columns {
        let mut columns = Columns::new([&ColumnType::Int64, &ColumnType::Text, &ColumnType::Text]);
        for row in 0..count {
            columns.column_mut(0).push_i64(row);
            columns.column_mut(1).push_null();
            columns.column_mut(2).push_str("RAIL");
            columns.end_row();
        }
        columns
    }

    #[test]
    fn our_columns_stand_around_the_tables() {
        let schema = arrow_schema(&sample(), &Companions::new());
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["Op", "id", "note", "mode", "commit_timestamp", "change_order"]);
        assert!(schema.fields().iter().all(|field| field.is_nullable()));
        assert_eq!(schema.field(2).metadata()[FIELD_ID], "4");
        assert_eq!(schema.field(3).metadata()[SOURCE_TYPE], "character(10)");
    }

    #[test]
    fn exact_values_stand_in_companions_between_the_tables_columns_and_ours() {
        let table = sample();
        let mut columns = rows(2);
        columns.column_mut(0).push_i64(9);
        columns.push_exact(1, "as it was");
        columns.column_mut(2).push_str("RAIL");
        columns.end_row();
        assert_eq!(companions_of(&table, &columns), Companions::from([4]));
        let schema = arrow_schema(&table, &Companions::from([1, 4]));
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let expected = ["Op", "id", "note", "mode", "id__exact", "note__exact", "commit_timestamp", "change_order"];
        assert_eq!(names, expected);
        let batch = LoadedRows::new(Position(1)).batch(&schema, columns.clone()).unwrap();
        assert_eq!(batch.column(4).null_count(), 3);
        let exact: Vec<Option<&str>> = batch.column(5).as_string::<i32>().iter().collect();
        assert_eq!(exact, [None, None, Some("as it was")]);
        let lost = LoadedRows::new(Position(1)).batch(&arrow_schema(&table, &Companions::from([1])), columns);
        assert_eq!(lost.unwrap_err().kind, Kind::Internal);
    }

    #[test]
    fn keys_order_and_free_text_go_without_a_dictionary() {
        let spec = change_spec(&sample(), &Companions::new(), "k".into(), BTreeMap::new());
        assert_eq!(spec.plain_columns, ["id", "note", "change_order"]);
        assert_eq!(
            object_spec(&sample(), &Companions::new(), "k".into(), BTreeMap::new()).plain_columns,
            ["id", "note"]
        );
    }

    #[test]
    fn loaded_rows_carry_the_loads_position() {
        let (schema, mut loaded) = (arrow_schema(&sample(), &Companions::new()), LoadedRows::new(Position(0xabc)));
        let order = Order { commit: 0xabc, ordinal: 0 }.to_string();
        for count in [0, 3, 2, 5] {
            let batch = loaded.batch(&schema, rows(count)).unwrap();
            let count = batch.num_rows();
            assert_eq!(batch.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), vec![Some("I"); count]);
            assert_eq!(batch.column(4).null_count(), count);
            let orders: Vec<_> = batch.column(5).as_string::<i32>().iter().collect();
            assert_eq!(orders, vec![Some(order.as_str()); count]);
        }
    }

    proptest! {
        #[test]
        fn changes_carry_op_time_and_order(
            changes in proptest::collection::vec((0..4usize, any::<u128>(), any::<u32>(), any::<i64>()), 0..50),
        ) {
            let table = sample();
            let all = [Op::Load, Op::Insert, Op::Update, Op::Delete];
            let ops: Vec<Op> = changes.iter().map(|c| all[c.0]).collect();
            let order: Vec<Order> = changes.iter().map(|c| Order { commit: c.1, ordinal: c.2 }).collect();
            let times: Vec<i64> = changes.iter().map(|c| c.3).collect();
            let rows = rows(ops.len() as i64);
            let batch = change_batch(&arrow_schema(&table, &Companions::new()), &ops, &order, times.clone(), rows).unwrap();
            for row in 0..ops.len() {
                prop_assert_eq!(batch.column(0).as_string::<i32>().value(row), ops[row].letter());
                prop_assert_eq!(batch.column(5).as_string::<i32>().value(row), order[row].to_string());
                let time = batch.column(4).as_primitive::<TimestampMicrosecondType>();
                prop_assert_eq!(time.is_null(row), ops[row] == Op::Load);
                prop_assert_eq!(time.is_null(row) || time.value(row) == times[row], true);
            }
        }
    }
}
