//! Partitioned tables: which partitions hold their rows, and what of them the log does not tell (manual, "Table
//! Partitioning"; CREATE PUBLICATION, `publish_via_partition_root`).
//!
//! A partitioned table that the config names is captured as one table: its publication sends the changes of every
//! partition under its name. The server leaves out what happens to a single partition: a TRUNCATE of it, rows that came
//! with `ATTACH`, rows that went with `DETACH` or `DROP`. The first changes the partition's storage, the others the list
//! of partitions, and both are compared whenever the tables are looked at. The partitioned table has no storage of its
//! own (`storage_id` 0).

use millrace_core::{Part, Result, TableName};

use crate::{
    discover::{CatalogRow, IdentityGap, Shape},
    wire::Connection,
};

/// Where rows lie: a table, or one of the partitions that are no partitioned tables themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub name: TableName,
    /// Its OID.
    pub oid: u64,
    /// Its filenode.
    pub filenode: u64,
    /// Rows, as the statistics say.
    pub estimated_rows: u64,
}

/// A partition, as the catalog has it.
#[derive(Debug)]
struct Leaf {
    storage: Storage,
    /// Ordinary and permanent: what it holds is in the log, and can be loaded.
    is_captured: bool,
    grew_here: bool,
    /// Who made it, and what is between it and the root, a partition.
    attached_by: u64,
    estimated_bytes: u64,
    identity: u8,
    /// Names of the columns of the index that is its replica identity.
    identity_columns: Vec<String>,
}

/// Reads the partitions of these partitioned tables into their shapes.
pub async fn read(connection: &mut Connection, shapes: &mut [Shape]) -> Result<()> {
    let is_root = |shape: &&Shape| shape.table.parts.is_some();
    let oids: Vec<String> = shapes.iter().filter(is_root).map(|shape| shape.table.source_id.to_string()).collect();
    if oids.is_empty() {
        return Ok(());
    }
    let rows = connection.query(&query(&oids.join(","))).await?;
    let mut leaves: Vec<(u64, Leaf)> = vec![];
    for row in &rows {
        let row = CatalogRow(row);
        let (root, oid) = (row.number(0)?, row.number(1)?);
        if leaves.last().is_none_or(|(known, leaf)| (*known, leaf.storage.oid) != (root, oid)) {
            leaves.push((root, Leaf::read(&row)?));
        }
        if let (Some((_, leaf)), Some(column)) = (leaves.last_mut(), row.text(12)) {
            leaf.identity_columns.push(column.into());
        }
    }
    for shape in shapes.iter_mut().filter(|shape| shape.table.parts.is_some()) {
        let of: Vec<Leaf> =
            leaves.extract_if(.., |(root, _)| *root == shape.table.source_id).map(|(_, leaf)| leaf).collect();
        settle(shape, of);
    }
    Ok(())
}

/// All partitions at every level that hold rows. One that was made by `CREATE TABLE … PARTITION OF` still has a column
/// whose catalog row is as old, to the command, as the one of its system column `tableoid`: `ATTACH` writes all its
/// columns anew. Where that is true of the partition and of everything between it and the root, all its rows came through
/// the root. A table that was never emptied or rewritten has a filenode that equals its OID.
fn query(roots: &str) -> String {
    format!(
        "SELECT c.oid, l.oid, n.nspname, l.relname, coalesce(pg_relation_filenode(l.oid), 0), \
         greatest(l.reltuples, 0)::bigint, greatest(l.relpages, 0)::bigint * current_setting('block_size')::bigint, \
         l.relkind = 'r' AND l.relpersistence = 'p', l.relreplident, pg_relation_filenode(l.oid) = l.oid, \
         coalesce(pg_relation_size(l.oid), 0) = 0, \
         NOT EXISTS (SELECT FROM pg_partition_ancestors(l.oid) p \
         WHERE p.relid NOT IN (SELECT relid FROM pg_partition_ancestors(c.oid)) \
         AND NOT EXISTS (SELECT FROM pg_attribute s JOIN pg_attribute u ON u.attrelid = s.attrelid AND u.attnum > 0 \
         AND u.xmin = s.xmin AND u.cmin = s.cmin WHERE s.attrelid = p.relid AND s.attname = 'tableoid' \
         AND s.attnum < 0)), i.attname, \
         (SELECT coalesce(sum(h.xmin::text::bigint), 0) FROM pg_inherits h \
         JOIN pg_partition_ancestors(l.oid) p ON p.relid = h.inhrelid \
         WHERE h.inhrelid NOT IN (SELECT relid FROM pg_partition_ancestors(c.oid))) \
         FROM pg_class c CROSS JOIN LATERAL pg_partition_tree(c.oid) t JOIN pg_class l ON l.oid = t.relid \
         JOIN pg_namespace n ON n.oid = l.relnamespace \
         LEFT JOIN LATERAL (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid \
         AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) WHERE i.indrelid = l.oid \
         AND CASE l.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate \
         WHEN 'i' THEN i.indisreplident AND i.indisvalid ELSE false END) i ON true \
         WHERE c.oid IN ({roots}) AND l.relkind <> 'p' ORDER BY c.oid, n.nspname, l.relname, l.oid"
    )
}

