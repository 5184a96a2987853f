//! One row group being encoded: each column by our own encoder where there is one for it, else by the library's. Our columns
//! are values or lists of them, so each has one leaf.

use std::io::Write;

use arrow_array::RecordBatch;
use parquet::{
    arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
    errors::{ParquetError, Result},
    file::writer::SerializedFileWriter,
};

use crate::chunk::{Chunk, Compressor};

/// A column of the batches.
enum Column {
    Own(Box<Chunk>),
    Library(Box<ArrowColumnWriter>),
}

/// See the module's doc.
pub struct RowGroup {
    columns: Vec<Column>,
    rows: usize,
}

impl RowGroup {
    /// The next row group of the file, for batches like this one.
    pub fn begin<W: Write + Send>(
        file: &SerializedFileWriter<W>,
        factory: &ArrowRowGroupWriterFactory,
        number: usize,
        batch: &RecordBatch,
    ) -> Result<Self> {
        let writers = factory.create_column_writers(number)?;
        let leaves = file.schema_descr().columns();
        if writers.len() != batch.num_columns() || leaves.len() != batch.num_columns() {
            let count = writers.len();
            return Err(ParquetError::General(format!("{} columns have {count} leaves", batch.num_columns())));
        }
        let fields = batch.schema_ref().fields().iter();
        let columns = writers.into_iter().zip(leaves.iter().zip(fields)).map(|(writer, (leaf, field))| {
            let own = Chunk::of(leaf, field.data_type(), file.properties());
            own.map_or_else(|| Column::Library(Box::new(writer)), |own| Column::Own(Box::new(own)))
        });
        Ok(Self { columns: columns.collect(), rows: 0 })
    }

    /// Encodes a batch of the file's schema.
    pub fn write(&mut self, batch: &RecordBatch, compressor: &mut Compressor) -> Result<()> {
        let schema = batch.schema_ref();
        for ((column, field), array) in self.columns.iter_mut().zip(schema.fields()).zip(batch.columns()) {
            match column {
                Column::Own(chunk) => chunk.write(array, compressor)?,
                Column::Library(writer) => {
                    compute_leaves(field, array)?.iter().try_for_each(|leaf| writer.write(leaf))?;
                }
            }
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
        let of = |column: &Column| match column {
            Column::Own(chunk) => chunk.held_bytes(),
            Column::Library(writer) => writer.memory_size(),
        };
        self.columns.iter().map(of).sum()
    }

    /// How large it will be, about.
    pub fn encoded_bytes(&self) -> usize {
        let of = |column: &Column| match column {
            Column::Own(chunk) => chunk.encoded_bytes(),
            Column::Library(writer) => writer.get_estimated_total_bytes(),
        };
        self.columns.iter().map(of).sum()
    }

    /// Puts it into the file.
    pub fn close<W: Write + Send>(self, file: &mut SerializedFileWriter<W>, compressor: &mut Compressor) -> Result<()> {
        let mut row_group = file.next_row_group()?;
        for column in self.columns {
            match column {
                Column::Own(chunk) => {
                    let (chunk, close) = chunk.close(compressor)?;
                    row_group.append_column(&chunk, close)?;
                }
                Column::Library(writer) => writer.close()?.append_to_row_group(&mut row_group)?,
            }
        }
        row_group.close()?;
        Ok(())
    }
}
