//! The two halves of a replication socket.
//!
//! A TCP socket without TLS is taken from the runtime's poller while a backlog is read in bursts: registered there, every
//! segment that arrives wakes a thread, although nobody wants to read yet (measured: 130,000 wake-ups and two thirds of
//! the reader's CPU time per million changes).

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};

use super::{inbox::Inbox, socket::Socket};

/// Between two attempts to write into a full send buffer.
const WRITE_PAUSE: Duration = Duration::from_millis(20);

/// What is read from.
#[derive(Debug)]
pub enum ReadingSide {
    /// TLS, or a Unix socket.
    Runtime(ReadHalf<Socket>),
    /// Plain TCP.
    Tcp(TcpReader),
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
            let stream = stream.into_std()?;
            let writer = stream.try_clone()?;
            Ok((ReadingSide::Tcp(TcpReader { stream, registered: None }), WritingSide::Tcp(writer)))
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
            Self::Tcp(reader) => inbox.fill_from(|room| reader.stream.read(room)),
        }
    }

    /// Nobody will wait for this socket for a while.
    pub fn leave_alone(&mut self) {
        if let Self::Tcp(reader) = self {
            reader.registered = None;
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

/// A non-blocking TCP socket that is registered for reading only while somebody waits.
#[derive(Debug)]
pub struct TcpReader {
    stream: TcpStream,
    registered: Option<tokio::net::TcpStream>,
}

impl AsyncRead for TcpReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let reader = &mut *self;
        let registered = match &mut reader.registered {
            Some(registered) => registered,
            empty => empty.insert(tokio::net::TcpStream::from_std(reader.stream.try_clone()?)?),
        };
        Pin::new(registered).poll_read(cx, buf)
    }
}
