//! Loads one table to nowhere and prints rows/s and CPU seconds: the reading half of a full load, for the benchmark.
//!
//! `cargo run --release -p millrace-postgres --example copy -- HOST PORT DATABASE USER SCHEMA.TABLE [SEGMENTS]`; HOST is a
//! name, an address, or the folder of a Unix socket. No TLS.

use std::time::{Duration, Instant};

use millrace_core::{
    Result, TableName, TablePattern, Tls, TlsMode,
    source::{Rows, Source},
};
use millrace_postgres::{Options, PostgresConfig, PostgresSource};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, database, user, table, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: copy HOST PORT DATABASE USER SCHEMA.TABLE [SEGMENTS]");
        std::process::exit(2);
    };
    let (Ok(port), Some(name)) = (port.parse(), TablePattern::parse(table)) else {
        eprintln!("PORT is a number, and a table is SCHEMA.TABLE");
        std::process::exit(2);
    };
    let segments = rest.first().and_then(|count| count.parse().ok()).unwrap_or(1);
    let config = PostgresConfig {
        host: host.clone(),
        port,
        database: database.clone(),
        user: user.clone(),
        password: None,
        tls: Tls { mode: TlsMode::Disable, ca_file: None },
        connect_timeout: Duration::from_secs(10),
    };
    let source = PostgresSource::new(config, "copy", Options::default());
    let name = TableName::new(name.schema, name.name);
    let begin = Instant::now();
    let snapshot = source.snapshot(std::slice::from_ref(&name), false).await?;
    let load = snapshot.open(&name, segments, None).await?;
    let mut readers = vec![];
    for segment in 0..load.plan().segments.len() {
        readers.push(tokio::spawn(drain(load.rows(segment).await?)));
    }
    let mut total = Read::default();
    for reader in readers {
        let read = reader.await.unwrap_or_else(|error| panic!("a reader died: {error}"))?;
        total = Read {
            rows: total.rows + read.rows,
            rejects: total.rejects + read.rejects,
            bytes: total.bytes + read.bytes,
        };
    }
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds());
    let rows = total.rows as f64;
    println!(
        "{} rows ({} rejected), {} MB in {wall:.2} s: {:.0} rows/s, {:.0} MB/s, CPU {cpu:.2} s, {:.3} s per million rows",
        total.rows,
        total.rejects,
        total.bytes / 1_000_000,
        rows / wall,
        total.bytes as f64 / 1e6 / wall,
        cpu / rows * 1e6,
    );
    Ok(())
}

#[derive(Debug, Default)]
struct Read {
    rows: usize,
    rejects: usize,
    bytes: usize,
}

async fn drain(mut rows: Box<dyn Rows>) -> Result<Read> {
    let mut read = Read::default();
    while let Some(batch) = rows.next().await? {
        read.rows += batch.columns.rows();
        read.rejects += batch.rejects.len();
        read.bytes += batch.wire_bytes;
    }
    Ok(read)
}

/// User and system time of this process, in seconds (proc(5), `stat` fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}
