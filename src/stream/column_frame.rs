//! The payload of a frame of rows: a batch's columns, packed, one format for every size.
//!
//! ```text
//! per row     control byte: bits 0-1 op, 2 the commit changed, 3 the ordinal is not the expected one, 4 the commit
//!             time changed; the expected ordinal is 1 in a new commit, else one more than that of the row before
//! then        for every row whose bits say so: commit and commit time as folded varint deltas, ordinal as a varint
//! per column  null mode: 0 none, 1 bitmap (a set bit has a value), 2 all null; null slots are not stored
//!   integers, decimals   smallest value (folded varint), width in bytes (0, 1, 2, 4, 8, 16), distances from the smallest
//!   floats               their bits
//!   booleans             bits, least significant first
//!   text, bytes          lengths as varints, then all bytes
//!   lists                lengths as varints, then the items as a column, which never is "all null" and never has
//!                        width 0, so that its bytes bound the number of its items
//! at the end  only where values stand as exact text because their columns cannot hold them: how many, for each the
//!             distance of its row from the one before and its column as varints, then the texts as a column
//! ```
//! Row count and table are the frame header's. All integers are little-endian. What the bytes say is checked in full:
//! damaged ones give `None`, and never make the decoder reserve more than a small multiple of their own length (for
//! columns of constants: of the rows, which are bounded by [`ROWS_MAX`]).
//!
//! Measured figures are in the module doc of [`super`].

use std::sync::Arc;

use millrace_core::{Bitmap, ChangeBatch, ColumnType, ColumnVec, Columns, Op, Order, Table, Values, builder};

use super::cursor::{Cursor, fold, fold_wide, put_varint, put_varint_wide, unfold, unfold_wide};

/// A frame has at most as many rows; larger batches become several frames.
pub(super) const ROWS_MAX: usize = builder::BATCH_ROWS_MAX;

const OP_BITS: u8 = 0b11;
const COMMIT_CHANGED: u8 = 1 << 2;
const ORDINAL_GIVEN: u8 = 1 << 3;
const TIME_CHANGED: u8 = 1 << 4;

const NULLS_NONE: u8 = 0;
const NULLS_BITMAP: u8 = 1;
const NULLS_ALL: u8 = 2;

/// Adds the batch's rows to `out`. The batch is sound: [`mod@super::draft`] has checked it.
pub(super) fn encode(batch: &ChangeBatch, out: &mut Vec<u8>) {
    encode_rows(batch, out);
    for column in batch.after.columns() {
        encode_column(column, false, out);
    }
    if let Some(texts) = batch.after.exact_texts() {
        put_varint(out, texts.len() as u64);
        let mut last = 0;
        for (row, column, _) in batch.after.exact_cells() {
            put_varint(out, (row - last) as u64);
            put_varint(out, column as u64);
            last = row;
        }
        encode_column(texts, true, out);
    }
}

/// Rebuilds a batch of `rows` rows of the table; `None` if the bytes are not what [`encode`] writes.
pub(super) fn decode(payload: &[u8], rows: usize, table: &Arc<Table>) -> Option<ChangeBatch> {
    if rows > ROWS_MAX {
        return None;
    }
    let mut cursor = Cursor::new(payload);
    let (ops, order, commit_time_us) = decode_rows(&mut cursor, rows)?;
    let columns = table.columns.iter().map(|column| decode_column(&mut cursor, &column.ty, rows, false));
    let mut after = Columns::from_columns(rows, columns.collect::<Option<Vec<ColumnVec>>>()?);
    if cursor.remaining() > 0 {
        after = decode_exact(&mut cursor, after)?;
    }
    let batch = ChangeBatch { table: table.clone(), ops, order, commit_time_us, after, absent: None };
    (cursor.remaining() == 0).then_some(batch)
}

