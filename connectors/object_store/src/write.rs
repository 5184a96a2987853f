//! Writes one Parquet object to a local file that no reader looks at.
//!
//! Of the writer's settings these matter: statistics per chunk only (page statistics and column indexes cost time on
//! every value and readers of whole tables gain nothing), no bloom filters, and a row group is written with the batch that
//! reaches 1 Mi rows or 32 MiB encoded, because it is held in memory until then. Texts get no statistics at all: the
//! smallest and largest of a million comments or states select nothing, and finding them took a fifth of all encoding.
//! Most columns are encoded by [`crate::chunk`].

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
use arrow_schema::{DataType, Field, Schema};
use millrace_core::{
    Error, Kind, Result,
    destination::{ObjectSpec, ObjectWriter, Staged},
};
use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowRowGroupWriterFactory},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use crate::{
    chunk::{Compressor, DICTIONARY_BYTES_MAX, PAGE_BYTES_MAX},
    config::Compression,
    row_group::RowGroup,
};

/// Rows between two looks at a page's size.
const WRITE_BATCH_ROWS: usize = 8192;
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
    writer: SerializedFileWriter<File>,
    factory: ArrowRowGroupWriterFactory,
    compressor: Compressor,
    schema: Arc<Schema>,
    row_group: Option<RowGroup>,
    row_groups: usize,
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
        let opened = Compressor::new(compression).and_then(|compressor| {
            let (writer, factory) = open(file, spec.schema.clone(), properties(&spec, &compressor))?;
            Ok((writer, factory, compressor))
        });
        let (writer, factory, compressor) =
            opened.map_err(|e| Error::new(Kind::Internal, format!("staging {}", spec.key)).with(e))?;
        let ObjectSpec { key, schema, metadata, .. } = spec;
        Ok(Self { writer, factory, compressor, schema, row_group: None, row_groups: 0, temp, key, metadata, rows: 0 })
    }

    fn encode(&mut self, batch: &RecordBatch) -> parquet::errors::Result<()> {
        let row_group = match &mut self.row_group {
            Some(row_group) => row_group,
            none => none.insert(RowGroup::begin(&self.writer, &self.factory, self.row_groups, batch)?),
        };
        row_group.write(batch, &mut self.compressor)?;
        if row_group.rows() >= ROW_GROUP_ROWS_MAX || row_group.encoded_bytes() >= ROW_GROUP_BYTES_MAX {
            self.end_row_group()?;
        }
        Ok(())
    }

    fn end_row_group(&mut self) -> parquet::errors::Result<()> {
        let Some(row_group) = self.row_group.take() else { return Ok(()) };
        self.row_groups += 1;
        row_group.close(&mut self.writer, &mut self.compressor)
    }

    fn failed(&self, error: parquet::errors::ParquetError) -> Error {
        encoding(error, format!("writing {} to {}", self.key, self.temp.path.display()))
    }
}

/// The Arrow writer knows how a schema is mapped and noted in the file; what writes row groups is [`RowGroup`].
fn open(
    file: File,
    schema: Arc<Schema>,
    properties: WriterProperties,
) -> parquet::errors::Result<(SerializedFileWriter<File>, ArrowRowGroupWriterFactory)> {
    ArrowWriter::try_new(file, schema, Some(properties))?.into_serialized_writer()
}

fn properties(spec: &ObjectSpec, compressor: &Compressor) -> WriterProperties {
    let metadata = spec.metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let mut properties = WriterProperties::builder()
        .set_compression(compressor.name())
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_data_page_size_limit(PAGE_BYTES_MAX)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_write_batch_size(WRITE_BATCH_ROWS)
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
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if batch.schema_ref() != &self.schema {
            return Err(Error::new(Kind::Internal, format!("writing {}: a batch of another schema", self.key)));
        }
        self.encode(batch).map_err(|e| self.failed(e))?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        self.row_group.as_ref().map_or(0, RowGroup::held_bytes) + self.compressor.held_bytes()
    }

    fn flush(&mut self) -> Result<()> {
        self.end_row_group().map_err(|e| self.failed(e))?;
        self.compressor.release();
        Ok(())
    }

    fn size_so_far(&self) -> u64 {
        (self.writer.bytes_written() + self.row_group.as_ref().map_or(0, RowGroup::encoded_bytes)) as u64
    }

    fn finish(mut self: Box<Self>) -> Result<Staged> {
        self.flush()?;
        let Self { mut writer, temp, key, metadata, rows, .. } = *self;
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
        let (writer, factory) = open(full, batch.schema(), WriterProperties::default()).unwrap();
        let mut object = ParquetObject {
            writer,
            factory,
            compressor: Compressor::new(Compression::None).unwrap(),
            schema: batch.schema(),
            row_group: None,
            row_groups: 0,
            temp,
            key: "k".into(),
            metadata: BTreeMap::new(),
            rows: 0,
        };
        object.write(&batch).unwrap();
        assert_eq!(Box::new(object).finish().unwrap_err().kind, Kind::DiskFull);
    }
}
