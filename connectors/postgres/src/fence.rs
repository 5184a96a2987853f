//! Which transactions a lookup must be able to see.
//!
//! A commit that waits for a synchronous standby is in the log, and so with us, before any snapshot shows it. A value
//! that the log did not carry must not be read before its own change is visible: the lookup would give the older value.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use millrace_core::Position;

/// The transactions of which cells are still to be looked up. The log adds, lookups read, and confirming forgets:
/// what is confirmed has been filled.
#[derive(Debug, Default)]
pub struct VisibilityFence {
    /// (start of the commit record, transaction)
    transactions: Mutex<BTreeSet<(u64, u32)>>,
}

impl VisibilityFence {
    /// A change of this transaction has cells that the log did not carry.
    pub fn add(&self, commit: u64, xid: u32) {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner).insert((commit, xid));
    }

    /// Transactions (their lower 32 bits) that must be visible to a snapshot before it is read.
    pub fn xids(&self) -> Vec<u32> {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|&(_, xid)| xid).collect()
    }

    /// These have been seen to be visible, and so they stay.
    pub fn seen(&self, xids: &[u32]) {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, xid)| !xids.contains(xid));
    }

    /// Everything that committed before the position is durable, its cells included.
    pub fn forget_before(&self, position: Position) {
        let mut transactions = self.transactions.lock().unwrap_or_else(PoisonError::into_inner);
        while transactions.first().is_some_and(|&(commit, _)| position.covers(u128::from(commit))) {
            transactions.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_or_durable_is_waited_for_no_longer() {
        let fence = VisibilityFence::default();
        fence.add(30, 3);
        fence.add(10, 1);
        fence.add(20, 2);
        fence.add(20, 2);
        assert_eq!(fence.xids(), [1, 2, 3]);
        fence.seen(&[2]);
        assert_eq!(fence.xids(), [1, 3]);
        fence.forget_before(Position(30));
        assert_eq!(fence.xids(), [3], "a commit that starts at the position is not behind it");
    }
}
