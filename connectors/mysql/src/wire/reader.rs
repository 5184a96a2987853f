//! Bounds-checked reading of a packet or an event. Nothing is copied and nothing is allocated.

/// Bytes that do not follow the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

/// Reads little-endian numbers, strings and slices off the front.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Begins at the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `count` bytes.
    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// 16 bits.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// 32 bits.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// 64 bits.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// An unsigned number of 1 to 8 bytes, least significant first.
    #[inline]
    pub fn little(&mut self, count: usize) -> Result<u64, Malformed> {
        Ok(self.bytes(count)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// An unsigned number of 0 to 8 bytes, most significant first.
    #[inline]
    pub fn big(&mut self, count: usize) -> Result<u64, Malformed> {
        Ok(self.bytes(count)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// A length-encoded integer (manual, "Protocol::LengthEncodedInteger"); `None` is the mark of SQL's null.
    #[inline]
    pub fn length_or_null(&mut self) -> Result<Option<u64>, Malformed> {
        Ok(Some(match self.u8()? {
            0xfb => return Ok(None),
            0xfc => u64::from(self.u16()?),
            0xfd => self.little(3)?,
            0xfe => self.u64()?,
            0xff => return Err(Malformed("a length is none")),
            short => u64::from(short),
        }))
    }

    /// A length-encoded integer that is no null.
    #[inline]
    pub fn length(&mut self) -> Result<usize, Malformed> {
        let length = self.length_or_null()?.ok_or(Malformed("a length is null"))?;
        usize::try_from(length).map_err(|_| Malformed("a length is impossible"))
    }

    /// Bytes behind their length.
    #[inline]
    pub fn length_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.length()?;
        self.bytes(length)
    }

    /// A cell of a row of the text protocol: bytes behind their length, or null.
    #[inline]
    pub fn cell(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.length_or_null()? {
            None => Ok(None),
            Some(length) => {
                let length = usize::try_from(length).map_err(|_| Malformed("a length is impossible"))?;
                self.bytes(length).map(Some)
            }
        }
    }

    /// Bytes up to a zero byte, which is taken too.
    pub fn until_zero(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Malformed("a string has no end"))?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Ok(text)
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// How much is left.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_have_four_sizes() {
        let bytes =
            [&[0xfa][..], &[0xfc, 0xfb, 0], &[0xfd, 1, 0, 1], &[0xfe, 0, 0, 0, 0, 1, 0, 0, 0], &[0xfb]].concat();
        let mut reader = Reader::new(&bytes);
        let lengths: Vec<Option<u64>> = (0..5).map(|_| reader.length_or_null().unwrap()).collect();
        assert_eq!(lengths, [Some(0xfa), Some(0xfb), Some(0x1_0001), Some(1 << 32), None]);
        assert!(reader.is_empty() && reader.u8().is_err());
        assert!(Reader::new(&[0xff]).length().is_err() && Reader::new(&[5, 1]).length_bytes().is_err());
    }

    proptest! {
        #[test]
        fn numbers_read_from_both_ends(number: u64) {
            prop_assert_eq!(Reader::new(&number.to_le_bytes()).little(8).unwrap(), number);
            prop_assert_eq!(Reader::new(&number.to_be_bytes()).big(8).unwrap(), number);
        }

        #[test]
        fn any_bytes_are_cells_or_an_error(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.cell().is_ok() {}
        }
    }
}
