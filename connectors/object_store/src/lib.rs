//! Parquet objects in a local folder or an S3 bucket as a target.
//!
//! - [`config`]: where the objects go, and how they are written
//! - `check`: finds everything that would keep deliveries from working
//! - `write`: one Parquet object, staged where no reader looks
//! - `folder`, `bucket`: makes a staged object visible, whole, and only if its name is free
//! - `footer`: tells whether an object that is already there is the same one

mod bucket;
mod check;
mod chunk;
pub mod config;
mod folder;
mod footer;
mod row_group;
mod write;

use std::path::PathBuf;

use async_trait::async_trait;
use millrace_core::{
    Error, Finding, Kind, Result,
    destination::{Destination, ObjectSpec, ObjectWriter, Published, Staged},
    error::Context,
};

pub use config::{Compression, ObjectStoreConfig, Place, S3Config};

use crate::{
    bucket::{Bucket, Patience},
    folder::Folder,
    write::ParquetObject,
};

/// A folder or a bucket.
#[derive(Debug)]
pub struct ObjectStore {
    target: Target,
    compression: Compression,
    /// Where objects are staged.
    staging: PathBuf,
}

#[derive(Debug)]
enum Target {
    Folder(Folder),
    Bucket(Box<Bucket>),
}

impl ObjectStore {
    /// Connects to nothing yet. `spool` is a folder of the daemon's own, one per task; objects for a bucket are staged
    /// there, those for a folder in a hidden folder below it.
    pub fn new(config: ObjectStoreConfig, spool: PathBuf) -> Result<Self> {
        let compression = config.compression;
        Ok(match config.place {
            Place::Folder(root) => {
                let folder = Folder::new(root, &spool);
                Self { staging: folder.staging.clone(), target: Target::Folder(folder), compression }
            }
            Place::S3(s3) => {
                let bucket = Box::new(Bucket::new(s3, Patience::Delivery)?);
                Self { staging: spool, target: Target::Bucket(bucket), compression }
            }
        })
    }
}

#[async_trait]
impl Destination for ObjectStore {
    async fn check(&self) -> Vec<Finding> {
        match &self.target {
            Target::Bucket(bucket) => check::check_bucket(&bucket.config).await,
            Target::Folder(folder) => {
                let folder = folder.clone();
                let found = tokio::task::spawn_blocking(move || check::check_folder(&folder)).await;
                found.unwrap_or_else(|e| vec![Finding::error("INTERNAL", format!("checking the target: {e}"))])
            }
        }
    }

    fn location(&self, key: &str) -> String {
        match &self.target {
            Target::Folder(folder) => folder.path(key).to_string_lossy().into_owned(),
            Target::Bucket(bucket) => bucket.location(key),
        }
    }

    async fn sweep(&self) -> Result<()> {
        let staging = self.staging.clone();
        blocking("sweeping the staging folder", move || write::sweep(&staging)).await
    }

    fn stage(&self, spec: ObjectSpec) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(ParquetObject::create(&self.staging, spec, self.compression)?))
    }

    fn stage_bytes(&self, key: &str, bytes: &[u8]) -> Result<Staged> {
        write::stage_bytes(&self.staging, key, bytes)
    }

    async fn publish(&self, staged: Staged) -> Result<Published> {
        match &self.target {
            Target::Bucket(bucket) => bucket.publish(&staged).await,
            Target::Folder(folder) => {
                let folder = folder.clone();
                blocking("publishing an object", move || folder.publish(&staged)).await
            }
        }
    }

    async fn read(&self, key: &str) -> Result<Vec<u8>> {
        match &self.target {
            Target::Bucket(bucket) => bucket.read_whole(key).await,
            Target::Folder(folder) => {
                let path = folder.path(key);
                let read = move || std::fs::read(&path).context(Kind::Target, || format!("reading {}", path.display()));
                blocking("reading an object", read).await
            }
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>> {
        match &self.target {
            Target::Bucket(bucket) => bucket.size(key).await,
            Target::Folder(folder) => {
                let (folder, key) = (folder.clone(), key.to_string());
                blocking("looking at an object", move || folder.size(&key)).await
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match &self.target {
            Target::Bucket(bucket) => bucket.delete(key).await,
            Target::Folder(folder) => {
                let (folder, key) = (folder.clone(), key.to_string());
                blocking("deleting an object", move || folder.delete(&key)).await
            }
        }
    }
}

async fn blocking<T: Send + 'static>(doing: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::new(Kind::Internal, doing).with(e)))
}
