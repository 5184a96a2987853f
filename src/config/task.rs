//! `tasks:`: what is replicated from where to where, and how.

use std::{collections::BTreeMap, time::Duration};

use millrace_core::{Selection, TablePattern, ValueRule, ValueRules};

use super::{
    changes::{OnChange, on_change},
    section::{Reader, Section, Shape},
    source_log::{self, SourceLogConfig, source_log},
    tree::{Node, Value},
    values::{self, ValuesConfig},
};

/// A replication task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskConfig {
    /// Its name: letters, digits, `-` and `_`, at most 64.
    pub name: String,
    /// Line of the file it stands in, for messages.
    pub line: usize,
    /// `mode`: what it does (default `full-load-and-cdc`).
    pub mode: Mode,
    /// `source`: name of its source endpoint.
    pub source: String,
    /// `target`: name of its target endpoint.
    pub target: String,
    /// `tables`: which tables, in order: the first rule that matches a table applies.
    pub tables: Vec<TableRule>,
    /// `exclude`: tables that match one of these patterns are left out.
    pub exclude: Vec<TablePattern>,
    /// `stream`: the stream's settings.
    pub stream: StreamConfig,
    /// `full-load`: the full load's settings.
    pub load: LoadConfig,
    /// `on-error`: what errors lead to.
    pub on_error: OnError,
    /// `values`: what becomes of values that their columns cannot hold.
    pub values: ValuesConfig,
    /// `on-change`: what changes of shape, truncates and new tables lead to.
    pub on_change: OnChange,
    /// `on-slot-lost`, `source-guard`, `heartbeat`, `failover-slot`, `origin`: how it looks after its place in the source's log.
    pub source_log: SourceLogConfig,
    /// `max-value`: a value above this goes to the dead letters (default 64 MiB).
    pub max_value_bytes: u64,
    /// `removed: true`: the task is to be deleted, and may then vanish from the config.
    pub removed: bool,
}

impl TaskConfig {
    /// Which source tables the task takes.
    pub fn selection(&self) -> Selection {
        Selection { include: self.tables.iter().map(|rule| rule.from.clone()).collect(), exclude: self.exclude.clone() }
    }

    /// What becomes of values that their columns cannot hold, by table, type and in general.
    pub fn value_rules(&self) -> ValueRules {
        let tables = self.tables.iter().map(|rule| (rule.from.clone(), rule.values.clone())).collect();
        ValueRules { unfit: self.values.unfit, types: self.values.types.clone(), tables }
    }
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `full-load`: loads the tables once, then stops.
    FullLoad,
    /// `cdc`: captures changes from now on.
    Cdc,
    /// `full-load-and-cdc`: both.
    FullLoadAndCdc,
}

impl Mode {
    /// Whether tables are loaded.
    pub fn loads(self) -> bool {
        self != Self::Cdc
    }

    /// Whether changes are captured.
    pub fn captures(self) -> bool {
        self != Self::FullLoad
    }

    /// The word in the config.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FullLoad => "full-load",
            Self::Cdc => "cdc",
            Self::FullLoadAndCdc => "full-load-and-cdc",
        }
    }
}

/// What to do with the tables that match a pattern. A pattern alone (`public.orders`) takes them as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRule {
    /// `from`: which tables of the source: `schema.table`, with `*` for any run of characters within a part.
    pub from: TablePattern,
    /// `to`: the name at the target; a part `*` keeps the source's.
    pub to: Option<TablePattern>,
    /// `rename`: column names at the source and their names at the target.
    pub rename: BTreeMap<String, String>,
    /// `drop`: columns that are left out.
    pub drop: Vec<String>,
    /// `values`: rules for single columns, by their names at the source.
    pub values: BTreeMap<String, ValueRule>,
}

/// `stream`: a stream's settings, with Kinesis's names and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// `shards`: shards when the stream is made, 1 to 4096 (default 1).
    pub shards: u32,
    /// `retention`: how long delivered records stay readable, 24 h to 8760 h in Kinesis (default 24 h); less is taken
    /// here, for small disks and tests.
    pub retention: Duration,
    /// `disk-bound`: bytes on disk; left out: 80 % of the volume less the reserve.
    pub disk_bytes_max: Option<u64>,
    /// `compress`: LZ4 over payloads from 4 KiB on (default `true`).
    pub compress: bool,
}

/// `full-load`: a full load's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadConfig {
    /// `parallel`: segments that are read at the same time, over all tables, 1 to 64 (default 2 per core, at most 8; DMS:
    /// MaxFullLoadSubTasks).
    pub parallel: usize,
    /// `rate-limit`: bytes per second read from the source by all of them; left out: as fast as it can give.
    pub rate_bytes: Option<u64>,
}

