//! Variable-length integers, and a reader over bytes that may be damaged.
//!
//! A varint has seven bits per byte, the lowest first; the top bit says that another byte follows (LEB128). Signed
//! values are folded first (zigzag), so that small ones of either sign stay short.

/// Adds an unsigned integer: 1 to 10 bytes.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Adds a wide unsigned integer: 1 to 19 bytes, the same ones as [`put_varint`] for values that fit 64 bits.
pub(super) fn put_varint_wide(out: &mut Vec<u8>, mut value: u128) {
    while value > u128::from(u64::MAX) {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    put_varint(out, value as u64);
}

/// Folds a signed value: 0, -1, 1, -2, … become 0, 1, 2, 3, …
pub(super) fn fold(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The reverse of [`fold`].
pub(super) fn unfold(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// [`fold`] for 128 bits.
pub(super) fn fold_wide(value: i128) -> u128 {
    ((value << 1) ^ (value >> 127)) as u128
}

/// The reverse of [`fold_wide`].
pub(super) fn unfold_wide(value: u128) -> i128 {
    (value >> 1) as i128 ^ -((value & 1) as i128)
}

/// Reads forward over bytes; everything gives `None` where they end too early or say what cannot be.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let first = self.u8()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return None;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn varint_wide(&mut self) -> Option<u128> {
        let mut value = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.u8()?;
            let part = u128::from(byte & 0x7f);
            if shift == 126 && part > 3 {
                return None;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A varint that counts something of which each takes at least one bit of what follows, so that no damaged count
    /// makes anybody reserve memory out of proportion.
    pub(super) fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.varint()?).ok()?;
        (count <= self.remaining().saturating_mul(8)).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_and_overlong_integers_are_refused() {
        assert_eq!(Cursor::new(&[0x80]).varint(), None);
        assert_eq!(Cursor::new(&[0xff; 10]).varint(), None);
        assert_eq!(Cursor::new(&[0xff; 19]).varint_wide(), None);
        assert_eq!(Cursor::new(&[1, 2]).u32(), None);
        assert_eq!(Cursor::new(&[200, 1]).count(), None);
    }

    proptest! {
        #[test]
        fn integers_round_trip(a in any::<u64>(), b in any::<u128>(), c in any::<i64>(), d in any::<i128>(), shift in 0..128u32) {
            let (a, b) = (a >> (shift / 2), b >> shift);
            let mut out = vec![];
            put_varint(&mut out, a);
            put_varint_wide(&mut out, b);
            put_varint(&mut out, fold(c));
            put_varint_wide(&mut out, fold_wide(d));
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!(cursor.varint(), Some(a));
            prop_assert_eq!(cursor.varint_wide(), Some(b));
            prop_assert_eq!(cursor.varint().map(unfold), Some(c));
            prop_assert_eq!(cursor.varint_wide().map(unfold_wide), Some(d));
            prop_assert_eq!(cursor.remaining(), 0);
        }
    }
}
