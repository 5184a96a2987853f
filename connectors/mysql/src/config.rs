//! How to reach a MySQL or MariaDB server.

use std::time::Duration;

use millrace_core::{SecretSource, Tls};

/// Who runs the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// Somebody who may set every variable.
    #[default]
    Own,
    /// Amazon RDS for MySQL or MariaDB: variables are set in a parameter group, nobody may lock all tables, and how long the
    /// log is kept stands in a table.
    Rds,
    /// Amazon Aurora MySQL: likewise, for the whole cluster; only its writer has a log.
    Aurora,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MysqlConfig {
    /// Host name, address, or the path of a Unix socket (begins with `/`).
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The database that the tables are in where nothing else is said; a task may take tables of any.
    pub database: String,
    /// User to log in as.
    pub user: String,
    /// `None`: `MYSQL_PWD`, then no password.
    pub password: Option<SecretSource>,
    /// Encryption.
    pub tls: Tls,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// Who runs it.
    pub service: Service,
    /// The number of the task's reader among the server's replicas; `None`: made from the task's name.
    pub server_id: Option<u32>,
}

impl MysqlConfig {
    /// For messages.
    pub fn place(&self) -> String {
        if self.is_socket() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Whether the server is reached by a Unix socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// The number of a task's reader, where none is set: from its name, above what people give by hand.
pub fn server_id_of(task: &str) -> u32 {
    let hash = task.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    0x4000_0000 | hash >> 2
}
