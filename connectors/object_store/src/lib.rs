//! Parquet objects in a local folder or an S3 bucket as a target.

pub mod config;

pub use config::{Compression, ObjectStoreConfig, Place, S3Config};
