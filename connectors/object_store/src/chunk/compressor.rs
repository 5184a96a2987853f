//! Compresses pages, with one state and buffers for all columns of a file.

use bytes::Bytes;
use parquet::{
    basic::{Compression, ZstdLevel},
    errors::{ParquetError, Result},
};

use super::kept;
use crate::config;

/// See the module's doc.
pub struct Compressor {
    codec: Codec,
    page: Vec<u8>,
    compressed: Vec<u8>,
}

enum Codec {
    None,
    Snappy(Box<snap::raw::Encoder>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// With what the configuration asks for.
    pub fn new(compression: config::Compression) -> Result<Self> {
        let codec = match compression {
            config::Compression::None => Codec::None,
            config::Compression::Snappy => Codec::Snappy(Box::new(snap::raw::Encoder::new())),
            config::Compression::Zstd => {
                Codec::Zstd(zstd::bulk::Compressor::new(ZstdLevel::default().compression_level())?)
            }
        };
        Ok(Self { codec, page: vec![], compressed: vec![] })
    }

    /// As the file names it.
    pub fn name(&self) -> Compression {
        match &self.codec {
            Codec::None => Compression::UNCOMPRESSED,
            Codec::Snappy(_) => Compression::SNAPPY,
            Codec::Zstd(_) => Compression::ZSTD(ZstdLevel::default()),
        }
    }

    /// An empty buffer for a page, which [`Self::compress`] takes back.
    pub fn page_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.page)
    }

    /// Compresses a page.
    pub fn compress(&mut self, mut page: Vec<u8>) -> Result<Bytes> {
        let most = match &self.codec {
            Codec::None => 0,
            Codec::Snappy(_) => snap::raw::max_compress_len(page.len()),
            Codec::Zstd(_) => zstd::zstd_safe::compress_bound(page.len()),
        };
        if self.compressed.len() < most {
            self.compressed.resize(most, 0);
        }
        let length = match &mut self.codec {
            Codec::None => None,
            Codec::Snappy(encoder) => {
                let length = encoder.compress(&page, &mut self.compressed);
                Some(length.map_err(|error| ParquetError::External(Box::new(error)))?)
            }
            Codec::Zstd(encoder) => Some(encoder.compress_to_buffer(&page, self.compressed.as_mut_slice())?),
        };
        let bytes = Bytes::copy_from_slice(length.map_or(&page, |length| &self.compressed[..length]));
        page.clear();
        self.page = kept(page);
        self.compressed = kept(std::mem::take(&mut self.compressed));
        Ok(bytes)
    }

    /// Memory that its buffers hold, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.page.capacity() + self.compressed.capacity()
    }

    /// Lets go of its buffers.
    pub fn release(&mut self) {
        (self.page, self.compressed) = (vec![], vec![]);
    }
}
