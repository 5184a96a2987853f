//! What encoding costs: reads a Parquet file that a load wrote, and writes its rows again and again as a load would.
//!
//! `cargo run --release -p millrace-object-store --example encode -- FILE PLAIN,… [RUNS] [COLUMN,…]` prints the CPU seconds per
//! million rows of each run and the size; PLAIN are the columns without a dictionary (keys and free text), COLUMN those
//! to write (default: all).

use std::{collections::BTreeMap, error::Error, fs::File};

use arrow_array::RecordBatch;
use millrace_core::destination::{Destination, ObjectSpec};
use millrace_object_store::{Compression, ObjectStore, ObjectStoreConfig, Place};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

/// Rows per batch, about as many as a load of such rows hands over.
const BATCH_ROWS: usize = 8192;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, plain, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: encode FILE PLAIN,… [RUNS] [COLUMN,…]");
        std::process::exit(2);
    };
    let runs: usize = rest.first().map_or(Ok(5), |runs| runs.parse())?;
    let batches = read(file, rest.get(1).map(String::as_str))?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let schema = batches.first().ok_or("an empty file")?.schema();
    let folder = std::env::temp_dir().join(format!("millrace-encode-{}", std::process::id()));
    let config = ObjectStoreConfig { place: Place::Folder(folder.clone()), compression: Compression::Snappy };
    let store = ObjectStore::new(config, folder.clone())?;
    for _ in 0..runs {
        let plain_columns = plain.split(',').map(str::to_string).collect();
        let spec =
            ObjectSpec { key: "encode".into(), schema: schema.clone(), plain_columns, metadata: BTreeMap::new() };
        let begin = cpu_seconds();
        let mut object = store.stage(spec)?;
        for batch in &batches {
            object.write(batch)?;
        }
        let staged = object.finish()?;
        let spent = cpu_seconds() - begin;
        println!("{rows} rows, {} bytes: {:.3} CPU s per million rows", staged.bytes, spent / rows as f64 * 1e6);
        std::fs::remove_file(&staged.path)?;
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn read(file: &str, columns: Option<&str>) -> Result<Vec<RecordBatch>, Box<dyn Error>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?;
    let mask = match columns {
        Some(columns) => ProjectionMask::columns(reader.parquet_schema(), columns.split(',')),
        None => ProjectionMask::all(),
    };
    let reader = reader.with_projection(mask).with_batch_size(BATCH_ROWS).build()?;
    Ok(reader.collect::<Result<_, _>>()?)
}

/// CPU seconds of this process, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default() / 1e9
}
