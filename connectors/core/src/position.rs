//! Where a transaction stands in its source's log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A boundary between commits: every transaction with `commit < position` is behind it, every other one ahead.
///
/// For PostgreSQL this is the end of a commit record (or a keepalive's WAL end, or a slot's consistent point), as an LSN.
/// A transaction's own [`Order::commit`] is the *start* of its commit record, so `commit < position` holds exactly when
/// its record ends at or before the position. (Two commit records may touch: the next commit may start where the last
/// one ends, so comparing an end with `<=` against a start would skip it.)
///
/// A source that went back in time, or was replaced, has positions below those that were read from it before. When its
/// tables are loaded anew a new *history* begins, whose number stands in the upper 16 bits: so positions never go back,
/// and "newest" keeps its meaning in the lake. Connectors know nothing of it; the daemon numbers what they give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(#[serde(with = "hex_u128")] pub u128);

impl Position {
    /// Whether the transaction that committed at `commit` is behind this position.
    pub fn covers(self, commit: u128) -> bool {
        commit < self.0
    }

    /// The number of its history.
    pub fn history(self) -> u16 {
        (self.0 >> HISTORY_SHIFT) as u16
    }

    /// The same position of the source in another history.
    pub fn in_history(self, number: u16) -> Self {
        Self(self.0 & !(u128::from(u16::MAX) << HISTORY_SHIFT) | u128::from(number) << HISTORY_SHIFT)
    }
}

/// Where a history's number begins.
const HISTORY_SHIFT: u32 = 112;

impl fmt::Display for Position {
    /// PostgreSQL's `X/Y` where it fits 64 bits, hexadecimal otherwise; a later history's number stands before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.in_history(0).0;
        if self.history() > 0 {
            write!(f, "{}:", self.history())?;
        }
        if at <= u64::MAX as u128 { write!(f, "{:X}/{:X}", at >> 32, at & 0xffff_ffff) } else { write!(f, "{at:x}") }
    }
}

/// The place of one row change: the dedupe key, and what "newest" means. Ordinals of a transaction's changes begin
/// at 1; a loaded row has the load's position and ordinal 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Order {
    /// Position of the commit, never of an event.
    #[serde(with = "hex_u128")]
    pub commit: u128,
    /// Which change of the transaction.
    pub ordinal: u32,
}

impl fmt::Display for Order {
    /// 40 hexadecimal digits whose byte order is the order of `Order`: the `change_order` column.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}{:08x}", self.commit, self.ordinal)
    }
}

/// Proof that what stands at or before the value has been fsynced. Only the stream's fsync path makes one
/// (`tests/tidy.rs` holds that), and only it may be passed to [`crate::source::Log::confirm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable<T>(T);

impl<T: Copy> Durable<T> {
    /// Called by `src/stream/` after a successful fsync, and by tests.
    pub fn from_fsync(value: T) -> Self {
        Self(value)
    }

    /// The value that is durable.
    pub fn get(&self) -> T {
        self.0
    }
}

impl Durable<Position> {
    /// The same proof in the words of the source, which knows nothing of histories.
    pub fn at_source(self) -> Self {
        Self(self.0.in_history(0))
    }
}

mod hex_u128 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_is_order() {
        let orders = [(1, 2), (1, 10), (16, 0), (u128::MAX, u32::MAX)];
        let text: Vec<String> = orders.iter().map(|&(commit, ordinal)| Order { commit, ordinal }.to_string()).collect();
        assert!(text.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(text.iter().all(|t| t.len() == 40));
    }

    #[test]
    fn a_later_history_is_behind_every_earlier_one() {
        let (high, low) = (Position(u128::from(u64::MAX)), Position(0x16));
        assert!(high < low.in_history(1) && low.in_history(1) < low.in_history(2));
        assert_eq!((low.in_history(7).history(), low.in_history(7).in_history(0)), (7, low));
        assert_eq!((low.in_history(7).to_string(), low.to_string()), ("7:0/16".into(), "0/16".into()));
        assert_eq!(Durable::from_fsync(low.in_history(3)).at_source().get(), low);
    }

    #[test]
    fn position_round_trips_as_json() {
        let position = Position(0x1_6B37_4D48);
        assert_eq!(position.to_string(), "1/6B374D48");
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
    }
}
