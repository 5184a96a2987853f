//! `COPY … TO STDOUT`: the payloads of its CopyData messages.

use std::{borrow::BorrowMut, time::Duration};

use millrace_core::{Kind, Result, error::Context};

use super::connection::{Answer, Connection, running};

/// So much within one burst means that the server sends as fast as it can. It sends 8 KiB at a time, and to a reader who
/// waits for each of them a row costs 0.1 µs more on either side.
const BURST: usize = 64 << 10;
/// How long the socket is left alone between bursts: tokio's timer has no finer grain, and the receive buffer (up to
/// `tcp_rmem`, 6 MiB) does not fill meanwhile.
const PAUSE: Duration = Duration::from_millis(1);

/// A COPY that is being read, on a borrowed or an owned connection.
#[derive(Debug)]
pub struct CopyOut<C> {
    connection: C,
    doing: String,
    done: bool,
    /// Bytes read since the socket was last found empty.
    burst: usize,
}

impl<C: BorrowMut<Connection>> CopyOut<C> {
    pub(super) fn new(connection: C, sql: &str) -> Self {
        Self { connection, doing: sql.to_string(), done: false, burst: 0 }
    }

    /// The next payload among the bytes that have been read, `None` when there is none: see [`Self::more`]. All servers
    /// put exactly one row into a message (the first has the header before it), which the protocol does not promise.
    #[inline]
    pub fn at_hand(&mut self) -> Result<Option<&[u8]>> {
        let inbox = self.connection.borrow_mut().inbox();
        let at_hand = match inbox.header() {
            Ok(Some(header)) if header.tag == b'd' => inbox.frame(),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(at_hand.context(Kind::Protocol, || running(&self.doing))?.map(|(_, payload)| payload))
    }

    /// The messages that have been read and not taken, as they came.
    #[inline]
    pub fn waiting(&mut self) -> &[u8] {
        self.connection.borrow_mut().inbox().waiting()
    }

    /// Takes so many bytes of whole CopyData messages.
    #[inline]
    pub fn pass(&mut self, bytes: usize) {
        self.connection.borrow_mut().inbox().pass(bytes);
    }

    /// Reads more; `false` at the end, when the server has said that all went well. Safe to cancel.
    pub async fn more(&mut self) -> Result<bool> {
        if self.done {
            return Ok(false);
        }
        let connection = self.connection.borrow_mut();
        let header = connection.inbox().header().context(Kind::Protocol, || running(&self.doing))?;
        if header.is_some_and(|header| header.tag != b'd') {
            // CopyDone, CommandComplete, ReadyForQuery, or an error in between. Notices are passed over; behind them there
            // may be data again, which must not be taken for an answer.
            if connection.await_message().await? != b'd' {
                self.done = matches!(connection.answer(&self.doing).await?, Answer::Ready);
            }
            return Ok(!self.done);
        }
        let count = connection.fill_now().await?;
        self.burst += count;
        if count > 0 {
            return Ok(true);
        }
        if std::mem::take(&mut self.burst) >= BURST && connection.socket().gains_from_bursts() {
            connection.leave_alone();
            tokio::time::sleep(PAUSE).await;
        } else {
            self.burst += connection.fill().await?;
        }
        Ok(true)
    }

    /// The next payload, `None` at the end. Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        while !self.has_payload()? {
            if !self.more().await? {
                return Ok(None);
            }
        }
        self.at_hand()
    }

    fn has_payload(&mut self) -> Result<bool> {
        let inbox = self.connection.borrow_mut().inbox();
        let whole = inbox.has_frame().context(Kind::Protocol, || running(&self.doing))?;
        Ok(whole && inbox.waiting().first() == Some(&b'd'))
    }

    /// Gives the connection back; only after the end it is free for the next statement.
    pub fn into_connection(self) -> C {
        self.connection
    }
}
