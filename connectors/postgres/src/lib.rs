//! PostgreSQL as a source.

pub mod config;

pub use config::{Names, PostgresConfig, Tls, TlsMode};
