//! The column chunk of values that are numbers or texts for Parquet: what the library writes for such a column, with a
//! dictionary or plainly, for 0.6 of its CPU time (`connectors/object_store/examples/encode.rs`).
//!
//! The library hashes and compares every value as bytes behind several calls, keeps a 64-bit index for each, and looks for the
//! smallest and largest value by value. Here a batch is a slice that each step goes through at once. Pages are of version 1, at
//! most [`PAGE_ROWS_MAX`] rows each; a plain one ends with the text that reaches [`PAGE_BYTES_MAX`]. A dictionary is given up
//! where it does not pay: at once if it is more than half of the first page's values, and for the rest of the chunk when it
//! outgrows [`DICTIONARY_BYTES_MAX`].
//!
//! Lists, floats (whose statistics know NaN), booleans and wide decimals are left to the library. Format: parquet-format,
//! "Encodings" (PLAIN, RLE_DICTIONARY), "Data Pages", "Types".

mod compressor;
mod dictionary;
mod levels;
mod numbers;
mod pages;
mod runs;
mod texts;

use arrow_array::{
    Array, ArrowPrimitiveType,
    cast::AsArray,
    types::{
        Date32Type, Decimal128Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
    },
};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;
use parquet::{
    basic::{Encoding, Type as Physical},
    column::writer::ColumnCloseResult,
    errors::{ParquetError, Result},
    file::properties::{DEFAULT_DATA_PAGE_ROW_COUNT_LIMIT, EnabledStatistics, WriterProperties},
    schema::types::ColumnDescPtr,
};

pub use self::compressor::Compressor;
use self::{
    levels::Levels,
    numbers::{Numbers, Whole},
    pages::Pages,
    texts::Texts,
};

/// A column with more distinct values than fit here is written plainly: looking for every value of it is wasted.
pub const DICTIONARY_BYTES_MAX: usize = 256 << 10;
/// Every column holds a page; with the usual 1 MiB that is 25 MiB per file.
pub const PAGE_BYTES_MAX: usize = 256 << 10;
/// The library's, too.
const PAGE_ROWS_MAX: usize = DEFAULT_DATA_PAGE_ROW_COUNT_LIMIT;

/// A column of one row group being encoded.
pub struct Chunk {
    column: ColumnDescPtr,
    ty: DataType,
    values: Values,
    levels: Levels,
    pages: Pages,
    statistics: bool,
    nulls: u64,
}

enum Values {
    Numbers(Numbers),
    Texts(Texts),
}

impl Chunk {
    /// Of a column of the file, if it is one for which this is made.
    pub fn of(column: &ColumnDescPtr, ty: &DataType, properties: &WriterProperties) -> Option<Self> {
        if column.max_rep_level() > 0 || column.max_def_level() > 1 {
            return None;
        }
        let dictionary = properties.dictionary_enabled(column.path());
        let statistics = properties.statistics_enabled(column.path()) != EnabledStatistics::None;
        let values = match (ty, column.physical_type()) {
            (DataType::Int16 | DataType::Int32 | DataType::Date32 | DataType::Decimal128(..), Physical::INT32) => {
                Values::Numbers(Numbers::of_width(4, dictionary))
            }
            (
                DataType::Int64
                | DataType::Decimal128(..)
                | DataType::Time64(TimeUnit::Microsecond)
                | DataType::Timestamp(TimeUnit::Microsecond, _),
                Physical::INT64,
            ) => Values::Numbers(Numbers::of_width(8, dictionary)),
            // Of texts nothing here finds the smallest and the largest.
            (DataType::Utf8 | DataType::Binary, Physical::BYTE_ARRAY) if !statistics => {
                Values::Texts(Texts::new(dictionary))
            }
            _ => return None,
        };
        let levels = Levels::new(column.max_def_level() == 1);
        Some(Self {
            column: column.clone(),
            ty: ty.clone(),
            values,
            levels,
            pages: Pages::default(),
            statistics,
            nulls: 0,
        })
    }

    /// Encodes a batch of its column.
    pub fn write(&mut self, array: &dyn Array, compressor: &mut Compressor) -> Result<()> {
        if array.data_type() != &self.ty {
            return Err(self.unlike(array));
        }
        if array.null_count() > 0 && !self.levels.nullable() {
            return Err(ParquetError::General(format!("column {:?} has no room for a null", self.column.name())));
        }
        match &self.values {
            Values::Numbers(_) => match array.data_type() {
                DataType::Int16 => self.write_numbers::<Int16Type>(array, compressor),
                DataType::Int32 => self.write_numbers::<Int32Type>(array, compressor),
                DataType::Int64 => self.write_numbers::<Int64Type>(array, compressor),
                DataType::Date32 => self.write_numbers::<Date32Type>(array, compressor),
                DataType::Decimal128(..) => self.write_numbers::<Decimal128Type>(array, compressor),
                DataType::Time64(TimeUnit::Microsecond) => {
                    self.write_numbers::<Time64MicrosecondType>(array, compressor)
                }
                DataType::Timestamp(TimeUnit::Microsecond, _) => {
                    self.write_numbers::<TimestampMicrosecondType>(array, compressor)
                }
                _ => Err(self.unlike(array)),
            },
            Values::Texts(_) => {
                let (offsets, bytes) = match array.data_type() {
                    DataType::Utf8 => (array.as_string::<i32>().value_offsets(), array.as_string::<i32>().value_data()),
                    DataType::Binary => {
                        (array.as_binary::<i32>().value_offsets(), array.as_binary::<i32>().value_data())
                    }
                    _ => return Err(self.unlike(array)),
                };
                self.write_texts(array, offsets, bytes, compressor)
            }
        }
    }

