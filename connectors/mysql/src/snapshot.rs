//! A consistent view of all data at an exact position, and one table in it.
//!
//! MariaDB tells the place in its binary log that belongs to a snapshot (`binlog_snapshot_file`, `binlog_snapshot_position`;
//! Knowledge Base, "START TRANSACTION"). MySQL does not: there the snapshot is taken while nobody can commit, under FLUSH
//! TABLES WITH READ LOCK, which is held for that moment only. A place that is asked for beside a snapshot is not exact: a
//! transaction is in the binary log before its engine shows it.
//!
//! Who may not lock knows what a MySQL snapshot has at least ([`lower_bound`]), and that serves tables with a key: what
//! happened since is in their rows already, comes once more from the log, and the newest order of each key is right either
//! way.
//!
//! A snapshot belongs to one session, and a server gives it to no other, so several sessions take theirs at one moment
//! ([`Sessions`]): at MySQL all of them under the lock, at MariaDB until all are told the same place. Where its commits
//! follow too closely for that, those that agree do the work.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::try_join_all;
use millrace_core::{
    Error, Kind, Position, Result, TableName,
    error::Context,
    source::{LoadPlan, Snapshot, TableLoad},
};
use tokio::time::Instant;

use crate::{
    MysqlConfig, Shared, definition,
    discover::{self, Shape},
    divide,
    load::MysqlLoad,
    lower_bound,
    server::{self, Place},
    sessions::Sessions,
    two_phases::UnderWay,
    wire::{Connection, code},
};

/// Opens a transaction in a snapshot of now.
pub const BEGIN: &str = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
/// MariaDB takes no second word behind it before 10.6, and READ ONLY may stand alone.
const BEGIN_MARIADB: &str = "START TRANSACTION WITH CONSISTENT SNAPSHOT";

/// How long the opening of a table waits for its metadata lock, in seconds. The exact
/// snapshot keeps those of the tables that were read in it: who wants to alter one waits for us, and we must not wait for
/// him, as the catalog's queries would.
const OPEN_LOCK_TIMEOUT: u32 = 3;

/// How long a snapshot is waited for that has what the log has.
const VISIBLE_MAX: Duration = Duration::from_secs(10);
const VISIBLE_PAUSE: Duration = Duration::from_millis(50);
/// How long it is tried to have all sessions in one snapshot.
const AGREE_MAX: Duration = Duration::from_secs(2);

fn too_early() -> Error {
    let said = "the log was read further than the snapshot goes: a commit is under way";
    Error::new(Kind::SnapshotStale, "taking a snapshot").with(said)
}

/// Bounds how long a session waits for metadata locks.
pub fn lock_timeout(seconds: u32) -> String {
    format!("SET SESSION lock_wait_timeout = {seconds}")
}

/// A snapshot that is held open.
#[derive(Debug)]
pub struct MysqlSnapshot {
    shared: Arc<Shared>,
    position: Position,
    exact: bool,
    /// It has everything before its position, and perhaps more.
    is_bound: bool,
    /// Nothing behind that is in it.
    read_to: Position,
    sessions: Arc<Sessions>,
}

/// Opens a transaction of our own in a snapshot of now.
pub async fn begin(session: &mut Connection) -> Result<()> {
    session.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    session.execute(if session.is_mariadb() { BEGIN_MARIADB } else { BEGIN }).await
}

/// Opens a transaction in a snapshot of now, at a server that tells the snapshot's place in its log: file and byte.
pub async fn begin_with_place(session: &mut Connection) -> Result<(String, u64)> {
    begin(session).await?;
    let rows = session.query("SHOW STATUS LIKE 'binlog_snapshot_%'").await?;
    let value = |name: &str| {
        let row = rows
            .iter()
            .find(|row| row.first().and_then(Option::as_deref).is_some_and(|own| own.eq_ignore_ascii_case(name)));
        row.and_then(|row| row.get(1)?.clone()).filter(|value| !value.is_empty())
    };
    let (file, offset) = (value("binlog_snapshot_file"), value("binlog_snapshot_position"));
    let (Some(file), Some(offset)) = (file, offset) else {
        return Err(Error::new(Kind::SourceSetup, "taking a snapshot")
            .with("the server does not tell the snapshot's place in its binary log")
            .fix("set log_bin in the server's configuration"));
    };
    let offset = offset.parse().context(Kind::Protocol, || "taking a snapshot")?;
    Ok((file, offset))
}