fn decode_exact(cursor: &mut Cursor, columns: Columns) -> Option<Columns> {
    let count = cursor.count().filter(|count| *count > 0)?;
    let mut cells = Vec::with_capacity(count.min(columns.rows() * columns.columns().len()));
    let mut row = 0u32;
    for _ in 0..count {
        row = row.checked_add(u32::try_from(cursor.varint()?).ok()?)?;
        cells.push((row, u16::try_from(cursor.varint()?).ok()?));
    }
    let texts = decode_column(cursor, &ColumnType::Text, count, true)?;
    columns.with_exact(cells, texts)
}

fn encode_rows(batch: &ChangeBatch, out: &mut Vec<u8>) {
    let controls_at = out.len();
    out.resize(controls_at + batch.rows(), 0);
    let mut last = Order::default();
    let mut last_time = 0i64;
    for (row, ((&op, &order), &time)) in batch.ops.iter().zip(&batch.order).zip(&batch.commit_time_us).enumerate() {
        let mut control = op_code(op);
        let mut expected = last.ordinal.wrapping_add(1);
        if order.commit != last.commit {
            control |= COMMIT_CHANGED;
            put_varint_wide(out, fold_wide(order.commit.wrapping_sub(last.commit) as i128));
            expected = 1;
        }
        if order.ordinal != expected {
            control |= ORDINAL_GIVEN;
            put_varint(out, u64::from(order.ordinal));
        }
        if time != last_time {
            control |= TIME_CHANGED;
            put_varint(out, fold(time.wrapping_sub(last_time)));
        }
        out[controls_at + row] = control;
        (last, last_time) = (order, time);
    }
}

fn decode_rows(cursor: &mut Cursor, rows: usize) -> Option<(Vec<Op>, Vec<Order>, Vec<i64>)> {
    let controls = cursor.take(rows)?;
    let (mut ops, mut orders, mut times) =
        (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::with_capacity(rows));
    let mut order = Order::default();
    let mut time = 0i64;
    for &control in controls {
        if control & !(OP_BITS | COMMIT_CHANGED | ORDINAL_GIVEN | TIME_CHANGED) != 0 {
            return None;
        }
        order.ordinal = order.ordinal.wrapping_add(1);
        if control & COMMIT_CHANGED != 0 {
            order.commit = order.commit.wrapping_add(unfold_wide(cursor.varint_wide()?) as u128);
            order.ordinal = 1;
        }
        if control & ORDINAL_GIVEN != 0 {
            order.ordinal = u32::try_from(cursor.varint()?).ok()?;
        }
        if control & TIME_CHANGED != 0 {
            time = time.wrapping_add(unfold(cursor.varint()?));
        }
        ops.push(op_of(control & OP_BITS));
        orders.push(order);
        times.push(time);
    }
    Some((ops, orders, times))
}

fn op_code(op: Op) -> u8 {
    match op {
        Op::Load => 0,
        Op::Insert => 1,
        Op::Update => 2,
        Op::Delete => 3,
    }
}

fn op_of(code: u8) -> Op {
    match code {
        0 => Op::Load,
        1 => Op::Insert,
        2 => Op::Update,
        _ => Op::Delete,
    }
}

fn encode_column(column: &ColumnVec, nested: bool, out: &mut Vec<u8>) {
    let nulls = column.validity();
    match nulls {
        None => out.push(NULLS_NONE),
        Some(_) if column.null_count() == column.len() && !nested => return out.push(NULLS_ALL),
        Some(bits) => {
            out.push(NULLS_BITMAP);
            out.extend_from_slice(bits.as_bytes());
        }
    }
    match column.values() {
        Values::Boolean(bits) => encode_booleans(bits, nulls, out),
        Values::Int16(v) => encode_integers(v, nulls, nested, out),
        Values::Int32(v) => encode_integers(v, nulls, nested, out),
        Values::Int64(v) => encode_integers(v, nulls, nested, out),
        Values::Float32(v) => present(v, nulls).for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Values::Float64(v) => present(v, nulls).for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Values::Decimal(v) => encode_decimals(v, nulls, nested, out),
        Values::Bytes { offsets, data } => {
            let whole = encode_lengths(offsets, nulls, out) == data.len();
            if whole {
                out.extend_from_slice(data);
            } else {
                ranges(offsets, nulls).for_each(|(start, end)| out.extend_from_slice(&data[start..end]));
            }
        }
        Values::List { offsets, items } => {
            if encode_lengths(offsets, nulls, out) == items.len() {
                return encode_column(items, true, out);
            }
            // A null slot that covers items: only a list taken over from foreign parts has such.
            let mut kept = ColumnVec::new(items.ty());
            ranges(offsets, nulls).for_each(|(start, end)| kept.append_range(items, start, end - start));
            encode_column(&kept, true, out);
        }
    }
}

