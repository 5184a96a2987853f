//! What the library reads back from our chunks, and what it writes of the same rows.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, Date32Array, Decimal128Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow_schema::{Field, Schema};
use arrow_select::concat::concat_batches;
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::{metadata::ParquetMetaData, reader::FileReader, serialized_reader::SerializedFileReader},
    schema::types::ColumnPath,
};
use proptest::prelude::*;

use super::*;
use crate::{config::Compression, row_group::RowGroup};

/// A column of each type from the same numbers; `None` is a null.
fn batch(numbers: &[Option<i64>], text_bytes: usize) -> RecordBatch {
    let texts = numbers.iter().map(|n| n.map(|n| format!("{n}{}", "x".repeat(text_bytes))));
    let texts: Vec<Option<String>> = texts.collect();
    let decimal = |precision: u8, modulo: i64| -> ArrayRef {
        let array: Decimal128Array = numbers.iter().map(|n| n.map(|n| i128::from(n % modulo))).collect();
        Arc::new(array.with_precision_and_scale(precision, 2).unwrap())
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("i16", Arc::new(numbers.iter().map(|n| n.map(|n| n as i16)).collect::<Int16Array>())),
        ("i32", Arc::new(numbers.iter().map(|n| n.map(|n| n as i32)).collect::<Int32Array>())),
        ("i64", Arc::new(numbers.iter().copied().collect::<Int64Array>())),
        ("date", Arc::new(numbers.iter().map(|n| n.map(|n| n as i32)).collect::<Date32Array>())),
        ("time", Arc::new(numbers.iter().map(|n| n.map(|n| n.rem_euclid(86_400))).collect::<Time64MicrosecondArray>())),
        ("at", Arc::new(numbers.iter().copied().collect::<TimestampMicrosecondArray>().with_timezone("UTC"))),
        ("decimal9", decimal(9, 1_000_000_000)),
        ("decimal18", decimal(18, 1_000_000_000_000_000_000)),
        ("decimal38", decimal(38, i64::MAX)),
        ("text", Arc::new(StringArray::from_iter(texts.iter().cloned()))),
        ("plain_text", Arc::new(StringArray::from_iter(texts.iter().cloned()))),
        ("bytes", Arc::new(texts.iter().map(|text| text.as_ref().map(String::as_bytes)).collect::<BinaryArray>())),
        ("plain_number", Arc::new(numbers.iter().copied().collect::<Int64Array>())),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, array)| array).collect()).unwrap()
}

fn properties(compressor: &Compressor) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(compressor.name())
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX);
    for plain in ["plain_text", "plain_number"] {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(plain), false);
    }
    for text in ["text", "plain_text", "bytes"] {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(text), EnabledStatistics::None);
    }
    properties.build()
}

/// One row group of these batches, written by us, and by the library alone.
fn write(batches: &[RecordBatch], compression: Compression) -> [Bytes; 2] {
    let mut compressor = Compressor::new(compression).unwrap();
    let writer = || ArrowWriter::try_new(vec![], batches[0].schema(), Some(properties(&compressor))).unwrap();
    let mut library = writer();
    let (mut file, factory) = writer().into_serialized_writer().unwrap();
    let mut row_group = RowGroup::begin(&file, &factory, 0, &batches[0]).unwrap();
    for batch in batches {
        row_group.write(batch, &mut compressor).unwrap();
        library.write(batch).unwrap();
    }
    assert!(row_group.held_bytes() > 0);
    assert_eq!(row_group.rows(), batches.iter().map(RecordBatch::num_rows).sum::<usize>());
    row_group.close(&mut file, &mut compressor).unwrap();
    [file.into_inner().unwrap().into(), library.into_inner().unwrap().into()]
}

fn read(file: &Bytes) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().with_batch_size(4096);
    reader.build().unwrap().map(Result::unwrap).collect()
}

fn metadata(file: &Bytes) -> ParquetMetaData {
    SerializedFileReader::new(file.clone()).unwrap().metadata().clone()
}

/// The same rows and the same statistics as the library's; the sizes of both.
fn check(batches: &[RecordBatch], compression: Compression) -> [u64; 2] {
    let files = write(batches, compression);
    let [ours, theirs] = files.each_ref().map(read);
    assert_eq!(ours, theirs);
    let whole = |batches: &[RecordBatch]| concat_batches(&batches[0].schema(), batches).unwrap();
    assert_eq!(whole(&ours).columns(), whole(batches).columns());
    let [ours, theirs] = files.each_ref().map(metadata);
    for (ours, theirs) in ours.row_group(0).columns().iter().zip(theirs.row_group(0).columns()) {
        assert_eq!(ours.statistics(), theirs.statistics(), "{}", ours.column_path());
        assert_eq!(ours.num_values(), theirs.num_values());
        assert_eq!(ours.compression(), theirs.compression());
    }
    files.each_ref().map(|file| file.len() as u64)
}

