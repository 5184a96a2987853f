//! The client/server protocol (manual, "MySQL Client/Server Protocol"; MariaDB Knowledge Base, "Client/Server Protocol"):
//! log in, statements of the text protocol, and the dump of the binary log. One file per message.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod authentication;
pub mod binlog_dump;
pub mod connection;
pub mod greeting;
pub mod inbox;
mod password_key;
pub mod reader;
pub mod server_error;

pub use connection::{Connection, TextRows};
pub use reader::{Malformed, Reader};
pub use server_error::{ServerError, code};