    fn unlike(&self, array: &dyn Array) -> ParquetError {
        let name = self.column.name();
        ParquetError::General(format!("column {name:?} is another one in this batch: {}", array.data_type()))
    }

    fn write_numbers<T: ArrowPrimitiveType<Native: Whole>>(
        &mut self,
        array: &dyn Array,
        compressor: &mut Compressor,
    ) -> Result<()> {
        let values: &[T::Native] = array.as_primitive::<T>().values();
        let mut from = 0;
        while from < array.len() {
            let count = (array.len() - from).min(PAGE_ROWS_MAX - self.levels.rows());
            let Values::Numbers(numbers) = &mut self.values else { return Err(self.unlike(array)) };
            self.nulls += self.levels.extend(array, from, count, |from, to| numbers.extend(&values[from..to]));
            from += count;
            self.end_full_page(compressor)?;
        }
        Ok(())
    }

    fn write_texts(
        &mut self,
        array: &dyn Array,
        offsets: &[i32],
        bytes: &[u8],
        compressor: &mut Compressor,
    ) -> Result<()> {
        let mut from = 0;
        while from < array.len() {
            let Values::Texts(texts) = &mut self.values else { return Err(self.unlike(array)) };
            let count = (array.len() - from).min(PAGE_ROWS_MAX - self.levels.rows());
            let count = texts.room(&offsets[from..=from + count]);
            let extend = |from: usize, to: usize| texts.extend(&offsets[from..=to], bytes);
            self.nulls += self.levels.extend(array, from, count, extend);
            from += count;
            self.end_full_page(compressor)?;
        }
        Ok(())
    }

    fn end_full_page(&mut self, compressor: &mut Compressor) -> Result<()> {
        let outgrown = self.dictionary_bytes() > DICTIONARY_BYTES_MAX && self.has_dictionary();
        if outgrown || self.page_bytes() >= PAGE_BYTES_MAX || self.levels.rows() >= PAGE_ROWS_MAX {
            self.end_page(compressor)?;
        }
        if outgrown {
            match &mut self.values {
                Values::Numbers(numbers) => numbers.go_on_plainly(),
                Values::Texts(texts) => texts.go_on_plainly(),
            }
        }
        Ok(())
    }

    fn end_page(&mut self, compressor: &mut Compressor) -> Result<()> {
        let rows = self.levels.rows();
        if rows == 0 {
            return Ok(());
        }
        if self.pages.is_empty() {
            match &mut self.values {
                Values::Numbers(numbers) => numbers.give_up_if_distinct(),
                Values::Texts(texts) => texts.give_up_if_distinct(),
            }
        }
        let mut page = compressor.page_buffer();
        self.levels.end_page(&mut page);
        let encoding = match &mut self.values {
            Values::Numbers(numbers) => numbers.end_page(&mut page),
            Values::Texts(texts) => texts.end_page(&mut page),
        };
        self.pages.add(rows, encoding, page, compressor)
    }

    fn has_dictionary(&self) -> bool {
        match &self.values {
            Values::Numbers(numbers) => numbers.has_dictionary(),
            Values::Texts(texts) => texts.has_dictionary(),
        }
    }

    fn dictionary_bytes(&self) -> usize {
        match &self.values {
            Values::Numbers(numbers) => numbers.dictionary_bytes(),
            Values::Texts(texts) => texts.dictionary_bytes(),
        }
    }

    fn page_bytes(&self) -> usize {
        match &self.values {
            Values::Numbers(numbers) => numbers.page_bytes(),
            Values::Texts(texts) => texts.page_bytes(),
        }
    }

    /// Memory that it holds, in bytes.
    pub fn held_bytes(&self) -> usize {
        let values = match &self.values {
            Values::Numbers(numbers) => numbers.held_bytes(),
            Values::Texts(texts) => texts.held_bytes(),
        };
        self.pages.bytes() + values
    }

    /// How large it will be, about.
    pub fn encoded_bytes(&self) -> usize {
        self.pages.bytes() + self.page_bytes() + self.dictionary_bytes()
    }

    /// The chunk's bytes, and what the file must know of it; of at least one row.
    pub fn close(mut self, compressor: &mut Compressor) -> Result<(Bytes, ColumnCloseResult)> {
        self.end_page(compressor)?;
        let (dictionary, statistics) = match self.values {
            Values::Numbers(numbers) => {
                let statistics = self.statistics.then(|| numbers.statistics(&self.column, self.nulls));
                (numbers.into_dictionary(), statistics)
            }
            Values::Texts(texts) => (texts.into_dictionary(), None),
        };
        let dictionary = self.pages.have(Encoding::RLE_DICTIONARY).then_some(dictionary);
        self.pages.close(&self.column, dictionary, statistics, compressor)
    }
}

/// The buffer, for the next page; a new one if it is far larger than pages of usual values are.
fn kept(buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > 4 * PAGE_BYTES_MAX { vec![] } else { buffer }
}

#[cfg(test)]
mod tests;
