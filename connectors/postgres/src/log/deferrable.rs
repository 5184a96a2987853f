//! Keys of a table whose primary key is deferrable and whose replica identity is full.
//!
//! Within a transaction two rows of such a table may bear the same key for a while: `UPDATE t SET k = 3 - k` moves one
//! row onto the key of the other before that one has left it. The delete of the row that leaves must rank before the
//! insert of the row that came, although the log has it later. So every insert keeps an ordinal free before its own,
//! and the delete of another row of that key takes it. The full old image tells which of the rows is meant; where that
//! does not decide what remains, the row is asked for anew.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::wire::{
    delete::Old,
    tuple::{Tuple, Value},
};

/// Rows that one transaction may insert into or move within such a table; more would be remembered without a bound.
pub const TRACKED_MAX: usize = 1_000_000;

/// Rows that the current transaction put under keys.
#[derive(Debug, Default)]
pub struct KeyTracker {
    commit: u64,
    live: HashMap<u64, Vec<Live>>,
    count: usize,
}

#[derive(Debug)]
struct Live {
    image: u64,
    reserved: Option<u32>,
}

/// Whose row leaves a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Nothing else happened to the key in this transaction.
    Alone,
    /// A row that the transaction itself put there.
    Ours,
    /// The row that was there before, while one of ours has the key; with the ordinal kept free for it.
    Former(Option<u32>),
}

impl KeyTracker {
    /// Forgets everything when another transaction begins.
    pub fn begin(&mut self, commit: u64) {
        if self.commit != commit {
            self.commit = commit;
            self.live.clear();
            self.count = 0;
        }
    }

    /// Whether it holds as much as it may.
    pub fn is_full(&self) -> bool {
        self.count >= TRACKED_MAX
    }

    /// A row came to a key; `reserved` is the ordinal kept free before it.
    pub fn come(&mut self, key: u64, image: u64, reserved: u32) {
        self.live.entry(key).or_default().push(Live { image, reserved: Some(reserved) });
        self.count += 1;
    }

    /// A row left a key.
    pub fn leave(&mut self, key: u64, image: u64) -> Leaving {
        let Entry::Occupied(mut entry) = self.live.entry(key) else { return Leaving::Alone };
        let rows = entry.get_mut();
        if let Some(index) = rows.iter().position(|row| row.image == image) {
            rows.swap_remove(index);
            if rows.is_empty() {
                entry.remove();
            }
            return Leaving::Ours;
        }
        Leaving::Former(rows.iter_mut().find_map(|row| row.reserved.take()))
    }

    /// A row changed without leaving its key; whether only one row can be meant.
    pub fn change(&mut self, key: u64, old_image: u64, new_image: u64) -> bool {
        let Some(rows) = self.live.get_mut(&key) else { return true };
        match rows.iter_mut().find(|row| row.image == old_image) {
            Some(row) => {
                row.image = new_image;
                true
            }
            None => false,
        }
    }
}

/// A hash of the key's cells.
pub fn key_hash(key: &[usize], tuple: Tuple<'_>, old: Option<Old<'_>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.iter().for_each(|&index| hash_cell(resolve(index, tuple.cell(index), old), &mut hasher));
    hasher.finish()
}

/// A hash of the whole row, as the old image of the next change will show it.
pub fn image_hash(tuple: Tuple<'_>, old: Option<Old<'_>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    tuple.cells().enumerate().for_each(|(index, value)| hash_cell(resolve(index, value, old), &mut hasher));
    hasher.finish()
}

fn resolve<'a>(index: usize, value: Value<'a>, old: Option<Old<'a>>) -> Value<'a> {
    match (value, old) {
        (Value::Unchanged, Some(Old::Row(row))) => row.cell(index),
        (value, _) => value,
    }
}

fn hash_cell(value: Value<'_>, hasher: &mut DefaultHasher) {
    match value {
        Value::Null => 0_u8.hash(hasher),
        Value::Unchanged => 1_u8.hash(hasher),
        Value::Text(text) => (2_u8, text).hash(hasher),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // trap: 13
    #[test]
    fn rows_of_one_key_are_told_apart_by_their_image() {
        let mut tracker = KeyTracker::default();
        tracker.begin(1);
        assert_eq!(tracker.leave(7, 70), Leaving::Alone);
        tracker.come(7, 71, 5);
        assert_eq!(tracker.leave(7, 70), Leaving::Former(Some(5)));
        assert_eq!(tracker.leave(7, 70), Leaving::Former(None));
        assert!(tracker.change(7, 71, 72) && !tracker.change(7, 71, 73));
        assert_eq!(tracker.leave(7, 72), Leaving::Ours);
        assert_eq!(tracker.leave(7, 72), Leaving::Alone);
        tracker.come(7, 71, 5);
        tracker.begin(2);
        assert_eq!(tracker.leave(7, 70), Leaving::Alone);
    }
}