const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Snappy, Compression::Zstd];

#[test]
fn pages_end_and_dictionaries_too() {
    let few = |rows: i64| (0..rows).map(|n| Some(n * n % 7)).collect::<Vec<_>>();
    let same = |rows: usize| vec![Some(-5); rows];
    let distinct = |rows: i64| (0..rows).map(|n| Some(n * 1_000_003)).collect::<Vec<_>>();
    let some_null = |rows: i64| (0..rows).map(|n| (n % 3 != 0).then_some(n % 100)).collect::<Vec<_>>();
    // Distinct enough to outgrow the dictionary, and not so in the first page.
    let outgrowing = (0..90_000).map(|n| Some(if n < 20_000 { n % 50 } else { n * 3 })).collect::<Vec<_>>();
    for numbers in [
        vec![few(70_000)],
        vec![same(30_000), same(30_001), few(3)],
        vec![distinct(50_000)],
        vec![some_null(25_000), few(10), some_null(1)],
        vec![outgrowing, some_null(30_000)],
        vec![vec![None; 30_000]],
        vec![vec![None]],
        vec![vec![Some(i64::MAX), Some(i64::MIN), None]],
        vec![few(5), vec![None; 20_000], distinct(20_000)],
    ] {
        let batches: Vec<RecordBatch> = numbers.iter().map(|numbers| batch(numbers, 0)).collect();
        for compression in COMPRESSIONS {
            let [ours, theirs] = check(&batches, compression);
            assert!(ours <= theirs + theirs / 20 + 4096, "{ours} bytes, and {theirs} of the library's");
        }
    }
    // A text of many rows is not written out for each of them, however many others are distinct.
    let long = "x".repeat(50_000);
    let texts = (0..2000).map(|n| if n < 999 { long.clone() } else { n.to_string() });
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    let texts = RecordBatch::try_from_iter([("text", texts)]).unwrap();
    let [ours, _] = check(&[texts.slice(0, 999), texts.slice(999, 1001)], Compression::None);
    assert!(ours < 100_000, "{ours} bytes");
    // Texts that fill a page each, or more than one, or half of one.
    for bytes in [PAGE_BYTES_MAX * 2, PAGE_BYTES_MAX - 4, PAGE_BYTES_MAX / 2] {
        check(&[batch(&(0..9).map(|n| (n != 4).then_some(n % 3)).collect::<Vec<_>>(), bytes)], Compression::Snappy);
    }
}

#[test]
fn required_columns_have_no_levels() {
    let rows = batch(&(0..30_000).map(|n| Some(n % 9)).collect::<Vec<_>>(), 1);
    let required: Vec<Field> = rows.schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(false)).collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(required)), rows.columns().to_vec()).unwrap();
    check(&[rows.slice(0, 9), rows], Compression::None);
}

/// A sliced batch's arrays begin anywhere in their buffers.
#[test]
fn slices_are_encoded_as_they_are() {
    let whole = batch(&(0..100).map(|n| (n % 5 != 0).then_some(n % 9)).collect::<Vec<_>>(), 1);
    check(&[whole.slice(3, 40), whole.slice(50, 1), whole.slice(61, 39)], Compression::None);
}

#[test]
fn another_column_is_refused() {
    let one = batch(&[Some(1)], 0);
    let compressor = &mut Compressor::new(Compression::None).unwrap();
    let file = ArrowWriter::try_new(vec![], one.schema(), Some(properties(compressor))).unwrap();
    let (file, _) = file.into_serialized_writer().unwrap();
    let chunk = |column: usize| {
        let ty = one.schema().field(column).data_type().clone();
        Chunk::of(&file.schema_descr().column(column), &ty, file.properties()).unwrap()
    };
    assert!(chunk(2).write(one.column(9), compressor).is_err());
    assert!(chunk(9).write(one.column(2), compressor).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_rows_come_back(
        parts in prop::collection::vec((1_usize..9000, 1_i64..40_000, 0_u8..4, any::<bool>(), any::<i64>()), 1..6),
        text_bytes in 0_usize..40,
        compression in prop::sample::select(&COMPRESSIONS[..]),
    ) {
        let batches: Vec<RecordBatch> = parts.iter().map(|(rows, distinct, nulls, runs, seed)| {
            let mut state = *seed as u64 | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let mut numbers = vec![];
            while numbers.len() < *rows {
                let number = (next() % *distinct as u64) as i64 - distinct / 2;
                let value = (*nulls == 0 || next() % 4 >= u64::from(*nulls)).then_some(number);
                let run = if *runs { next() % 40 } else { 1 };
                numbers.extend((0..run).map(|_| value));
            }
            numbers.truncate(*rows);
            batch(&numbers, text_bytes)
        }).collect();
        check(&batches, compression);
    }
}