impl Leaf {
    fn read(row: &CatalogRow<'_>) -> Result<Self> {
        let flag = |index| row.text(index) == Some("t");
        let storage = Storage {
            name: TableName::new(row.word(2)?, row.word(3)?),
            oid: row.number(1)?,
            filenode: row.number(4)?,
            estimated_rows: row.number(5)?,
        };
        Ok(Self {
            storage,
            is_captured: flag(7),
            grew_here: flag(9) && (flag(10) || flag(11)),
            attached_by: row.number(13)?,
            estimated_bytes: row.number(6)?,
            identity: row.word(8)?.bytes().next().unwrap_or(b'd'),
            identity_columns: vec![],
        })
    }

    /// Whether what it sends of an old row holds these columns; for a table without a key, the whole row.
    fn carries(&self, key: &[&str]) -> bool {
        self.identity == b'f'
            || (!key.is_empty() && key.iter().all(|column| self.identity_columns.iter().any(|c| c == column)))
    }
}

/// Brings a root in line with its partitions.
fn settle(shape: &mut Shape, leaves: Vec<Leaf>) {
    let (leaves, foreign): (Vec<Leaf>, Vec<Leaf>) = leaves.into_iter().partition(|leaf| leaf.is_captured);
    let key: Vec<&str> = shape.table.key.iter().map(|&index| shape.table.columns[index].name.as_str()).collect();
    if shape.gap.is_none() && !leaves.iter().all(|leaf| leaf.carries(&key)) {
        shape.close_gap_with(IdentityGap::Partition);
    }
    let part = |leaf: &Leaf| Part {
        id: leaf.storage.oid,
        storage_id: leaf.storage.filenode,
        grew_here: leaf.grew_here,
        attached_by: leaf.attached_by,
    };
    let parts: Vec<Part> = leaves.iter().map(part).collect();
    shape.table.estimated_rows = leaves.iter().map(|leaf| leaf.storage.estimated_rows).sum();
    shape.table.estimated_bytes = leaves.iter().map(|leaf| leaf.estimated_bytes).sum();
    shape.table.parts = Some(parts);
    shape.storages = leaves.into_iter().map(|leaf| leaf.storage).collect();
    shape.left_out = foreign.into_iter().map(|leaf| leaf.storage.name).collect();
}

/// One number for the storage of all of them (FNV-1a), which any partition that comes, goes or is rewritten changes.
pub fn storage_id(parts: &[Part]) -> u64 {
    let numbers = parts.iter().flat_map(|part| [part.id, part.storage_id, part.attached_by]).flat_map(u64::to_le_bytes);
    numbers.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_partition_that_comes_goes_or_is_rewritten_is_other_storage() {
        let part = |id, storage_id| Part { id, storage_id, grew_here: true, attached_by: 0 };
        let all = [storage_id(&[]), storage_id(&[part(1, 1)]), storage_id(&[part(1, 2)]), storage_id(&[part(2, 1)])];
        let distinct: std::collections::HashSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
