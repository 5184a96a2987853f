//! The payloads of marks and of the frame that begins a segment.

use std::collections::BTreeMap;

use millrace_core::Position;

use super::{
    LogPosition, Mark, Totals,
    cursor::{Cursor, fold, put_varint, put_varint_wide, unfold},
};

/// Adds a mark's payload: everything but its place and arrival, which are the frame's.
pub(super) fn encode(mark: &Mark, out: &mut Vec<u8>) {
    put_varint_wide(out, mark.source.0);
    put_varint(out, fold(mark.newest_commit_us));
    let totals = &mark.totals;
    for count in [totals.captured, totals.rows, totals.bytes, totals.filtered.len() as u64] {
        put_varint(out, count);
    }
    for (reason, rows) in &totals.filtered {
        put_varint(out, reason.len() as u64);
        out.extend_from_slice(reason.as_bytes());
        put_varint(out, *rows);
    }
    // It is last, so that marks from before there was one are read as having none.
    if let Some(lineage) = &mark.lineage {
        out.extend_from_slice(lineage.as_bytes());
    }
}

/// Rebuilds a mark that ends at `at`; `None` if the bytes are not what [`encode`] writes.
pub(super) fn decode(payload: &[u8], at: LogPosition, arrival_us: i64) -> Option<Mark> {
    let mut cursor = Cursor::new(payload);
    let mark = read(&mut cursor, at, arrival_us)?;
    (cursor.remaining() == 0).then_some(mark)
}

fn read(cursor: &mut Cursor, at: LogPosition, arrival_us: i64) -> Option<Mark> {
    let source = Position(cursor.varint_wide()?);
    let newest_commit_us = unfold(cursor.varint()?);
    let (captured, rows, bytes) = (cursor.varint()?, cursor.varint()?, cursor.varint()?);
    let mut filtered = BTreeMap::new();
    for _ in 0..cursor.count()? {
        let len = cursor.count()?;
        let reason = std::str::from_utf8(cursor.take(len)?).ok()?;
        filtered.insert(reason.to_string(), cursor.varint()?);
    }
    let lineage = match cursor.remaining() {
        0 => None,
        len => Some(std::str::from_utf8(cursor.take(len)?).ok()?.into()),
    };
    Some(Mark { at, source, lineage, arrival_us, newest_commit_us, totals: Totals { captured, filtered, rows, bytes } })
}

/// What a segment takes over from those before it, which retention may take: with it each one can be opened alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Carry {
    /// The last mark before the segment. It ends where the segment begins, unless the segment begins inside a huge
    /// transaction.
    pub(super) mark: Option<Mark>,
    /// For every shard the next sequence counter.
    pub(super) counters: Vec<u64>,
}

impl Carry {
    /// Adds the payload to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.counters.len() as u64);
        self.counters.iter().for_each(|counter| put_varint(out, *counter));
        if let Some(mark) = &self.mark {
            put_varint(out, mark.at.0);
            put_varint(out, fold(mark.arrival_us));
            encode(mark, out);
        }
    }

    /// The reverse; `None` if the bytes are not what [`Self::encode`] writes.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(payload);
        let count = cursor.count()?;
        let counters = (0..count).map(|_| cursor.varint()).collect::<Option<Vec<u64>>>()?;
        if cursor.remaining() == 0 {
            return Some(Self { mark: None, counters });
        }
        let at = LogPosition(cursor.varint()?);
        let arrival_us = unfold(cursor.varint()?);
        let mark = read(&mut cursor, at, arrival_us)?;
        (cursor.remaining() == 0).then_some(Self { mark: Some(mark), counters })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
    };

    use super::*;

    fn any_mark() -> impl Strategy<Value = Mark> {
        let totals = (any::<u64>(), btree_map(".{0,9}", any::<u64>(), 0..4), any::<u64>(), any::<u64>())
            .prop_map(|(captured, filtered, rows, bytes)| Totals { captured, filtered, rows, bytes });
        let lineage = proptest::option::of(".{1,40}");
        (any::<u64>(), any::<u128>(), any::<i64>(), any::<i64>(), totals, lineage).prop_map(
            |(at, source, arrival_us, newest_commit_us, totals, lineage)| Mark {
                at: LogPosition(at),
                source: Position(source),
                lineage: lineage.map(Into::into),
                arrival_us,
                newest_commit_us,
                totals,
            },
        )
    }

    proptest! {
        #[test]
        fn marks_round_trip(mark in any_mark()) {
            let mut bytes = vec![];
            encode(&mark, &mut bytes);
            prop_assert_eq!(decode(&bytes, mark.at, mark.arrival_us), Some(mark));
        }

        #[test]
        fn carries_round_trip(mark in proptest::option::of(any_mark()), counters in vec(any::<u64>(), 1..9)) {
            let carry = Carry { mark, counters };
            let mut bytes = vec![];
            carry.encode(&mut bytes);
            prop_assert_eq!(Carry::decode(&bytes), Some(carry));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..60)) {
            if let Some(carry) = Carry::decode(&bytes) {
                prop_assert!(carry.counters.len() <= bytes.len());
            }
            if let Some(mark) = decode(&bytes, LogPosition(1), 2) {
                prop_assert_eq!(mark.at, LogPosition(1));
            }
        }
    }
}
