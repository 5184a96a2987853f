//! The config file, resolved: every default filled in, every name checked. One file per section; a field's doc comment is
//! its reference.
//!
//! Two forms. The short one has one task, whose keys stand at the top (`source` and `target` are URLs or endpoints):
//! ```yaml
//! source: postgres://cdc@db.internal/shop
//! target: s3://lake/shop/
//! tables: [public.orders, public.customers]
//! ```
//! The full one has `version`, `endpoints` and `tasks`: see `config/every-option.yaml`. Reading goes over a tree with
//! places ([`tree`]), so that everything wrong is told at once, with line and column.

mod changes;
mod endpoint;
mod mysql;
mod object_store;
mod postgres;
mod secret;
pub mod section;
mod server;
mod source_log;
mod task;
pub mod tree;
pub mod units;
mod values;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use millrace_core::Finding;

pub use self::{
    changes::{OnChange, PartChange, SchemaChange, Truncate},
    endpoint::{Buffer, Endpoint, EndpointKind},
    section::{Problem, Shape},
    source_log::{GuardAction, SourceGuard, SourceLogConfig},
    task::{LoadConfig, Mode, OnError, StreamConfig, TableRule, TaskConfig},
    tree::Place,
    values::ValuesConfig,
};
use self::{
    section::{Reader, Section},
    tree::Node,
};

/// One config file.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file, for messages.
    pub file: PathBuf,
    /// `state-dir`: state and streams (default `$STATE_DIRECTORY`, else `/var/lib/millrace`). A relative path begins at
    /// the config file's folder, as all paths of the file do.
    pub state_dir: PathBuf,
    /// `listen`: where the HTTP surface listens (default `127.0.0.1:4566`).
    pub listen: SocketAddr,
    /// `endpoints`, by name.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// `tasks`, by name.
    pub tasks: BTreeMap<String, TaskConfig>,
    /// What is not wrong, but should be known: secrets in the file, weak TLS.
    pub warnings: Vec<Problem>,
}

