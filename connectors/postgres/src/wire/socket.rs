//! The transport: TCP, TCP with TLS, or a Unix socket.

use std::{
    fmt,
    io::{self, Read},
    net::SocketAddr,
    os::unix::net as unix,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use super::inbox::Inbox;

/// A receive buffer for replication that keeps the TCP window closed while a backlog is read: the walsender's sends then
/// only append to its queue and leave in large segments. It makes a change cost the server 2.5 to 3.0 instead of 6.5 µs
/// (measured on loopback, PostgreSQL 15). Only there: once the window is open again the next bytes need a round trip, and
/// even at one of 0.1 ms the bursts that [`crate::log`] reads in end empty-handed (50,000 changes/s instead of 110,000). The
/// kernel's own window grows with what a burst brings.
const SMALL_RECEIVE_BUFFER: u32 = 64 << 10;

/// The largest segment that is asked for beside it. Loopback's own is 64 KiB; where the kernel makes the window smaller than
/// that, as it does when much that arrives is small, a sender that has whole segments waits out its persist timer before
/// each: 300 KB/s (seen behind a proxy on the same machine).
const SMALL_SEGMENT: u32 = 8 << 10;

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Behind a Unix socket.
    Unix,
    /// On this machine, by TCP.
    Loopback,
    /// Behind a network.
    Network,
}

/// A connected transport.
#[derive(Debug)]
pub enum Socket {
    /// In the clear.
    Tcp(PlainTcp),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
    /// On this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Where it leads.
    pub fn line(&self) -> Line {
        let peer = match self {
            Self::Unix(_) => return Line::Unix,
            Self::Tcp(tcp) => tcp.peer_addr(),
            Self::Tls(tls) => tls.get_ref().0.peer_addr(),
        };
        let is_loopback = peer.is_ok_and(|address| address.ip().is_loopback());
        if is_loopback { Line::Loopback } else { Line::Network }
    }

    /// Whether bursts of reads are worth it: on a Unix socket they make it slower.
    pub fn gains_from_bursts(&self) -> bool {
        !matches!(self, Self::Unix(_))
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub async fn fill_now(&mut self, inbox: &mut Inbox) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.fill_now(inbox),
            socket => inbox.fill_now(socket).await,
        }
    }

    /// Nobody will wait for this socket for a while.
    pub fn leave_alone(&mut self) {
        if let Self::Tcp(tcp) = self {
            tcp.leave_alone();
        }
    }
}

/// A non-blocking socket that is registered with the runtime's poller only while somebody waits for it: registered
/// there, every segment that arrives wakes a thread, although nobody wants to read yet (measured while a backlog was
/// read: 130,000 wake-ups and two thirds of the reader's CPU time per million changes).
#[derive(Debug)]
pub struct Plain<S: Stream> {
    stream: S,
    registered: Option<S::Registered>,
}

/// Over TCP.
pub type PlainTcp = Plain<std::net::TcpStream>;
/// Over a Unix socket.
pub type PlainUnix = Plain<unix::UnixStream>;

/// A stream of the system, and what the runtime makes of it.
pub trait Stream: Read + fmt::Debug + Send + Unpin + Sized {
    /// The runtime's.
    type Registered: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin;

    /// A second handle of the same socket.
    fn try_clone(&self) -> io::Result<Self>;

    /// Registers the handle with the runtime's poller.
    fn register(self) -> io::Result<Self::Registered>;
}

impl Stream for std::net::TcpStream {
    type Registered = TcpStream;

    fn try_clone(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn register(self) -> io::Result<TcpStream> {
        TcpStream::from_std(self)
    }
}

impl Stream for unix::UnixStream {
    type Registered = UnixStream;

    fn try_clone(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn register(self) -> io::Result<UnixStream> {
        UnixStream::from_std(self)
    }
}

impl PlainTcp {
    /// Takes a connected stream over.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { stream: stream.into_std()?, registered: None })
    }

    /// The server's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl PlainUnix {
    /// Takes a connected stream over.
    pub fn of_unix(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { stream: stream.into_std()?, registered: None })
    }
}

impl<S: Stream> Plain<S> {
    /// A second handle for writing, which nobody registers.
    pub fn writer(&self) -> io::Result<S> {
        self.stream.try_clone()
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub fn fill_now(&mut self, inbox: &mut Inbox) -> io::Result<usize> {
        inbox.fill_from(|room| self.stream.read(room))
    }

    /// Nobody will wait for a while.
    pub fn leave_alone(&mut self) {
        self.registered = None;
    }

    fn registered(&mut self) -> io::Result<Pin<&mut S::Registered>> {
        Ok(Pin::new(match &mut self.registered {
            Some(registered) => registered,
            empty => empty.insert(self.stream.try_clone()?.register()?),
        }))
    }
}

impl<S: Stream> AsyncRead for Plain<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.registered()?.poll_read(cx, buf)
    }
}

impl<S: Stream> AsyncWrite for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.registered()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registered()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registered()?.poll_shutdown(cx)
    }
}

/// Connects to a Unix socket: `<folder>/.s.PGSQL.<port>`.
pub async fn connect_unix(folder: &str, port: u16) -> io::Result<Socket> {
    UnixStream::connect(Path::new(folder).join(format!(".s.PGSQL.{port}"))).await.map(Socket::Unix)
}

/// Connects to the first address of the host that answers. `replication` asks for the small receive buffer on loopback.
pub async fn connect_tcp(host: &str, port: u16, replication: bool) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match open(address, replication && address.ip().is_loopback()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open(address: SocketAddr, small_receive_buffer: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if small_receive_buffer {
        socket.set_recv_buffer_size(SMALL_RECEIVE_BUFFER)?;
        socket2::SockRef::from(&socket).set_tcp_mss(SMALL_SEGMENT)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    // A peer that vanished without a word is noticed after about two minutes.
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn segments_fit_into_the_small_window() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (replication, fits) in [(true, true), (false, false)] {
            let _client = connect_tcp("127.0.0.1", port, replication).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            assert_eq!(socket2::SockRef::from(&server).tcp_mss().unwrap() <= SMALL_SEGMENT, fits);
        }
    }
}
