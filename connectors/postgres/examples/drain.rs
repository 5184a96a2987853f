//! Drains a replication slot to its end as the daemon reads it, to nowhere, and prints changes per second.
//!
//! To be run side by side with the server's own reader, on copies of one slot (nothing may write meanwhile):
//! ```sh
//! psql -c "select pg_copy_logical_replication_slot('base', 'millrace_one'), pg_copy_logical_replication_slot('base', 'other')"
//! time cargo run --release -p millrace-postgres --example drain -- 127.0.0.1 5432 postgres postgres one END_LSN
//! time pg_recvlogical -h 127.0.0.1 --slot other --start -o proto_version=1 -o publication_names=millrace_one -f /dev/null
//! # … the latter until pg_stat_replication.sent_lsn passes END_LSN
//! ```
//! Arguments: host, port, database, user, task, end position. The task's names are `millrace_<task>`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use millrace_core::{
    Durable, Position, Tls, TlsMode,
    source::{Budget, Log, UnboundedRoom},
};
use millrace_postgres::{
    Names, PostgresConfig, discover,
    fence::VisibilityFence,
    log::{LogOptions, PostgresLog, Surroundings},
    slot,
    wire::{Connection, Mode},
};

#[tokio::main]
async fn main() -> millrace_core::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, database, user, task, end] = arguments.as_slice() else {
        eprintln!("usage: drain HOST PORT DATABASE USER TASK END_LSN");
        std::process::exit(2);
    };
    let config = PostgresConfig {
        host: host.clone(),
        port: port.parse().unwrap_or(5432),
        database: database.clone(),
        user: user.clone(),
        password: None,
        tls: Tls { mode: TlsMode::Disable, ca_file: None },
        connect_timeout: Duration::from_secs(10),
    };
    let end = slot::parse_lsn(end)?;
    let names = Names::of_task(task);
    let mut session = Connection::connect(&config, Mode::Plain, "drain").await?;
    let identity = slot::identity(&mut session).await?;
    let from = slot::retained(&mut session, &names).await?.and_then(|retained| retained.confirmed);
    let published = session
        .query(&format!(
            "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname IN ('{}', '{}')",
            names.publication, names.publication_inserts
        ))
        .await?;
    let table_names: Vec<_> = published
        .iter()
        .filter_map(|row| match row.as_slice() {
            [Some(schema), Some(name)] => Some(millrace_core::TableName::new(schema.clone(), name.clone())),
            _ => None,
        })
        .collect();
    let shapes = discover::named(&mut session, &table_names).await?;
    let tables: Vec<_> = shapes.into_iter().map(|shape| Arc::new(shape.table)).collect();
    let spill = Arc::new(UnboundedRoom(std::env::temp_dir().join(format!("drain-{}", std::process::id()))));
    let around = Surroundings {
        fence: Arc::new(VisibilityFence::default()),
        spill,
        whole: Arc::default(),
        process: Arc::default(),
    };
    let from = from.unwrap_or(Position(0));
    let mut log =
        PostgresLog::open(&config, &names, &tables, &from.into(), &identity, LogOptions::default(), around).await?;

    let budget = Budget { rows: 65_536, bytes: 32 << 20, wait: Duration::from_millis(500) };
    let began = Instant::now();
    let (mut rows, mut pulls, mut bytes) = (0, 0, 0);
    loop {
        let changes = log.pull(budget).await?;
        rows += changes.rows();
        pulls += 1;
        for item in &changes.items {
            if let millrace_core::Change::Rows(batch) = item {
                bytes += batch.byte_size();
            }
        }
        if let Some(upto) = changes.upto {
            log.confirm(Durable::from_fsync(upto)).await?;
            if upto >= end {
                break;
            }
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    println!(
        "{rows} changes in {elapsed:.2} s: {:.0} changes/s, {pulls} pulls, {:.0} MB of columns",
        rows as f64 / elapsed,
        bytes as f64 / 1e6
    );
    Ok(())
}
