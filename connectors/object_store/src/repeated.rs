//! The column chunk of a text that is the same in every row, written without looking at each row again.
//!
//! It is what the library writes for such a column with a dictionary: one value in it, and pages that are two runs each (all
//! rows have a value, and it is the dictionary's first). The library hashes and compares the value for every row to find that
//! out, a tenth of all encoding of a loaded `lineitem`, of which two columns are so (`examples/encode.rs`). Format: parquet-format, "Encodings",
//! run-length encoding and RLE_DICTIONARY; "Data Pages", version 1.

use arrow_array::{Array, StringArray, cast::AsArray};
use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, PageType},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::Result,
    file::{
        metadata::{ColumnChunkMetaData, PageEncodingStats},
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
        properties::DEFAULT_DATA_PAGE_ROW_COUNT_LIMIT,
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

/// No page has more rows; the library looks for that every few thousand rows.
const PAGE_ROWS_MAX: usize = DEFAULT_DATA_PAGE_ROW_COUNT_LIMIT;

/// The text of all rows, if it is one and none is null.
pub fn repeated_text(array: &dyn Array) -> Option<&str> {
    let texts: &StringArray = array.as_string_opt()?;
    if texts.null_count() > 0 || texts.is_empty() {
        return None;
    }
    let (offsets, value) = (texts.value_offsets(), texts.value(0));
    let data = texts.value_data().get(*offsets.first()? as usize..*offsets.last()? as usize)?;
    // The last text differs where most columns that do differ at all.
    let same = texts.value(texts.len() - 1) == value
        && offsets.windows(2).all(|at| at[1] - at[0] == value.len() as i32)
        && data.get(value.len()..)? == data.get(..data.len() - value.len())?;
    same.then_some(value)
}

/// The chunk of an optional column at the top of its schema, in which `rows` rows have the text; not compressed.
pub fn repeated_chunk(column: &ColumnDescPtr, text: &str, rows: usize) -> Result<(Bytes, ColumnCloseResult)> {
    let mut sink = TrackedWrite::new(vec![]);
    let mut writer = SerializedPageWriter::new(&mut sink);
    let mut dictionary = (text.len() as u32).to_le_bytes().to_vec();
    dictionary.extend_from_slice(text.as_bytes());
    let bytes = dictionary.len();
    let page =
        Page::DictionaryPage { buf: dictionary.into(), num_values: 1, encoding: Encoding::PLAIN, is_sorted: false };
    let data_page_offset = writer.write_page(CompressedPage::new(page, bytes))?.bytes_written;
    let mut locations = vec![];
    for first in (0..rows).step_by(PAGE_ROWS_MAX) {
        let count = PAGE_ROWS_MAX.min(rows - first);
        let buf = page_data(count);
        let bytes = buf.len();
        let page = Page::DataPage {
            buf: buf.into(),
            num_values: count as u32,
            encoding: Encoding::RLE_DICTIONARY,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let written = writer.write_page(CompressedPage::new(page, bytes))?;
        locations.push(PageLocation {
            offset: written.offset as i64,
            compressed_page_size: written.bytes_written as i32,
            first_row_index: first as i64,
        });
    }
    let page_count = locations.len() as i32;
    let chunk: Bytes = sink.into_inner()?.into();
    let encoding_stats = |page_type, encoding, count| PageEncodingStats { page_type, encoding, count };
    let metadata = ColumnChunkMetaData::builder(column.clone())
        .set_compression(Compression::UNCOMPRESSED)
        .set_encodings(vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY])
        .set_page_encoding_stats(vec![
            encoding_stats(PageType::DICTIONARY_PAGE, Encoding::PLAIN, 1),
            encoding_stats(PageType::DATA_PAGE, Encoding::RLE_DICTIONARY, page_count),
        ])
        .set_num_values(rows as i64)
        .set_total_compressed_size(chunk.len() as i64)
        .set_total_uncompressed_size(chunk.len() as i64)
        .set_dictionary_page_offset(Some(0))
        .set_data_page_offset(data_page_offset as i64)
        .build()?;
    let close = ColumnCloseResult {
        bytes_written: chunk.len() as u64,
        rows_written: rows as u64,
        metadata,
        bloom_filter: None,
        column_index: None,
        offset_index: Some(OffsetIndexMetaData { page_locations: locations, unencoded_byte_array_data_bytes: None }),
    };
    Ok((chunk, close))
}

/// Definition levels behind their length, width of an index in bits (none: there is one), indices.
fn page_data(rows: usize) -> Vec<u8> {
    let mut run = vec![];
    let mut header = (rows as u64) << 1;
    while header >= 0x80 {
        run.push(header as u8 | 0x80);
        header >>= 7;
    }
    run.push(header as u8);
    let mut data = (run.len() as u32 + 1).to_le_bytes().to_vec();
    data.extend_from_slice(&run);
    data.extend_from_slice(&[1, 0]);
    data.extend_from_slice(&run);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_text_in_all_rows_counts() {
        let repeated = |texts: Vec<Option<&str>>| repeated_text(&StringArray::from(texts)).map(str::to_string);
        assert_eq!(repeated(vec![Some("ab"); 3]), Some("ab".into()));
        assert_eq!(repeated(vec![Some("")]), Some(String::new()));
        assert_eq!(repeated(vec![Some("ab"), Some("ac"), Some("ab")]), None);
        assert_eq!(repeated(vec![Some("aa"), Some("a"), Some("aaa"), Some("aa")]), None);
        assert_eq!(repeated(vec![Some("ab"), None]), None);
        assert_eq!(repeated(vec![]), None);
        let sliced = StringArray::from(vec!["x", "y", "y", "x"]).slice(1, 2);
        assert_eq!(repeated_text(&sliced), Some("y"));
        assert_eq!(repeated_text(&arrow_array::Int32Array::from(vec![1, 1])), None);
    }
}
