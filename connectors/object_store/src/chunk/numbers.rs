//! Whole numbers of 4 or 8 bytes: integers, decimals of up to 18 digits, dates and times.

use parquet::{
    basic::Encoding,
    file::statistics::{Statistics, ValueStatistics},
    schema::types::ColumnDescPtr,
};

use super::{dictionary::Dictionary, pages::width_of, runs::write_indices};

/// What Arrow holds such numbers in. Decimals of up to 18 digits lie in 128 bits, of which 64 are enough.
pub trait Whole: Copy + PartialEq {
    /// The number itself; every one that can be in such a column fits.
    fn to_i64(self) -> i64;
}

impl Whole for i16 {
    fn to_i64(self) -> i64 {
        self.into()
    }
}

impl Whole for i32 {
    fn to_i64(self) -> i64 {
        self.into()
    }
}

impl Whole for i64 {
    fn to_i64(self) -> i64 {
        self
    }
}

impl Whole for i128 {
    fn to_i64(self) -> i64 {
        self as i64
    }
}

/// The values of a chunk: of the page as indices or plainly, and the distinct ones.
pub struct Numbers {
    /// Bytes of a value.
    width: usize,
    dictionary: Option<Dictionary>,
    distinct: Vec<i64>,
    indices: Vec<u32>,
    plain: Vec<u8>,
    /// The smallest and the largest so far.
    bounds: Option<(i64, i64)>,
}

impl Numbers {
    /// None so far, of 4 or 8 bytes.
    pub fn of_width(width: usize, dictionary: bool) -> Self {
        let dictionary = dictionary.then(Dictionary::new);
        Self { width, dictionary, distinct: vec![], indices: vec![], plain: vec![], bounds: None }
    }

    /// Adds values that follow each other.
    pub fn extend<N: Whole>(&mut self, values: &[N]) {
        let Some(first) = values.first() else { return };
        let first = first.to_i64();
        let (least, most) = self.bounds.unwrap_or((first, first));
        self.bounds = Some(values.iter().fold((least, most), |(least, most), value| {
            let value = value.to_i64();
            (least.min(value), most.max(value))
        }));
        let Some(dictionary) = &mut self.dictionary else { return put_plainly(values, self.width, &mut self.plain) };
        let mut index_of = |value: i64| {
            let (index, new) = dictionary.number(value, &self.distinct);
            if new {
                self.distinct.push(value);
            }
            index
        };
        if self.bounds == Some((first, first)) {
            // All that have ever been are the same.
            self.indices.resize(self.indices.len() + values.len(), index_of(first));
        } else {
            self.indices.extend(values.iter().map(|value| index_of(value.to_i64())));
        }
    }

    /// Writes the page's values, and begins the next.
    pub fn end_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        if self.dictionary.is_some() {
            write_indices(&self.indices, width_of(self.distinct.len()), page);
            self.indices.clear();
            Encoding::RLE_DICTIONARY
        } else {
            page.extend_from_slice(&self.plain);
            self.plain.clear();
            Encoding::PLAIN
        }
    }

    /// Without the dictionary from the next page on; what it holds stays.
    pub fn go_on_plainly(&mut self) {
        self.dictionary = None;
        self.indices = vec![];
    }

    /// Writes the first page plainly if a dictionary does not pay.
    pub fn give_up_if_distinct(&mut self) {
        if self.dictionary.is_some() && self.distinct.len() * 2 > self.indices.len() {
            for index in &self.indices {
                put_plainly(&[self.distinct[*index as usize]], self.width, &mut self.plain);
            }
            self.distinct = vec![];
            self.go_on_plainly();
        }
    }

    /// Whether there is one, and the page is of its indices.
    pub fn has_dictionary(&self) -> bool {
        self.dictionary.is_some()
    }

    /// Bytes of the dictionary's page.
    pub fn dictionary_bytes(&self) -> usize {
        self.distinct.len() * self.width
    }

    /// Bytes of the page, about.
    pub fn page_bytes(&self) -> usize {
        self.indices.len() + self.plain.len()
    }

    /// Memory that it holds, in bytes.
    pub fn held_bytes(&self) -> usize {
        let dictionary = self.dictionary.as_ref().map_or(0, Dictionary::held_bytes);
        dictionary + self.distinct.capacity() * 8 + self.indices.capacity() * 4 + self.plain.capacity()
    }

    /// Of the whole chunk.
    pub fn statistics(&self, column: &ColumnDescPtr, nulls: u64) -> Statistics {
        let (least, most) = self.bounds.unzip();
        let signed = column.sort_order().is_signed();
        if self.width == 4 {
            let [least, most] = [least, most].map(|bound| bound.map(|bound| bound as i32));
            let statistics = ValueStatistics::new(least, most, None, Some(nulls), false);
            Statistics::Int32(statistics.with_backwards_compatible_min_max(signed))
        } else {
            let statistics = ValueStatistics::new(least, most, None, Some(nulls), false);
            Statistics::Int64(statistics.with_backwards_compatible_min_max(signed))
        }
    }

    /// The dictionary's page and how many values it has.
    pub fn into_dictionary(self) -> (Vec<u8>, usize) {
        let mut page = Vec::with_capacity(self.dictionary_bytes());
        put_plainly(&self.distinct, self.width, &mut page);
        (page, self.distinct.len())
    }
}

/// One after the other, little-endian.
fn put_plainly<N: Whole>(values: &[N], width: usize, out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + values.len() * width, 0);
    // Twice, so that each width is known where its values are copied.
    if width == 4 {
        let (into, _) = out[at..].as_chunks_mut::<4>();
        into.iter_mut().zip(values).for_each(|(into, value)| *into = (value.to_i64() as i32).to_le_bytes());
    } else {
        let (into, _) = out[at..].as_chunks_mut::<8>();
        into.iter_mut().zip(values).for_each(|(into, value)| *into = value.to_i64().to_le_bytes());
    }
}
