//! A MySQL or MariaDB endpoint.

use std::path::PathBuf;

use millrace_mysql::{MysqlConfig, config::Service};

use super::{
    Surroundings,
    section::{Reader, Section, Shape},
    server::{self, Given, Manner, Server},
    tree::Node,
};

pub(super) static MYSQL: Shape = Shape {
    name: "mysql",
    keys: &["type", "url", "host", "port", "database", "user", "password", "tls", "connect-timeout", "server-id"],
};

const MANNER: Manner = Manner {
    scheme: "mysql",
    port: 3306,
    needs_database: false,
    url_fix: "write mysql://user@host:3306/database; other characters percent-encoded, such as %40 for @; known \
              parameters are ssl-mode, ssl-ca, socket",
    parameter,
};

/// `mysql://user:password@host:port/database?ssl-mode=…&ssl-ca=…&socket=…`; `mariadb://` means the same.
pub(super) fn from_url(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<MysqlConfig> {
    Some(whole(server::from_url(reader, &MANNER, node, what, text)?, Service::Own, None))
}

/// The mapping; what it says goes before what its `url` says.
pub(super) fn from_section(
    reader: &mut Reader,
    section: &Section<'_>,
    service: Service,
    surroundings: &Surroundings,
) -> Option<MysqlConfig> {
    let server_id = section.read(reader, "server-id", |r, n, w| r.integer(n, w, 1..=4_294_967_295));
    let server_id = server_id.and_then(|id| u32::try_from(id).ok());
    Some(whole(server::from_section(reader, &MANNER, section, surroundings)?, service, server_id))
}

fn whole(server: Server, service: Service, server_id: Option<u32>) -> MysqlConfig {
    let Server { host, port, database, user, password, tls, connect_timeout } = server;
    MysqlConfig { host, port, database, user, password, tls, connect_timeout, service, server_id }
}

fn parameter(given: &mut Given, key: &str, value: &str) -> Result<(), String> {
    let absolute = || Some(value).filter(|value| value.starts_with('/'));
    let fix = match key {
        "ssl-mode" => {
            given.tls_mode = server::tls_mode(value);
            given.tls_mode.is_none().then_some("ssl-mode is one of: disable, require, verify-ca, verify-full")
        }
        "ssl-ca" => {
            given.ca_file = absolute().map(PathBuf::from);
            given.ca_file.is_none().then_some("ssl-ca is the absolute path of a PEM file")
        }
        "socket" => {
            given.host = absolute().map(String::from);
            given.host.is_none().then_some("socket is the absolute path of the server's socket")
        }
        _ => Some("known are: ssl-mode, ssl-ca, socket"),
    };
    fix.map_or(Ok(()), |fix| Err(fix.into()))
}
