//! Where the distinct values of a column are found again: an open table of hashes with linear probing, made for few values
//! that are asked for very often. It knows indices alone; the values are held by whoever asks.

use std::hash::BuildHasher;

/// A slot that holds none.
const EMPTY: u32 = u32::MAX;
const SLOTS_MIN: usize = 1024;

/// See the module's doc. The hashes' seed differs from one to the next, so that no values collide in all of them.
pub struct Dictionary {
    /// (the upper half of the hash, the value's index)
    slots: Vec<(u32, u32)>,
    count: u32,
    hasher: foldhash::fast::RandomState,
}

impl Dictionary {
    /// Without values.
    pub fn new() -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self { slots: vec![(0, EMPTY); SLOTS_MIN], count: 0, hasher }
    }

    /// The index of a number, and whether it is a new one, which must be the next in `known`.
    pub fn number(&mut self, number: i64, known: &[i64]) -> (u32, bool) {
        let hash = self.hasher.hash_one(number);
        self.find_or_add(hash, |index| known.get(index as usize) == Some(&number))
    }

    /// The same for a text, which is compared by the caller.
    pub fn text(&mut self, text: &[u8], is: impl Fn(u32) -> bool) -> (u32, bool) {
        let hash = self.hasher.hash_one(text);
        self.find_or_add(hash, is)
    }

    fn find_or_add(&mut self, hash: u64, is: impl Fn(u32) -> bool) -> (u32, bool) {
        let tag = (hash >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut at = tag as usize & mask;
        loop {
            let (other, index) = self.slots[at];
            if index == EMPTY {
                break;
            }
            if other == tag && is(index) {
                return (index, false);
            }
            at = (at + 1) & mask;
        }
        self.slots[at] = (tag, self.count);
        self.count += 1;
        if self.count as usize * 2 > self.slots.len() {
            self.grow();
        }
        (self.count - 1, true)
    }

    fn grow(&mut self) {
        let slots = vec![(0, EMPTY); self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, slots);
        let mask = self.slots.len() - 1;
        for (tag, index) in old.into_iter().filter(|(_, index)| *index != EMPTY) {
            let mut at = tag as usize & mask;
            while self.slots[at].1 != EMPTY {
                at = (at + 1) & mask;
            }
            self.slots[at] = (tag, index);
        }
    }

    /// Memory that it holds, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.slots.len() * size_of::<(u32, u32)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_again_also_behind_others() {
        let mut dictionary = Dictionary::new();
        let mut known = vec![];
        for number in 0..5000_i64 {
            assert_eq!(dictionary.number(number * number, &known), (number as u32, true));
            known.push(number * number);
        }
        for number in 0..5000_i64 {
            assert_eq!(dictionary.number(number * number, &known), (number as u32, false));
        }
        // All at one slot.
        let mut dictionary = Dictionary::new();
        for index in 0..600 {
            assert_eq!(dictionary.find_or_add(7 << 32, |_| false), (index, true));
        }
        assert_eq!(dictionary.find_or_add(7 << 32, |index| index == 599), (599, false));
    }
}
