//! The memory of a batch that has been encoded, for the next one. A load makes batches on one thread and is done with
//! them on another; an allocator keeps what is freed so, and asks the system for more meanwhile.

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, GenericByteArray, PrimitiveArray,
    cast::AsArray,
    types::{
        BinaryType, ByteArrayType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
        Int64Type, Time64MicrosecondType, TimestampMicrosecondType, Utf8Type,
    },
};

use crate::{
    columns::{ColumnVec, Values},
    rows::Columns,
    types::ColumnType,
};

/// Batches of which the memory is kept for the next ones.
const SPARE_MAX: usize = 2;

/// Memory of batches that are done with.
#[derive(Debug, Default)]
pub struct Spare(Vec<Columns>);

impl Spare {
    /// Keeps it, if there is not enough already, and it is memory alone ([`Columns::reclaim`]).
    pub fn keep(&mut self, columns: Columns) {
        if self.0.len() < SPARE_MAX && columns.rows() == 0 {
            self.0.push(columns);
        }
    }

    /// No rows of the same types as these, in memory that was kept or in new.
    pub fn like(&mut self, columns: &Columns) -> Columns {
        fn types(columns: &Columns) -> impl Iterator<Item = &ColumnType> {
            columns.columns().iter().map(ColumnVec::ty)
        }
        // A rule may have dropped columns on the way.
        let kept = self.0.pop().filter(|kept| types(kept).eq(types(columns)));
        kept.unwrap_or_else(|| Columns::with_room_of(columns))
    }
}

impl Columns {
    /// No rows of these types, in the memory of arrays that were made of such columns.
    pub fn reclaim<'a>(types: impl IntoIterator<Item = &'a ColumnType>, arrays: Vec<ArrayRef>) -> Self {
        let columns = types.into_iter().zip(arrays).map(|(ty, array)| ColumnVec::reclaim(ty, array));
        Self::from_columns(0, columns.collect())
    }
}

impl ColumnVec {
    /// An empty column; in new memory where the array is of another type, shared, or not worth it (lists, booleans).
    fn reclaim(ty: &ColumnType, array: ArrayRef) -> Self {
        let values = match ty {
            ColumnType::Int16 => Values::Int16(numbers::<Int16Type>(array)),
            ColumnType::Int32 => Values::Int32(numbers::<Int32Type>(array)),
            ColumnType::Date => Values::Int32(numbers::<Date32Type>(array)),
            ColumnType::Int64 => Values::Int64(numbers::<Int64Type>(array)),
            ColumnType::Time => Values::Int64(numbers::<Time64MicrosecondType>(array)),
            ColumnType::Timestamp | ColumnType::TimestampTz => {
                Values::Int64(numbers::<TimestampMicrosecondType>(array))
            }
            ColumnType::Float32 => Values::Float32(numbers::<Float32Type>(array)),
            ColumnType::Float64 => Values::Float64(numbers::<Float64Type>(array)),
            ColumnType::Decimal { .. } => Values::Decimal(numbers::<Decimal128Type>(array)),
            ColumnType::Text => bytes::<Utf8Type>(array),
            ColumnType::Binary => bytes::<BinaryType>(array),
            ColumnType::Boolean | ColumnType::List(_) => return Self::new(ty),
        };
        Self::from_parts(ty, 0, None, values).unwrap_or_else(|| Self::new(ty))
    }
}

fn numbers<T: ArrowPrimitiveType>(array: ArrayRef) -> Vec<T::Native> {
    let Some(own) = array.as_any().downcast_ref::<PrimitiveArray<T>>().cloned() else { return vec![] };
    drop(array);
    let (_, values, _) = own.into_parts();
    emptied(values.into_inner().into_vec())
}

fn bytes<T: ByteArrayType<Offset = i32>>(array: ArrayRef) -> Values {
    let Some(own) = array.as_bytes_opt::<T>().cloned() else { return Values::Bytes { offsets: vec![0], data: vec![] } };
    drop(array);
    let (offsets, data, _) = GenericByteArray::<T>::into_parts(own);
    let mut offsets: Vec<i32> = emptied(offsets.into_inner().into_inner().into_vec());
    offsets.push(0);
    Values::Bytes { offsets, data: emptied(data.into_vec()) }
}

/// Without what was in it; anew if somebody else holds the memory.
fn emptied<T, E>(memory: Result<Vec<T>, E>) -> Vec<T> {
    let mut vec = memory.unwrap_or_default();
    vec.clear();
    vec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types() -> Vec<ColumnType> {
        let list = ColumnType::List(Box::new(ColumnType::Int32));
        vec![
            ColumnType::Boolean,
            ColumnType::Int16,
            ColumnType::Int32,
            ColumnType::Date,
            ColumnType::Int64,
            ColumnType::Time,
            ColumnType::Timestamp,
            ColumnType::TimestampTz,
            ColumnType::Float32,
            ColumnType::Float64,
            ColumnType::Decimal { precision: 12, scale: 2 },
            ColumnType::Text,
            ColumnType::Binary,
            list,
        ]
    }

    fn arrays(types: &[ColumnType]) -> Vec<ArrayRef> {
        let of = |ty: &ColumnType| {
            let mut column = ColumnVec::new(ty);
            (0..100).for_each(|_| column.push_null());
            column.into_arrow().unwrap()
        };
        types.iter().map(of).collect()
    }

    #[test]
    fn memory_is_used_again() {
        let types = types();
        let arrays = arrays(&types);
        let addresses: Vec<usize> = arrays.iter().map(|array| array.to_data().buffers()[0].as_ptr() as usize).collect();
        let mut again = Columns::reclaim(&types, arrays);
        assert_eq!(again, Columns::new(&types), "no rows, of the same types");
        for index in 0..types.len() {
            (0..100).for_each(|_| again.column_mut(index).push_null());
        }
        let after: Vec<usize> = again
            .into_columns()
            .into_iter()
            .map(|column| column.into_arrow().unwrap().to_data().buffers()[0].as_ptr() as usize)
            .collect();
        let kept = addresses.iter().zip(&after).filter(|(before, after)| before == after).count();
        assert!(kept >= types.len() - 2, "all but booleans and lists: {kept}");
    }

    #[test]
    fn memory_that_somebody_holds_is_left_alone() {
        let types = types();
        let held = arrays(&types);
        let before: Vec<_> = held.iter().map(|array| array.to_data()).collect();
        let mut again = Columns::reclaim(&types, held.clone());
        again.column_mut(11).push_str("something else");
        assert!(held.iter().zip(&before).all(|(array, before)| array.to_data() == *before));
    }

    #[test]
    fn arrays_of_another_type_become_empty_columns() {
        let types = types();
        let mut turned = arrays(&types);
        turned.reverse();
        assert_eq!(Columns::reclaim(&types, turned), Columns::new(&types));
    }
}
