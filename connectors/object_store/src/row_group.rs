//! One row group being encoded: a writer of the library's per column, idle for columns that have had one text in every row
//! so far. Our columns are values or lists of them, so each has one leaf.

use std::{io::Write, sync::Arc};

use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::Field;
use parquet::{
    arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
    errors::{ParquetError, Result},
    file::writer::SerializedFileWriter,
};

use crate::repeated::{repeated_chunk, repeated_text};

/// A longer text is left to the library, even if it repeats: nothing limits how many rows of it are only counted, and where
/// they must be encoded after all they are so at once.
const REPEATED_TEXT_BYTES_MAX: usize = 64;
/// Rows of a repeated text that are encoded at once, where it turns out not to be one.
const MADE_UP_ROWS: usize = 8192;

/// A column of the batches.
struct Column {
    writer: ArrowColumnWriter,
    /// What all rows have so far, while that is so.
    repeated: Option<Repeated>,
}

/// So many rows, all of the text; the writer has got none of them.
struct Repeated {
    text: String,
    rows: usize,
}

/// See the module's doc.
pub struct RowGroup {
    columns: Vec<Column>,
    rows: usize,
}

impl RowGroup {
    /// The next row group, which begins with this batch.
    pub fn begin(factory: &ArrowRowGroupWriterFactory, number: usize, batch: &RecordBatch) -> Result<Self> {
        let writers = factory.create_column_writers(number)?;
        if writers.len() != batch.num_columns() {
            return Err(ParquetError::General(format!(
                "{} columns have {} leaves",
                batch.num_columns(),
                writers.len()
            )));
        }
        let fields = batch.schema_ref().fields().iter();
        let columns = writers.into_iter().zip(fields.zip(batch.columns())).map(|(writer, (field, array))| {
            let text = repeated_text(array);
            let text = text.filter(|text| field.is_nullable() && text.len() <= REPEATED_TEXT_BYTES_MAX);
            Column { writer, repeated: text.map(|text| Repeated { text: text.to_string(), rows: 0 }) }
        });
        Ok(Self { columns: columns.collect(), rows: 0 })
    }

    /// Encodes a batch of the file's schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let schema = batch.schema_ref();
        for ((column, field), array) in self.columns.iter_mut().zip(schema.fields()).zip(batch.columns()) {
            column.write(field, array)?;
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Memory that it holds, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.columns.iter().map(|column| column.writer.memory_size()).sum()
    }

    /// How large it will be, about.
    pub fn encoded_bytes(&self) -> usize {
        self.columns.iter().map(|column| column.writer.get_estimated_total_bytes()).sum()
    }

    /// Puts it into the file.
    pub fn close<W: Write + Send>(self, file: &mut SerializedFileWriter<W>) -> Result<()> {
        let descriptions = file.schema_descr().columns().to_vec();
        let mut row_group = file.next_row_group()?;
        for (column, description) in self.columns.into_iter().zip(descriptions) {
            match column.repeated {
                Some(Repeated { text, rows }) => {
                    let (chunk, close) = repeated_chunk(&description, &text, rows)?;
                    row_group.append_column(&chunk, close)?;
                }
                None => column.writer.close()?.append_to_row_group(&mut row_group)?,
            }
        }
        row_group.close()?;
        Ok(())
    }
}

impl Column {
    fn write(&mut self, field: &Field, array: &ArrayRef) -> Result<()> {
        if let Some(repeated) = &mut self.repeated {
            if repeated_text(array).is_some_and(|text| text == repeated.text) {
                repeated.rows += array.len();
                return Ok(());
            }
            self.make_up(field)?;
        }
        encode(&mut self.writer, field, array)
    }

    /// Encodes the rows that were only counted.
    fn make_up(&mut self, field: &Field) -> Result<()> {
        let Some(Repeated { text, rows }) = self.repeated.take() else { return Ok(()) };
        let texts: ArrayRef = Arc::new(StringArray::new_repeated(text, rows.min(MADE_UP_ROWS)));
        for first in (0..rows).step_by(MADE_UP_ROWS) {
            encode(&mut self.writer, field, &texts.slice(0, texts.len().min(rows - first)))?;
        }
        Ok(())
    }
}

