//! `COPY … TO STDOUT`: the payload stream in large pieces.

use std::borrow::BorrowMut;

use millrace_core::{Kind, Result, error::Context};

use super::connection::{Answer, Connection, running};

/// A COPY that is being read, on a borrowed or an owned connection.
#[derive(Debug)]
pub struct CopyOut<C> {
    connection: C,
    doing: String,
    done: bool,
}

impl<C: BorrowMut<Connection>> CopyOut<C> {
    pub(super) fn new(connection: C, sql: &str) -> Self {
        Self { connection, doing: sql.to_string(), done: false }
    }

    /// The next piece of the payload stream: the payloads of all CopyData messages at hand, one behind the other (a
    /// value or a row may go on in the next piece). `None` at the end, when the server has said that all went well.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        let connection = self.connection.borrow_mut();
        let taken = loop {
            if self.done {
                return Ok(None);
            }
            let inbox = connection.inbox();
            let taken = inbox.copy_data().context(Kind::Protocol, || running(&self.doing))?;
            if !taken.is_empty() {
                break taken;
            }
            if !inbox.at_frame() {
                connection.fill().await?;
            } else {
                // CopyDone, CommandComplete, ReadyForQuery, or an error in between.
                self.done = matches!(connection.answer(&self.doing).await?, Answer::Ready);
            }
        };
        Ok(Some(connection.inbox().piece(taken)))
    }

    /// Gives the connection back; only after the end it is free for the next statement.
    pub fn into_connection(self) -> C {
        self.connection
    }
}
