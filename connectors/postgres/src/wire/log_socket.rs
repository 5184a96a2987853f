//! The two halves of a replication socket.

use std::{
    io::{self, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    inbox::Inbox,
    socket::{PlainTcp, PlainUnix, Socket},
};

/// Between two attempts to write into a full send buffer.
const WRITE_PAUSE: Duration = Duration::from_millis(20);

/// What is read from.
#[derive(Debug)]
pub enum ReadingSide {
    /// TLS.
    Runtime(ReadHalf<Socket>),
    /// Plain TCP.
    Tcp(PlainTcp),
    /// A Unix socket.
    Unix(PlainUnix),
}

/// What is written to.
#[derive(Debug)]
pub enum WritingSide {
    /// TLS.
    Runtime(WriteHalf<Socket>),
    /// Plain TCP, never registered.
    Tcp(TcpStream),
    /// A Unix socket, never registered.
    Unix(UnixStream),
}

/// Takes a socket apart.
pub fn split(socket: Socket) -> io::Result<(ReadingSide, WritingSide)> {
    match socket {
        Socket::Tcp(stream) => {
            let writer = stream.writer()?;
            Ok((ReadingSide::Tcp(stream), WritingSide::Tcp(writer)))
        }
        Socket::Unix(stream) => {
            let stream = PlainUnix::of_unix(stream)?;
            let writer = stream.writer()?;
            Ok((ReadingSide::Unix(stream), WritingSide::Unix(writer)))
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
            Self::Unix(reader) => inbox.fill(reader).await,
        }
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub async fn fill_now(&mut self, inbox: &mut Inbox) -> io::Result<usize> {
        match self {
            Self::Runtime(half) => inbox.fill_now(half).await,
            Self::Tcp(reader) => reader.fill_now(inbox),
            Self::Unix(reader) => reader.fill_now(inbox),
        }
    }

    /// Nobody will wait for this socket for a while.
    pub fn leave_alone(&mut self) {
        match self {
            Self::Runtime(_) => {}
            Self::Tcp(reader) => reader.leave_alone(),
            Self::Unix(reader) => reader.leave_alone(),
        }
    }
}

impl WritingSide {
    /// Writes all of it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Runtime(half) => {
                half.write_all(bytes).await?;
                half.flush().await
            }
            Self::Tcp(stream) => write_all(stream, bytes).await,
            Self::Unix(stream) => write_all(stream, bytes).await,
        }
    }
}

/// Writes into a socket that does not block.
async fn write_all(stream: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            // Updates are small and rare; a full send buffer means that the server does not listen.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(WRITE_PAUSE).await,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
