//! Where the objects go, and how they are written.

use std::path::PathBuf;

use millrace_core::SecretSource;

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStoreConfig {
    /// Folder or bucket.
    pub place: Place,
    /// Compression of Parquet pages.
    pub compression: Compression,
}

/// Folder or bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `file:///absolute/folder/`.
    Folder(PathBuf),
    /// `s3://bucket/prefix/`.
    S3(S3Config),
}

/// An S3 bucket; credentials left out come from the environment as for other AWS clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// Prefix of all keys, without a slash at either end; may be empty.
    pub prefix: String,
    /// Endpoint of another S3 than Amazon's, such as `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// Region (default `us-east-1`).
    pub region: Option<String>,
    /// Access key id.
    pub access_key_id: Option<SecretSource>,
    /// Secret access key.
    pub secret_access_key: Option<SecretSource>,
    /// `http://endpoint/bucket/key` instead of `http://bucket.endpoint/key`; the default with an endpoint of its own.
    pub path_style: bool,
}

/// Compression of Parquet pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Zstandard, level 1.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// None.
    None,
}
