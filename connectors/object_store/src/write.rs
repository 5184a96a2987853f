//! Writes one Parquet object to a local file that no reader looks at.
//!
//! Of the writer's settings these matter: statistics per chunk only (page statistics and column indexes cost time on
//! every value and readers of whole tables gain nothing), no bloom filters, and a row group is written at 1 Mi rows or
//! 32 MiB encoded, whichever comes first, because it is held in memory until then. Texts get no statistics at all: the
//! smallest and largest of a million comments or states select nothing, and finding them took a fifth of all encoding.
//! All of TPC-H's lineitem takes 0.41 CPU seconds per million rows with snappy (`examples/encode.rs`, 2026-11-24), of
//! which comments are 0.10 and their compression half of that.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field};
use millrace_core::{
    Error, Kind, Result,
    destination::{ObjectSpec, ObjectWriter, Staged},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression as Codec, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};

use crate::config::Compression;

/// A column with more distinct values than fit here is written plainly: hashing every value of it is wasted.
const DICTIONARY_BYTES_MAX: usize = 256 << 10;
/// Rows between two looks at a page's size.
const WRITE_BATCH_ROWS: usize = 8192;

/// Every column holds a page before and after its compression; with the usual 1 MiB that is 50 MiB per file.
const PAGE_BYTES_MAX: usize = 256 << 10;

const ROW_GROUP_ROWS_MAX: usize = 1 << 20;
const ROW_GROUP_BYTES_MAX: usize = 32 << 20;

/// A file of ours that goes away when it is dropped, unless it was kept.
#[derive(Debug)]
struct TempFile {
    path: PathBuf,
    kept: bool,
}

impl TempFile {
    /// Makes a new file in the folder, and the folder itself.
    fn create(folder: &Path) -> io::Result<(Self, File)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            // Each time, because a check that ends at the same moment takes an empty folder away.
            fs::create_dir_all(folder)?;
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{:08x}-{number:08x}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((Self { path, kept: false }, file)),
                Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn keep(mut self) -> PathBuf {
        self.kept = true;
        std::mem::take(&mut self.path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what a crash left in the folder.
pub fn sweep(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| disk(e, format!("sweeping {}", folder.display())))?,
    };
    for entry in entries {
        let path = entry.map_err(|e| disk(e, format!("sweeping {}", folder.display())))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(|e| disk(e, format!("removing {}", path.display())))?;
        }
    }
    Ok(())
}

/// Stages bytes as they are.
pub fn stage_bytes(folder: &Path, key: &str, bytes: &[u8]) -> Result<Staged> {
    let doing = || format!("writing {key} to {}", folder.display());
    let (temp, mut file) = TempFile::create(folder).map_err(|e| disk(e, doing()))?;
    io::Write::write_all(&mut file, bytes).map_err(|e| disk(e, doing()))?;
    let bytes = bytes.len() as u64;
    Ok(Staged { key: key.into(), path: temp.keep(), rows: 0, bytes, metadata: BTreeMap::new() })
}

/// An object being written.
pub struct ParquetObject {
    writer: ArrowWriter<File>,
    temp: TempFile,
    key: String,
    metadata: BTreeMap<String, String>,
    rows: u64,
}

impl ParquetObject {
    /// Begins it in a folder for staged files.
    pub fn create(folder: &Path, spec: ObjectSpec, compression: Compression) -> Result<Self> {
        let doing = || format!("staging {} in {}", spec.key, folder.display());
        let (temp, file) = TempFile::create(folder).map_err(|e| disk(e, doing()))?;
        let properties = properties(&spec, compression);
        let writer = ArrowWriter::try_new(file, spec.schema, Some(properties))
            .map_err(|e| Error::new(Kind::Internal, format!("staging {}", spec.key)).with(e))?;
        Ok(Self { writer, temp, key: spec.key, metadata: spec.metadata, rows: 0 })
    }

    fn failed(&self, error: parquet::errors::ParquetError) -> Error {
        encoding(error, format!("writing {} to {}", self.key, self.temp.path.display()))
    }
}

fn properties(spec: &ObjectSpec, compression: Compression) -> WriterProperties {
    let codec = match compression {
        Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
        Compression::Snappy => Codec::SNAPPY,
        Compression::None => Codec::UNCOMPRESSED,
    };
    let metadata = spec.metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let mut properties = WriterProperties::builder()
        .set_compression(codec)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_data_page_size_limit(PAGE_BYTES_MAX)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_write_batch_size(WRITE_BATCH_ROWS)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX))
        .set_created_by(concat!("millrace ", env!("CARGO_PKG_VERSION")).into())
        .set_key_value_metadata(Some(metadata));
    for name in &spec.plain_columns {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(vec![name.clone()]), false);
    }
    let is_text = |field: &&Arc<Field>| matches!(field.data_type(), DataType::Utf8 | DataType::Binary);
    for text in spec.schema.fields().iter().filter(is_text) {
        let path = ColumnPath::from(vec![text.name().clone()]);
        properties = properties.set_column_statistics_enabled(path, EnabledStatistics::None);
    }
    properties.build()
}

impl ObjectWriter for ParquetObject {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|e| self.failed(e))?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        self.writer.memory_size()
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(|e| self.failed(e))
    }

    fn size_so_far(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    fn finish(self: Box<Self>) -> Result<Staged> {
        let Self { mut writer, temp, key, metadata, rows } = *self;
        let doing = format!("finishing {key} at {}", temp.path.display());
        // The file is fsynced by whoever publishes it in a folder; one that goes to S3 need not be. Not by `into_inner`,
        // which makes a text of an I/O error: a full disk could no longer be told from a bug.
        writer.finish().map_err(|e| encoding(e, doing.clone()))?;
        let bytes = writer.inner().metadata().map_err(|e| disk(e, doing))?.len();
        Ok(Staged { key, path: temp.keep(), rows, bytes, metadata })
    }
}

/// A trouble of the local disk: full, or anything else.
pub fn disk(error: io::Error, doing: String) -> Error {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => Error::new(Kind::DiskFull, doing).with(error).fix("free space on this disk"),
        PermissionDenied | ReadOnlyFilesystem => Error::new(Kind::Permission, doing)
            .with(error)
            .fix("let the daemon's user write there, and name the folder in ReadWritePaths= of its systemd unit"),
        _ => Error::new(Kind::Target, doing).with(error),
    }
}

/// A trouble while encoding: the disk's, where an I/O error is at its root, else ours.
fn encoding(error: parquet::errors::ParquetError, doing: String) -> Error {
    use parquet::errors::ParquetError::External;
    match error {
        External(cause) => match cause.downcast::<io::Error>() {
            Ok(io) => disk(*io, doing),
            Err(cause) => Error::new(Kind::Internal, doing).with(cause),
        },
        error => Error::new(Kind::Internal, doing).with(error),
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, Int32Array};

    use super::*;

    #[test]
    fn a_full_disk_is_one_also_when_the_object_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let (temp, _) = TempFile::create(folder.path()).unwrap();
        let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..10));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        // Takes no byte (null(4), /dev/full). What is small waits in memory until the end.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let writer = ArrowWriter::try_new(full, batch.schema(), None).unwrap();
        let mut object = ParquetObject { writer, temp, key: "k".into(), metadata: BTreeMap::new(), rows: 0 };
        object.write(&batch).unwrap();
        assert_eq!(Box::new(object).finish().unwrap_err().kind, Kind::DiskFull);
    }
}
