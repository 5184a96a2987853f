//! One connection to a server: connect and log in, statements of the text protocol, and the binary log.

use std::{fmt, time::Duration};

use millrace_core::{Error, Kind, Result, TlsMode, error::Context, tls};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::{
    authentication::{self, Peer},
    binlog_dump,
    greeting::{self, Greeting},
    inbox::{Inbox, PIECE},
    reader::{Malformed, Reader},
    server_error::{ServerError, code},
};
use crate::MysqlConfig;

/// utf8mb4_general_ci, which every server knows.
const COLLATION: u8 = 45;
/// `max_allowed_packet` as servers know it at most.
const PACKET_BYTES_MAX: u32 = 1 << 30;
/// What a row of the text protocol cannot begin with, if the packet is as short as this.
const EOF: u8 = 0xfe;
const EOF_BYTES_MAX: usize = 9;

/// Settings that make the server read statements and print values the same way always and whole, whatever its
/// configuration, and that keep long sessions alive: a load that waits for its turn may stand still for hours.
const PINNED: &str = "SET SESSION sql_mode = '', time_zone = '+00:00', lock_wait_timeout = 31536000, \
    wait_timeout = 31536000, net_read_timeout = 31536000, net_write_timeout = 31536000, \
    character_set_results = 'utf8mb4', character_set_client = 'utf8mb4', character_set_connection = 'utf8mb4', \
    collation_connection = 'utf8mb4_general_ci', group_concat_max_len = 1048576, autocommit = 1, \
    sql_select_limit = 18446744073709551615, sql_big_selects = 1";
/// How long a statement may run, and stand still in a transaction: only one of the two systems has each of them.
const PINNED_MARIADB: &str = ", max_statement_time = 0, idle_transaction_timeout = 0, \
    idle_readonly_transaction_timeout = 0";
const PINNED_MYSQL: &str = ", max_execution_time = 0";

/// A way to a server.
trait Transport: AsyncRead + AsyncWrite + Send + Sync + Unpin + fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + fmt::Debug> Transport for T {}

/// A session.
#[derive(Debug)]
pub struct Connection {
    stream: Box<dyn Transport>,
    inbox: Inbox,
    greeting: Greeting,
    /// A statement was sent and its answer has not come to its end: its caller was cancelled.
    unsettled: bool,
}

impl Connection {
    /// Connects, logs in, and pins the session's settings, within the config's time.
    pub async fn connect(config: &MysqlConfig) -> Result<Self> {
        let doing = || format!("connecting to {} as {:?}", config.place(), config.user);
        let connected = tokio::time::timeout(config.connect_timeout, Self::connect_unbounded(config)).await;
        let seconds = config.connect_timeout.as_secs_f32();
        let timeout = |_| Error::new(Kind::Connection, doing()).with(format!("no answer within {seconds} s"));
        let connection = connected.map_err(timeout)?.map_err(|error| Error { doing: doing(), ..error })?;
        Ok(connection)
    }

    async fn connect_unbounded(config: &MysqlConfig) -> Result<Self> {
        let connecting = || "connecting";
        let mut tcp = None;
        let stream: Box<dyn Transport> = if config.is_socket() {
            Box::new(UnixStream::connect(&config.host).await.context(Kind::Connection, connecting)?)
        } else {
            let connected = TcpStream::connect((config.host.as_str(), config.port)).await;
            let stream = connected.context(Kind::Connection, connecting)?;
            stream.set_nodelay(true).context(Kind::Connection, connecting)?;
            // A peer that vanished without a word is noticed after about two minutes.
            let keepalive = TcpKeepalive::new()
                .with_time(Duration::from_secs(60))
                .with_interval(Duration::from_secs(15))
                .with_retries(4);
            SockRef::from(&stream).set_tcp_keepalive(&keepalive).context(Kind::Connection, connecting)?;
            tcp = (config.tls.mode != TlsMode::Disable).then_some(());
            Box::new(stream)
        };
        let peer = match (config.is_socket(), config.tls.mode) {
            (false, TlsMode::Disable) => Peer::Public,
            (false, TlsMode::Require) => Peer::Encrypted,
            (true, _) | (_, TlsMode::VerifyCa | TlsMode::VerifyFull) => Peer::Known,
        };
        let greeting = Greeting::default();
        let mut connection = Self { stream, inbox: Inbox::default(), greeting, unsettled: false };
        connection.greet().await?;
        if tcp.is_some() {
            connection = connection.encrypt(config).await?;
        }
        connection.log_in(config, peer).await?;
        let own = if connection.is_mariadb() { PINNED_MARIADB } else { PINNED_MYSQL };
        connection.execute(&format!("{PINNED}{own}")).await?;
        if !connection.is_mariadb() {
            // A primary key that the server made itself is in the log, and must be in the catalog. Servers before 8.0.30
            // refuse the setting, and make none.
            match connection.execute("SET SESSION show_gipk_in_create_table_and_information_schema = ON").await {
                Err(error) if code(&error).is_none() => return Err(error),
                _ => {}
            }
        }
        Ok(connection)
    }

