//! Work that waits for our disk or keeps a core busy: on threads of its own, so that it holds up no socket.
//!
//! In a simulation it is done at once, by the one thread that does everything, so that a case is the same whenever it is
//! run.

use millrace_core::{Kind, Result, error::Context};
use tokio::{runtime::Handle, task::JoinHandle};

/// Runs it on a thread of its own, and waits for that.
pub async fn run<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    #[cfg(test)]
    if crate::simulation::is_running() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.context(Kind::Internal, || doing)?
}

/// Starts work that waits for others in between.
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if crate::simulation::is_running() {
        return tokio::spawn(work);
    }
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work))
}
