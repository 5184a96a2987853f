//! How to reach a PostgreSQL server.

use std::time::Duration;

use millrace_core::{SecretSource, Tls};

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Host name, address, or the folder of a Unix socket (begins with `/`).
    pub host: String,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Database to replicate.
    pub database: String,
    /// Role to log in as.
    pub user: String,
    /// `None`: `PGPASSWORD`, then the passfile (`PGPASSFILE`, `~/.pgpass`), then no password.
    pub password: Option<SecretSource>,
    /// Encryption.
    pub tls: Tls,
    /// How long a connect may take.
    pub connect_timeout: Duration,
}

/// What of ours exists at the source for one task, all named after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The task itself, for the commands that messages tell.
    pub task: String,
    /// The replication slot.
    pub slot: String,
    /// Publishes all changes of tables whose replica identity can carry updates.
    pub publication: String,
    /// Publishes inserts and truncates of the others.
    pub publication_inserts: String,
}

impl Names {
    /// `millrace_<task>`: a slot's name takes lower-case letters, digits and underscores, at most 63.
    pub fn of_task(task: &str) -> Self {
        let mut slug: String = task
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .take(36)
            .collect();
        if slug != task {
            // Two tasks must never share a slot, however alike their names are.
            let hash =
                task.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            slug = format!("{slug}_{:08x}", hash as u32 ^ (hash >> 32) as u32);
        }
        Self {
            task: task.into(),
            slot: format!("millrace_{slug}"),
            publication: format!("millrace_{slug}"),
            publication_inserts: format!("millrace_{slug}_inserts"),
        }
    }
}