    async fn greet(&mut self) -> Result<()> {
        let body = self.packet().await?;
        self.greeting = Greeting::parse(body).context(Kind::Protocol, || "reading the server's greeting")?;
        if self.greeting.capabilities & greeting::NEEDED != greeting::NEEDED {
            let error = Error::new(Kind::SourceSetup, "reading the server's greeting");
            return Err(error.with(format!("the server {} is too old", self.greeting.server_version)));
        }
        Ok(())
    }

    async fn encrypt(mut self, config: &MysqlConfig) -> Result<Self> {
        if self.greeting.capabilities & greeting::SSL == 0 {
            return Err(Error::new(Kind::SourceSetup, "setting up TLS")
                .with("the server offers no encryption")
                .fix("set ssl_cert and ssl_key at the server, or tls: { mode: disable } here"));
        }
        let request = log_in_head(greeting::CAPABILITIES | greeting::SSL);
        self.send(&request).await?;
        let Self { stream, inbox, greeting, unsettled } = self;
        if !inbox.is_empty() {
            // Bytes from before the encryption could be anybody's.
            return Err(Error::new(Kind::Protocol, "setting up TLS").with("the server spoke out of turn"));
        }
        let stream = tls::encrypt(stream, &config.tls, &config.host).await?;
        Ok(Self { stream: Box::new(stream), inbox, greeting, unsettled })
    }

    async fn log_in(&mut self, config: &MysqlConfig, peer: Peer) -> Result<()> {
        let password = crate::password(config)?;
        let password = password.as_ref().map_or("", |secret| secret.expose()).as_bytes();
        let (plugin, proof) = authentication::first_proof(&self.greeting.plugin, password, &self.greeting.nonce);
        let ssl = if peer != Peer::Public && !config.is_socket() { greeting::SSL } else { 0 };
        let mut body = log_in_head(greeting::CAPABILITIES | ssl);
        body.extend(config.user.as_bytes());
        body.push(0);
        body.push(proof.len() as u8);
        body.extend(proof);
        body.extend(plugin.as_bytes());
        body.push(0);
        self.send(&body).await?;
        authentication::log_in(self, password, self.greeting.nonce.clone(), peer).await
    }

    /// What the server calls itself, without MariaDB's prefix for old clients.
    pub fn server_version(&self) -> &str {
        let version = self.greeting.server_version.as_str();
        if self.is_mariadb() { version.strip_prefix("5.5.5-").unwrap_or(version) } else { version }
    }

    /// Which of the two it is.
    pub fn is_mariadb(&self) -> bool {
        self.greeting.server_version.contains("MariaDB")
    }

    /// The session's number, which `KILL` takes.
    pub fn thread_id(&self) -> u32 {
        self.greeting.thread_id
    }

