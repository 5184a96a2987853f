//! Shards as Kinesis has them: ranges of the MD5 hash of a partition key, and its sequence numbers.
//!
//! A row's partition key is its target schema, table and primary key texts, joined by dots: all changes of one row meet
//! in one shard, in commit order, and a table without a key is in one shard as a whole. A stream with one shard hashes
//! nothing. Delivery does not look at shards; they are for readers of the Kinesis API.
//!
//! The layout of a sequence number (56 decimal digits, 47 hexadecimal ones) is not documented by Amazon; it is the one
//! that kinesalite found (`db/index.js`) and that clients' own checks expect.

use std::fmt::Write;

use md5::{Digest, Md5};
use millrace_core::ChangeBatch;

/// More shards are not allowed.
pub const SHARDS_MAX: u32 = 4096;

/// Hash ranges of equal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shards {
    count: u32,
}

impl Shards {
    /// `None` unless 1 to [`SHARDS_MAX`].
    pub fn new(count: u32) -> Option<Self> {
        (1..=SHARDS_MAX).contains(&count).then_some(Self { count })
    }

    /// How many.
    pub fn count(self) -> u32 {
        self.count
    }

    /// `floor(2^128 / count)`; for one shard, whose range is everything, the greatest hash.
    fn width(self) -> u128 {
        let count = u128::from(self.count);
        let rest_is_whole = u128::MAX % count == count - 1;
        (u128::MAX / count).saturating_add(u128::from(rest_is_whole))
    }

    /// First and last hash of a shard.
    pub fn range(self, index: u32) -> (u128, u128) {
        let start = self.width() * u128::from(index);
        let is_last = index + 1 == self.count;
        (start, if is_last { u128::MAX } else { start + self.width() - 1 })
    }

    /// The shard that a hash falls into.
    pub fn of_hash(self, hash: u128) -> u32 {
        if self.count == 1 {
            return 0;
        }
        // The last shard also has what the division left over.
        ((hash / self.width()) as u32).min(self.count - 1)
    }

    /// The shard of every row of a batch with target names.
    pub(super) fn of_rows(self, batch: &ChangeBatch) -> Vec<u16> {
        if self.count == 1 {
            return vec![0; batch.rows()];
        }
        let mut key = String::new();
        (0..batch.rows())
            .map(|row| {
                partition_key(batch, row, &mut key);
                self.of_hash(hash(&key)) as u16
            })
            .collect()
    }
}

/// MD5 of a partition key as a big-endian number.
pub fn hash(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

/// Writes the partition key of a row into `key`: `schema.table.key1.key2`.
pub fn partition_key(batch: &ChangeBatch, row: usize, key: &mut String) {
    key.clear();
    let name = &batch.table.name;
    // Writing to a string cannot fail.
    let _ = write!(key, "{}.{}", name.schema, name.name);
    for &column in &batch.table.key {
        let text = batch.after.columns().get(column).and_then(|column| column.cell_text(row));
        let _ = write!(key, ".{}", text.unwrap_or_default());
    }
}

/// What a sequence number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceNumber {
    /// When the shard was made (seconds since 1970-01-01 UTC, below 2^36).
    pub created_s: u64,
    /// Index of the shard.
    pub shard: u32,
    /// Counts up per shard, also across restarts: what sequence numbers are ordered by.
    pub counter: u64,
    /// When the record was written (seconds since 1970-01-01 UTC, below 2^36).
    pub arrival_s: u64,
}

const SECONDS_MASK: u64 = (1 << 36) - 1;

impl SequenceNumber {
    /// 56 decimal digits.
    pub fn to_digits(self) -> String {
        // From the top: version 2 (4 bits), creation (36), low nibble of the shard (4), counter (64);
        let high = 2 << 104
            | u128::from(self.created_s & SECONDS_MASK) << 68
            | u128::from(self.shard & 15) << 64
            | u128::from(self.counter);
        // then zero (8), arrival (36), shard (32), version again (4).
        let low = u128::from(self.arrival_s & SECONDS_MASK) << 36 | u128::from(self.shard) << 4 | 2;
        let mut limbs = [
            low as u32,
            (low >> 32) as u32,
            (low >> 64) as u32 | (high as u32) << 16,
            (high >> 16) as u32,
            (high >> 48) as u32,
            (high >> 80) as u32,
        ];
        let mut groups = [0u32; 7];
        for group in groups.iter_mut().rev() {
            let mut rest = 0u64;
            for limb in limbs.iter_mut().rev() {
                let value = rest << 32 | u64::from(*limb);
                *limb = (value / 1_000_000_000) as u32;
                rest = value % 1_000_000_000;
            }
            *group = rest as u32;
        }
        let digits: String = groups.iter().map(|group| format!("{group:09}")).collect();
        digits.trim_start_matches('0').into()
    }

