//! How a task looks after its place in the source's log: `on-slot-lost`, `source-guard`, `heartbeat`, `failover-slot`; and
//! `origin`, whose changes it takes from there.

use std::time::Duration;

use super::section::{Reader, Section, Shape};

/// What a task does about its place in the source's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceLogConfig {
    /// `on-slot-lost`: when the slot is gone, invalidated or was made again by somebody, the task stops (`stop`, the
    /// default), or makes a new one and loads every table anew (`reload`).
    pub reload_when_lost: bool,
    /// `source-guard`: limits for what the source keeps because of us.
    pub guard: SourceGuard,
    /// `heartbeat`: how often something is written into the source's log (off by default; 1 s at the least).
    pub heartbeat: Option<Duration>,
    /// `failover-slot`: standbys keep the slot too (default `false`; PostgreSQL 17 and later).
    pub failover_slot: bool,
    /// `origin`: changes that the source itself took over from elsewhere, by replication, are captured like its own (`any`,
    /// the default), or left out (`none`), against loops. With the words of PostgreSQL's subscriptions.
    pub own_changes_only: bool,
}

/// `source-guard`: limits for the log that the source keeps because of us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceGuard {
    /// `warn-at`: a warning from here on; left out: half of what the source grants us, 5 GiB where it grants everything.
    pub warn_bytes: Option<u64>,
    /// `act-at`: `action` is taken from here on; left out: never.
    pub act_bytes: Option<u64>,
    /// `action`: what is done then.
    pub action: GuardAction,
}

/// `action`: what is done at the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuardAction {
    /// `stop`: the task stops, and the source keeps its log (the default).
    #[default]
    Stop,
    /// `drop-slot`: the slot is dropped, so that the source lets its log go; every table is loaded anew afterwards.
    DropSlot,
}

/// The keys that a task has for it.
pub(super) const KEYS: [&str; 5] = ["on-slot-lost", "source-guard", "heartbeat", "failover-slot", "origin"];
pub(super) static SOURCE_GUARD: Shape = Shape { name: "source-guard", keys: &["warn-at", "act-at", "action"] };

const ORIGINS: [(&str, bool); 2] = [("any", false), ("none", true)];
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);

/// Reads them from the task's section; `loads` and `captures` say what the task does.
pub(super) fn source_log(reader: &mut Reader, section: &Section<'_>, loads: bool, captures: bool) -> SourceLogConfig {
    let words = [("stop", false), ("reload", true)];
    let reload_when_lost = section.read(reader, "on-slot-lost", |r, n, w| r.word(n, w, &words)).unwrap_or(false);
    if let Some(node) = section.get("on-slot-lost").filter(|_| reload_when_lost && captures && !loads) {
        let summary = format!("{} is reload, but the task loads nothing", section.name("on-slot-lost"));
        reader.wrong(node.at, "CFG-VALUE", summary, "set mode: full-load-and-cdc, or on-slot-lost: stop");
    }
    let heartbeat = section.read(reader, "heartbeat", Reader::duration);
    if let Some(node) = section.get("heartbeat").filter(|_| heartbeat.is_some_and(|every| every < HEARTBEAT_MIN)) {
        reader.wrong(node.at, "CFG-VALUE", format!("{} is too short", section.name("heartbeat")), "heartbeat: 10s");
    }
    SourceLogConfig {
        reload_when_lost,
        guard: guard(reader, section, loads || !captures),
        heartbeat,
        own_changes_only: section.read(reader, "origin", |r, n, w| r.word(n, w, &ORIGINS)).unwrap_or(false),
        failover_slot: section.read(reader, "failover-slot", Reader::boolean).unwrap_or(false),
    }
}

fn guard(reader: &mut Reader, section: &Section<'_>, may_reload: bool) -> SourceGuard {
    let inner =
        section.get("source-guard").and_then(|node| reader.section(node, &SOURCE_GUARD, section.name("source-guard")));
    let Some(inner) = inner else { return SourceGuard::default() };
    let words = [("stop", GuardAction::Stop), ("drop-slot", GuardAction::DropSlot)];
    let guard = SourceGuard {
        warn_bytes: inner.read(reader, "warn-at", Reader::size),
        act_bytes: inner.read(reader, "act-at", Reader::size),
        action: inner.read(reader, "action", |r, n, w| r.word(n, w, &words)).unwrap_or_default(),
    };
    if let Some(node) = inner.get("action").filter(|_| guard.action == GuardAction::DropSlot && !may_reload) {
        let summary = format!("{} is drop-slot, but the task loads nothing", inner.name("action"));
        reader.wrong(node.at, "CFG-VALUE", summary, "set mode: full-load-and-cdc, or action: stop");
    }
    if let (Some(node), None) = (inner.get("action"), inner.get("act-at")) {
        let summary = format!("{} never happens", inner.name("action"));
        reader.wrong(node.at, "CFG-VALUE", summary, "say from how many bytes on: act-at: 20GiB");
    }
    if let (Some(node), Some(warn), Some(act)) = (inner.get("act-at"), guard.warn_bytes, guard.act_bytes)
        && act < warn
    {
        let summary = format!("{} is less than \"warn-at\"", inner.name("act-at"));
        reader.wrong(node.at, "CFG-VALUE", summary, "warn first, then act: warn-at: 5GiB, act-at: 20GiB");
    }
    guard
}
