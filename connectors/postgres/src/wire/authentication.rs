//! Logging in: trust, password, MD5, SCRAM-SHA-256 with channel binding (manual, "Start-up" and "SASL Authentication").

use millrace_core::{Error, Kind, Result, Secret, error::Context};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::frontend,
};

use super::{
    binding,
    connection::Connection,
    password,
    reader::{Malformed, Reader},
    socket::{Line, Socket},
};
use crate::PostgresConfig;

/// What the server asks for.
enum Request {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    /// The mechanisms it offers.
    Sasl(Vec<String>),
    /// A method that is not spoken here, by number.
    Other(u32),
}

/// Answers the server's requests until it is satisfied.
pub async fn log_in(connection: &mut Connection, config: &PostgresConfig) -> Result<()> {
    loop {
        let (tag, body) = connection.receive().await?;
        if tag != b'R' {
            return Err(unexpected(tag));
        }
        match parse(body).context(Kind::Protocol, || "logging in")? {
            Request::Ok => return Ok(()),
            Request::Cleartext => {
                refuse_cleartext(connection, config)?;
                let password = required_password(config)?;
                connection.send(|out| frontend::password_message(password.expose().as_bytes(), out)).await?;
            }
            Request::Md5(salt) => {
                let password = required_password(config)?;
                let hash = md5_hash(config.user.as_bytes(), password.expose().as_bytes(), salt);
                connection.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            }
            Request::Sasl(mechanisms) => scram(connection, config, &mechanisms).await?,
            Request::Other(method) => {
                return Err(Error::new(Kind::Authentication, "logging in")
                    .with(format!("the server asks for authentication method {method}, which is not supported"))
                    .fix("let pg_hba.conf ask for scram-sha-256 for this role"));
            }
        }
    }
}

fn parse(body: &[u8]) -> Result<Request, Malformed> {
    let mut reader = Reader::new(body);
    Ok(match reader.u32()? {
        0 => Request::Ok,
        3 => Request::Cleartext,
        5 => {
            let salt = reader.bytes(4)?.first_chunk().copied();
            Request::Md5(salt.ok_or(Malformed("the salt is short"))?)
        }
        10 => {
            let mut mechanisms = vec![];
            loop {
                match reader.string()? {
                    "" => return Ok(Request::Sasl(mechanisms)),
                    name => mechanisms.push(name.to_string()),
                }
            }
        }
        other => Request::Other(other),
    })
}

fn required_password(config: &PostgresConfig) -> Result<Secret> {
    password::find(config)?.ok_or_else(|| {
        Error::new(Kind::Authentication, format!("logging in as {:?}", config.user))
            .with("the server asks for a password and there is none")
            .fix("set the endpoint's password, PGPASSWORD, or a line in ~/.pgpass")
    })
}

fn refuse_cleartext(connection: &Connection, config: &PostgresConfig) -> Result<()> {
    let socket = connection.socket();
    let private = matches!(socket, Socket::Tls(_)) || socket.line() != Line::Network;
    if private {
        return Ok(());
    }
    Err(Error::new(Kind::Authentication, format!("logging in to {}", config.host))
        .with("the server asks for the password in the clear on a connection without TLS")
        .fix("set tls.mode to verify-full, or let pg_hba.conf ask for scram-sha-256"))
}

async fn scram(connection: &mut Connection, config: &PostgresConfig, mechanisms: &[String]) -> Result<()> {
    let offered = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
    let end_point = match connection.socket() {
        Socket::Tls(stream) => binding::server_end_point(stream),
        _ => None,
    };
    let (mechanism, binding) = match end_point {
        Some(end_point) if offered(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point))
        }
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !offered(mechanism) {
        return Err(Error::new(Kind::Authentication, "logging in")
            .with(format!("the server offers only {}", mechanisms.join(", "))));
    }
    let password = required_password(config)?;
    let mut exchange = ScramSha256::new(password.expose().as_bytes(), binding);
    connection.send(|out| frontend::sasl_initial_response(mechanism, exchange.message(), out)).await?;
    let challenge = sasl_message(connection, 11).await?;
    exchange.update(&challenge).context(Kind::Authentication, || "logging in by SCRAM")?;
    connection.send(|out| frontend::sasl_response(exchange.message(), out)).await?;
    let verdict = sasl_message(connection, 12).await?;
    exchange.finish(&verdict).context(Kind::Authentication, || "checking the server's SCRAM signature")
}

async fn sasl_message(connection: &mut Connection, expected: u32) -> Result<Vec<u8>> {
    let (tag, body) = connection.receive().await?;
    let mut reader = Reader::new(body);
    if tag != b'R' || reader.u32() != Ok(expected) {
        return Err(unexpected(tag));
    }
    Ok(reader.rest().to_vec())
}

fn unexpected(tag: u8) -> Error {
    Error::new(Kind::Protocol, "logging in").with(format!("unexpected message {:?}", tag as char))
}
