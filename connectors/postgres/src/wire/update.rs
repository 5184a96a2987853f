//! Update: a row's new state, and of the old one what the replica identity gives.

use super::{
    delete::Old,
    reader::{Malformed, Reader},
    tuple::Tuple,
};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    /// The table's OID.
    pub relation: u32,
    /// The old key if it changed (or is a TOAST value), or the whole old row with a full identity.
    pub old: Option<Old<'a>>,
    /// The row now.
    pub new: Tuple<'a>,
}

impl<'a> Update<'a> {
    /// Reads the body behind the tag.
    #[inline]
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let relation = reader.u32()?;
        let mut tag = reader.u8()?;
        let mut old = None;
        if tag != b'N' {
            old = Some(Old::parse(tag, &mut reader)?);
            tag = reader.u8()?;
        }
        if tag != b'N' {
            return Err(Malformed("an update without a new row"));
        }
        let new = Tuple::parse(&mut reader)?;
        reader.end()?;
        Ok(Self { relation, old, new })
    }
}