    /// Sends one body, in a packet numbered as the next of its exchange, or in several if it is long.
    pub async fn send(&mut self, body: &[u8]) -> Result<()> {
        let mut packets = Vec::with_capacity(body.len() + 8);
        let mut rest = body;
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(PIECE));
            packets.extend_from_slice(&(piece.len() as u32).to_le_bytes()[..3]);
            packets.push(self.inbox.sequence());
            self.inbox.number_from(self.inbox.sequence().wrapping_add(1));
            packets.extend_from_slice(piece);
            rest = behind;
            if piece.len() < PIECE {
                break;
            }
        }
        let sending = || "sending to the server";
        self.stream.write_all(&packets).await.context(Kind::Connection, sending)?;
        self.stream.flush().await.context(Kind::Connection, sending)
    }

    /// The next packet, which is no error. Safe to cancel.
    pub async fn packet(&mut self) -> Result<&[u8]> {
        while !self.packet_at_hand()? {
            self.receive().await?;
        }
        self.body()
    }

    /// Takes the next packet, if it has been received; [`Self::body`] gives it.
    pub fn packet_at_hand(&mut self) -> Result<bool> {
        self.inbox.take().context(Kind::Protocol, || "reading from the server")
    }

    /// The packet that was taken last, which is no error.
    pub fn body(&self) -> Result<&[u8]> {
        let body = self.inbox.body();
        if let Some((0xff, rest)) = body.split_first() {
            let error = ServerError::parse(rest).context(Kind::Protocol, || "reading an error of the server")?;
            return Err(Error::new(error.kind(), "asking the server").with(error));
        }
        Ok(body)
    }

    /// Waits for bytes; [`Self::packet_at_hand`] takes the packets in them. Safe to cancel.
    pub async fn receive(&mut self) -> Result<()> {
        let received = self.inbox.fill(&mut *self.stream).await;
        received.map(|_| ()).context(Kind::Connection, || "reading from the server")
    }

    async fn begin(&mut self, sql: &str) -> Result<()> {
        if std::mem::replace(&mut self.unsettled, true) {
            return Err(Error::new(Kind::Connection, "asking the server").with("an earlier question was given up"));
        }
        let mut body = vec![0x03];
        body.extend(sql.as_bytes());
        self.inbox.number_from(0);
        self.send(&body).await
    }

    /// Sends a statement; its rows are read one after the other. What the server refuses leaves the session as it was.
    pub async fn rows(&mut self, sql: &str) -> Result<usize> {
        let begun = self.rows_unnamed(sql).await;
        begun.map_err(|error| self.settle(error, sql))
    }

    async fn rows_unnamed(&mut self, sql: &str) -> Result<usize> {
        self.begin(sql).await?;
        let first = self.packet().await?;
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading an answer").with(error);
        if first.first() == Some(&0) {
            self.unsettled = false;
            return Ok(0);
        }
        let columns = Reader::new(first).length().map_err(malformed)?;
        // The names and types of the columns, and the mark of their end: a statement's writer knows them.
        for _ in 0..=columns {
            self.packet().await?;
        }
        Ok(columns)
    }

    /// The next row of the statement, as it came; `None` at the end. Safe to cancel.
    pub async fn next_row(&mut self) -> Result<Option<&[u8]>> {
        while !self.packet_at_hand()? {
            self.receive().await?;
        }
        let is_end = match self.body() {
            Ok(body) => body.first() == Some(&EOF) && body.len() < EOF_BYTES_MAX,
            Err(error) => {
                // An error of the server ends the statement, too.
                self.unsettled = super::code(&error).is_none();
                return Err(error);
            }
        };
        if is_end {
            self.unsettled = false;
            return Ok(None);
        }
        self.body().map(Some)
    }

    /// Runs a statement and gives its rows as text. For catalogs and commands: all rows are held.
    pub async fn query(&mut self, sql: &str) -> Result<TextRows> {
        let asked = self.query_unnamed(sql).await;
        asked.map_err(|error| self.settle(error, sql))
    }

    async fn query_unnamed(&mut self, sql: &str) -> Result<TextRows> {
        let columns = self.rows_unnamed(sql).await?;
        let mut rows = vec![];
        if columns == 0 {
            return Ok(rows);
        }
        while let Some(row) = self.next_row().await? {
            let mut reader = Reader::new(row);
            let mut cells = Vec::with_capacity(columns);
            for _ in 0..columns {
                let cell = reader.cell().context(Kind::Protocol, || "reading a row")?;
                cells.push(cell.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
            }
            rows.push(cells);
        }
        Ok(rows)
    }

    /// An error of the server ends the statement; any other leaves the session in the middle of it.
    fn settle(&mut self, error: Error, sql: &str) -> Error {
        if super::code(&error).is_some() {
            self.unsettled = false;
        }
        let head: String = sql.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
        Error { doing: format!("{}: {head} …", error.doing), ..error }
    }

    /// Runs a statement without rows, or whose rows nobody wants.
    pub async fn execute(&mut self, sql: &str) -> Result<()> {
        self.query(sql).await.map(|_| ())
    }

    /// Turns the session into one that sends the binary log: every packet from now on is an event.
    pub async fn dump(&mut self, server_id: u32, file: &str, position: u32) -> Result<()> {
        self.inbox.number_from(0);
        self.unsettled = true;
        self.send(&binlog_dump::command(server_id, file, position)).await
    }

    /// The same, for everything but what was executed. MariaDB is told with variables of the session, before.
    pub async fn dump_gtid(&mut self, server_id: u32, executed: &[u8]) -> Result<()> {
        self.inbox.number_from(0);
        self.unsettled = true;
        self.send(&binlog_dump::command_gtid(server_id, executed)).await
    }

    /// Whether the server is still there to talk to, within a moment.
    pub async fn is_alive(&mut self) -> bool {
        let asked = tokio::time::timeout(Duration::from_secs(5), self.execute("DO 0")).await;
        matches!(asked, Ok(Ok(())))
    }
}

/// Rows of text.
pub type TextRows = Vec<Vec<Option<String>>>;

fn log_in_head(capabilities: u32) -> Vec<u8> {
    let mut body = capabilities.to_le_bytes().to_vec();
    body.extend(PACKET_BYTES_MAX.to_le_bytes());
    body.push(COLLATION);
    body.extend([0; 23]);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Connection {
        /// A session with somebody of whom nothing is known yet.
        pub fn over(stream: tokio::io::DuplexStream) -> Self {
            Self { stream: Box::new(stream), inbox: Inbox::default(), greeting: Greeting::default(), unsettled: false }
        }
    }

    #[tokio::test]
    async fn long_bodies_are_sent_in_pieces() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut connection = Connection::over(near);
        let bodies = [vec![1; 3], vec![2; PIECE], vec![3; PIECE + 5], vec![]];
        let sent = async {
            for body in &bodies {
                connection.send(body).await.unwrap();
            }
            drop(connection);
        };
        let received = async {
            let (mut inbox, mut seen) = (Inbox::default(), vec![]);
            while seen.len() < bodies.len() {
                while inbox.take().unwrap() {
                    seen.push(inbox.body().to_vec());
                }
                if seen.len() < bodies.len() {
                    inbox.fill(&mut far).await.unwrap();
                }
            }
            seen
        };
        let ((), seen) = tokio::join!(sent, received);
        assert!(seen == bodies);
    }
}
