//! Objects to write in tests.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use millrace_core::destination::{Destination, ObjectSpec, Staged};
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    file::{metadata::ParquetMetaDataReader, reader::ChunkReader},
};

pub fn schema() -> Arc<Schema> {
    let id = Field::new("id", DataType::Int64, true)
        .with_metadata([("PARQUET:field_id".to_string(), "7".to_string())].into());
    let text = Field::new("text", DataType::Utf8, true)
        .with_metadata([("millrace.source_type".to_string(), "character varying(9)".to_string())].into());
    Arc::new(Schema::new(vec![id, text]))
}

pub fn batch(rows: Range<i64>) -> RecordBatch {
    let text: StringArray = rows.clone().map(|row| (row % 3 != 0).then(|| format!("text {row}"))).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(rows)), Arc::new(text)];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub fn spec(key: &str, range: &str) -> ObjectSpec {
    let metadata = BTreeMap::from([("millrace.range".to_string(), range.to_string())]);
    ObjectSpec { key: key.into(), schema: schema(), plain_columns: vec!["id".into()], metadata }
}

pub fn stage(store: &dyn Destination, spec: ObjectSpec, batches: &[RecordBatch]) -> Staged {
    let mut writer = store.stage(spec).unwrap();
    for (index, batch) in batches.iter().enumerate() {
        writer.write(batch).unwrap();
        assert!(writer.held_bytes() > 0 && writer.size_so_far() > 0);
        if index == 0 {
            writer.flush().unwrap();
        }
    }
    writer.finish().unwrap()
}

pub fn assert_reads_back(bytes: &[u8], rows: i64) {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    assert_eq!(bytes.get_bytes(0, 4).unwrap().as_ref(), b"PAR1");
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let column = metadata.file_metadata().schema_descr().column(0);
    assert_eq!(column.self_type().get_basic_info().id(), 7, "the field id is Parquet's own");
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    assert_eq!(builder.schema().field(1).metadata()["millrace.source_type"], "character varying(9)");
    let read: Vec<RecordBatch> = builder.with_batch_size(1 << 20).build().unwrap().map(|b| b.unwrap()).collect();
    let mut from = 0;
    for part in read {
        let until = from + part.num_rows() as i64;
        assert_eq!(part.columns(), batch(from..until).columns());
        from = until;
    }
    assert_eq!(from, rows);
}
