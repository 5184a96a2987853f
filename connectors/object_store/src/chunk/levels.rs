//! Which rows of a page have a value: the definition levels of a column at the top of its schema, 0 or 1.

use arrow_array::Array;
use arrow_buffer::BooleanBufferBuilder;

use super::runs::{repeated_bits, write_varint};

/// The rows of one page. Where none is null they are only counted.
pub struct Levels {
    nullable: bool,
    rows: usize,
    nulls: usize,
    valid: Option<BooleanBufferBuilder>,
}

impl Levels {
    /// Of a column without rows; one that is not nullable has no levels.
    pub fn new(nullable: bool) -> Self {
        Self { nullable, rows: 0, nulls: 0, valid: None }
    }

    /// Whether the column can hold a null.
    pub fn nullable(&self) -> bool {
        self.nullable
    }

    /// Rows of the page so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds `count` rows of the array from `from`, and tells `values` of each run of them that has values (from, to).
    /// Gives how many are null.
    pub fn extend(
        &mut self,
        array: &dyn Array,
        from: usize,
        count: usize,
        mut values: impl FnMut(usize, usize),
    ) -> u64 {
        let nulls = array.nulls().map(|nulls| nulls.slice(from, count)).filter(|nulls| nulls.null_count() > 0);
        match &nulls {
            None => {
                if let Some(valid) = &mut self.valid {
                    valid.append_n(count, true);
                }
                values(from, from + count);
            }
            Some(nulls) => {
                let valid = self.valid.get_or_insert_with(|| {
                    let mut valid = BooleanBufferBuilder::new(self.rows + count);
                    valid.append_n(self.rows, true);
                    valid
                });
                valid.append_buffer(nulls.inner());
                nulls.valid_slices().for_each(|(first, end)| values(from + first, from + end));
            }
        }
        self.rows += count;
        let nulls = nulls.map_or(0, |nulls| nulls.null_count());
        self.nulls += nulls;
        nulls as u64
    }

    /// Writes the page's levels behind their length, and begins the next.
    pub fn end_page(&mut self, page: &mut Vec<u8>) {
        let (rows, nulls) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.nulls));
        let valid = self.valid.take();
        if !self.nullable {
            return;
        }
        let at = page.len();
        page.extend_from_slice(&[0; 4]);
        match valid {
            None => repeated_bits(rows, 1, 1, page),
            Some(_) if nulls == rows => repeated_bits(rows, 0, 1, page),
            // Arrow's bits lie as Parquet's do.
            Some(mut valid) => {
                let bytes = rows.div_ceil(8);
                write_varint(bytes << 1 | 1, page);
                page.extend_from_slice(&valid.finish().into_inner().as_slice()[..bytes]);
            }
        }
        let length = (page.len() - at - 4) as u32;
        page[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
}
