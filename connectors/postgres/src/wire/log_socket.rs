//! The two halves of a replication socket.

use std::{
    io::{self, Write},
    net::TcpStream,
    time::Duration,
};

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    inbox::Inbox,
    socket::{PlainTcp, Socket},
};

/// Between two attempts to write into a full send buffer.
const WRITE_PAUSE: Duration = Duration::from_millis(20);

/// What is read from.
#[derive(Debug)]
pub enum ReadingSide {
    /// TLS, or a Unix socket.
    Runtime(ReadHalf<Socket>),
    /// Plain TCP.
    Tcp(PlainTcp),
}

/// What is written to.
#[derive(Debug)]
pub enum WritingSide {
    /// TLS, or a Unix socket.
    Runtime(WriteHalf<Socket>),
    /// Plain TCP, never registered.
    Tcp(TcpStream),
}

/// Takes a socket apart.
pub fn split(socket: Socket) -> io::Result<(ReadingSide, WritingSide)> {
    match socket {
        Socket::Tcp(stream) => {
            let writer = stream.writer()?;
            Ok((ReadingSide::Tcp(stream), WritingSide::Tcp(writer)))
        }
        socket => {
            let (read, write) = tokio::io::split(socket);
            Ok((ReadingSide::Runtime(read), WritingSide::Runtime(write)))
        }
    }
}

impl ReadingSide {
    /// Waits for bytes and reads them. Safe to cancel.
    pub async fn fill(&mut self, inbox: &mut Inbox) -> io::Result<usize> {
        match self {
            Self::Runtime(half) => inbox.fill(half).await,
            Self::Tcp(reader) => inbox.fill(reader).await,
        }
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub async fn fill_now(&mut self, inbox: &mut Inbox) -> io::Result<usize> {
        match self {
            Self::Runtime(half) => inbox.fill_now(half).await,
            Self::Tcp(reader) => reader.fill_now(inbox),
        }
    }

    /// Nobody will wait for this socket for a while.
    pub fn leave_alone(&mut self) {
        if let Self::Tcp(reader) = self {
            reader.leave_alone();
        }
    }
}

impl WritingSide {
    /// Writes all of it.
    pub async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Runtime(half) => {
                half.write_all(bytes).await?;
                half.flush().await
            }
            Self::Tcp(stream) => {
                while !bytes.is_empty() {
                    match stream.write(bytes) {
                        Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                        // Updates are small and rare; a full send buffer means that the server does not listen.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            tokio::time::sleep(WRITE_PAUSE).await;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }
}
