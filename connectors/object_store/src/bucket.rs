//! An S3 bucket: an object appears by one PUT with `If-None-Match: *`. A PUT is held in memory whole, so uploads share
//! a bound of [`UPLOAD_BYTES_MAX`]; whoever writes objects keeps them below it.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use millrace_core::{
    Error, Kind, Result,
    destination::{Published, Staged},
    error::Context,
    secret::SecretSource,
};
use object_store::{
    ClientOptions, CredentialProvider, Error as StoreError, ObjectStore as Store, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AwsCredential},
    path::Path,
};
use tokio::sync::Semaphore;

use crate::{
    config::S3Config,
    folder::conflict,
    footer::{self, Footer, Parsed},
    write::disk,
};

/// Bytes that uploads under way hold together.
pub const UPLOAD_BYTES_MAX: u64 = 64 << 20;

const NO_ANSWER: &str = "no answer within";

const PERMIT_BYTES: u64 = 64 << 10;

/// The target's bucket.
#[derive(Debug)]
pub struct Bucket {
    pub config: S3Config,
    store: AmazonS3,
    memory: Semaphore,
}

/// How long an answer may take besides the bytes of its request or its own; a connection of which nobody is told that it
/// is broken is found by it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// The slowest link that is waited for, bytes per second.
const BYTES_PER_SECOND_MIN: u64 = 8 << 10;

/// How patient a client is.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Deliveries retry in the daemon; the client itself only smooths over a lost connection.
    Delivery,
    /// A person waits.
    Check,
}

impl Bucket {
    /// Does not connect yet.
    pub fn new(config: S3Config, patience: Patience) -> Result<Self> {
        let store = build(&config, patience).map_err(|error| {
            Error::new(Kind::Config, format!("setting up the bucket {}", config.bucket)).with(error)
        })?;
        Ok(Self { config, store, memory: Semaphore::new((UPLOAD_BYTES_MAX / PERMIT_BYTES) as usize) })
    }

    /// `s3://bucket/prefix/key`.
    pub fn location(&self, key: &str) -> String {
        format!("s3://{}/{}", self.config.bucket, self.full_key(key))
    }

    fn full_key(&self, key: &str) -> String {
        if self.config.prefix.is_empty() { key.into() } else { format!("{}/{key}", self.config.prefix) }
    }

    fn path(&self, key: &str) -> Result<Path> {
        // `parse` takes the key as it is; `from` would escape it once more.
        Path::parse(self.full_key(key)).map_err(|e| Error::new(Kind::Internal, format!("naming {key}")).with(e))
    }

