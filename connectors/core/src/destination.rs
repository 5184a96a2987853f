//! What a target connector implements: objects that are never half visible.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use async_trait::async_trait;

use crate::{error::Result, finding::Finding};

/// A Parquet object to be written.
#[derive(Debug, Clone)]
pub struct ObjectSpec {
    /// Where it goes, relative to the target's prefix, parts already escaped: `public/orders/LOAD00000001.parquet`.
    pub key: String,
    /// Its columns.
    pub schema: Arc<Schema>,
    /// Columns without a dictionary (keys, order, free text), by name.
    pub plain_columns: Vec<String>,
    /// Goes into the footer; with the row count it tells whether an object that is already there is the same one.
    pub metadata: BTreeMap<String, String>,
}

/// A whole object that no reader can see yet: a file of ours.
#[derive(Debug)]
pub struct Staged {
    /// Where it goes.
    pub key: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// What its footer says.
    pub metadata: BTreeMap<String, String>,
}

/// An object that readers can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Relative to the target's prefix.
    pub key: String,
    /// Absolute: `s3://bucket/prefix/key` or the path of a local file.
    pub location: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Whether it was already there, from before a crash.
    pub was_there: bool,
}

/// A place for objects.
#[async_trait]
pub trait Destination: Send + Sync {
    /// Every problem that would keep deliveries from working, at once: reachable, writable, create-only enforced.
    async fn check(&self) -> Vec<Finding>;

    /// Absolute location of a key or folder, as readers name it.
    fn location(&self, key: &str) -> String;

    /// Removes what a crash left staged; called at start, before anything is staged.
    async fn sweep(&self) -> Result<()>;

    /// Begins an object. Blocking: called from a thread that may wait for the disk.
    fn stage(&self, spec: ObjectSpec) -> Result<Box<dyn ObjectWriter>>;

    /// Stages a small object of bytes. Blocking, as [`Self::stage`] is.
    fn stage_bytes(&self, key: &str, bytes: &[u8]) -> Result<Staged>;

    /// Makes a staged object visible, whole, durable and only if its key is free. An object that is already there with
    /// the same rows and metadata (of a small object of bytes: the same bytes) counts as done; another one is
    /// [`crate::Kind::TargetConflict`]. The staged file is gone when this succeeds; after an error it is the caller's.
    async fn publish(&self, staged: Staged) -> Result<Published>;

    /// Reads a whole small object, such as one of dead letters.
    async fn read(&self, key: &str) -> Result<Vec<u8>>;

    /// An object's size in bytes; `None` if it is not there.
    async fn size(&self, key: &str) -> Result<Option<u64>>;

    /// Deletes an object; one that is not there counts as deleted.
    async fn delete(&self, key: &str) -> Result<()>;
}

/// Writes one Parquet object; blocking.
pub trait ObjectWriter: Send {
    /// Adds rows of the spec's schema.
    fn write(&mut self, batch: &RecordBatch) -> Result<()>;

    /// Bytes held in memory until the next row group is written.
    fn held_bytes(&self) -> usize;

    /// Writes what is held as a row group, to release memory.
    fn flush(&mut self) -> Result<()>;

    /// Bytes written and held so far: about the object's size.
    fn size_so_far(&self) -> u64;

    /// Writes the footer. The file is whole, but not yet visible.
    fn finish(self: Box<Self>) -> Result<Staged>;
}
