//! Bits as a plain, reusable vector: booleans, and which rows have a value.

use arrow_buffer::{BooleanBuffer, Buffer};

/// Bits, least significant first, as Arrow lays them out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    bytes: Vec<u8>,
    len: usize,
}

impl Bitmap {
    /// Takes over packed bits; `None` if there are not exactly as many bytes as `len` bits need. Unused bits are cleared.
    pub fn from_bytes(bytes: Vec<u8>, len: usize) -> Option<Self> {
        if bytes.len() != len.div_ceil(8) {
            return None;
        }
        let mut bits = Self { bytes, len };
        if !len.is_multiple_of(8)
            && let Some(last) = bits.bytes.last_mut()
        {
            *last &= (1 << (len % 8)) - 1;
        }
        Some(bits)
    }

    /// Number of set bits.
    pub fn count_ones(&self) -> usize {
        self.bytes.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no bit.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bit `index`; out of range is false.
    pub fn get(&self, index: usize) -> bool {
        self.bytes.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Adds one bit.
    pub fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if bit && let Some(last) = self.bytes.last_mut() {
            *last |= 1 << (self.len % 8);
        }
        self.len += 1;
    }

    /// Adds `count` set bits.
    pub fn push_ones(&mut self, count: usize) {
        for _ in 0..count {
            self.push(true);
        }
    }

    /// Shortens to `len` bits.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.bytes.truncate(len.div_ceil(8));
            if !len.is_multiple_of(8)
                && let Some(last) = self.bytes.last_mut()
            {
                *last &= (1 << (len % 8)) - 1;
            }
            self.len = len;
        }
    }

    /// The packed bytes; unused bits of the last one are zero.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_buffer(self) -> BooleanBuffer {
        BooleanBuffer::new(Buffer::from_vec(self.bytes), 0, self.len)
    }
}
