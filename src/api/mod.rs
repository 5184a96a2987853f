//! The daemon's own small HTTP surface: `/healthz` (the process), `/readyz` (the state and the tasks), `/metrics`
//! (OpenMetrics), `/version`. It opens no database; it reads the state and the metrics. The AWS protocols come later.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    state::{
        StateStore,
        keys::task::{self, TaskRecord},
        read_all,
    },
    telemetry::metrics::Metrics,
};

/// What the surface shows.
#[derive(Clone)]
pub struct Surface {
    /// The state.
    pub state: Arc<dyn StateStore>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Listens; the address is loopback, which the config has checked.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until cancelled; requests under way are finished.
pub async fn serve(listener: TcpListener, surface: Surface, cancel: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, routes(surface)).with_graceful_shutdown(cancel.cancelled_owned()).await
}

fn routes(surface: Surface) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/version", get(async || Json(json!({ "name": "millrace", "version": VERSION }))))
        .with_state(surface)
}

async fn metrics(State(surface): State<Surface>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], surface.metrics.render()).into_response()
}

async fn ready(State(surface): State<Surface>) -> Response {
    let state = surface.state.clone();
    // The state blocks for the disk.
    let looked = tokio::task::spawn_blocking(move || readiness(&*state)).await;
    let (ready, body) = looked.unwrap_or_else(|error| (false, json!({ "ready": false, "error": error.to_string() })));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

/// Ready when the state can be read and no task has failed; lag is no failure. Names the tasks that have.
fn readiness(state: &dyn StateStore) -> (bool, Value) {
    let tasks: Vec<(String, TaskRecord)> = match read_all(state, task::PREFIX) {
        Ok(tasks) => tasks,
        Err(error) => return (false, json!({ "ready": false, "error": error.to_string() })),
    };
    let failing = tasks.iter().filter(|(_, record)| record.has_failed());
    let failing: Vec<Value> = failing
        .map(|(name, record)| {
            let error = record.errors.first().map(|finding| format!("{}: {}", finding.code, finding.summary));
            json!({ "task": name, "error": error })
        })
        .collect();
    (failing.is_empty(), json!({ "ready": failing.is_empty(), "tasks": tasks.len(), "failing": failing }))
}

#[cfg(test)]
mod tests {
    use millrace_core::Finding;

    use super::*;
    use crate::state::{Put, keys::task::TaskState, memory::MemoryState};

    #[test]
    fn readiness_names_the_tasks_that_fail() {
        let state = MemoryState::default();
        let running = TaskRecord { state: TaskState::Running, ..TaskRecord::default() };
        state.commit(&[Put::set(task::key("good"), &running)]).unwrap();
        assert!(readiness(&state).0);
        let errors = vec![Finding::error("PG-WAL-LEVEL", "wal_level is replica")];
        let failed = TaskRecord { state: TaskState::Failed, errors, ..TaskRecord::default() };
        state.commit(&[Put::set(task::key("bad"), &failed)]).unwrap();
        let (ready, body) = readiness(&state);
        assert!(!ready);
        assert_eq!(
            body,
            json!({ "ready": false, "tasks": 2,
                    "failing": [{ "task": "bad", "error": "PG-WAL-LEVEL: wal_level is replica" }] })
        );
    }
}
