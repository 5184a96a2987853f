//! PostgreSQL's wire protocol, as far as a reader of tables and logs needs it (manual, "Frontend/Backend Protocol").
//!
//! The socket is ours because the published transports hand over one message at a time through a channel; here many
//! messages are read at once into one buffer and decoded where they lie.
//!
//! - [`connection`]: connect, simple queries, COPY out and COPY both
//! - [`socket`], [`password`], [`authentication`], [`binding`]: what a connect needs
//! - [`inbox`]: received bytes and the frames in them; [`reader`]: bounds-checked reading of one message
//! - [`server_error`]: what the server says when it refuses; [`silence`]: when it says nothing
//! - [`pgoutput`]: what comes in on a replication stream, with one file per message

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod authentication;
pub mod begin;
mod binding;
pub mod commit;
pub mod connection;
mod copy_both;
mod copy_out;
pub mod delete;
mod inbox;
pub mod insert;
pub mod keepalive;
mod log_socket;
pub mod logical_message;
pub mod origin;
mod password;
pub mod pgoutput;
pub mod reader;
pub mod relation;
pub mod server_error;
pub mod silence;
mod socket;
pub mod status_update;
pub mod stream_abort;
pub mod stream_commit;
pub mod stream_start;
#[cfg(test)]
mod tests;
pub mod truncate;
pub mod tuple;
pub mod type_name;
pub mod update;
pub mod xlog_data;

pub use connection::{Connection, Mode};
pub use copy_both::{CopyBoth, LogReader, LogWriter};
pub use copy_out::CopyOut;
pub use server_error::{ServerError, sqlstate};
pub use socket::Line;