fn encode(writer: &mut ArrowColumnWriter, field: &Field, array: &ArrayRef) -> Result<()> {
    compute_leaves(field, array)?.iter().try_for_each(|leaf| writer.write(leaf))
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int32Array, cast::AsArray, types::Int32Type};
    use arrow_schema::{DataType, Schema};
    use bytes::Bytes;
    use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};

    use super::*;

    fn schema() -> Arc<Schema> {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        Arc::new(Schema::new(vec![text("a"), Field::new("n", DataType::Int32, true), text("b")]))
    }

    /// The texts of `a` and `b`, and how many rows have them.
    fn batch(runs: &[(Option<&str>, Option<&str>, usize)]) -> RecordBatch {
        let column = |second: bool| -> ArrayRef {
            let run = |run: &(Option<&str>, Option<&str>, usize)| {
                vec![if second { run.1 } else { run.0 }.map(str::to_string); run.2]
            };
            Arc::new(StringArray::from_iter(runs.iter().flat_map(run)))
        };
        let rows: usize = runs.iter().map(|run| run.2).sum();
        let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows as i32));
        RecordBatch::try_new(schema(), vec![column(false), numbers, column(true)]).unwrap()
    }

    type Row = (Option<String>, i32, Option<String>);

    fn rows<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> Vec<Row> {
        let of_batch = |batch: &RecordBatch| -> Vec<Row> {
            let text = |column: usize, row: usize| {
                let texts = batch.column(column).as_string::<i32>();
                texts.is_valid(row).then(|| texts.value(row).to_string())
            };
            let numbers = batch.column(1).as_primitive::<Int32Type>();
            (0..batch.num_rows()).map(|row| (text(0, row), numbers.value(row), text(2, row))).collect()
        };
        batches.into_iter().flat_map(of_batch).collect()
    }

    /// Writes row groups of these batches; gives the file.
    fn write(row_groups: &[Vec<RecordBatch>]) -> Bytes {
        let (mut file, factory) =
            ArrowWriter::try_new(vec![], schema(), None).unwrap().into_serialized_writer().unwrap();
        for (number, batches) in row_groups.iter().enumerate() {
            let mut row_group = RowGroup::begin(&factory, number, &batches[0]).unwrap();
            batches.iter().for_each(|batch| row_group.write(batch).unwrap());
            assert_eq!(row_group.rows(), batches.iter().map(RecordBatch::num_rows).sum::<usize>());
            row_group.close(&mut file).unwrap();
        }
        file.into_inner().unwrap().into()
    }

    #[test]
    fn repeated_texts_come_back_also_where_they_end() {
        let (x, y, none) = (Some("x"), Some("a longer text"), None);
        let long = "l".repeat(REPEATED_TEXT_BYTES_MAX + 1);
        let same = |rows| batch(&[(x, y, rows)]);
        let row_groups = [
            vec![same(1)],
            // More pages than one, and the end of the repetition within a batch, or with a null.
            vec![same(30_000), same(30_001)],
            vec![same(20_000), batch(&[(x, y, 7), (y, y, 1)]), same(3)],
            vec![same(5), batch(&[(x, none, 2)]), same(3)],
            vec![batch(&[(y, x, 4)]), batch(&[(y, y, 4)])],
            vec![batch(&[(Some(""), none, 4)])],
            vec![batch(&[(Some(&long), x, 40_000)])],
        ];
        let written = write(&row_groups);
        let reader = ParquetRecordBatchReaderBuilder::try_new(written).unwrap();
        let encodings: Vec<usize> =
            reader.metadata().row_groups().iter().map(|group| group.column(0).compressed_size() as usize).collect();
        assert!(encodings[1] < 200, "three pages and a dictionary: {encodings:?}");
        let read: Vec<RecordBatch> = reader.with_batch_size(4096).build().unwrap().map(|read| read.unwrap()).collect();
        assert_eq!(rows(&read), rows(row_groups.iter().flatten()));
    }
}
