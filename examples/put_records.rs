//! Measures the stream's durable throughput beside a bare loop of `pwrite` and `fdatasync` of the same bytes, in turns:
//! `cargo run --release --example put_records -- FOLDER [PAIRS [SECONDS [SHAPE]]]`;
//! prints one line of JSON per pair and shape.
//!
//! Records are 1 KiB that do not compress, with a partition key. Three shapes: one caller that puts 500 records per append
//! and waits for each; four such callers; 64 callers that put single records. The loop beside them writes the records'
//! bytes alone (500 KiB, or 64 KiB at once for the 64 callers: what a perfect group would be) into files that are given
//! their length at once, as the stream's segments are.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use millrace::stream::{Append, Stream, StreamOptions};
use millrace_core::{
    Capture, Change, ChangeBatch, Changes, Column, ColumnType, Columns, Op, Order, Position, Result, Table, TableName,
};

/// The daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORD_BYTES: usize = 1024;
const SEGMENT_BYTES: u64 = 64 << 20;

/// Who puts what.
struct Shape {
    name: &'static str,
    callers: usize,
    records: usize,
    /// Records that the bare loop writes at once.
    loop_records: usize,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "500-records", callers: 1, records: 500, loop_records: 500 },
    Shape { name: "500-records-4-callers", callers: 4, records: 500, loop_records: 500 },
    Shape { name: "single-64-callers", callers: 64, records: 1, loop_records: 64 },
];

fn table() -> Arc<Table> {
    let column = |(id, ty): (i32, ColumnType)| Column {
        id,
        name: format!("column_{id}"),
        ty,
        source_type: String::new(),
        nullable: false,
        older_rows: None,
    };
    Arc::new(Table {
        name: TableName::new("stream", "records"),
        source_id: 1,
        version: 1,
        columns: (1..).zip([ColumnType::Text, ColumnType::Binary]).map(column).collect(),
        key: vec![],
        capture: Capture::InsertsOnly,
        storage_id: 1,
        definition_id: 1,
        columns_ever: 0,
        estimated_rows: 0,
        estimated_bytes: 0,
        parts: None,
    })
}

/// Bytes that do not compress (xorshift).
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(bytes).collect()
}

/// What callers bring along: making it is not the stream's work.
struct Records {
    keys: Vec<String>,
    noise: Vec<u8>,
}

impl Records {
    fn new() -> Self {
        Self { keys: (0..1 << 16).map(|key| format!("key-{key:08}")).collect(), noise: noise(8 << 20) }
    }

    /// Into memory that is taken at once, as the loaders do.
    fn columns(&self, number: u64, records: usize, like: &Columns) -> Columns {
        let mut after = Columns::with_room_of(like);
        let span = self.noise.len() - RECORD_BYTES;
        for record in 0..records {
            let at = (number as usize * records + record) * 7919 % span;
            after.column_mut(0).push_str(&self.keys[(number as usize + record) % self.keys.len()]);
            after.column_mut(1).push_bytes(&self.noise[at..at + RECORD_BYTES]);
            after.end_row();
        }
        after
    }
}

fn append(table: &Arc<Table>, number: u64, records: usize, after: Columns) -> Append {
    let order = |ordinal: u32| Order { commit: u128::from(number), ordinal };
    let batch = ChangeBatch {
        table: table.clone(),
        ops: vec![Op::Insert; records],
        order: (1..=records as u32).map(order).collect(),
        commit_time_us: vec![1; records],
        after,
        absent: None,
    };
    // Callers overtake each other, and a position never goes back: they all write at the same one.
    let changes = Changes { items: vec![Change::Rows(batch)], upto: Some(Position(1)), ..Changes::default() };
    Append { changes, captured: records as u64, ..Append::default() }
}

/// Records per second through the stream.
async fn put(folder: &Path, shape: &Shape, records: &Arc<Records>, length: Duration) -> Result<f64> {
    let options = StreamOptions {
        folder: folder.to_path_buf(),
        shards: 1,
        retention: Duration::from_secs(24 * 3600),
        segment_bytes: SEGMENT_BYTES,
        compress: true,
        disk_bytes_max: 16 << 30,
        epoch: 1,
    };
    let stream = Arc::new(Stream::open(options)?);
    let (table, count) = (table(), Arc::new(AtomicU64::new(0)));
    let empty = Columns::new(table.columns.iter().map(|column| &column.ty));
    let like = Arc::new(records.columns(0, shape.records, &empty));
    let began = Instant::now();
    let mut callers = vec![];
    for caller in 0..shape.callers as u64 {
        let (stream, table, records, count) = (stream.clone(), table.clone(), records.clone(), count.clone());
        let (like, each) = (like.clone(), shape.records);
        callers.push(tokio::spawn(async move {
            let mut number = caller << 32;
            while began.elapsed() < length {
                let columns = records.columns(number, each, &like);
                stream.append(append(&table, number, each, columns)).await?;
                count.fetch_add(each as u64, Ordering::Relaxed);
                number += 1;
            }
            Ok::<(), millrace_core::Error>(())
        }));
    }
    for caller in callers {
        caller.await.unwrap_or_else(|error| panic!("a caller died: {error}"))?;
    }
    Ok(count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// Records per second of the bare loop.
fn write(folder: &Path, shape: &Shape, noise: &[u8], length: Duration) -> io::Result<f64> {
    std::fs::create_dir_all(folder)?;
    let bytes = shape.loop_records * RECORD_BYTES;
    let (mut file, mut at, mut files) = (None, SEGMENT_BYTES, 0);
    let (began, mut records) = (Instant::now(), 0);
    while began.elapsed() < length {
        if at + bytes as u64 > SEGMENT_BYTES {
            let fresh = File::create(folder.join(format!("{files}")))?;
            fresh.set_len(SEGMENT_BYTES)?;
            (file, at, files) = (Some(fresh), 0, files + 1);
        }
        if let Some(file) = &file {
            let from = records * 7919 % (noise.len() - bytes);
            file.write_all_at(&noise[from..from + bytes], at)?;
            file.sync_data()?;
        }
        (at, records) = (at + bytes as u64, records + shape.loop_records);
    }
    Ok(records as f64 / began.elapsed().as_secs_f64())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let number = |at: usize, otherwise| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (pairs, length) = (number(1, 5), Duration::from_secs(number(2, 3)));
    let folder = folder.join(format!("millrace-records-{}", std::process::id()));
    let records = Arc::new(Records::new());
    let chosen = |shape: &&Shape| arguments.get(3).is_none_or(|name| name == shape.name);
    for pair in 0..pairs {
        for shape in SHAPES.iter().filter(chosen) {
            let written = write(&folder, shape, &records.noise, length);
            let _ = std::fs::remove_dir_all(&folder);
            let before = cpu_seconds();
            let put = put(&folder, shape, &records, length).await;
            let cpu = cpu_seconds() - before;
            let _ = std::fs::remove_dir_all(&folder);
            let (written, put) = (written.unwrap_or_else(|error| panic!("the loop failed: {error}")), put?);
            println!(
                r#"{{"shape": "{}", "pair": {pair}, "records_per_s": {put:.0}, "yardstick_records_per_s": {written:.0}, "ratio": {:.4}, "mib_per_s": {:.1}, "cpu_s_per_million": {:.3}}}"#,
                shape.name,
                put / written,
                put * RECORD_BYTES as f64 / f64::from(1 << 20),
                cpu / (put * length.as_secs_f64()) * 1e6,
            );
        }
    }
    Ok(())
}

/// User and system time of this process, in seconds (proc(5), `stat` fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}
