//! A PostgreSQL endpoint; its URL is libpq's.

use std::{path::PathBuf, time::Duration};

use millrace_postgres::PostgresConfig;

use super::{
    Surroundings,
    section::{Reader, Section, Shape},
    server::{self, Given, Manner, Server},
    tree::Node,
};

pub(super) static POSTGRES: Shape = Shape {
    name: "postgres",
    keys: &["type", "url", "host", "port", "database", "user", "password", "tls", "connect-timeout"],
};

const MANNER: Manner = Manner {
    scheme: "postgres",
    port: 5432,
    needs_database: true,
    url_fix: "write postgres://user@host:5432/database; other characters percent-encoded, such as %40 for @",
    parameter,
};

/// `postgres://user:password@host:port/database?sslmode=…&sslrootcert=…&connect_timeout=…&host=…&port=…`; the host of a
/// Unix socket is its folder, percent-encoded or as `?host=`.
pub(super) fn from_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<PostgresConfig> {
    server::from_url(reader, &MANNER, node, what, text).map(whole)
}

/// The mapping; what it says goes before what its `url` says.
pub(super) fn from_section(
    reader: &mut Reader,
    section: &Section<'_>,
    surroundings: &Surroundings,
) -> Option<PostgresConfig> {
    server::from_section(reader, &MANNER, section, surroundings).map(whole)
}

fn whole(server: Server) -> PostgresConfig {
    let Server { host, port, database, user, password, tls, connect_timeout } = server;
    PostgresConfig { host, port, database, user, password, tls, connect_timeout }
}

fn parameter(given: &mut Given, key: &str, value: &str) -> Result<(), String> {
    let filled = || Some(value.to_string()).filter(|value| !value.is_empty());
    let fix = match key {
        "sslmode" => {
            given.tls_mode = server::tls_mode(value);
            given.tls_mode.is_none().then_some(
                "sslmode is one of: disable, require, verify-ca, verify-full (allow and prefer protect nothing)",
            )
        }
        "sslrootcert" => {
            given.ca_file = Some(value).filter(|value| value.starts_with('/')).map(PathBuf::from);
            given.ca_file.is_none().then_some("sslrootcert is the absolute path of a PEM file")
        }
        "connect_timeout" => {
            given.connect_timeout = value.parse().ok().filter(|s| (1..=3_600).contains(s)).map(Duration::from_secs);
            given.connect_timeout.is_none().then_some("connect_timeout is a number of seconds from 1 to 3600")
        }
        "host" => {
            given.host = filled();
            given.host.is_none().then_some("give it a value, or leave it out")
        }
        "port" => {
            given.port = value.parse().ok().filter(|port| *port > 0);
            given.port.is_none().then_some("port is a number from 1 to 65535")
        }
        "user" => {
            given.user = filled();
            given.user.is_none().then_some("give it a value, or leave it out")
        }
        _ => Some("known are: sslmode, sslrootcert, connect_timeout, host, port, user"),
    };
    fix.map_or(Ok(()), |fix| Err(fix.into()))
}
