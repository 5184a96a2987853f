//! A MySQL or MariaDB endpoint: as a URL, or as a mapping with the same words.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use millrace_core::{Secret, SecretSource};
use millrace_mysql::{MysqlConfig, Tls, TlsMode};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{
    Surroundings,
    secret::{secret, warn_plain},
    section::{Reader, Section, Shape},
    tree::{Node, Place},
};

pub(super) static MYSQL: Shape = Shape {
    name: "mysql",
    keys: &["type", "url", "host", "port", "database", "user", "password", "tls", "connect-timeout", "server-id"],
};
pub(super) static TLS: Shape = Shape { name: "tls", keys: &["mode", "ca-file"] };

const MODES: [(&str, TlsMode); 4] = [
    ("disable", TlsMode::Disable),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const URL_FIX: &str = "write mysql://user@host:3306/database; other characters percent-encoded, such as %40 for @; known parameters are \
     ssl-mode, ssl-ca, socket";

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
    server_id: Option<u32>,
}

/// `mysql://user:password@host:port/database?ssl-mode=…&ssl-ca=…&socket=…`; `mariadb://` means the same.
pub(super) fn from_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<MysqlConfig> {
    let given = parse_url(reader, node, what, text)?;
    complete(reader, node.at, what, given)
}

/// The mapping; what it says goes before what its `url` says.
pub(super) fn from_section(
    reader: &mut Reader,
    section: &Section<'_>,
    surroundings: &Surroundings,
) -> Option<MysqlConfig> {
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
    let server_id = section.read(reader, "server-id", |r, n, w| r.integer(n, w, 1..=4_294_967_295));
    given.server_id = server_id.and_then(|id| u32::try_from(id).ok());
    given.connect_timeout = section.read(reader, "connect-timeout", Reader::duration);
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

fn complete(reader: &mut Reader, at: Place, what: &str, given: Given) -> Option<MysqlConfig> {
    for (value, key, fix) in [
        (&given.host, "host", "name the server: mysql://user@HOST/database, or host: HOST"),
        (&given.user, "user", "name the user to log in as: mysql://USER@host/database, or user: USER"),
    ] {
        if value.as_ref().is_none_or(String::is_empty) {
            reader.wrong(at, "CFG-MISSING-KEY", format!("{what} has no {key}"), fix);
        }
    }
    let filled = |value: Option<String>| value.filter(|text| !text.is_empty());
    let (host, user) = (filled(given.host)?, filled(given.user)?);
    let local = host.starts_with('/') || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let mode = given.tls_mode.unwrap_or(if local { TlsMode::Disable } else { TlsMode::VerifyFull });
    if !local && matches!(mode, TlsMode::Disable | TlsMode::Require) {
        let summary = format!("{what} does not verify who the server is");
        reader.warn(at, "CFG-TLS-WEAK", summary, "use verify-full, with ca-file for an authority of your own");
    }
    Some(MysqlConfig {
        host,
        port: given.port.unwrap_or(3306),
        database: given.database.unwrap_or_default(),
        user,
        password: given.password,
        tls: Tls { mode, ca_file: given.ca_file },
        connect_timeout: given.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        server_id: given.server_id,
    })
}

fn parse_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<Given> {
    // The URL itself is not repeated: it may hold a password.
    let wrong = |reader: &mut Reader, why: String| {
        reader.wrong(node.at, "CFG-URL", format!("{what}: {why}"), URL_FIX);
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
        match &*key {
            "ssl-mode" => match MODES.iter().find(|(word, _)| *word == value) {
                Some((_, mode)) => given.tls_mode = Some(*mode),
                None => return wrong(reader, "ssl-mode is one of: disable, require, verify-ca, verify-full".into()),
            },
            "ssl-ca" if value.starts_with('/') => given.ca_file = Some(PathBuf::from(&*value)),
            "socket" if value.starts_with('/') => given.host = Some(value.to_string()),
            "ssl-ca" | "socket" => return wrong(reader, format!("\"{key}\" is the absolute path of a file")),
            _ => return wrong(reader, format!("unknown parameter \"{key}\" in the URL")),
        }
    }
    Some(given)
}
