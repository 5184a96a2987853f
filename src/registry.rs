//! The one match from an endpoint's kind to its connector. A new connector adds one line to each function.

use std::{path::PathBuf, sync::Arc};

use millrace_core::{Error, Kind, Result, destination::Destination, source::Source};
use millrace_hello::Hello;
use millrace_mysql::MysqlSource;
use millrace_object_store::ObjectStore;
use millrace_postgres::{Names, PostgresSource};

use crate::config::{Endpoint, EndpointKind, TaskConfig};

/// The source of a task. Nothing is connected yet.
pub fn source(endpoint: &Endpoint, task: &TaskConfig) -> Result<Arc<dyn Source>> {
    match &endpoint.kind {
        EndpointKind::Postgres(config) => {
            let value_bytes_max = usize::try_from(task.max_value_bytes).unwrap_or(usize::MAX);
            let options = millrace_postgres::Options {
                value_bytes_max,
                failover: task.source_log.failover_slot,
                own_changes_only: task.source_log.own_changes_only,
                values: Arc::new(task.value_rules()),
                ..Default::default()
            };
            Ok(Arc::new(PostgresSource::new(config.clone(), &task.name, options)))
        }
        EndpointKind::Mysql(config) => {
            let value_bytes_max = usize::try_from(task.max_value_bytes).unwrap_or(usize::MAX);
            let (values, readers) = (Arc::new(task.value_rules()), task.load.parallel);
            let options = millrace_mysql::Options { value_bytes_max, values, readers };
            Ok(Arc::new(MysqlSource::new(config.clone(), &task.name, options)))
        }
        EndpointKind::Hello => Ok(Arc::new(Hello)),
        EndpointKind::ObjectStore(_) => Err(misplaced(endpoint, "source")),
    }
}

/// The target of a task. Nothing is connected yet; `spool` is a folder of the daemon's own for objects on their way.
pub fn destination(endpoint: &Endpoint, spool: PathBuf) -> Result<Arc<dyn Destination>> {
    match &endpoint.kind {
        EndpointKind::ObjectStore(config) => Ok(Arc::new(ObjectStore::new(config.clone(), spool)?)),
        EndpointKind::Postgres(_) | EndpointKind::Mysql(_) | EndpointKind::Hello => Err(misplaced(endpoint, "target")),
    }
}

/// What a task that captures makes at its source, for `plan`.
pub fn made_at_source(endpoint: &Endpoint, task: &str) -> Vec<String> {
    match &endpoint.kind {
        EndpointKind::Postgres(_) => {
            let names = Names::of_task(task);
            vec![
                format!("publication {} (all changes)", names.publication),
                format!("publication {} (inserts and truncates of tables without identity)", names.publication_inserts),
                format!("replication slot {}", names.slot),
            ]
        }
        EndpointKind::Mysql(_) | EndpointKind::Hello | EndpointKind::ObjectStore(_) => vec![],
    }
}

/// What captures a table's updates and deletes where the source does not send them, for `plan` and `tables`.
pub fn capture_all(endpoint: &Endpoint, table: &millrace_core::Table) -> Option<String> {
    match &endpoint.kind {
        EndpointKind::Postgres(_) => Some(millrace_postgres::grants::replica_identity_full(table)),
        EndpointKind::Mysql(_) | EndpointKind::Hello | EndpointKind::ObjectStore(_) => None,
    }
}

/// The statements that make a role with no more rights than a task needs, for `grants`; with `own_publications` it makes
/// what it publishes itself.
pub fn grants(endpoint: &Endpoint, task: &TaskConfig, own_publications: bool) -> Vec<String> {
    match &endpoint.kind {
        EndpointKind::Postgres(config) => {
            millrace_postgres::grants::grants(config, &task.name, &task.selection(), own_publications)
        }
        EndpointKind::Mysql(config) => millrace_mysql::grants::grants(config, &task.selection()),
        EndpointKind::Hello | EndpointKind::ObjectStore(_) => vec![],
    }
}

/// The statements of what says in the source's log that a table was altered, for `grants`.
pub fn ddl_trigger(endpoint: &Endpoint) -> Vec<String> {
    match &endpoint.kind {
        EndpointKind::Postgres(_) => millrace_postgres::ddl_trigger::statements(),
        EndpointKind::Mysql(_) | EndpointKind::Hello | EndpointKind::ObjectStore(_) => vec![],
    }
}

fn misplaced(endpoint: &Endpoint, role: &str) -> Error {
    Error::new(Kind::Config, format!("endpoint {} cannot be the {role} of a task", endpoint.name))
}