    /// The reverse; `None` for digits that are no such number.
    pub fn from_digits(digits: &str) -> Option<Self> {
        let mut limbs = [0u32; 6];
        for digit in digits.bytes() {
            let mut carry = u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
            for limb in &mut limbs {
                carry += u64::from(*limb) * 10;
                *limb = carry as u32;
                carry >>= 32;
            }
            if carry > 0 {
                return None;
            }
        }
        let [a, b, c, d, e, f] = limbs.map(u128::from);
        let low = a | b << 32 | (c & 0xffff) << 64;
        let high = c >> 16 | d << 16 | e << 48 | f << 80;
        let number = Self {
            created_s: (high >> 68) as u64 & SECONDS_MASK,
            shard: (low >> 4) as u32,
            counter: high as u64,
            arrival_s: (low >> 36) as u64 & SECONDS_MASK,
        };
        (number.to_digits() == digits).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_shards_split_in_the_middle() {
        let two = Shards::new(2).unwrap();
        let (first, second) = (two.range(0), two.range(1));
        assert_eq!(first, (0, 170141183460469231731687303715884105727));
        assert_eq!(second, (170141183460469231731687303715884105728, 340282366920938463463374607431768211455));
        assert_eq!((two.of_hash(first.1), two.of_hash(second.0)), (0, 1));
        assert_eq!(Shards::new(1).unwrap().range(0), (0, u128::MAX));
        assert!(Shards::new(0).is_none() && Shards::new(4097).is_none());
    }

    #[test]
    fn the_hash_is_md5() {
        // RFC 1321, appendix A.5.
        assert_eq!(hash("abc"), 0x900150983cd24fb0d6963f7d28e17f72);
    }

    #[test]
    fn sequence_numbers_look_like_those_of_kinesis() {
        let number = SequenceNumber { created_s: 0x5000_0001, shard: 3, counter: 7, arrival_s: 0x5000_0002 };
        // kinesalite's own pattern, in hexadecimal: ^20[0-9a-f]{8}X[0-9a-f]{16}000[0-9a-f]{8}0000000X2$
        let digits = number.to_digits();
        assert_eq!(digits.len(), 56);
        let mut limbs = vec![0u8];
        for digit in digits.bytes() {
            let mut carry = u32::from(digit - b'0');
            for nibble in &mut limbs {
                carry += u32::from(*nibble) * 10;
                *nibble = (carry & 15) as u8;
                carry >>= 4;
            }
            while carry > 0 {
                limbs.push((carry & 15) as u8);
                carry >>= 4;
            }
        }
        let hex: String = limbs.iter().rev().map(|nibble| format!("{nibble:x}")).collect();
        assert_eq!(hex, "20500000013000000000000000700050000002000000032");
        assert_eq!(SequenceNumber::from_digits("0"), None);
        assert_eq!(SequenceNumber::from_digits("12a"), None);
        assert_eq!(SequenceNumber::from_digits(&"9".repeat(60)), None);
    }

    proptest! {
        #[test]
        fn sequence_numbers_round_trip_and_keep_their_order(
            created_s in 0..1u64 << 36, shard in any::<u32>(), counter in 0..u64::MAX, arrival_s in 0..1u64 << 36, later in 0..1u64 << 36,
        ) {
            let number = SequenceNumber { created_s, shard, counter, arrival_s };
            prop_assert_eq!(SequenceNumber::from_digits(&number.to_digits()), Some(number));
            let next = SequenceNumber { counter: counter + 1, arrival_s: later, ..number };
            let key = |n: SequenceNumber| (n.to_digits().len(), n.to_digits());
            prop_assert!(key(number) < key(next));
        }

        #[test]
        fn every_hash_is_in_the_range_of_its_shard(count in 1..=SHARDS_MAX, hash in any::<u128>()) {
            let shards = Shards::new(count).unwrap();
            let (start, end) = shards.range(shards.of_hash(hash));
            prop_assert!(start <= hash && hash <= end);
        }
    }
}