/// The values of the slots that are not null.
fn present<'a, T: Copy>(values: &'a [T], nulls: Option<&'a Bitmap>) -> impl Iterator<Item = T> + 'a {
    values.iter().enumerate().filter(move |(row, _)| nulls.is_none_or(|bits| bits.get(*row))).map(|(_, &value)| value)
}

/// Where the values of the slots that are not null begin and end.
fn ranges<'a>(offsets: &'a [i32], nulls: Option<&'a Bitmap>) -> impl Iterator<Item = (usize, usize)> + 'a {
    let pairs = offsets.windows(2).enumerate();
    pairs
        .filter(move |(row, _)| nulls.is_none_or(|bits| bits.get(*row)))
        .map(|(_, pair)| (pair[0] as usize, pair[1] as usize))
}

/// Writes the lengths of the slots that are not null and gives their sum.
fn encode_lengths(offsets: &[i32], nulls: Option<&Bitmap>, out: &mut Vec<u8>) -> usize {
    let mut sum = 0;
    for (start, end) in ranges(offsets, nulls) {
        put_varint(out, (end - start) as u64);
        sum += end - start;
    }
    sum
}

fn encode_booleans(bits: &Bitmap, nulls: Option<&Bitmap>, out: &mut Vec<u8>) {
    let Some(nulls) = nulls else { return out.extend_from_slice(bits.as_bytes()) };
    let mut packed = Bitmap::default();
    (0..bits.len()).filter(|&row| nulls.get(row)).for_each(|row| packed.push(bits.get(row)));
    out.extend_from_slice(packed.as_bytes());
}

fn encode_integers<T: Copy + Into<i64>>(values: &[T], nulls: Option<&Bitmap>, nested: bool, out: &mut Vec<u8>) {
    let (mut least, mut greatest) = (i64::MAX, i64::MIN);
    let mut widen = |value: T| {
        let value: i64 = value.into();
        least = least.min(value);
        greatest = greatest.max(value);
    };
    match nulls {
        None => values.iter().for_each(|&value| widen(value)),
        Some(_) => present(values, nulls).for_each(widen),
    }
    if least > greatest {
        (least, greatest) = (0, 0);
    }
    put_varint(out, fold(least));
    let width = width_of(u128::from(greatest.wrapping_sub(least) as u64), nested);
    out.push(width);
    let distance = |value: T| value.into().wrapping_sub(least) as u64;
    match nulls {
        // Without nulls the loop is over a slice of known length, which the compiler turns into vector instructions.
        None => put_distances(values.iter().map(|&value| distance(value)), width, out),
        Some(_) => put_distances(present(values, nulls).map(distance), width, out),
    }
}

fn encode_decimals(values: &[i128], nulls: Option<&Bitmap>, nested: bool, out: &mut Vec<u8>) {
    let (least, greatest) = present(values, nulls)
        .fold((i128::MAX, i128::MIN), |(least, greatest), value| (least.min(value), greatest.max(value)));
    let (least, greatest) = if least > greatest { (0, 0) } else { (least, greatest) };
    put_varint_wide(out, fold_wide(least));
    let width = width_of(greatest.wrapping_sub(least) as u128, nested);
    out.push(width);
    let distances = present(values, nulls).map(|value| value.wrapping_sub(least) as u128);
    if width == 16 {
        distances.for_each(|distance| out.extend_from_slice(&distance.to_le_bytes()));
    } else {
        put_distances(distances.map(|distance| distance as u64), width, out);
    }
}

