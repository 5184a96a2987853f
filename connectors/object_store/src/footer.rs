//! What a Parquet object says of itself at its end: enough to tell whether an object that is already there is ours.
//! The layout of the footer: Apache Parquet format, "File format".

use std::collections::BTreeMap;

use millrace_core::{Error, Kind, Result, error::Context};
use parquet::file::metadata::{FooterTail, ParquetMetaDataReader};

/// The last eight bytes: length of the metadata and the magic number.
const TAIL: usize = 8;

/// How many bytes of an object's end are fetched first; nearly every footer of ours fits.
pub const FIRST_FETCH: u64 = 64 << 10;

/// Rows and key-value metadata.
#[derive(Debug, PartialEq, Eq)]
pub struct Footer {
    pub rows: u64,
    pub metadata: BTreeMap<String, String>,
}

/// What an object's last bytes give.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    Footer(Footer),
    /// So many bytes from the end are needed.
    Longer(u64),
}

/// Reads the footer from the last bytes of an object.
pub fn parse(end: &[u8], key: &str) -> Result<Parsed> {
    let foreign = || format!("reading the footer of {key}, which is there already");
    let Some(tail) = end.last_chunk::<TAIL>() else {
        return Err(Error::new(Kind::TargetConflict, foreign()).with("it is no Parquet file"));
    };
    let length = FooterTail::try_new(tail).context(Kind::TargetConflict, foreign)?.metadata_length();
    let needed = length + TAIL;
    let Some(start) = end.len().checked_sub(needed) else { return Ok(Parsed::Longer(needed as u64)) };
    let metadata =
        ParquetMetaDataReader::decode_metadata(&end[start..end.len() - TAIL]).context(Kind::TargetConflict, foreign)?;
    let file = metadata.file_metadata();
    let pairs = file.key_value_metadata().into_iter().flatten();
    Ok(Parsed::Footer(Footer {
        rows: u64::try_from(file.num_rows()).unwrap_or(0),
        metadata: pairs.filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?))).collect(),
    }))
}

impl Footer {
    /// Whether an object with this footer holds the same as one with these rows and this metadata. What else the footer
    /// says (the Arrow schema) does not count.
    pub fn agrees(&self, rows: u64, metadata: &BTreeMap<String, String>) -> bool {
        self.rows == rows && metadata.iter().all(|(key, value)| self.metadata.get(key) == Some(value))
    }
}
