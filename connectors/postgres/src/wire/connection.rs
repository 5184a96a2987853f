//! One connection to a server: connect and log in, simple queries, COPY.

use std::time::Duration;

use bytes::BytesMut;
use millrace_core::{Error, Kind, Result, TlsMode, error::Context, tls};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    authentication,
    copy_both::CopyBoth,
    copy_out::CopyOut,
    inbox::Inbox,
    reader::{Malformed, Reader},
    server_error::ServerError,
    silence::{self, Silence},
    socket::{self, PlainTcp, Socket},
};
use crate::PostgresConfig;

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An ordinary session.
    Plain,
    /// A walsender bound to the database: replication commands and simple queries.
    Replication,
}

/// Settings that make the server print values the same way in a COPY and in a walsender, whatever its configuration,
/// the database's or the role's, and that keep long sessions alive. `row_security = off` makes the server refuse to
/// read a table of which row security would hide rows.
const PINNED: &[&str] = &[
    "TimeZone=UTC",
    "DateStyle=ISO,YMD",
    "IntervalStyle=postgres",
    "bytea_output=hex",
    "extra_float_digits=3",
    "search_path=pg_catalog",
    "row_security=off",
    "statement_timeout=0",
    "lock_timeout=0",
    "idle_in_transaction_session_timeout=0",
];

/// How long the server may take to take a statement: it need not be read from while nothing comes, so [`Silence`] is not
/// asked, and TCP itself gives up after a quarter of an hour. The largest statements have some megabytes.
const SEND_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// Pinned on a walsender as well. With 0 the server makes one more system call per change.
const PINNED_REPLICATION: &[&str] = &["wal_sender_timeout=60s"];

/// A session.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    inbox: Inbox,
    parameters: Vec<(String, String)>,
    process_id: u32,
    /// A statement was sent and its ReadyForQuery has not come: its caller was cancelled.
    unsettled: bool,
    /// How to reach the server by another session, once this one is up.
    config: Option<Box<PostgresConfig>>,
    silence: Silence,
    /// There is nothing to wait for any more: not for the answer to a ROLLBACK either.
    is_lost: bool,
}

/// What a statement's answer consists of, message by message.
pub(super) enum Answer<'a> {
    /// A row; its body.
    Row(&'a [u8]),
    /// A new result set begins.
    Columns,
    /// COPY out begins.
    CopyOut,
    /// COPY both begins.
    CopyBoth,
    /// Anything that needs no attention.
    Other,
    /// The statement is over.
    Ready,
}

impl Connection {
    /// Connects and logs in, within the config's time. `application_name` is what `pg_stat_activity` shows.
    pub async fn connect(config: &PostgresConfig, mode: Mode, application_name: &str) -> Result<Self> {
        let mut connected = Self::connect_unwatched(config, mode, application_name).await?;
        connected.config = Some(Box::new(config.clone()));
        Ok(connected)
    }