/// Fewest bytes that hold every distance up to `greatest`.
fn width_of(greatest: u128, nested: bool) -> u8 {
    match greatest {
        0 => u8::from(nested),
        1..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        0x1_0000_0000..=0xffff_ffff_ffff_ffff => 8,
        _ => 16,
    }
}

fn put_distances(distances: impl Iterator<Item = u64>, width: u8, out: &mut Vec<u8>) {
    match width {
        0 => {}
        1 => out.extend(distances.map(|distance| distance as u8)),
        2 => put_arrays(distances.map(|distance| (distance as u16).to_le_bytes()), out),
        4 => put_arrays(distances.map(|distance| (distance as u32).to_le_bytes()), out),
        _ => put_arrays(distances.map(u64::to_le_bytes), out),
    }
}

fn put_arrays<const N: usize>(arrays: impl Iterator<Item = [u8; N]>, out: &mut Vec<u8>) {
    out.reserve(arrays.size_hint().0 * N);
    arrays.for_each(|array| out.extend_from_slice(&array));
}

/// The slots of a column that is being decoded.
#[derive(Debug, Clone)]
struct Slots {
    /// Set where there is a value; `None` without nulls.
    valid: Option<Bitmap>,
    /// Number of slots.
    len: usize,
    /// Number of values.
    present: usize,
}

impl Slots {
    /// Puts the values into their slots; null slots get the default.
    fn spread<T: Default>(&self, mut values: impl Iterator<Item = T>) -> Vec<T> {
        match &self.valid {
            None => values.collect(),
            Some(bits) => {
                let slot = |row| if bits.get(row) { values.next().unwrap_or_default() } else { T::default() };
                (0..self.len).map(slot).collect()
            }
        }
    }
}

fn decode_column(cursor: &mut Cursor, ty: &ColumnType, len: usize, nested: bool) -> Option<ColumnVec> {
    let slots = match cursor.u8()? {
        NULLS_NONE => Slots { valid: None, len, present: len },
        NULLS_BITMAP => {
            let bits = Bitmap::from_bytes(cursor.take(len.div_ceil(8))?.to_vec(), len)?;
            let present = bits.count_ones();
            Slots { valid: Some(bits), len, present }
        }
        NULLS_ALL if !nested => {
            let mut column = ColumnVec::new(ty);
            (0..len).for_each(|_| column.push_null());
            return Some(column);
        }
        _ => return None,
    };
    if nested && slots.present > cursor.remaining().saturating_mul(if *ty == ColumnType::Boolean { 8 } else { 1 }) {
        return None;
    }
    let values = match ty {
        ColumnType::Boolean => Values::Boolean(decode_booleans(cursor, &slots)?),
        ColumnType::Int16 => Values::Int16(decode_integers(cursor, &slots, nested, |value| value as i16)?),
        ColumnType::Int32 | ColumnType::Date => {
            Values::Int32(decode_integers(cursor, &slots, nested, |value| value as i32)?)
        }
        ColumnType::Int64 | ColumnType::Time | ColumnType::Timestamp | ColumnType::TimestampTz => {
            Values::Int64(decode_integers(cursor, &slots, nested, |value| value)?)
        }
        ColumnType::Float32 => Values::Float32(slots.spread(arrays(cursor, &slots)?.map(f32::from_le_bytes))),
        ColumnType::Float64 => Values::Float64(slots.spread(arrays(cursor, &slots)?.map(f64::from_le_bytes))),
        ColumnType::Decimal { .. } => Values::Decimal(decode_decimals(cursor, &slots, nested)?),
        ColumnType::Text | ColumnType::Binary => {
            let (offsets, end) = decode_lengths(cursor, &slots)?;
            Values::Bytes { offsets, data: cursor.take(end)?.to_vec() }
        }
        ColumnType::List(item) => {
            let (offsets, end) = decode_lengths(cursor, &slots)?;
            Values::List { offsets, items: Box::new(decode_column(cursor, item, end, true)?) }
        }
    };
    ColumnVec::from_parts(ty, len, slots.valid, values)
}

