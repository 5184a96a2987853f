//! The pages of a chunk, compressed, held until its dictionary is known, which comes before them.

use bytes::Bytes;
use parquet::{
    basic::{Encoding, PageType},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::Result,
    file::{
        metadata::{ColumnChunkMetaData, PageEncodingStats},
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
        statistics::Statistics,
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

use super::compressor::Compressor;

/// Bytes that a page's header takes at most, about.
const HEADER_BYTES: usize = 64;

/// See the module's doc.
#[derive(Default)]
pub struct Pages {
    pages: Vec<CompressedPage>,
    bytes: usize,
}

/// Bits of an index of a dictionary with so many values.
pub fn width_of(values: usize) -> u8 {
    (usize::BITS - values.saturating_sub(1).leading_zeros()) as u8
}

impl Pages {
    /// Adds one: levels and values of so many rows.
    pub fn add(&mut self, rows: usize, encoding: Encoding, page: Vec<u8>, compressor: &mut Compressor) -> Result<()> {
        let bytes = page.len();
        let page = Page::DataPage {
            buf: compressor.compress(page)?,
            num_values: rows as u32,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let page = CompressedPage::new(page, bytes);
        self.bytes += page.compressed_size() + HEADER_BYTES;
        self.pages.push(page);
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether a page has values in this encoding.
    pub fn have(&self, encoding: Encoding) -> bool {
        self.pages.iter().any(|page| page.encoding() == encoding)
    }

    /// Compressed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The chunk, and what the file must know of it. Offsets count from the chunk's first byte.
    pub fn close(
        self,
        column: &ColumnDescPtr,
        dictionary: Option<(Vec<u8>, usize)>,
        statistics: Option<Statistics>,
        compressor: &mut Compressor,
    ) -> Result<(Bytes, ColumnCloseResult)> {
        let mut sink = TrackedWrite::new(Vec::with_capacity(self.bytes + HEADER_BYTES));
        let mut writer = SerializedPageWriter::new(&mut sink);
        let mut encodings = vec![Encoding::RLE, Encoding::PLAIN];
        let mut uncompressed = 0;
        let mut pages_of = vec![];
        let has_dictionary = dictionary.is_some();
        if let Some((page, values)) = dictionary {
            let bytes = page.len();
            let page = Page::DictionaryPage {
                buf: compressor.compress(page)?,
                num_values: values as u32,
                encoding: Encoding::PLAIN,
                is_sorted: false,
            };
            uncompressed += writer.write_page(CompressedPage::new(page, bytes))?.uncompressed_size;
            encodings.push(Encoding::RLE_DICTIONARY);
            pages_of.push((PageType::DICTIONARY_PAGE, Encoding::PLAIN, 1));
        }
        let (mut locations, mut rows) = (vec![], 0);
        for page in self.pages {
            match pages_of.last_mut() {
                Some((PageType::DATA_PAGE, encoding, count)) if *encoding == page.encoding() => *count += 1,
                _ => pages_of.push((PageType::DATA_PAGE, page.encoding(), 1)),
            }
            let written = writer.write_page(page)?;
            uncompressed += written.uncompressed_size;
            locations.push(PageLocation {
                offset: written.offset as i64,
                compressed_page_size: written.bytes_written as i32,
                first_row_index: rows,
            });
            rows += i64::from(written.num_values);
        }
        let chunk: Bytes = sink.into_inner()?.into();
        let stats = pages_of.into_iter();
        let stats = stats.map(|(page_type, encoding, count)| PageEncodingStats { page_type, encoding, count });
        let mut metadata = ColumnChunkMetaData::builder(column.clone())
            .set_compression(compressor.name())
            .set_encodings(encodings)
            .set_page_encoding_stats(stats.collect())
            .set_num_values(rows)
            .set_total_compressed_size(chunk.len() as i64)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_dictionary_page_offset(has_dictionary.then_some(0))
            .set_data_page_offset(locations.first().map_or(0, |first| first.offset));
        if let Some(statistics) = statistics {
            metadata = metadata.set_statistics(statistics);
        }
        let close = ColumnCloseResult {
            bytes_written: chunk.len() as u64,
            rows_written: rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(OffsetIndexMetaData {
                page_locations: locations,
                unencoded_byte_array_data_bytes: None,
            }),
        };
        Ok((chunk, close))
    }
}
