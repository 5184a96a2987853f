//! PostgreSQL as a source.

pub mod config;
pub mod types;

pub use config::{Names, PostgresConfig, Tls, TlsMode};
