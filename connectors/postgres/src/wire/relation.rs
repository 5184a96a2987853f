//! Relation: the shape of a table, before its first row and after every change.

use super::reader::{Malformed, Reader};

/// The message. Owned, because it is kept; it comes seldom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// The table's OID.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `d`efault, `n`othing, `f`ull or `i`ndex.
    pub replica_identity: u8,
    /// The published columns in the table's order.
    pub columns: Vec<RelationColumn>,
}

/// A column of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether it is part of the replica identity.
    pub is_key: bool,
    /// Its name.
    pub name: String,
    /// Its type's OID.
    pub type_oid: u32,
    /// Its type's modifier; -1 without one.
    pub type_modifier: i32,
}

impl Relation {
    /// Reads the body behind the tag.
    pub fn parse(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let oid = reader.u32()?;
        let schema = reader.string()?.to_string();
        let name = reader.string()?.to_string();
        let replica_identity = reader.u8()?;
        let columns = (0..reader.u16()?)
            .map(|_| {
                Ok(RelationColumn {
                    is_key: reader.u8()? & 1 == 1,
                    name: reader.string()?.to_string(),
                    type_oid: reader.u32()?,
                    type_modifier: reader.i32()?,
                })
            })
            .collect::<Result<_, Malformed>>()?;
        reader.end()?;
        Ok(Self { oid, schema, name, replica_identity, columns })
    }
}
