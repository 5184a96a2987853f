//! COPY both: the log comes in, status updates go out.

use millrace_core::{Error, Kind, Result, error::Context};

use super::{
    inbox::Inbox,
    log_socket::{self, ReadingSide, WritingSide},
    server_error::ServerError,
    socket::{Line, Socket},
};

/// A walsender that streams. The halves are used apart, so that the session can be kept alive while nobody reads.
#[derive(Debug)]
pub struct CopyBoth {
    /// What comes in.
    pub reader: LogReader,
    /// What goes out.
    pub writer: LogWriter,
}

impl CopyBoth {
    pub(super) fn new(socket: Socket, inbox: Inbox) -> Result<Self> {
        let line = socket.line();
        let (read, write) =
            log_socket::split(socket).context(Kind::Connection, || "taking the replication socket apart")?;
        Ok(Self { reader: LogReader { socket: read, inbox, line }, writer: LogWriter { socket: write } })
    }
}

/// Receives the log's messages.
#[derive(Debug)]
pub struct LogReader {
    socket: ReadingSide,
    inbox: Inbox,
    line: Line,
}

impl LogReader {
    /// Where the server is.
    pub fn line(&self) -> Line {
        self.line
    }

    /// The payload of the next CopyData among the bytes that have been read; `None` when more must be read. When the
    /// server ended the stream this is an error.
    #[inline]
    pub fn message(&mut self) -> Result<Option<&[u8]>> {
        let doing = || "reading the log";
        let tag = loop {
            match self.inbox.header().context(Kind::Protocol, doing)? {
                Some(header) if !self.inbox.has_frame().context(Kind::Protocol, doing)? => {
                    let _ = header;
                    return Ok(None);
                }
                None => return Ok(None),
                // NoticeResponse and ParameterStatus say nothing here.
                Some(header) if matches!(header.tag, b'N' | b'S') => {
                    self.inbox.frame().context(Kind::Protocol, doing)?;
                }
                Some(header) => break header.tag,
            }
        };
        let body = self.inbox.frame().context(Kind::Protocol, doing)?.map(|(_, body)| body).unwrap_or_default();
        match tag {
            b'd' => Ok(Some(body)),
            b'E' => Err(ServerError::parse(body).context(Kind::Protocol, doing)?.into_error(doing())),
            b'c' | b'C' | b'Z' => {
                Err(Error::new(Kind::Connection, doing()).with("the server ended the stream (it is shutting down)"))
            }
            other => Err(Error::new(Kind::Protocol, doing()).with(format!("unexpected message {:?}", other as char))),
        }
    }

    /// Nobody will wait for the socket for a while.
    pub fn leave_alone(&mut self) {
        self.socket.leave_alone();
    }

    /// Waits for bytes and reads them. Safe to cancel.
    pub async fn fill(&mut self) -> Result<usize> {
        self.socket.fill(&mut self.inbox).await.context(Kind::Connection, || "reading the log")
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub async fn fill_now(&mut self) -> Result<usize> {
        self.socket.fill_now(&mut self.inbox).await.context(Kind::Connection, || "reading the log")
    }
}

/// Sends messages to the walsender.
#[derive(Debug)]
pub struct LogWriter {
    socket: WritingSide,
}

impl LogWriter {
    /// Sends one CopyData. Not safe to cancel: half a message would break the stream.
    pub async fn send(&mut self, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len() + 4).context(Kind::Internal, || "building a message")?;
        let mut message = Vec::with_capacity(payload.len() + 5);
        message.push(b'd');
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(payload);
        self.socket.write(&message).await.context(Kind::Connection, || "writing a status update")
    }
}