    /// The same, but nobody looks what becomes of an answer that does not come.
    pub(super) async fn connect_unwatched(config: &PostgresConfig, mode: Mode, application_name: &str) -> Result<Self> {
        let connecting = Self::connect_unbounded(config, mode, application_name);
        match tokio::time::timeout(config.connect_timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(Kind::Connection, format!("connecting to {}", place(config)))
                .with(format!("no answer within {} s", config.connect_timeout.as_secs_f32()))),
        }
    }

    async fn connect_unbounded(config: &PostgresConfig, mode: Mode, application_name: &str) -> Result<Self> {
        let socket = open_socket(config, mode).await?;
        let mut connection = Self {
            socket,
            inbox: Inbox::new(),
            parameters: vec![],
            process_id: 0,
            unsettled: false,
            config: None,
            silence: Silence::of_statements(),
            is_lost: false,
        };
        let options = options(mode);
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            ("options", options.as_str()),
        ];
        if mode == Mode::Replication {
            parameters.push(("replication", "database"));
        }
        let log_in = async {
            connection.send(|out| frontend::startup_message(parameters.iter().copied(), out)).await?;
            authentication::log_in(&mut connection, config).await?;
            loop {
                let (tag, body) = connection.receive().await?;
                match tag {
                    b'K' => connection.process_id = Reader::new(body).u32().context(Kind::Protocol, || "logging in")?,
                    b'Z' => return Ok(()),
                    _ => {}
                }
            }
        };
        let logged_in = log_in.await;
        logged_in.map_err(|error| {
            let doing = format!("connecting to {} as {:?}", place(config), config.user);
            Error { doing, ..error }
        })?;
        // Such a database takes any bytes; asked for UTF-8, the server would end the whole COPY, or the log, at the first
        // value that is none. Unasked, it sends them as they are, and that row alone is rejected.
        if connection.parameter("server_encoding") == Some("SQL_ASCII") {
            connection.execute("SET client_encoding = 'SQL_ASCII'").await?;
        }
        Ok(connection)
    }

    /// A parameter that the server reported, such as `server_version_num` (not reported by all) or `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The server's major version, from `server_version`; 0 where it makes no sense.
    pub fn major_version(&self) -> u32 {
        let version = self.parameter("server_version").unwrap_or_default();
        let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().unwrap_or(0)
    }

    /// The server process that serves this session.
    pub fn process_id(&self) -> u32 {
        self.process_id
    }

    /// Runs one or several statements by the simple protocol and gives the rows of the last result set, as text. For
    /// catalogs and commands: all rows are held.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.begin(sql).await?;
        let mut rows = vec![];
        loop {
            match self.answer(sql).await? {
                Answer::Columns => rows.clear(),
                Answer::Row(body) => {
                    rows.push(parse_row(body).context(Kind::Protocol, || running(sql))?);
                }
                Answer::Other => {}
                Answer::CopyOut | Answer::CopyBoth => {
                    return Err(Error::new(Kind::Internal, running(sql)).with("it is a COPY, which is not a query"));
                }
                Answer::Ready => return Ok(rows),
            }
        }
    }

    /// Runs one or several statements and drops their rows.
    pub async fn execute(&mut self, sql: &str) -> Result<()> {
        self.query(sql).await.map(drop)
    }

    /// Begins a `COPY … TO STDOUT`; the connection is free again when it has been read to its end.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<&mut Connection>> {
        self.begin_copy_out(sql).await?;
        Ok(CopyOut::new(self, sql))
    }

    /// The same, owning the connection.
    pub async fn into_copy_out(mut self, sql: &str) -> Result<CopyOut<Connection>> {
        self.begin_copy_out(sql).await?;
        Ok(CopyOut::new(self, sql))
    }

    async fn begin_copy_out(&mut self, sql: &str) -> Result<()> {
        self.begin(sql).await?;
        loop {
            match self.answer(sql).await? {
                Answer::CopyOut => return Ok(()),
                Answer::Ready => {
                    return Err(Error::new(Kind::Internal, running(sql)).with("it did not begin a COPY"));
                }
                _ => {}
            }
        }
    }

    /// Begins `START_REPLICATION`.
    pub async fn copy_both(mut self, sql: &str) -> Result<CopyBoth> {
        self.begin(sql).await?;
        loop {
            match self.answer(sql).await? {
                Answer::CopyBoth => return CopyBoth::new(self.socket, self.inbox),
                Answer::Ready => {
                    return Err(Error::new(Kind::Protocol, running(sql)).with("the server did not begin to stream"));
                }
                _ => {}
            }
        }
    }

    /// Says goodbye. Dropping a connection without it is fine as well; the server then notices by itself.
    pub async fn close(mut self) {
        let goodbye = async {
            let sent = self.send(|out| {
                frontend::terminate(out);
                Ok(())
            });
            let _ = sent.await;
            let _ = self.socket.shutdown().await;
        };
        // Nobody is interested in how it ends, and nobody waits for it.
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// Waits for bytes and reads them; an error when there is nothing to wait for any more. Safe to cancel.
    pub(super) async fn fill(&mut self) -> Result<usize> {
        if self.is_lost {
            return Err(Error::new(Kind::Connection, "reading from the server").with("the connection is lost"));
        }
        loop {
            let filled = match &self.config {
                Some(_) => tokio::time::timeout(silence::PATIENCE, self.inbox.fill(&mut self.socket)).await,
                None => Ok(self.inbox.fill(&mut self.socket).await),
            };
            match (filled, &self.config) {
                (Ok(filled), _) => {
                    self.silence.is_over();
                    return filled.context(Kind::Connection, || "reading from the server");
                }
                (Err(_), Some(config)) => {
                    let looked = self.silence.look(config, self.process_id).await;
                    self.is_lost = looked.is_err();
                    looked?;
                }
                (Err(_), None) => {}
            }
        }
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub(super) async fn fill_now(&mut self) -> Result<usize> {
        self.socket.fill_now(&mut self.inbox).await.context(Kind::Connection, || "reading from the server")
    }

    /// Nobody will wait for the socket for a while.
    pub(super) fn leave_alone(&mut self) {
        self.socket.leave_alone();
    }

    /// Sends what `build` writes.
    pub(super) async fn send(&mut self, build: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Result<()> {
        let mut out = BytesMut::new();
        build(&mut out).context(Kind::Config, || "building a message to the server")?;
        let doing = || "writing to the server";
        let write = async {
            self.socket.write_all(&out).await?;
            self.socket.flush().await
        };
        match tokio::time::timeout(SEND_MAX, write).await {
            Ok(written) => written.context(Kind::Connection, doing),
            Err(_) => Err(Error::new(Kind::Connection, doing()).with("it takes nothing more")),
        }
    }

    /// Waits until a whole message is at the front that is not a notice or a parameter; gives its tag.
    pub(super) async fn await_message(&mut self) -> Result<u8> {
        let protocol = |error: Malformed| Error::new(Kind::Protocol, "reading from the server").with(error);
        loop {
            if !self.inbox.has_frame().map_err(protocol)? {
                self.fill().await?;
                continue;
            }
            match self.inbox.header().map_err(protocol)?.map(|header| header.tag) {
                Some(b'S') => {
                    let body = self.inbox.frame().map_err(protocol)?.map(|(_, body)| body).unwrap_or_default();
                    let mut reader = Reader::new(body);
                    let name = reader.string().map_err(protocol)?.to_string();
                    let value = reader.string().map_err(protocol)?.to_string();
                    self.parameters.retain(|(known, _)| *known != name);
                    self.parameters.push((name, value));
                }
                Some(b'N' | b'A') => drop(self.inbox.frame().map_err(protocol)?),
                Some(tag) => return Ok(tag),
                None => {}
            }
        }
    }

    /// Takes the message at the front; an ErrorResponse becomes an error.
    fn take(&mut self) -> Result<(u8, &[u8])> {
        let doing = || "reading from the server";
        let (tag, body) = self.inbox.frame().context(Kind::Protocol, doing)?.unwrap_or_default();
        if tag == b'E' {
            return Err(ServerError::parse(body).context(Kind::Protocol, doing)?.into_error("talking to the server"));
        }
        Ok((tag, body))
    }

    /// The next message that is not a notice or a parameter; an ErrorResponse becomes an error.
    pub(super) async fn receive(&mut self) -> Result<(u8, &[u8])> {
        self.await_message().await?;
        self.take()
    }

    async fn begin(&mut self, sql: &str) -> Result<()> {
        if self.unsettled {
            self.settle().await;
        }
        self.unsettled = true;
        self.send(|out| frontend::query(sql, out)).await
    }

    /// The next message of a statement's answer. After an error everything up to ReadyForQuery has been read.
    pub(super) async fn answer(&mut self, sql: &str) -> Result<Answer<'_>> {
        match self.await_message().await? {
            b'E' => {
                let refused = self.take().map(drop);
                self.settle().await;
                refused.map_err(|error| Error { doing: running(sql), ..error })?;
            }
            b'Z' => self.unsettled = false,
            _ => {}
        }
        let (tag, body) = self.take()?;
        Ok(match tag {
            b'T' => Answer::Columns,
            b'D' => Answer::Row(body),
            b'H' => Answer::CopyOut,
            b'W' => Answer::CopyBoth,
            b'Z' => Answer::Ready,
            _ => Answer::Other,
        })
    }

    /// Reads to ReadyForQuery; a connection that breaks meanwhile will say so at its next use.
    async fn settle(&mut self) {
        loop {
            match self.receive().await {
                Ok((b'Z', _)) => break,
                Ok(_) => {}
                Err(error) if super::sqlstate(&error).is_some() => {}
                Err(_) => return,
            }
        }
        self.unsettled = false;
    }
}

/// "connecting to host:port/database".
fn place(config: &PostgresConfig) -> String {
    format!("{}:{}/{}", config.host, config.port, config.database)
}

/// Statements are shown by their first line, shortened.
pub(super) fn running(sql: &str) -> String {
    let line: String = sql.trim().lines().next().unwrap_or_default().chars().take(100).collect();
    format!("running {line:?}")
}

fn options(mode: Mode) -> String {
    let replication = if mode == Mode::Replication { PINNED_REPLICATION } else { &[] };
    PINNED.iter().chain(replication).map(|setting| format!("-c {setting}")).collect::<Vec<_>>().join(" ")
}

async fn open_socket(config: &PostgresConfig, mode: Mode) -> Result<Socket> {
    let doing = || format!("connecting to {}", place(config));
    if config.host.starts_with('/') {
        return socket::connect_unix(&config.host, config.port).await.context(Kind::Connection, doing);
    }
    let mut stream = socket::connect_tcp(&config.host, config.port, mode == Mode::Replication)
        .await
        .context(Kind::Connection, doing)?;
    if config.tls.mode == TlsMode::Disable {
        return PlainTcp::new(stream).map(Socket::Tcp).context(Kind::Connection, doing);
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.context(Kind::Connection, doing)?;
    // Exactly one byte is read before TLS begins, so that nothing can be slipped in ahead of it (CVE-2021-23222).
    match stream.read_u8().await.context(Kind::Connection, doing)? {
        b'S' => tls::encrypt(stream, &config.tls, &config.host).await.map(|stream| Socket::Tls(Box::new(stream))),
        _ => Err(Error::new(Kind::Connection, doing())
            .with("the server does not speak TLS, which tls.mode demands")
            .fix("set ssl = on at the server, or tls.mode to disable if the network in between is private")),
    }
}

fn parse_row(body: &[u8]) -> Result<Vec<Option<String>>, Malformed> {
    let mut reader = Reader::new(body);
    (0..reader.u16()?)
        .map(|_| match reader.i32()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| Malformed("a value has a negative length"))?;
                let text = std::str::from_utf8(reader.bytes(length)?);
                Ok(Some(text.map_err(|_| Malformed("a value is not UTF-8"))?.to_string()))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_within_bounds() {
        let body = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        assert_eq!(parse_row(body), Ok(vec![Some("ab".into()), None]));
        assert!(parse_row(&body[..9]).is_err());
        assert!(parse_row(b"\0\x01\xff\xff\xff\xfe").is_err());
    }

    #[test]
    fn walsenders_get_a_timeout_of_their_own() {
        assert!(options(Mode::Replication).ends_with("-c wal_sender_timeout=60s"));
        assert!(!options(Mode::Plain).contains("wal_sender"));
    }

    #[test]
    fn statements_are_shown_shortened() {
        assert_eq!(running("  select 1\n from t"), "running \"select 1\"");
    }
}