fn decode_booleans(cursor: &mut Cursor, slots: &Slots) -> Option<Bitmap> {
    let packed = Bitmap::from_bytes(cursor.take(slots.present.div_ceil(8))?.to_vec(), slots.present)?;
    let Some(valid) = &slots.valid else { return Some(packed) };
    let mut bits = Bitmap::default();
    let mut next = 0;
    for row in 0..slots.len {
        let is_valid = valid.get(row);
        bits.push(is_valid && packed.get(next));
        next += usize::from(is_valid);
    }
    Some(bits)
}

/// As many arrays as there are values.
fn arrays<'a, const N: usize>(cursor: &mut Cursor<'a>, slots: &Slots) -> Option<impl Iterator<Item = [u8; N]> + 'a> {
    let (arrays, _) = cursor.take(slots.present.checked_mul(N)?)?.as_chunks::<N>();
    Some(arrays.iter().copied())
}

/// `narrow` cuts to the column's width; a value outside it only comes from damaged bytes and is cut like any other.
fn decode_integers<T: Default>(
    cursor: &mut Cursor,
    slots: &Slots,
    nested: bool,
    narrow: impl Fn(i64) -> T,
) -> Option<Vec<T>> {
    let least = unfold(cursor.varint()?);
    let value = |distance: u64| narrow(least.wrapping_add(distance as i64));
    Some(match cursor.u8()? {
        0 if !nested => slots.spread((0..slots.present).map(|_| value(0))),
        1 => slots.spread(arrays(cursor, slots)?.map(|[byte]: [u8; 1]| value(u64::from(byte)))),
        2 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u64::from(u16::from_le_bytes(bytes))))),
        4 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u64::from(u32::from_le_bytes(bytes))))),
        8 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u64::from_le_bytes(bytes)))),
        _ => return None,
    })
}

fn decode_decimals(cursor: &mut Cursor, slots: &Slots, nested: bool) -> Option<Vec<i128>> {
    let least = unfold_wide(cursor.varint_wide()?);
    let value = |distance: u128| least.wrapping_add(distance as i128);
    Some(match cursor.u8()? {
        0 if !nested => slots.spread((0..slots.present).map(|_| value(0))),
        1 => slots.spread(arrays(cursor, slots)?.map(|[byte]: [u8; 1]| value(u128::from(byte)))),
        2 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u128::from(u16::from_le_bytes(bytes))))),
        4 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u128::from(u32::from_le_bytes(bytes))))),
        8 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u128::from(u64::from_le_bytes(bytes))))),
        16 => slots.spread(arrays(cursor, slots)?.map(|bytes| value(u128::from_le_bytes(bytes)))),
        _ => return None,
    })
}

/// The offsets, and where the last one ends.
fn decode_lengths(cursor: &mut Cursor, slots: &Slots) -> Option<(Vec<i32>, usize)> {
    let mut offsets = Vec::with_capacity(slots.len + 1);
    let mut end = 0i32;
    offsets.push(0);
    for row in 0..slots.len {
        if slots.valid.as_ref().is_none_or(|bits| bits.get(row)) {
            end = end.checked_add(i32::try_from(cursor.varint()?).ok()?)?;
        }
        offsets.push(end);
    }
    Some((offsets, end as usize))
}