/// `on-error`: what errors lead to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OnError {
    /// `table`: a table that cannot go on is suspended (`suspend`, the default), or the task stops with it (`stop-task`).
    pub table_stops_task: bool,
    /// `task`: a task that failed is retried with back-off (`retry`, the default), or stops (`stop`).
    pub task_stops: bool,
}

/// The keys of a task, and of the short form's top level.
pub(super) const TASK_KEYS: [&str; 17] = [
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
    source_log::KEYS[0],
    source_log::KEYS[1],
    source_log::KEYS[2],
    source_log::KEYS[3],
    source_log::KEYS[4],
];
pub(super) static TASK: Shape = Shape { name: "task", keys: &TASK_KEYS };
pub(super) static TABLE: Shape = Shape { name: "table", keys: &["from", "to", "rename", "drop", "values"] };
pub(super) static STREAM: Shape = Shape { name: "stream", keys: &["shards", "retention", "disk-bound", "compress"] };
pub(super) static FULL_LOAD: Shape = Shape { name: "full-load", keys: &["parallel", "rate-limit"] };
pub(super) static ON_ERROR: Shape = Shape { name: "on-error", keys: &["record", "table", "task"] };

const RETENTION_MAX: Duration = Duration::from_secs(8760 * 3600);
const MODES: [(&str, Mode); 3] =
    [("full-load", Mode::FullLoad), ("cdc", Mode::Cdc), ("full-load-and-cdc", Mode::FullLoadAndCdc)];

/// Whether a task may be called so: state keys and folders are named after it.
pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Reads a task from its section (or the short form's top level); `endpoints` are the names of its source and target.
pub(super) fn task(
    reader: &mut Reader,
    section: &Section<'_>,
    name: &str,
    line: usize,
    endpoints: (String, String),
) -> Option<TaskConfig> {
    let removed = section.read(reader, "removed", Reader::boolean).unwrap_or(false);
    let tables = section.require(reader, "tables").and_then(|node| tables(reader, node, section));
    let exclude = section.get("exclude").map_or(Some(vec![]), |node| patterns(reader, node, &section.name("exclude")));
    let max_value = section.read(reader, "max-value", Reader::size);
    let mode = section.read(reader, "mode", |r, n, w| r.word(n, w, &MODES)).unwrap_or(Mode::FullLoadAndCdc);
    Some(TaskConfig {
        name: name.to_string(),
        line,
        mode,
        source: endpoints.0,
        target: endpoints.1,
        stream: stream(reader, section),
        load: full_load(reader, section),
        on_error: on_error(reader, section),
        values: values::values(reader, section),
        on_change: on_change(reader, section),
        source_log: source_log(reader, section, mode.loads(), mode.captures()),
        max_value_bytes: max_value.unwrap_or(64 << 20),
        removed,
        tables: tables?,
        exclude: exclude?,
    })
}

fn tables(reader: &mut Reader, node: &Node, section: &Section<'_>) -> Option<Vec<TableRule>> {
    let what = section.name("tables");
    let items = reader.list(node, &what)?;
    if items.is_empty() {
        reader.wrong(node.at, "CFG-VALUE", format!("{what} is empty"), "name at least one table: [public.orders]");
    }
    let rules: Vec<Option<TableRule>> = items.iter().map(|item| table(reader, item, &section.what)).collect();
    rules.into_iter().collect()
}

fn table(reader: &mut Reader, node: &Node, of: &str) -> Option<TableRule> {
    if let Value::Text { text, .. } = &node.value {
        let from = pattern(reader, node, &format!("table \"{text}\" of {of}"), text)?;
        return Some(TableRule { from, to: None, rename: BTreeMap::new(), drop: vec![], values: BTreeMap::new() });
    }
    let named = match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == "from").map(|entry| &entry.node.value),
        _ => None,
    };
    let what = match named {
        Some(Value::Text { text, .. }) => format!("table {text} of {of}"),
        _ => format!("a table of {of}"),
    };
    let section = reader.section(node, &TABLE, &what)?;
    let from_node = section.require(reader, "from");
    let from = from_node.and_then(|node| {
        let text = reader.text(node, &section.name("from"))?;
        pattern(reader, node, &section.name("from"), &text)
    });
    let to = section.read(reader, "to", target_name);
    let rename = section.read(reader, "rename", renames).unwrap_or_default();
    let drop = section.read(reader, "drop", texts).unwrap_or_default();
    let values = section.read(reader, "values", values::rules).unwrap_or_default();
    if let (Some(from), Some(to)) = (&from, &to)
        && !from.is_exact()
        && to.is_exact()
    {
        let fix = format!("keep the table's name: to: {}.*", to.schema);
        reader.wrong(section.at, "CFG-VALUE", format!("{what}: many tables would become one"), fix);
    }
    Some(TableRule { from: from?, to, rename, drop, values })
}

