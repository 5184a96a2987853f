//! Type: the name of a type that is not built in. The catalog tells more; the message is only checked.

use super::reader::{Malformed, Reader};

/// The message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeName<'a> {
    /// The type's OID.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
}

impl<'a> TypeName<'a> {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        let name = Self { oid: reader.u32()?, schema: reader.string()?, name: reader.string()? };
        reader.end()?;
        Ok(name)
    }
}