#[cfg(test)]
mod tests {
    use millrace_core::{Capture, Column, TableName};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn table(types: &[ColumnType]) -> Arc<Table> {
        let column = |(index, ty): (usize, &ColumnType)| Column {
            id: index as i32 + 1,
            name: format!("c{index}"),
            ty: ty.clone(),
            source_type: "whatever".into(),
            nullable: true,
            older_rows: None,
        };
        Arc::new(Table {
            name: TableName::new("s", "t"),
            source_id: 1,
            version: 1,
            columns: types.iter().enumerate().map(column).collect(),
            key: vec![],
            capture: Capture::All,
            storage_id: 1,
            definition_id: 1,
            columns_ever: 0,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        })
    }

    fn any_type() -> impl Strategy<Value = ColumnType> {
        let plain = prop_oneof![
            Just(ColumnType::Boolean),
            Just(ColumnType::Int16),
            Just(ColumnType::Int32),
            Just(ColumnType::Int64),
            Just(ColumnType::Float32),
            Just(ColumnType::Float64),
            (1..=38u8).prop_map(|precision| ColumnType::Decimal { precision, scale: precision / 2 }),
            Just(ColumnType::Text),
            Just(ColumnType::Binary),
            Just(ColumnType::Date),
            Just(ColumnType::Time),
            Just(ColumnType::Timestamp),
            Just(ColumnType::TimestampTz),
        ];
        plain.prop_recursive(2, 4, 1, |item| item.prop_map(|item| ColumnType::List(Box::new(item))))
    }

    /// A value for any type: what of it is used depends on the type.
    #[derive(Debug, Clone)]
    struct Seed {
        null: bool,
        wide: i128,
        text: String,
        items: Vec<Seed>,
    }

    fn any_seed(nulls: f64) -> impl Strategy<Value = Seed> {
        let wide =
            prop_oneof![Just(0i128), -3..3i128, -70_000..70_000i128, any::<i64>().prop_map(i128::from), any::<i128>()];
        let leaf = (prop::bool::weighted(nulls), wide, vec(any::<char>(), 0..6).prop_map(String::from_iter))
            .prop_map(|(null, wide, text)| Seed { null, wide, text, items: vec![] });
        leaf.prop_recursive(2, 12, 4, |inner| {
            (inner.clone(), vec(inner, 0..4)).prop_map(|(seed, items)| Seed { items, ..seed })
        })
    }

    /// Of the nulls some have an exact text.
    fn push_cell(columns: &mut Columns, index: usize, seed: &Seed) {
        if seed.null && seed.wide & 1 == 1 {
            columns.push_exact(index, &seed.text);
        } else {
            push(columns.column_mut(index), seed);
        }
    }

    fn push(column: &mut ColumnVec, seed: &Seed) {
        if seed.null {
            return column.push_null();
        }
        let wide = seed.wide;
        match column.ty().clone() {
            ColumnType::Boolean => column.push_bool(wide & 1 == 1),
            ColumnType::Int16 => column.push_i16(wide as i16),
            ColumnType::Int32 | ColumnType::Date => column.push_i32(wide as i32),
            ColumnType::Int64 | ColumnType::Time | ColumnType::Timestamp | ColumnType::TimestampTz => {
                column.push_i64(wide as i64);
            }
            ColumnType::Float32 => column.push_f32(wide as f32 / 3.0),
            ColumnType::Float64 => column.push_f64(wide as f64 / 7.0),
            ColumnType::Decimal { .. } => column.push_decimal(wide),
            ColumnType::Text => column.push_str(&seed.text),
            ColumnType::Binary => column.push_bytes(&wide.to_le_bytes()[..(wide as usize) & 15]),
            ColumnType::List(_) => {
                let fill = |items: &mut ColumnVec| {
                    seed.items.iter().for_each(|item| push(items, item));
                    Ok::<(), ()>(())
                };
                column.push_list(fill).unwrap();
            }
        }
    }

    type Rows = Vec<(u8, u128, u32, i64, Vec<Seed>)>;