/// Opens transactions in one snapshot of now, at a server that does not tell the snapshot's place, while nobody can commit:
/// who is in the middle of it is waited for. Gives the place.
pub async fn begin_under_lock(config: &MysqlConfig, sessions: &mut [Connection]) -> Result<Place> {
    let mut lock = Connection::connect(config).await?;
    let locked = server::identity(&mut lock, "").await?.system;
    let own = try_join_all(sessions.iter_mut().map(|session| server::identity(session, ""))).await?;
    if own.iter().any(|own| own.system != locked) {
        return Err(Error::new(Kind::Connection, "taking a snapshot").with("another server answers there now"));
    }
    // Statements that run for long keep the lock from being taken, and everybody behind it.
    lock.execute("SET SESSION lock_wait_timeout = 10").await?;
    lock.execute("FLUSH TABLES WITH READ LOCK").await?;
    // Everybody who wants to write waits: nothing else is asked under the lock, and no server that does not answer keeps it.
    let under_lock = async {
        try_join_all(sessions.iter_mut().map(begin)).await?;
        let end = server::end_by_name(&mut lock).await?;
        lock.execute("UNLOCK TABLES").await.map(|()| end)
    };
    let late = || Error::new(Kind::Connection, "taking a snapshot").with("the server does not answer under the lock");
    let (file, offset) = tokio::time::timeout(config.connect_timeout, under_lock).await.map_err(|_| late())??;
    server::place(config, &file, offset).await
}

/// Refuses a table whose changes the log does not tell exactly. `check` says the same of tables that are there already.
async fn refuse_silent_changes(session: &mut Connection, shape: &Shape) -> Result<()> {
    let refused = |said: String| Error::new(Kind::TableUnreadable, "looking for changes that are in no log").with(said);
    if !shape.is_transactional() {
        let said = format!("its engine {} knows no transactions, so a load of it has no exact position", shape.engine);
        return Err(
            refused(said).fix(format!("ALTER TABLE {} ENGINE = InnoDB;", discover::quote_table(&shape.table.name)))
        );
    }
    let cascades = definition::silent_foreign_keys(session, &shape.table.name).await?;
    if let Some(first) = cascades.first() {
        let said =
            format!("its foreign key {first} changes its rows, and the server writes nothing of that to its log");
        return Err(refused(said).fix("make it RESTRICT, or leave the table out of the task"));
    }
    Ok(())
}

impl MysqlSnapshot {
    /// Takes a snapshot; `exact` as in [`millrace_core::source::Source::snapshot`].
    pub async fn take(shared: Arc<Shared>, exact: bool) -> Result<Self> {
        let readers = 0..shared.options.readers.max(1);
        let mut sessions = try_join_all(readers.map(|_| shared.connect_for(exact))).await?;
        let is_mariadb = sessions.iter().any(Connection::is_mariadb);
        let mut is_bound = false;
        let position = match (exact, is_mariadb) {
            (false, _) => {
                begin_alone(&shared.config, &mut sessions).await?;
                Position::default()
            }
            (true, true) => begin_at_mariadb(&shared, &mut sessions).await?,
            (true, false) => match begin_under_lock(&shared.config, &mut sessions).await {
                Err(error) if lower_bound::is_lock_refused(&error) => {
                    is_bound = true;
                    begin_behind_bound(&shared, &mut sessions).await?
                }
                place => place?.position(),
            },
        };
        if exact && !is_mariadb && position < shared.loads.snapshot_min() {
            return Err(too_early());
        }
        let mut read_to = position;
        if exact {
            // Nor has anybody else answered meanwhile.
            let mut session = shared.connect().await?;
            if is_bound {
                read_to = server::end(&shared.config, &mut session).await?.position();
            }
        }
        let sessions = Sessions::new(sessions).await?;
        tracing::info!(%position, exact, is_bound, sessions = sessions.count(), "snapshot was taken");
        Ok(Self { shared, position, exact, is_bound, read_to, sessions: Arc::new(sessions) })
    }
}

/// Where nothing is captured the place does not matter, but all rows are of one moment: in as many sessions as the server
/// lets us have in one snapshot.
async fn begin_alone(config: &MysqlConfig, sessions: &mut Vec<Connection>) -> Result<()> {
    let began = match sessions.iter().any(Connection::is_mariadb) {
        true => begin_agreeing(sessions).await.map(|_| ()),
        false => begin_under_lock(config, sessions).await.map(|_| ()),
    };
    if began.is_ok() {
        return Ok(());
    }
    sessions.truncate(1);
    try_join_all(sessions.iter_mut().map(begin)).await.map(|_| ())
}

/// Opens transactions in one snapshot of now at MariaDB, and gives its place: file and byte. Sessions that did not come to
/// the same one for too long are left out.
async fn begin_agreeing(sessions: &mut Vec<Connection>) -> Result<(String, u64)> {
    let began = Instant::now();
    loop {
        let places = try_join_all(sessions.iter_mut().map(begin_with_place)).await?;
        let votes = |place: &(String, u64)| places.iter().filter(|other| *other == place).count();
        let place = places.iter().max_by_key(|place| votes(place)).cloned().unwrap_or_default();
        if votes(&place) == places.len() || began.elapsed() > AGREE_MAX {
            let mut agree = places.iter().map(|other| *other == place);
            sessions.retain(|_| agree.next().unwrap_or(false));
            return Ok(place);
        }
        end_all(sessions).await?;
    }
}

