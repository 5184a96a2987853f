//! TupleData: the cells of one row, where they lie (manual, "Logical Replication Message Formats").

use super::reader::{Malformed, Reader};

/// One cell of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL's null.
    Null,
    /// A TOAST value that did not change and was not sent.
    Unchanged,
    /// The type's text.
    Text(&'a [u8]),
}

/// A row whose cells have been found to lie within the message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    cells: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// Takes the row off the front of the reader. Binary cells are refused: they are not asked for.
    #[inline]
    pub fn parse(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = reader.u16()?;
        let before = reader.rest();
        for _ in 0..count {
            cell(reader)?;
        }
        let length = before.len() - reader.rest().len();
        Ok(Self { count, cells: before.get(..length).unwrap_or_default() })
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether there is no cell.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// About what the row holds, in bytes.
    pub fn byte_size(&self) -> usize {
        self.cells.len()
    }

    /// The cells in the table's order.
    #[inline]
    pub fn cells(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader::new(self.cells);
        (0..self.count).map_while(move |_| cell(&mut reader).ok())
    }

    /// One cell; walks over those before it. Out of range is null.
    pub fn cell(&self, index: usize) -> Value<'a> {
        self.cells().nth(index).unwrap_or(Value::Null)
    }
}

impl std::fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |value: Value<'_>| match value {
            Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        };
        f.debug_list().entries(self.cells().map(show)).finish()
    }
}

#[inline]
fn cell<'a>(reader: &mut Reader<'a>) -> Result<Value<'a>, Malformed> {
    match reader.u8()? {
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Unchanged),
        b't' => {
            let length = usize::try_from(reader.i32()?).map_err(|_| Malformed("a cell has a negative length"))?;
            reader.bytes(length).map(Value::Text)
        }
        b'b' => Err(Malformed("a binary cell, which was not asked for")),
        _ => Err(Malformed("a cell of an unknown kind")),
    }
}
