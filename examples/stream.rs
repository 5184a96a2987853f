//! Measures the durable stream on this machine's disk: `cargo run --release --example stream [FOLDER]`.
//!
//! Prints the cost of an append with its fsync, alone and in a group, of a backlog that is written without waiting, and of
//! reading it back; rows have 3 columns and about 60 bytes.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use millrace::stream::{Append, Entry, LogPosition, Stream, StreamOptions};
use millrace_core::{
    Capture, Change, ChangeBatch, Changes, Column, ColumnType, Columns, Op, Order, Position, Result, Table, TableName,
};

fn table() -> Arc<Table> {
    let types = [ColumnType::Int64, ColumnType::Text, ColumnType::TimestampTz];
    let column = |(id, ty): (i32, ColumnType)| Column {
        id,
        name: format!("column_{id}"),
        ty,
        source_type: String::new(),
        nullable: true,
        older_rows: None,
    };
    Arc::new(Table {
        name: TableName::new("public", "orders"),
        source_id: 1,
        version: 1,
        columns: (1..).zip(types).map(column).collect(),
        key: vec![0],
        capture: Capture::All,
        storage_id: 1,
        definition_id: 1,
        columns_ever: 0,
        estimated_rows: 0,
        estimated_bytes: 0,
        parts: None,
    })
}

fn append(table: &Arc<Table>, commit: u128, rows: usize) -> Append {
    let mut after = Columns::new(table.columns.iter().map(|column| &column.ty));
    for row in 0..rows as i64 {
        after.column_mut(0).push_i64(commit as i64 * 1000 + row);
        after
            .column_mut(1)
            .push_str(&format!("customer {} wants {row} of them, soon", commit * 7919 + row as u128 * 104_729));
        after.column_mut(2).push_i64(1_700_000_000_000_000 + row * 997);
        after.end_row();
    }
    let batch = ChangeBatch {
        table: table.clone(),
        ops: vec![Op::Insert; rows],
        order: (1..=rows as u32).map(|ordinal| Order { commit, ordinal }).collect(),
        commit_time_us: vec![commit as i64; rows],
        after,
        absent: None,
    };
    let changes = Changes { items: vec![Change::Rows(batch)], upto: Some(Position(commit + 1)), ..Changes::default() };
    Append { changes, captured: rows as u64, ..Append::default() }
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("millrace-stream-{}", std::process::id()));
    let options = StreamOptions {
        folder: folder.clone(),
        shards: 1,
        retention: Duration::from_secs(24 * 3600),
        segment_bytes: 64 << 20,
        compress: true,
        disk_bytes_max: 8 << 30,
        epoch: 1,
    };
    let stream = Stream::open(options)?;
    let table = table();
    let mut commit = 0;
    let mut next = |rows: usize| {
        commit += 1;
        append(&table, commit, rows)
    };

    let mut times = vec![];
    for _ in 0..2000 {
        let append = next(1);
        let start = Instant::now();
        stream.append(append).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!("one row and its fsync: median {:?}, p99 {:?}", times[1000], times[1980]);

    let start = Instant::now();
    for _ in 0..100 {
        let group: Vec<_> = (0..32).map(|_| stream.append(next(1))).collect();
        for done in futures::future::join_all(group).await {
            done?;
        }
    }
    println!("32 appends in flight: {:?} per append", start.elapsed() / 3200);

    for rows in [256, 4096, 65_536] {
        let appends: Vec<Append> = (0..2_000_000 / rows).map(|_| next(rows)).collect();
        let from = stream.last_mark().map_or(LogPosition(0), |mark| mark.at);
        let start = Instant::now();
        for append in appends {
            stream.append(append).await?;
        }
        let written = start.elapsed();
        let to = stream.last_mark().map_or(LogPosition(0), |mark| mark.at);
        let start = Instant::now();
        let mut reader = stream.read(from, to, Box::new(|_, _| true))?;
        let mut found = 0;
        while let Some(entry) = reader.next_entry()? {
            if let Entry::Rows { batch, .. } = entry {
                found += batch.rows();
            }
        }
        let per_row = |elapsed: Duration| elapsed.as_nanos() / found as u128;
        let bytes = (to.0 - from.0) / found as u64;
        println!(
            "{rows} rows per append: {} ns per row written and fsynced, {} read back, {bytes} bytes of log",
            per_row(written),
            per_row(start.elapsed()),
        );
    }
    drop(stream);
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}