    pub async fn publish(&self, staged: &Staged) -> Result<Published> {
        let permits = staged.bytes.min(UPLOAD_BYTES_MAX).div_ceil(PERMIT_BYTES) as u32;
        let _held = self.memory.acquire_many(permits).await.context(Kind::Internal, || "waiting to upload")?;
        let path = staged.path.clone();
        let bytes = tokio::task::spawn_blocking(move || fs::read(path))
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|e| disk(e, format!("reading {}", staged.path.display())))?;
        let bytes = Bytes::from(bytes);
        fail::fail_point!("target-during-upload", |_| Err(Error::new(Kind::Target, "failpoint target-during-upload")));
        let was_there = match self.create(&staged.key, bytes.clone()).await {
            Ok(()) => false,
            Err(StoreError::AlreadyExists { .. }) => {
                self.compare(staged, &bytes).await?;
                true
            }
            Err(error) => return Err(self.failed(error, &format!("uploading {}", self.location(&staged.key)))),
        };
        fail::fail_point!("target-after-upload", |_| Err(Error::new(Kind::Target, "failpoint target-after-upload")));
        let _ = fs::remove_file(&staged.path);
        Ok(Published {
            key: staged.key.clone(),
            location: self.location(&staged.key),
            rows: staged.rows,
            bytes: staged.bytes,
            was_there,
        })
    }

    /// Writes an object only if its key is free.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = Path::parse(self.full_key(key))?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let size = bytes.len() as u64;
        within(size, self.store.put_opts(&path, bytes.into(), options)).await.map(|_| ())
    }

    async fn compare(&self, staged: &Staged, bytes: &Bytes) -> Result<()> {
        let same = if staged.key.ends_with(".parquet") {
            self.read_footer(&staged.key).await?.agrees(staged.rows, &staged.metadata)
        } else {
            let doing = format!("reading {}", self.location(&staged.key));
            let there = self.read(&staged.key).await.map_err(|e| self.failed(e, &doing))?;
            there == *bytes
        };
        if same { Ok(()) } else { Err(conflict(&self.location(&staged.key))) }
    }

    /// Reads a whole object.
    pub async fn read(&self, key: &str) -> Result<Bytes, StoreError> {
        let got = within(0, self.store.get(&Path::parse(self.full_key(key))?)).await?;
        within(got.meta.size, got.bytes()).await
    }

    async fn read_footer(&self, key: &str) -> Result<Footer> {
        let doing = format!("reading the footer of {}", self.location(key));
        let path = self.path(key)?;
        let size = within(0, self.store.head(&path)).await.map_err(|e| self.failed(e, &doing))?.size;
        let mut wanted = footer::FIRST_FETCH.min(size);
        loop {
            let end = within(wanted, self.store.get_range(&path, size - wanted..size)).await;
            let end = end.map_err(|e| self.failed(e, &doing))?;
            match footer::parse(&end, key)? {
                Parsed::Footer(footer) => return Ok(footer),
                Parsed::Longer(needed) if needed > size || needed <= wanted => {
                    return Err(Error::new(Kind::TargetConflict, doing).with("it is shorter than its footer"));
                }
                Parsed::Longer(needed) => wanted = needed,
            }
        }
    }

    /// Reads a whole object, and says what is wrong where it cannot.
    pub async fn read_whole(&self, key: &str) -> Result<Vec<u8>> {
        let read = self.read(key).await;
        read.map(Vec::from).map_err(|error| self.failed(error, &format!("reading {}", self.location(key))))
    }

    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        match within(0, self.store.head(&self.path(key)?)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(error, &format!("looking at {}", self.location(key)))),
        }
    }

    pub async fn delete(&self, key: &str) -> Result<()> {
        match within(0, self.store.delete(&self.path(key)?)).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(error, &format!("deleting {}", self.location(key)))),
        }
    }

    fn failed(&self, error: StoreError, doing: &str) -> Error {
        let trouble = Trouble::of(&error);
        Error::new(trouble.kind(), doing).with(error).fix(trouble.fix(&self.config).join("\n"))
    }
}

/// Waits for the answer to a request that moves so many bytes, tries of the client included. The client itself knows one
/// time for all requests, which would be too short for large objects on slow links, or far too long for all others.
async fn within<T>(bytes: u64, asking: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let patience = Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
    tokio::pin!(asking);
    if let Ok(answered) = tokio::time::timeout(ANSWER_PATIENCE, &mut asking).await {
        return answered;
    }
    if patience > Duration::ZERO {
        tracing::warn!(
            bytes,
            still_secs = patience.as_secs(),
            "the bucket has not answered a request yet; it is waited for"
        );
    }
    match tokio::time::timeout(patience, asking).await {
        Ok(answered) => answered,
        Err(_) => {
            let waited = (ANSWER_PATIENCE + patience).as_secs();
            Err(StoreError::Generic { store: "S3", source: format!("{NO_ANSWER} {waited} s").into() })
        }
    }
}

fn build(config: &S3Config, patience: Patience) -> Result<AmazonS3, StoreError> {
    let (retries, patience) = match patience {
        // Each request is bounded by what it moves, see `within`.
        Patience::Delivery => (2, Duration::from_secs(24 * 3600)),
        Patience::Check => (0, Duration::from_secs(10)),
    };
    let plain_http = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(patience)
        .with_allow_http(plain_http);
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&config.bucket)
        .with_virtual_hosted_style_request(!config.path_style)
        .with_retry(RetryConfig { max_retries: retries, retry_timeout: patience, ..RetryConfig::default() })
        .with_client_options(client);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
        builder = builder.with_credentials(Arc::new(Configured { id: id.clone(), secret: secret.clone() }));
    }
    builder.build()
}

/// Credentials as the config names them, read anew for every request, so that rotated ones need no restart.
#[derive(Debug)]
struct Configured {
    id: SecretSource,
    secret: SecretSource,
}

