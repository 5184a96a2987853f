//! Millrace: a daemon that replicates databases into a Parquet lake.

pub mod catalog;
pub mod config;
pub mod delivery;
pub mod replication;
pub mod state;
pub mod stream;
pub mod telemetry;
