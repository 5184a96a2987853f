//! `catalog/…`: the catalog's records. What changes with every round is apart from what changes with the shape, and a
//! file is a record of its own, so that a commit writes as much as changed.

use crate::catalog::CatalogName;

fn part(name: &CatalogName) -> String {
    format!("{}/{}", super::escape(&name.database), super::escape(&name.table))
}

/// All databases.
pub const DATABASES: &str = "catalog/database/";

/// A database.
pub fn database(name: &str) -> String {
    format!("{DATABASES}{}", super::escape(name))
}

/// All tables of a database.
pub fn tables(database: &str) -> String {
    format!("catalog/table/{}/", super::escape(database))
}

/// A table's shape.
pub fn table(name: &CatalogName) -> String {
    format!("catalog/table/{}", part(name))
}

/// How far a table is.
pub fn progress(name: &CatalogName) -> String {
    format!("catalog/progress/{}", part(name))
}

/// All versions of a table.
pub fn versions(name: &CatalogName) -> String {
    format!("catalog/version/{}/", part(name))
}

/// One version of a table.
pub fn version(name: &CatalogName, version: u32) -> String {
    format!("{}{version:08}", versions(name))
}

/// All files of a table's generation.
pub fn files(name: &CatalogName, generation: u32) -> String {
    format!("catalog/file/{}/{generation:08}/", part(name))
}

/// One file.
pub fn file(name: &CatalogName, generation: u32, number: u64) -> String {
    format!("{}{number:010}", files(name, generation))
}

/// All dead letters of a table.
pub fn dead_letters(name: &CatalogName) -> String {
    format!("catalog/dead-letter/{}/", part(name))
}

/// One file of dead letters.
pub fn dead_letter(name: &CatalogName, number: u64) -> String {
    format!("{}{number:010}", dead_letters(name))
}