    fn any_batch() -> impl Strategy<Value = ChangeBatch> {
        let types = vec(any_type(), 0..6);
        let nulls = prop_oneof![Just(0.0), Just(0.3), Just(1.0)];
        (types, nulls, 0..40usize)
            .prop_flat_map(|(types, nulls, rows)| {
                let commit = prop_oneof![3 => 0..3u128, 1 => any::<u128>()];
                let ordinal = prop_oneof![3 => 0..4u32, 1 => any::<u32>()];
                let time = prop_oneof![3 => 0..2i64, 1 => any::<i64>()];
                let row = (0..4u8, commit, ordinal, time, vec(any_seed(nulls), types.len()));
                (Just(types), vec(row, rows))
            })
            .prop_map(|(types, rows): (Vec<ColumnType>, Rows)| batch(&types, rows))
    }

    fn batch(types: &[ColumnType], rows: Rows) -> ChangeBatch {
        let mut after = Columns::new(types);
        let (mut ops, mut order, mut times) = (vec![], vec![], vec![]);
        for (op, commit, ordinal, time, seeds) in rows {
            seeds.iter().enumerate().for_each(|(index, seed)| push_cell(&mut after, index, seed));
            after.end_row();
            ops.push(op_of(op));
            order.push(Order { commit, ordinal });
            times.push(time);
        }
        ChangeBatch { table: table(types), ops, order, commit_time_us: times, after, absent: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn batches_round_trip(batch in any_batch()) {
            let mut bytes = vec![];
            encode(&batch, &mut bytes);
            let back = decode(&bytes, batch.rows(), &batch.table);
            prop_assert_eq!(back.as_ref(), Some(&batch));
            // Nothing shorter is taken for a whole frame.
            if let Some(cut) = bytes.len().checked_sub(1) {
                prop_assert_eq!(decode(&bytes[..cut], batch.rows(), &batch.table), None);
            }
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(types in vec(any_type(), 0..5), rows in 0..300usize, bytes in vec(any::<u8>(), 0..400)) {
            if let Some(batch) = decode(&bytes, rows, &table(&types)) {
                prop_assert_eq!(batch.rows(), rows);
                // A row takes a byte at least, a cell of a constant column at most 16 bytes and its null bit; an item
                // of a list takes a bit at least and 16 bytes and an offset at most.
                prop_assert!(batch.byte_size() <= (rows + 1) * (40 + types.len() * 24) + bytes.len() * 8 * 24);
            }
        }

        #[test]
        fn damaged_batches_do_no_harm(batch in any_batch(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = vec![];
            encode(&batch, &mut bytes);
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                if let Some(back) = decode(&bytes, batch.rows(), &batch.table) {
                    prop_assert_eq!(back.rows(), batch.rows());
                }
            }
        }
    }

    #[test]
    fn a_list_cannot_claim_more_items_than_its_bytes_hold() {
        let list = ColumnType::List(Box::new(ColumnType::Int64));
        let lengths = [0xff, 0xff, 0xff, 0xff, 0x07];
        for items in [&[NULLS_ALL][..], &[NULLS_NONE, 0, 0], &[NULLS_NONE, 0, 1, 7], &[NULLS_BITMAP, 0, 0]] {
            let bytes = [&[0b01, NULLS_NONE][..], &lengths, items].concat();
            assert_eq!(decode(&bytes, 1, &table(std::slice::from_ref(&list))), None);
        }
    }

    #[test]
    fn null_slots_that_cover_bytes_are_not_stored() {
        let bits = || Bitmap::from_bytes(vec![0b101], 3);
        let offsets = || vec![0, 1, 3, 4];
        let values = Values::Bytes { offsets: offsets(), data: b"abcd".to_vec() };
        let text = ColumnVec::from_parts(&ColumnType::Text, 3, bits(), values).unwrap();
        let mut items = ColumnVec::new(&ColumnType::Int32);
        (0..4).for_each(|item| items.push_i32(item));
        let ty = ColumnType::List(Box::new(ColumnType::Int32));
        let values = Values::List { offsets: offsets(), items: Box::new(items) };
        let list = ColumnVec::from_parts(&ty, 3, bits(), values).unwrap();
        let after = Columns::from_columns(3, vec![text, list]);
        let table = table(&[ColumnType::Text, ty]);
        let order = vec![Order::default(); 3];
        let batch = ChangeBatch {
            table: table.clone(),
            ops: vec![Op::Insert; 3],
            order,
            commit_time_us: vec![0; 3],
            after,
            absent: None,
        };
        let mut bytes = vec![];
        encode(&batch, &mut bytes);
        let back = decode(&bytes, 3, &table).unwrap().after;
        for (column, was) in back.columns().iter().zip(batch.after.columns()) {
            let cells = |c: &ColumnVec| (0..3).map(|row| c.cell_text(row)).collect::<Vec<_>>();
            assert_eq!(cells(column), cells(was));
        }
        assert_eq!(back.columns()[0].bytes(2), Some(&b"d"[..]));
    }

    #[test]
    fn consecutive_rows_of_one_transaction_take_a_byte_each() {
        let rows = (0..100).map(|row| (1, 77, row + 1, 5, vec![])).collect();
        let mut bytes = vec![];
        encode(&batch(&[], rows), &mut bytes);
        assert_eq!(bytes.len(), 100 + 2 + 1);
    }

    #[test]
    #[ignore = "measures; run it with --release --nocapture"]
    fn measure() {
        let types = [
            ColumnType::Int64,
            ColumnType::Int32,
            ColumnType::Text,
            ColumnType::Decimal { precision: 12, scale: 2 },
            ColumnType::TimestampTz,
            ColumnType::Text,
            ColumnType::Boolean,
            ColumnType::Date,
            ColumnType::Text,
        ];
        let table = table(&types);
        for rows in [1usize, 16, 256, 4096] {
            let mut after = Columns::new(&types);
            for row in 0..rows as i64 {
                after.column_mut(0).push_i64(1_000_000 + row);
                after.column_mut(1).push_i32((row * 7919 % 100_000) as i32);
                after.column_mut(2).push_str(["open", "paid", "shipped"][row as usize % 3]);
                after.column_mut(3).push_decimal(i128::from(row * 104_729 % 10_000_000));
                after.column_mut(4).push_i64(1_700_000_000_000_000 + row * 12_345);
                after.column_mut(5).push_str(&format!("customer {row} wants it soon"));
                after.column_mut(6).push_bool(row % 2 == 0);
                after.column_mut(7).push_i32(19_000 + row as i32 % 365);
                if row % 5 == 0 {
                    after.column_mut(8).push_null()
                } else {
                    after.column_mut(8).push_str("a comment of some length")
                }
                after.end_row();
            }
            let order = (0..rows as u128)
                .map(|row| Order { commit: 0x1_0000_0000 + row / 4 * 400, ordinal: row as u32 % 4 + 1 });
            let batch = ChangeBatch {
                table: table.clone(),
                ops: vec![Op::Insert; rows],
                order: order.collect(),
                commit_time_us: (0..rows as i64).map(|row| 1_700_000_000_000_000 + row / 4 * 1000).collect(),
                after,
                absent: None,
            };
            let rounds = 2_000_000 / rows;
            let mut out = vec![];
            let start = std::time::Instant::now();
            for _ in 0..rounds {
                out.clear();
                encode(std::hint::black_box(&batch), &mut out);
            }
            let encoded = start.elapsed();
            let start = std::time::Instant::now();
            for _ in 0..rounds {
                std::hint::black_box(decode(&out, rows, &table).unwrap());
            }
            let per_row = |elapsed: std::time::Duration| elapsed.as_nanos() as f64 / (rounds * rows) as f64;
            let (encode_ns, decode_ns) = (per_row(encoded), per_row(start.elapsed()));
            println!(
                "{rows} rows: encode {encode_ns:.1} decode {decode_ns:.1} ns per row, {} bytes per row",
                out.len() / rows
            );
        }
    }
}
