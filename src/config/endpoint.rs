//! `endpoints:`: sources and targets by name. An endpoint is a URL, or a mapping with a `type` (or a `url`) and settings.

use std::{collections::BTreeMap, time::Duration};

use millrace_mysql::{MysqlConfig, config::Service};
use millrace_object_store::ObjectStoreConfig;
use millrace_postgres::PostgresConfig;

use super::{
    Surroundings, mysql, object_store, postgres,
    section::{Reader, Section, Shape},
    tree::{Node, Value},
};

/// A source or a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Line of the file it stands in, for messages.
    pub line: usize,
    /// What it is.
    pub kind: EndpointKind,
    /// Firehose's buffering hints, for targets.
    pub buffer: Buffer,
}

impl Endpoint {
    /// Whether it can only be a source.
    pub fn is_source(&self) -> bool {
        !matches!(self.kind, EndpointKind::ObjectStore(_))
    }
}

/// Endpoint kinds with their settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointKind {
    /// `type: postgres` or `postgres://user@host:5432/database?sslmode=verify-full`: a PostgreSQL source.
    Postgres(PostgresConfig),
    /// `type: mysql`, `type: mariadb` or `mysql://user@host:3306/database`, `mariadb://…`: a MySQL or MariaDB source;
    /// `type: rds-mysql`, `rds-mariadb`, `aurora-mysql`: one that Amazon runs.
    Mysql(MysqlConfig),
    /// `type: s3`, `type: file`, `s3://bucket/prefix/` or `file:///folder/`: a folder or an S3 bucket as a target.
    ObjectStore(ObjectStoreConfig),
    /// `type: hello` or `hello:`: the example connector, a source of a few made-up rows.
    Hello,
}

/// `buffer:`, buffering hints: whichever is reached first flushes. Firehose takes 1 to 128 MiB and 0 to 900 s; neither
/// bound is enforced here, because a lake of one's own may want larger files and a test smaller ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// `size`: bytes of changes over all tables, before compression (default 128 MiB).
    pub size: u64,
    /// `interval`: age of the oldest change (default 60 s).
    pub interval: Duration,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { size: 128 << 20, interval: Duration::from_secs(60) }
    }
}

pub(super) static BUFFER: Shape = Shape { name: "buffer", keys: &["size", "interval"] };
pub(super) static HELLO: Shape = Shape { name: "hello", keys: &["type"] };

/// The kinds an endpoint may have, as `type` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Postgres,
    Mysql(Service),
    S3,
    File,
    Hello,
}

const TYPES: [(&str, Type); 9] = [
    ("postgres", Type::Postgres),
    ("mysql", Type::Mysql(Service::Own)),
    ("mariadb", Type::Mysql(Service::Own)),
    ("rds-mysql", Type::Mysql(Service::Rds)),
    ("rds-mariadb", Type::Mysql(Service::Rds)),
    ("aurora-mysql", Type::Mysql(Service::Aurora)),
    ("s3", Type::S3),
    ("file", Type::File),
    ("hello", Type::Hello),
];

/// Reads all endpoints.
pub(super) fn endpoints(reader: &mut Reader, node: &Node, surroundings: &Surroundings) -> BTreeMap<String, Endpoint> {
    let mut endpoints = BTreeMap::new();
    for entry in reader.entries(node, "endpoints").unwrap_or_default() {
        if let Some(endpoint) = endpoint(reader, &entry.node, &entry.key, entry.at.line, surroundings) {
            endpoints.insert(entry.key.clone(), endpoint);
        }
    }
    endpoints
}

/// Reads one endpoint.
pub(super) fn endpoint(
    reader: &mut Reader,
    node: &Node,
    name: &str,
    line: usize,
    surroundings: &Surroundings,
) -> Option<Endpoint> {
    let what = format!("endpoint {name}");
    let made = |(kind, buffer)| Endpoint { name: name.to_string(), line, kind, buffer };
    if let Value::Text { text, .. } = &node.value {
        let kind = match scheme(reader, node, &what, text)? {
            Type::Postgres => EndpointKind::Postgres(postgres::from_url(reader, node, &what, text)?),
            Type::Mysql(_) => EndpointKind::Mysql(mysql::from_url(reader, node, &what, text)?),
            Type::S3 | Type::File => EndpointKind::ObjectStore(object_store::from_url(reader, node, &what, text)?),
            Type::Hello => EndpointKind::Hello,
        };
        return Some(made((kind, Buffer::default())));
    }
    match kind_of(reader, node, &what)? {
        Type::Postgres => {
            let section = reader.section(node, &postgres::POSTGRES, &what)?;
            let config = postgres::from_section(reader, &section, surroundings)?;
            Some(made((EndpointKind::Postgres(config), Buffer::default())))
        }
        Type::Mysql(service) => {
            let section = reader.section(node, &mysql::MYSQL, &what)?;
            let config = mysql::from_section(reader, &section, service, surroundings)?;
            Some(made((EndpointKind::Mysql(config), Buffer::default())))
        }
        kind @ (Type::S3 | Type::File) => {
            let shape = if kind == Type::S3 { &object_store::S3 } else { &object_store::FILE };
            let section = reader.section(node, shape, &what)?;
            let buffer = buffer(reader, &section);
            let config = object_store::from_section(reader, &section, surroundings)?;
            Some(made((EndpointKind::ObjectStore(config), buffer)))
        }
        Type::Hello => {
            reader.section(node, &HELLO, &what)?;
            Some(made((EndpointKind::Hello, Buffer::default())))
        }
    }
}

/// The kind of an endpoint that is a mapping: its `type`, else the scheme of its `url`.
fn kind_of(reader: &mut Reader, node: &Node, what: &str) -> Option<Type> {
    let Value::Map(entries) = &node.value else {
        reader.wrong_type(node, what, "a URL, or a mapping with a \"type\"");
        return None;
    };
    let find = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node);
    match (find("type"), find("url")) {
        (Some(kind), _) => reader.word(kind, &format!("\"type\" of {what}"), &TYPES),
        (None, Some(url)) => {
            let name = format!("\"url\" of {what}");
            let text = reader.text(url, &name)?;
            scheme(reader, url, &name, &text)
        }
        (None, None) => {
            let fix = "add type: postgres or mysql (a source), or type: s3 or file (a target)";
            reader.wrong(node.at, "CFG-MISSING-KEY", format!("{what} has no \"type\""), fix);
            None
        }
    }
}

fn scheme(reader: &mut Reader, node: &Node, what: &str, url: &str) -> Option<Type> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "postgres" | "postgresql" => Some(Type::Postgres),
        "mysql" | "mariadb" => Some(Type::Mysql(Service::Own)),
        "s3" => Some(Type::S3),
        "file" => Some(Type::File),
        "hello" => Some(Type::Hello),
        _ => {
            // The URL itself is not repeated: it may hold a password.
            let fix = "write postgres:// or mysql://user@host/database, s3://bucket/prefix/ or file:///folder/";
            reader.wrong(node.at, "CFG-URL", format!("{what} is no URL of a kind that is known"), fix);
            None
        }
    }
}

fn buffer(reader: &mut Reader, section: &Section<'_>) -> Buffer {
    let mut buffer = Buffer::default();
    let Some(node) = section.get("buffer") else { return buffer };
    let Some(inner) = reader.section(node, &BUFFER, section.name("buffer")) else { return buffer };
    if let Some(size) = inner.read(reader, "size", Reader::size) {
        buffer.size = size.max(1);
    }
    if let Some(interval) = inner.read(reader, "interval", Reader::duration) {
        buffer.interval = interval;
    }
    buffer
}
