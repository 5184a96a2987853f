//! Delivery: from the stream to objects and the catalog, exactly once.

pub mod dead_letters;
pub mod file_schema;
pub mod layout;

use std::{sync::Arc, time::Duration};

use millrace_core::{Result, destination::Destination};
use tokio_util::sync::CancellationToken;

use crate::{catalog::Catalog, state::StateStore, stream::Stream};

/// Firehose's buffering hints and what else a delivery needs.
#[derive(Debug, Clone)]
pub struct DeliveryOptions {
    /// The replication task it belongs to.
    pub task: String,
    /// Flush at this many bytes of changes over all tables, before compression.
    pub buffer_bytes: u64,
    /// Flush when the oldest change has waited as long.
    pub buffer_interval: Duration,
    /// Bytes that accumulators and writers may hold together.
    pub memory_bytes: u64,
    /// Files that left a manifest are deleted after this.
    pub grace: Duration,
}

/// Delivers one task's stream.
pub struct Delivery {}

impl Delivery {
    /// Nothing happens before [`Self::run`].
    pub fn new(
        _options: DeliveryOptions,
        _stream: Arc<Stream>,
        _destination: Arc<dyn Destination>,
        _state: Arc<dyn StateStore>,
        _catalog: Catalog,
    ) -> Self {
        todo!()
    }

    /// Runs rounds until cancelled, finishing the round it is in. First completes a round that a crash interrupted.
    /// Errors that a retry may mend are retried inside with back-off (see [`Self::last_error`]).
    pub async fn run(&self, _cancel: CancellationToken) -> Result<()> {
        todo!()
    }

    /// One round now, whatever the buffers hold: everything up to the last mark. For draining and for tests.
    pub async fn flush(&self) -> Result<()> {
        todo!()
    }

    /// Holds rounds off while it is held: whoever writes checkpoints or manifests of the task takes it.
    pub async fn gate(&self) -> tokio::sync::MutexGuard<'_, ()> {
        todo!()
    }

    /// Starts no new round until resumed.
    pub fn set_paused(&self, _paused: bool) {
        todo!()
    }
}
