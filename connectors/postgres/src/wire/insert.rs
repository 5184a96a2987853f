//! Insert: a new row.

use super::{
    reader::{Malformed, Reader},
    tuple::Tuple,
};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    /// The table's OID.
    pub relation: u32,
    /// The row.
    pub new: Tuple<'a>,
}

impl<'a> Insert<'a> {
    /// Reads the body behind the tag.
    #[inline]
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let relation = reader.u32()?;
        if reader.u8()? != b'N' {
            return Err(Malformed("an insert without a new row"));
        }
        let new = Tuple::parse(&mut reader)?;
        reader.end()?;
        Ok(Self { relation, new })
    }
}
