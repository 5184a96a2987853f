//! One error type for connectors and daemon, and the table that says what each kind leads to.

use std::fmt;

/// Short for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What kind of trouble it is; decides what happens next ([`Kind::action`]) and what the operator is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The other side cannot be reached, closed the connection, or timed out.
    Connection,
    /// User, password or certificate refused.
    Authentication,
    /// A right is missing.
    Permission,
    /// The source's log cannot be read from where we stand: slot gone, invalidated or re-made.
    LogLost,
    /// The source is not the one that our position comes from: another server or database, or one that went back in time.
    SourceChanged,
    /// Somebody else reads with our slot.
    LogBusy,
    /// The source is set up so that it cannot work (wal_level, no free slots).
    SourceSetup,
    /// A table changed in a way that cannot be applied; it must be reloaded.
    SchemaChange,
    /// A table is suspended, and the task's policy is to stop with it.
    TableSuspended,
    /// A table that should be there is not.
    TableMissing,
    /// One table may not be read.
    TableUnreadable,
    /// A table was rewritten between a snapshot and its lock; a new snapshot is needed.
    SnapshotStale,
    /// The other side sent what its protocol does not allow, or what we do not understand.
    Protocol,
    /// The target refused or failed.
    Target,
    /// An object that should be ours is there with other content.
    TargetConflict,
    /// Our own state on disk is damaged, or a write or fsync failed.
    Storage,
    /// Our own log of one task is damaged, though it was durable.
    LogDamaged,
    /// No space is left on our disk.
    DiskFull,
    /// The config is wrong.
    Config,
    /// A bug of ours.
    Internal,
}

/// What the daemon does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Try again with back-off; nothing is lost meanwhile.
    Retry,
    /// Stop the task and wait for the operator.
    StopTask,
    /// Suspend the one table; the others go on.
    SuspendTable,
    /// End the process: the disk can no longer be trusted, a restart re-reads it.
    Exit,
}

impl Kind {
    /// The one table from kind to action.
    pub fn action(self) -> Action {
        match self {
            Self::Connection
            | Self::SnapshotStale
            | Self::LogBusy
            | Self::Target
            | Self::DiskFull
            | Self::Permission => Action::Retry,
            Self::Authentication | Self::SourceSetup | Self::Protocol => Action::Retry,
            Self::SchemaChange | Self::TableMissing | Self::TableUnreadable => Action::SuspendTable,
            Self::LogLost
            | Self::SourceChanged
            | Self::TableSuspended
            | Self::TargetConflict
            | Self::LogDamaged
            | Self::Config
            | Self::Internal => Action::StopTask,
            Self::Storage => Action::Exit,
        }
    }

    /// What an operator does about it where the error itself does not say.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Connection => {
                "see that host, port and network are right and that the other side runs; it is tried again"
            }
            Self::Authentication => "correct user, password or certificate; they are read anew at every try",
            Self::Permission => "grant the right to the role: millrace grants prints what it needs; it is tried again",
            Self::LogLost => "load the task's tables anew: millrace reload TASK",
            Self::SourceChanged => {
                "set host and database back to the source that was replicated from; or, if this is meant, load everything \
                 anew: millrace reload TASK"
            }
            Self::LogBusy => "end the other reader of the slot; it is tried again",
            Self::SourceSetup => "change the server's setting that is named above; it is tried again",
            Self::TableSuspended => "load the table anew: millrace reload TASK TABLE, and go on: millrace resume TASK",
            Self::SchemaChange | Self::TableMissing => "load the table anew: millrace reload TASK TABLE",
            Self::TableUnreadable => {
                "grant the right (millrace grants prints what the role needs), then: millrace reload TASK TABLE"
            }
            Self::SnapshotStale => "nothing: a new snapshot is taken",
            Self::Protocol => "if it stays, report it with the lines above; it is tried again",
            Self::Target => "see that the target is there and may be written; it is tried again",
            Self::TargetConflict => {
                "move the object that is named above away; it is not ours, and nothing is overwritten"
            }
            Self::Storage => {
                "see to the disk of the state folder, then start the daemon: it reads what is really there"
            }
            Self::LogDamaged => "check the disk; then delete the task, and load it anew",
            Self::DiskFull => "make room on the volume of the state folder; it is tried again",
            Self::Config => "correct the config",
            Self::Internal => "this is a bug: report it with the lines above, then: millrace resume TASK",
        }
    }

    /// The code that operators see, alerts match and runbooks are named after.
    pub fn code(self) -> &'static str {
        match self {
            Self::Connection => "CONNECTION",
            Self::Authentication => "AUTHENTICATION",
            Self::Permission => "PERMISSION",
            Self::LogLost => "LOG-LOST",
            Self::SourceChanged => "SOURCE-CHANGED",
            Self::LogBusy => "LOG-BUSY",
            Self::SourceSetup => "SOURCE-SETUP",
            Self::SchemaChange => "SCHEMA-CHANGE",
            Self::TableSuspended => "TABLE-SUSPENDED",
            Self::TableMissing => "TABLE-MISSING",
            Self::TableUnreadable => "TABLE-UNREADABLE",
            Self::SnapshotStale => "SNAPSHOT-STALE",
            Self::Protocol => "PROTOCOL",
            Self::Target => "TARGET",
            Self::TargetConflict => "TARGET-CONFLICT",
            Self::Storage => "STORAGE",
            Self::LogDamaged => "LOG-DAMAGED",
            Self::DiskFull => "DISK-FULL",
            Self::Config => "CONFIG",
            Self::Internal => "INTERNAL",
        }
    }
}

/// An error: what was being done, what kind of trouble it met, and what the other side said.
///
/// `doing` is lower case, without a full stop, in the form "reading wal from slot \"x\"".
#[derive(Debug)]
pub struct Error {
    /// Decides what happens next.
    pub kind: Kind,
    /// What was being done.
    pub doing: String,
    /// The words of the other side.
    pub source: Option<Cause>,
    /// What to do, in words that can be pasted; empty where the kind's own sentence says it.
    pub fix: String,
}

impl Error {
    /// An error without a cause of its own.
    pub fn new(kind: Kind, doing: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), source: None, fix: String::new() }
    }

    /// The same with what caused it.
    pub fn with(mut self, source: impl Into<Cause>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with what to do about it.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        let mut cause = self.source.as_ref().map(|c| &**c as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Gives a foreign error its kind and what was being done.
pub trait Context<T> {
    /// `reading(...).context(Kind::Connection, || format!("reading x"))?`
    fn context<D: Into<String>>(self, kind: Kind, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Cause>> Context<T> for std::result::Result<T, E> {
    fn context<D: Into<String>>(self, kind: Kind, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::new(kind, doing()).with(error))
    }
}