/// The same, exactly: while transactions of two phases are at their commit, the place that a snapshot tells is not.
async fn begin_at_mariadb(shared: &Shared, sessions: &mut Vec<Connection>) -> Result<Position> {
    let began = Instant::now();
    let mut session = shared.connect().await?;
    loop {
        let before = UnderWay::ask(&mut session).await?;
        let position = begin_behind_log(shared, sessions).await?;
        if before.is_none(&UnderWay::ask(&mut session).await?) {
            return Ok(position);
        }
        end_all(sessions).await?;
        match begin_under_lock(&shared.config, sessions).await {
            Err(error) if lower_bound::is_lock_refused(&error) && began.elapsed() < AGREE_MAX => {
                tokio::time::sleep(VISIBLE_PAUSE).await;
            }
            Err(error) if lower_bound::is_lock_refused(&error) => {
                let said = "transactions of two phases (XA) are prepared or committed all the time, and the user may not hold commits";
                return Err(Error::new(Kind::SourceSetup, "taking a snapshot")
                    .with(said)
                    .fix(format!("GRANT RELOAD ON *.* TO '{}'@'%';", shared.config.user)));
            }
            place => return place.map(|place| place.position()),
        }
    }
}

/// The same, of a snapshot that has everything that the log has read. A transaction is in the binary log before a snapshot
/// has it, and for long where its commit waits for a replica.
async fn begin_behind_log(shared: &Shared, sessions: &mut Vec<Connection>) -> Result<Position> {
    let began = Instant::now();
    loop {
        let (file, offset) = begin_agreeing(sessions).await?;
        let position = server::place(&shared.config, &file, offset).await?.position();
        let read = shared.loads.snapshot_min();
        let Some(first) = sessions.first_mut() else { return Err(too_early()) };
        if position >= read || server::is_nothing_between(first, (&file, offset), Place::of(read)).await? {
            return Ok(position);
        }
        if began.elapsed() > VISIBLE_MAX {
            return Err(too_early());
        }
        end_all(sessions).await?;
        tokio::time::sleep(VISIBLE_PAUSE).await;
    }
}

/// The same at MySQL, where only a bound of what the snapshots have is known.
async fn begin_behind_bound(shared: &Shared, sessions: &mut [Connection]) -> Result<Position> {
    let began = Instant::now();
    loop {
        let position = lower_bound::begin_behind_bound(&shared.config, sessions).await?.position();
        if position >= shared.loads.snapshot_min() || began.elapsed() > VISIBLE_MAX {
            return Ok(position);
        }
        end_all(sessions).await?;
        tokio::time::sleep(VISIBLE_PAUSE).await;
    }
}

async fn end_all(sessions: &mut [Connection]) -> Result<()> {
    try_join_all(sessions.iter_mut().map(|session| session.execute("COMMIT"))).await.map(|_| ())
}

#[async_trait]
impl Snapshot for MysqlSnapshot {
    fn position(&self) -> Position {
        self.position
    }

    fn read_to(&self) -> Position {
        self.read_to
    }

    async fn open(
        &self,
        table: &TableName,
        segments_wanted: usize,
        previous: Option<&LoadPlan>,
    ) -> Result<Box<dyn TableLoad>> {
        let doing = || format!("opening table {table} for its load");
        let mut lock = self.shared.connect_for(self.exact).await?;
        lock.execute(&lock_timeout(OPEN_LOCK_TIMEOUT)).await?;
        begin(&mut lock).await?;
        // A read locks the table's shape to the end of the transaction.
        let locking = lock.query(&format!("SELECT 1 FROM {} LIMIT 1", discover::quote_table(table))).await;
        locking.map_err(|error| match code(&error) {
            Some(1146) => Error { kind: Kind::TableMissing, doing: doing(), ..error },
            _ => Error { doing: doing(), ..error },
        })?;
        let mut catalog = self.shared.connect_for(self.exact).await?;
        catalog.execute(&lock_timeout(OPEN_LOCK_TIMEOUT)).await?;
        let found = discover::named(&mut catalog, std::slice::from_ref(table)).await?.pop();
        let found = found.ok_or_else(|| Error::new(Kind::TableMissing, doing()))?;
        if self.exact {
            refuse_silent_changes(&mut catalog, &found).await.map_err(|error| Error { doing: doing(), ..error })?;
        }
        let mut shape = found.known()?;
        if self.is_bound && !shape.is_keyed() {
            let said = "it has no key, and the user may not hold commits, so a load of it has no exact position";
            let rights = format!("GRANT RELOAD ON *.* TO '{}'@'%';", self.shared.config.user);
            return Err(Error::new(Kind::TableUnreadable, doing())
                .with(said)
                .fix(rights)
                .fix("or give it a primary key"));
        }
        crate::types::retype(&self.shared.options.values, &mut shape);
        let resumable = previous.filter(|plan| self.exact && shape.is_keyed() && !plan.segments.is_empty());
        // What was read before is kept: the log knows from where on.
        if self.exact && resumable.is_none() && !self.shared.loads.begin(table, self.position) {
            return Err(Error::new(Kind::SnapshotStale, doing()).with("the table changed since the snapshot was taken"));
        }
        let plan = match resumable {
            Some(plan) => plan.clone(),
            None => divide::divide(&mut lock, &shape, segments_wanted).await?,
        };
        Ok(Box::new(MysqlLoad::new(
            self.shared.clone(),
            self.position,
            shape,
            plan,
            resumable.is_some(),
            self.sessions.clone(),
            lock,
        )))
    }
}
