//! PostgreSQL as a source.

pub mod config;
#[cfg(test)]
mod test_server;
pub mod types;
pub mod wire;

pub use config::{Names, PostgresConfig, Tls, TlsMode};
