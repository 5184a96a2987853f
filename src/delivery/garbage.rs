//! Objects that left their manifest, or never entered one, are deleted when readers have had time to finish.

use std::time::Duration;

use millrace_core::{Result, destination::Destination};
use tracing::info;

use crate::state::{
    Put, StateStore,
    keys::garbage::{Garbage, key, prefix},
    read_all,
};
use crate::{blocking, telemetry::now_us};

/// Objects that are deleted before the record of it is written.
const DELETES_MAX: usize = 100;

/// Adds objects to the garbage.
pub fn record(puts: &mut Vec<Put>, task: &str, keys: impl Iterator<Item = String>) {
    let since_us = now_us();
    puts.extend(
        keys.map(|object| Put::set(key(task, since_us, &object), &Garbage { key: object, path: None, since_us })),
    );
}

/// Deletes what has been garbage for as long as `grace`. Gives how many objects went.
pub async fn collect(
    state: &std::sync::Arc<dyn StateStore>,
    destination: &dyn Destination,
    task: &str,
    grace: Duration,
) -> Result<usize> {
    let (reading, prefix) = (state.clone(), prefix(task));
    let scan = move || {
        let found: Vec<(String, Garbage)> = read_all(&*reading, &prefix)?;
        Ok(found.into_iter().map(|(rest, garbage)| (format!("{prefix}{rest}"), garbage)).collect::<Vec<_>>())
    };
    let found = blocking::run("looking for garbage", scan).await?;
    let due_us = now_us().saturating_sub(i64::try_from(grace.as_micros()).unwrap_or(i64::MAX));
    let due: Vec<_> = found.into_iter().filter(|(_, garbage)| garbage.since_us <= due_us).collect();
    for some in due.chunks(DELETES_MAX) {
        for (_, Garbage { key, path, .. }) in some {
            // The target was another place then: under that key there may be a file of today.
            match path.as_ref().filter(|path| **path != destination.location(key)) {
                Some(path) => info!(task, path, "an object of an earlier target is left where it is"),
                None => destination.delete(key).await?,
            }
        }
        let puts: Vec<Put> = some.iter().map(|(key, _)| Put::delete(key)).collect();
        let writing = state.clone();
        blocking::run("forgetting garbage", move || writing.commit(&puts)).await?;
    }
    Ok(due.len())
}