fn pattern(reader: &mut Reader, node: &Node, what: &str, text: &str) -> Option<TablePattern> {
    let pattern = TablePattern::parse(text);
    if pattern.is_none() {
        let fix =
            "write schema.table, each part as the source shows it: public.orders, sales.*, \"My Schema.My Table\"";
        reader.wrong(node.at, "CFG-VALUE", format!("{what} is not of the form schema.table"), fix);
    }
    pattern
}

fn patterns(reader: &mut Reader, node: &Node, what: &str) -> Option<Vec<TablePattern>> {
    let items = reader.list(node, what)?;
    let read = |item| {
        let text = reader.text(item, what)?;
        pattern(reader, item, what, &text)
    };
    let read: Vec<Option<TablePattern>> = items.iter().map(read).collect();
    read.into_iter().collect()
}

fn target_name(reader: &mut Reader, node: &Node, what: &str) -> Option<TablePattern> {
    let text = reader.text(node, what)?;
    let to = pattern(reader, node, what, &text)?;
    let whole = |part: &str| part == "*" || !part.contains('*');
    if whole(&to.schema) && whole(&to.name) {
        return Some(to);
    }
    let fix = "a part is a name, or * alone to keep the source's: lake.*";
    reader.wrong(node.at, "CFG-VALUE", format!("{what} has a * within a part"), fix);
    None
}

fn renames(reader: &mut Reader, node: &Node, what: &str) -> Option<BTreeMap<String, String>> {
    let mut renames = BTreeMap::new();
    for entry in reader.entries(node, what)? {
        if let Some(name) = reader.text(&entry.node, &format!("column {} in {what}", entry.key)) {
            renames.insert(entry.key.clone(), name);
        }
    }
    Some(renames)
}

fn texts(reader: &mut Reader, node: &Node, what: &str) -> Option<Vec<String>> {
    let items = reader.list(node, what)?;
    let texts: Vec<Option<String>> = items.iter().map(|item| reader.text(item, what)).collect();
    texts.into_iter().collect()
}

fn stream(reader: &mut Reader, section: &Section<'_>) -> StreamConfig {
    let retention = Duration::from_secs(24 * 3600);
    let mut stream = StreamConfig { shards: 1, retention, disk_bytes_max: None, compress: true };
    let inner = section.get("stream").and_then(|node| reader.section(node, &STREAM, section.name("stream")));
    let Some(inner) = inner else { return stream };
    if let Some(shards) = inner.read(reader, "shards", |r, n, w| r.integer(n, w, 1..=4096)) {
        stream.shards = u32::try_from(shards).unwrap_or(1);
    }
    if let Some(retention) = inner.read(reader, "retention", Reader::duration) {
        if retention > RETENTION_MAX {
            let at = inner.get("retention").map_or(inner.at, |node| node.at);
            let summary = format!("{} is longer than 8760h", inner.name("retention"));
            reader.wrong(at, "CFG-VALUE", summary, "retention: 8760h is the longest; the lake keeps everything");
        }
        stream.retention = retention;
    }
    stream.disk_bytes_max = inner.read(reader, "disk-bound", Reader::size);
    stream.compress = inner.read(reader, "compress", Reader::boolean).unwrap_or(true);
    stream
}

fn full_load(reader: &mut Reader, section: &Section<'_>) -> LoadConfig {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut load = LoadConfig { parallel: (2 * cores).min(8), rate_bytes: None };
    let inner = section.get("full-load").and_then(|node| reader.section(node, &FULL_LOAD, section.name("full-load")));
    let Some(inner) = inner else { return load };
    if let Some(parallel) = inner.read(reader, "parallel", |r, n, w| r.integer(n, w, 1..=64)) {
        load.parallel = usize::try_from(parallel).unwrap_or(1);
    }
    load.rate_bytes = inner.read(reader, "rate-limit", Reader::size).filter(|rate| *rate > 0);
    load
}

fn on_error(reader: &mut Reader, section: &Section<'_>) -> OnError {
    let inner = section.get("on-error").and_then(|node| reader.section(node, &ON_ERROR, section.name("on-error")));
    let Some(inner) = inner else { return OnError::default() };
    inner.read(reader, "record", |r, n, w| r.word(n, w, &[("dead-letter", ())]));
    let table = inner.read(reader, "table", |r, n, w| r.word(n, w, &[("suspend", false), ("stop-task", true)]));
    let task = inner.read(reader, "task", |r, n, w| r.word(n, w, &[("retry", false), ("stop", true)]));
    OnError { table_stops_task: table.unwrap_or(false), task_stops: task.unwrap_or(false) }
}
