//! Truncate: tables that were emptied by one statement.

use super::reader::{Malformed, Reader};

/// The message. Its options (CASCADE, RESTART IDENTITY) change nothing for a reader: CASCADE's tables are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// OIDs of the published tables among them.
    pub relations: Vec<u32>,
}

impl Truncate {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let count = reader.u32()? as usize;
        reader.u8()?;
        if reader.rest().len() != count.saturating_mul(4) {
            return Err(Malformed("a truncate with another number of tables than it says"));
        }
        let relations = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
        Ok(Self { relations })
    }
}