#[async_trait]
impl CredentialProvider for Configured {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>, StoreError> {
        let read = |source: &SecretSource| {
            source.read().map_err(|e| StoreError::Unauthenticated { path: String::new(), source: Box::new(e) })
        };
        let (id, secret) = (read(&self.id)?, read(&self.secret)?);
        Ok(Arc::new(AwsCredential { key_id: id.expose().into(), secret_key: secret.expose().into(), token: None }))
    }
}

/// What an S3 endpoint's refusal means for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Connection,
    Bucket,
    Region,
    Credentials,
    Denied,
    Other,
}

impl Trouble {
    /// By the status where it says enough, else by S3's error code in the body (S3 API reference, "Error responses").
    pub fn of(error: &StoreError) -> Self {
        let mut said = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            said.push_str(&cause.to_string());
            source = cause.source();
        }
        let codes: BTreeMap<&str, Self> = BTreeMap::from([
            (NO_ANSWER, Self::Connection),
            ("NoSuchBucket", Self::Bucket),
            ("InvalidBucketName", Self::Bucket),
            ("AuthorizationHeaderMalformed", Self::Region),
            ("PermanentRedirect", Self::Region),
            ("IllegalLocationConstraintException", Self::Region),
            ("redirect without LOCATION", Self::Region),
            ("AccessDenied", Self::Denied),
            ("InvalidAccessKeyId", Self::Credentials),
            ("SignatureDoesNotMatch", Self::Credentials),
            ("ExpiredToken", Self::Credentials),
            ("InvalidToken", Self::Credentials),
            ("CredentialsNotLoaded", Self::Credentials),
            ("169.254.169.254", Self::Credentials),
            ("reading the secret", Self::Credentials),
            ("reading the environment", Self::Credentials),
        ]);
        if let Some((_, trouble)) = codes.iter().find(|(code, _)| said.contains(*code)) {
            return *trouble;
        }
        match error {
            StoreError::NotFound { .. } => Self::Bucket,
            StoreError::PermissionDenied { .. } => Self::Denied,
            StoreError::Unauthenticated { .. } => Self::Credentials,
            _ if said.contains("error sending request") || said.contains("HTTP error") => Self::Connection,
            _ => Self::Other,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Connection => Kind::Connection,
            Self::Credentials => Kind::Authentication,
            Self::Denied => Kind::Permission,
            Self::Bucket | Self::Region | Self::Other => Kind::Target,
        }
    }

    /// The code of `check`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Connection => "S3-CONNECT",
            Self::Bucket => "S3-BUCKET",
            Self::Region => "S3-REGION",
            Self::Credentials => "S3-CREDENTIALS",
            Self::Denied => "S3-DENIED",
            Self::Other => "S3-ERROR",
        }
    }

    /// What to do.
    pub fn fix(self, config: &S3Config) -> Vec<String> {
        let bucket = &config.bucket;
        let endpoint = config.endpoint.as_deref().unwrap_or("https://s3.amazonaws.com");
        match self {
            Self::Connection => vec![format!(
                "make {endpoint} reachable from here, or correct `endpoint`; try: curl -sS -o /dev/null {endpoint}"
            )],
            Self::Bucket => vec![
                "correct `bucket`, or make it:".into(),
                format!("aws --endpoint-url {endpoint} s3api create-bucket --bucket {bucket}"),
            ],
            Self::Region => vec![
                "set `region` to the bucket's own; it is shown by:".into(),
                format!("aws s3api get-bucket-location --bucket {bucket}"),
            ],
            Self::Credentials => vec![
                "set `access-key-id` and `secret-access-key` of the endpoint in the config,".into(),
                "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the daemon's environment".into(),
            ],
            Self::Denied => {
                let prefix = if config.prefix.is_empty() { String::new() } else { format!("{}/", config.prefix) };
                vec![
                    "allow the key's user or role these actions:".into(),
                    format!(
                        "{{\"Effect\":\"Allow\",\"Action\":[\"s3:PutObject\",\"s3:GetObject\",\"s3:DeleteObject\"],\
                         \"Resource\":\"arn:aws:s3:::{bucket}/{prefix}*\"}}"
                    ),
                ]
            }
            Self::Other => vec![],
        }
    }
}
