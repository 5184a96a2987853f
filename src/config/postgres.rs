//! A PostgreSQL endpoint: as libpq's URL, or as a mapping with the same words.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use millrace_core::{Secret, SecretSource};
use millrace_postgres::{PostgresConfig, Tls, TlsMode};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{
    Surroundings,
    secret::{secret, warn_plain},
    section::{Reader, Section, Shape},
    tree::{Node, Place},
};

pub(super) static POSTGRES: Shape = Shape {
    name: "postgres",
    keys: &["type", "url", "host", "port", "database", "user", "password", "tls", "connect-timeout"],
};
pub(super) static TLS: Shape = Shape { name: "tls", keys: &["mode", "ca-file"] };

const MODES: [(&str, TlsMode); 4] = [
    ("disable", TlsMode::Disable),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was given so far; the rest is defaulted at the end.
#[derive(Debug, Default)]
struct Given {
    host: Option<String>,
    port: Option<u16>,
    database: Option<String>,
    user: Option<String>,
    password: Option<SecretSource>,
    tls_mode: Option<TlsMode>,
    ca_file: Option<PathBuf>,
    connect_timeout: Option<Duration>,
}

/// `postgres://user:password@host:port/database?sslmode=…&sslrootcert=…&connect_timeout=…&host=…&port=…`; the host of a
/// Unix socket is its folder, percent-encoded or as `?host=`.
pub(super) fn from_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<PostgresConfig> {
    let given = parse_url(reader, node, what, text)?;
    complete(reader, node.at, what, given)
}

/// The mapping; what it says goes before what its `url` says.
pub(super) fn from_section(
    reader: &mut Reader,
    section: &Section<'_>,
    surroundings: &Surroundings,
) -> Option<PostgresConfig> {
    let mut given = Given::default();
    let mut sound = true;
    if let Some(node) = section.get("url") {
        let name = section.name("url");
        match reader.text(node, &name).and_then(|text| parse_url(reader, node, &name, &text)) {
            Some(parsed) => given = parsed,
            None => sound = false,
        }
    }
    let text = |reader: &mut Reader, key: &str| section.read(reader, key, Reader::text);
    given.host = text(reader, "host").or(given.host);
    given.database = text(reader, "database").or(given.database);
    given.user = text(reader, "user").or(given.user);
    let port = section.read(reader, "port", |r, n, w| r.integer(n, w, 1..=65_535));
    given.port = port.and_then(|port| u16::try_from(port).ok()).or(given.port);
    given.connect_timeout = section.read(reader, "connect-timeout", Reader::duration).or(given.connect_timeout);
    given.password = section.read(reader, "password", |r, n, w| secret(r, n, w, surroundings)).or(given.password);
    if let Some(node) = section.get("tls")
        && let Some(tls) = reader.section(node, &TLS, section.name("tls"))
    {
        given.tls_mode = tls.read(reader, "mode", |r, n, w| r.word(n, w, &MODES)).or(given.tls_mode);
        let ca_file = tls.read(reader, "ca-file", Reader::text);
        given.ca_file = ca_file.map(|file| surroundings.resolve(&file)).or(given.ca_file);
    }
    if !sound {
        return None;
    }
    complete(reader, section.at, &section.what, given)
}

fn complete(reader: &mut Reader, at: Place, what: &str, given: Given) -> Option<PostgresConfig> {
    let mut missing = |key: &str, fix: &str| {
        reader.wrong(at, "CFG-MISSING-KEY", format!("{what} has no {key}"), fix);
    };
    for (value, key, fix) in [
        (&given.host, "host", "name the server: postgres://user@HOST/database, or host: HOST"),
        (&given.database, "database", "name the database: postgres://user@host/DATABASE, or database: DATABASE"),
        (&given.user, "user", "name the role to log in as: postgres://USER@host/database, or user: USER"),
    ] {
        if value.as_ref().is_none_or(String::is_empty) {
            missing(key, fix);
        }
    }
    let filled = |value: Option<String>| value.filter(|text| !text.is_empty());
    let (host, database, user) = (filled(given.host)?, filled(given.database)?, filled(given.user)?);
    let local = is_local(&host);
    let mode = given.tls_mode.unwrap_or(if local { TlsMode::Disable } else { TlsMode::VerifyFull });
    if !local && matches!(mode, TlsMode::Disable | TlsMode::Require) {
        let summary = format!("{what} does not verify who the server is");
        reader.warn(at, "CFG-TLS-WEAK", summary, "use verify-full, with ca-file for an authority of your own");
    }
    Some(PostgresConfig {
        host,
        port: given.port.unwrap_or(5432),
        database,
        user,
        password: given.password,
        tls: Tls { mode, ca_file: given.ca_file },
        connect_timeout: given.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
    })
}

/// Whether the host is a Unix socket or loopback, where nobody can listen in.
fn is_local(host: &str) -> bool {
    host.starts_with('/') || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<Given> {
    let wrong = |reader: &mut Reader, why: String| {
        // The URL itself is not repeated: it may hold a password.
        let fix = "write postgres://user@host:5432/database; other characters percent-encoded, such as %40 for @";
        reader.wrong(node.at, "CFG-URL", format!("{what}: {why}"), fix);
        None
    };
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return wrong(reader, format!("the URL cannot be read: {error}")),
    };
    let decode = |part: &str| percent_decode_str(part).decode_utf8().ok().map(String::from).filter(|s| !s.is_empty());
    let mut given = Given {
        // An IPv6 address stands in brackets in a URL only.
        host: url.host_str().and_then(|host| decode(host.trim_start_matches('[').trim_end_matches(']'))),
        port: url.port(),
        database: decode(url.path().trim_start_matches('/')),
        user: decode(url.username()),
        ..Given::default()
    };
    if let Some(password) = url.password() {
        let Some(password) = decode(password) else { return wrong(reader, "the password is empty".into()) };
        warn_plain(reader, node.at, &format!("the password of {what}"));
        given.password = Some(SecretSource::Value(Secret::new(password)));
    }
    for (key, value) in url.query_pairs() {
        parameter(reader, node, what, &mut given, (&key, &value))?;
    }
    Some(given)
}

fn parameter(reader: &mut Reader, node: &Node, what: &str, given: &mut Given, pair: (&str, &str)) -> Option<()> {
    let (key, value) = pair;
    let sound = match key {
        "sslmode" => {
            given.tls_mode = MODES.iter().find(|(word, _)| *word == value).map(|(_, mode)| *mode);
            given.tls_mode.is_some()
        }
        "sslrootcert" => {
            given.ca_file = Some(PathBuf::from(value));
            value.starts_with('/')
        }
        "connect_timeout" => {
            given.connect_timeout = value.parse().ok().filter(|s| (1..=3_600).contains(s)).map(Duration::from_secs);
            given.connect_timeout.is_some()
        }
        "host" => {
            given.host = Some(value.to_string());
            !value.is_empty()
        }
        "port" => {
            given.port = value.parse().ok().filter(|port| *port > 0);
            given.port.is_some()
        }
        "user" => {
            given.user = Some(value.to_string());
            !value.is_empty()
        }
        _ => {
            let known = ["sslmode", "sslrootcert", "connect_timeout", "host", "port", "user"];
            let fix = format!("known are: {}", known.join(", "));
            reader.wrong(node.at, "CFG-URL", format!("{what}: unknown parameter \"{key}\" in the URL"), fix);
            return None;
        }
    };
    if sound {
        return Some(());
    }
    let fix = match key {
        "sslmode" => "sslmode is one of: disable, require, verify-ca, verify-full (allow and prefer protect nothing)",
        "sslrootcert" => "sslrootcert is the absolute path of a PEM file",
        "connect_timeout" => "connect_timeout is a number of seconds from 1 to 3600",
        _ => "give it a value, or leave it out",
    };
    reader.wrong(node.at, "CFG-URL", format!("{what}: parameter \"{key}\" of the URL has a wrong value"), fix);
    None
}
