//! Delete: the row that is gone, as far as the replica identity gives it.

use super::{
    reader::{Malformed, Reader},
    tuple::Tuple,
};

/// An old row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old<'a> {
    /// Only the columns of the replica identity; the others are null.
    Key(Tuple<'a>),
    /// All columns.
    Row(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// Reads what follows this tag.
    #[inline]
    pub fn parse(tag: u8, reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        match tag {
            b'K' => Tuple::parse(reader).map(Self::Key),
            b'O' => Tuple::parse(reader).map(Self::Row),
            _ => Err(Malformed("an old row of an unknown kind")),
        }
    }

    /// Its cells, whatever they cover.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Row(tuple) => *tuple,
        }
    }
}

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The table's OID.
    pub relation: u32,
    /// The row that is gone.
    pub old: Old<'a>,
}

impl<'a> Delete<'a> {
    /// Reads the body behind the tag.
    #[inline]
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let relation = reader.u32()?;
        let tag = reader.u8()?;
        let old = Old::parse(tag, &mut reader)?;
        reader.end()?;
        Ok(Self { relation, old })
    }
}
