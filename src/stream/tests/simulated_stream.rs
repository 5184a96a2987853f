//! The real stream on a simulated disk. Its writer is a task of the runtime instead of a thread, so that everything happens
//! in the same order each time.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use millrace_core::{Error, Kind, Result};
use tokio::sync::mpsc;

use super::{
    super::{Stream, StreamOptions, shared::Request, writer::Writer},
    simulated::SimulatedDisk,
};

/// A segment is closed at this size, so that even a short case has some.
const SEGMENT_BYTES: u64 = 3000;

/// Opens the one stream of a disk, once at a time, as [`Stream::open`] does.
#[derive(Debug, Clone)]
pub struct SimulatedStreams {
    disk: SimulatedDisk,
    last: Arc<Mutex<Option<Arc<Mutex<Running>>>>>,
}

#[derive(Debug)]
struct Running {
    writer: Writer,
    jobs: mpsc::Receiver<Request>,
}

impl Running {
    /// Serves what waits. Ready when the stream was dropped.
    fn serve(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.jobs.poll_recv(context) {
                Poll::Ready(Some(first)) => self.writer.serve_group(first, &mut self.jobs),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl SimulatedStreams {
    pub fn new(disk: SimulatedDisk) -> Self {
        Self { disk, last: Arc::default() }
    }

    /// Must be called in a runtime.
    pub fn open(&self, options: StreamOptions) -> Result<Stream> {
        let mut last = lock(&self.last);
        if let Some(running) = &*last {
            let mut running = lock(running);
            if !running.jobs.is_closed() {
                return Err(Error::new(Kind::LogBusy, "opening a stream that is still open"));
            }
            // Dropping a stream waits for its writer.
            while let Ok(first) = running.jobs.try_recv() {
                let Running { writer, jobs } = &mut *running;
                writer.serve_group(first, jobs);
            }
        }
        let options = StreamOptions { segment_bytes: SEGMENT_BYTES, ..options };
        let (stream, writer, jobs) = Stream::prepare(options, Arc::new(self.disk.clone()))?;
        let running = Arc::new(Mutex::new(Running { writer, jobs }));
        *last = Some(running.clone());
        tokio::spawn(poll_fn(move |context| lock(&running).serve(context)));
        Ok(stream)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while locked")
}
