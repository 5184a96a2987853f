//! What the endpoints of all database servers have in common: host, port, database, user, password, TLS; as a URL, or as
//! a mapping with the same words.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use millrace_core::{Secret, SecretSource, Tls, TlsMode};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{
    Surroundings,
    secret::{secret, warn_plain},
    section::{Reader, Section, Shape},
    tree::{Node, Place},
};

pub(super) static TLS: Shape = Shape { name: "tls", keys: &["mode", "ca-file"] };

const MODES: [(&str, TlsMode); 4] = [
    ("disable", TlsMode::Disable),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How one kind of server is written.
#[derive(Debug)]
pub(super) struct Manner {
    /// The URL's scheme in remedies.
    pub(super) scheme: &'static str,
    pub(super) port: u16,
    /// Whether a connection belongs to one database.
    pub(super) needs_database: bool,
    /// How a URL is to be written.
    pub(super) url_fix: &'static str,
    /// Takes a parameter of the URL, or says how it is to be written.
    pub(super) parameter: fn(&mut Given, key: &str, value: &str) -> Result<(), String>,
}

/// What was given so far; the rest is defaulted at the end.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    database: Option<String>,
    pub(super) user: Option<String>,
    password: Option<SecretSource>,
    pub(super) tls_mode: Option<TlsMode>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) connect_timeout: Option<Duration>,
}

/// A server, whole.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// Empty where none is needed and none was given.
    pub(super) database: String,
    pub(super) user: String,
    pub(super) password: Option<SecretSource>,
    pub(super) tls: Tls,
    pub(super) connect_timeout: Duration,
}

/// `scheme://user:password@host:port/database?parameters`.
pub(super) fn from_url(reader: &mut Reader, manner: &Manner, node: &Node, what: &str, text: &str) -> Option<Server> {
    let given = parse_url(reader, manner, node, what, text)?;
    complete(reader, manner, node.at, what, given)
}

/// The mapping; what it says goes before what its `url` says.
pub(super) fn from_section(
    reader: &mut Reader,
    manner: &Manner,
    section: &Section<'_>,
    surroundings: &Surroundings,
) -> Option<Server> {
    let mut given = Given::default();
    let mut sound = true;
    if let Some(node) = section.get("url") {
        let name = section.name("url");
        match reader.text(node, &name).and_then(|text| parse_url(reader, manner, node, &name, &text)) {
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
    complete(reader, manner, section.at, &section.what, given)
}

/// A mode of TLS by its word.
pub(super) fn tls_mode(word: &str) -> Option<TlsMode> {
    MODES.iter().find(|(known, _)| *known == word).map(|(_, mode)| *mode)
}

fn complete(reader: &mut Reader, manner: &Manner, at: Place, what: &str, given: Given) -> Option<Server> {
    let filled = |value: Option<String>| value.filter(|text| !text.is_empty());
    let given = Given { host: filled(given.host), database: filled(given.database), user: filled(given.user), ..given };
    let scheme = manner.scheme;
    let path = if manner.needs_database { "database" } else { "" };
    for (value, key, fix) in [
        (&given.host, "host", format!("name the server: {scheme}://user@HOST/{path}, or host: HOST")),
        (
            &given.database,
            "database",
            format!("name the database: {scheme}://user@host/DATABASE, or database: DATABASE"),
        ),
        (&given.user, "user", format!("name the user to log in as: {scheme}://USER@host/{path}, or user: USER")),
    ] {
        if value.is_none() && (key != "database" || manner.needs_database) {
            reader.wrong(at, "CFG-MISSING-KEY", format!("{what} has no {key}"), fix);
        }
    }
    let database = if manner.needs_database { given.database? } else { given.database.unwrap_or_default() };
    let (host, user) = (given.host?, given.user?);
    let is_local = is_local(&host);
    let mode = given.tls_mode.unwrap_or(if is_local { TlsMode::Disable } else { TlsMode::VerifyFull });
    if !is_local && matches!(mode, TlsMode::Disable | TlsMode::Require) {
        let summary = format!("{what} does not verify who the server is");
        reader.warn(at, "CFG-TLS-WEAK", summary, "use verify-full, with ca-file for an authority of your own");
    }
    Some(Server {
        host,
        port: given.port.unwrap_or(manner.port),
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

fn parse_url(reader: &mut Reader, manner: &Manner, node: &Node, what: &str, text: &str) -> Option<Given> {
    // The URL itself is not repeated: it may hold a password.
    let wrong = |reader: &mut Reader, why: String, fix: String| {
        reader.wrong(node.at, "CFG-URL", format!("{what}: {why}"), fix);
        None
    };
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return wrong(reader, format!("the URL cannot be read: {error}"), manner.url_fix.into()),
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
        let Some(password) = decode(password) else {
            return wrong(reader, "the password is empty".into(), manner.url_fix.into());
        };
        warn_plain(reader, node.at, &format!("the password of {what}"));
        given.password = Some(SecretSource::Value(Secret::new(password)));
    }
    for (key, value) in url.query_pairs() {
        if let Err(fix) = (manner.parameter)(&mut given, &key, &value) {
            return wrong(reader, format!("parameter \"{key}\" of the URL is unknown or has a wrong value"), fix);
        }
    }
    Some(given)
}