/// What a config depends on beside its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// `$STATE_DIRECTORY`, as systemd sets it.
    pub state_directory: Option<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`; where systemd puts ours if it is not set.
    pub credentials: PathBuf,
    /// Where relative paths begin: the config file's folder.
    pub folder: PathBuf,
}

impl Surroundings {
    /// Of this process, for a config file.
    pub fn of(file: &Path) -> Self {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // Several state directories are separated by colons; the unit has one, and the first is it.
        let state_directory = folder("STATE_DIRECTORY").map(|path| {
            let text = path.to_string_lossy();
            PathBuf::from(text.split(':').next().unwrap_or_default())
        });
        let credentials = folder("CREDENTIALS_DIRECTORY");
        let beside = match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Self {
            state_directory,
            credentials: credentials.unwrap_or_else(|| PathBuf::from("/run/credentials/millrace.service")),
            folder: std::path::absolute(&beside).unwrap_or(beside),
        }
    }

    /// A path of the file, made absolute.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }
}

static FULL: Shape = Shape { name: "config", keys: &["version", "state-dir", "listen", "endpoints", "tasks"] };
static SHORT: Shape = Shape {
    name: "short form",
    keys: &[
        "version",
        "state-dir",
        "listen",
        "task",
        "mode",
        "source",
        "target",
        "tables",
        "exclude",
        "stream",
        "full-load",
        "on-error",
        "values",
        "on-change",
        "max-value",
        "removed",
        "on-slot-lost",
        "source-guard",
        "heartbeat",
        "failover-slot",
        "origin",
    ],
};
/// The port of LocalStack, at which the tools of AWS developers look first.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4566);

impl Config {
    /// Reads a file. Everything that is wrong with it comes at once.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let finding = Finding::error("CFG-FILE", format!("the config {} cannot be read", file.display()))
                .detail(format!("the system said: {error}"))
                .fix("name the file with --config FILE, or make ./millrace.yaml or /etc/millrace/millrace.yaml");
            vec![Problem { at: None, finding }]
        })?;
        Self::parse(file, &text, &Surroundings::of(file))
    }

    /// Reads a file's text.
    pub fn parse(file: &Path, text: &str, surroundings: &Surroundings) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::default();
        let config = match tree::parse(text) {
            Ok(root) => resolve(&mut reader, &root, file, surroundings),
            Err(error) => {
                reader.malformed(error);
                None
            }
        };
        match config {
            Some(config) if reader.problems.is_empty() => Ok(Self { warnings: reader.warnings, ..config }),
            _ => {
                reader.problems.sort_by_key(|problem| problem.at);
                Err(reader.problems)
            }
        }
    }

    /// The endpoints of a task; the config was checked, so both are there.
    pub fn endpoints_of(&self, task: &TaskConfig) -> Option<(&Endpoint, &Endpoint)> {
        Some((self.endpoints.get(&task.source)?, self.endpoints.get(&task.target)?))
    }

    /// Whether a task means the same in both configs, wherever it stands in the file.
    pub fn same_task(&self, other: &Self, name: &str) -> bool {
        let resolved = |config: &Self| {
            let task = config.tasks.get(name)?;
            let (source, target) = config.endpoints_of(task)?;
            let place = |endpoint: &Endpoint| Endpoint { line: 0, ..endpoint.clone() };
            Some((TaskConfig { line: 0, ..task.clone() }, place(source), place(target)))
        };
        resolved(self) == resolved(other)
    }
}

fn resolve(reader: &mut Reader, root: &Node, file: &Path, surroundings: &Surroundings) -> Option<Config> {
    let is_full = match &root.value {
        tree::Value::Map(entries) => entries.iter().any(|entry| entry.key == "endpoints" || entry.key == "tasks"),
        _ => true,
    };
    let section = reader.section(root, if is_full { &FULL } else { &SHORT }, "the config")?;
    if let Some(node) = section.get("version") {
        reader.integer(node, &section.name("version"), 1..=1);
    }
    let state_dir = section.read(reader, "state-dir", Reader::text).map(|path| surroundings.resolve(&path));
    let state_dir = state_dir.or_else(|| surroundings.state_directory.clone());
    let listen = listen(reader, &section);
    let (endpoints, tasks) =
        if is_full { full(reader, &section, surroundings) } else { short(reader, &section, surroundings) };
    Some(Config {
        file: file.to_path_buf(),
        state_dir: state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/millrace")),
        listen,
        endpoints,
        tasks,
        warnings: vec![],
    })
}

fn listen(reader: &mut Reader, section: &Section<'_>) -> SocketAddr {
    let Some(node) = section.get("listen") else { return LISTEN };
    let name = section.name("listen");
    let Some(text) = reader.text(node, &name) else { return LISTEN };
    let numeric = text.strip_prefix("localhost:").map_or_else(|| text.clone(), |port| format!("127.0.0.1:{port}"));
    match numeric.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => address,
        Ok(_) => {
            let summary = format!("{name} is not on loopback");
            reader.problems.push(Problem {
                at: Some(node.at),
                finding: Finding::error("CFG-LISTEN", summary)
                    .detail("the listener has no authentication and no TLS yet: whoever reaches it sees every task")
                    .fix("listen: 127.0.0.1:4566, and a proxy in front of it that authenticates"),
            });
            LISTEN
        }
        Err(_) => {
            reader.wrong_type(node, &name, "an address and a port, such as 127.0.0.1:4566");
            LISTEN
        }
    }
}

type Parts = (BTreeMap<String, Endpoint>, BTreeMap<String, TaskConfig>);

fn full(reader: &mut Reader, section: &Section<'_>, surroundings: &Surroundings) -> Parts {
    let endpoints = section
        .require(reader, "endpoints")
        .map(|node| endpoint::endpoints(reader, node, surroundings))
        .unwrap_or_default();
    // An endpoint that is itself wrong is still a name that tasks may use.
    let names: Vec<String> = match section.get("endpoints").map(|node| &node.value) {
        Some(tree::Value::Map(entries)) => entries.iter().map(|entry| entry.key.clone()).collect(),
        _ => vec![],
    };
    let mut tasks = BTreeMap::new();
    let entries = section.require(reader, "tasks").and_then(|node| reader.entries(node, "tasks")).unwrap_or_default();
    for entry in entries {
        let what = format!("task {}", entry.key);
        if !task::is_name(&entry.key) {
            let fix = "use letters, digits, - and _, at most 64: state, slot and folders are named after the task";
            reader.wrong(entry.at, "CFG-NAME", format!("\"{}\" cannot be a task's name", entry.key), fix);
        }
        let Some(section) = reader.section(&entry.node, &task::TASK, &what) else { continue };
        let source = endpoint_name(reader, &section, "source", &endpoints, &names);
        let target = endpoint_name(reader, &section, "target", &endpoints, &names);
        let ends = (source.unwrap_or_default(), target.unwrap_or_default());
        if let Some(task) = task::task(reader, &section, &entry.key, entry.at.line, ends) {
            tasks.insert(entry.key.clone(), task);
        }
    }
    (endpoints, tasks)
}

/// The name of an endpoint that is there and can play the role.
fn endpoint_name(
    reader: &mut Reader,
    section: &Section<'_>,
    role: &str,
    endpoints: &BTreeMap<String, Endpoint>,
    names: &[String],
) -> Option<String> {
    let node = section.require(reader, role)?;
    let name = reader.text(node, &section.name(role))?;
    if !names.contains(&name) {
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let fix = match section::nearest(&name, &known) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("endpoints are: {}", known.join(", ")),
        };
        let summary = format!("{} names an endpoint that is not there: \"{name}\"", section.name(role));
        reader.wrong(node.at, "CFG-UNKNOWN-ENDPOINT", summary, fix);
    }
    if let Some(endpoint) = endpoints.get(&name)
        && endpoint.is_source() != (role == "source")
    {
        let summary = format!("endpoint {name} cannot be the {role} of a task");
        reader.wrong(node.at, "CFG-VALUE", summary, "a source is a database, a target an S3 bucket or a folder");
    }
    Some(name)
}

fn short(reader: &mut Reader, section: &Section<'_>, surroundings: &Surroundings) -> Parts {
    let mut endpoints = BTreeMap::new();
    for role in ["source", "target"] {
        let Some(node) = section.require(reader, role) else { continue };
        let Some(endpoint) = endpoint::endpoint(reader, node, role, node.at.line, surroundings) else { continue };
        if endpoint.is_source() != (role == "source") {
            let summary = format!("\"{role}\" cannot be an endpoint of this kind");
            reader.wrong(node.at, "CFG-VALUE", summary, "a source is a database, a target an S3 bucket or a folder");
        }
        endpoints.insert(role.to_string(), endpoint);
    }
    let name = section.read(reader, "task", Reader::text);
    if let (Some(name), Some(node)) = (&name, section.get("task"))
        && !task::is_name(name)
    {
        let fix = "use letters, digits, - and _, at most 64: state, slot and folders are named after the task";
        reader.wrong(node.at, "CFG-NAME", format!("\"{name}\" cannot be a task's name"), fix);
    }
    let name = name.unwrap_or_else(|| default_name(endpoints.get("source")));
    let ends = ("source".to_string(), "target".to_string());
    let task = task::task(reader, section, &name, section.at.line, ends);
    (endpoints, task.into_iter().map(|task| (name.clone(), task)).collect())
}

/// A task is called after its source's database.
fn default_name(source: Option<&Endpoint>) -> String {
    let database = match source.map(|endpoint| &endpoint.kind) {
        Some(EndpointKind::Postgres(postgres)) => postgres.database.as_str(),
        Some(EndpointKind::Mysql(mysql)) if mysql.database.is_empty() => "mysql",
        Some(EndpointKind::Mysql(mysql)) => mysql.database.as_str(),
        _ => "hello",
    };
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    database.chars().take(64).map(allowed).collect()
}

/// Every key that a full config may have, by kind of section: a test holds `config/every-option.yaml` against it.
pub fn known_keys() -> Vec<(&'static str, &'static str)> {
    let shapes = [
        &FULL,
        &endpoint::BUFFER,
        &endpoint::HELLO,
        &mysql::MYSQL,
        &postgres::POSTGRES,
        &server::TLS,
        &object_store::S3,
        &object_store::FILE,
        &object_store::FORMAT,
        &secret::SECRET,
        &task::TASK,
        &task::TABLE,
        &task::STREAM,
        &task::FULL_LOAD,
        &task::ON_ERROR,
        &values::VALUES,
        &values::VALUE,
        &source_log::SOURCE_GUARD,
    ];
    shapes.iter().flat_map(|shape| shape.keys.iter().map(|key| (shape.name, *key))).collect()
}

/// The keys that a text uses, by kind of section, as [`known_keys`] names them.
pub fn used_keys(file: &Path, text: &str) -> Vec<(&'static str, &'static str)> {
    let mut reader = Reader::default();
    if let Ok(root) = tree::parse(text) {
        resolve(&mut reader, &root, file, &Surroundings::of(file));
    }
    reader.seen.into_iter().collect()
}
