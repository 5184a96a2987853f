//! Many values of one column at once: what a column costs per value is then the value alone.

use super::{ColumnVec, Values};
use crate::types::ColumnType;

impl ColumnVec {
    /// Adds 16-bit integers; none of them where one is an error. The same holds for all `extend_*`.
    pub fn extend_i16<E>(&mut self, values: impl ExactSizeIterator<Item = Result<i16, E>>) -> Result<(), E> {
        let Values::Int16(v) = &mut self.values else { panic!("adding i16s to {:?}", self.ty) };
        let count = extend(v, values)?;
        self.valid_rows(count);
        Ok(())
    }

    /// Adds 32-bit integers, or days of dates.
    pub fn extend_i32<E>(&mut self, values: impl ExactSizeIterator<Item = Result<i32, E>>) -> Result<(), E> {
        let Values::Int32(v) = &mut self.values else { panic!("adding i32s to {:?}", self.ty) };
        let count = extend(v, values)?;
        self.valid_rows(count);
        Ok(())
    }

    /// Adds 64-bit integers, or microseconds of times and timestamps.
    pub fn extend_i64<E>(&mut self, values: impl ExactSizeIterator<Item = Result<i64, E>>) -> Result<(), E> {
        let Values::Int64(v) = &mut self.values else { panic!("adding i64s to {:?}", self.ty) };
        let count = extend(v, values)?;
        self.valid_rows(count);
        Ok(())
    }

    /// Adds unscaled decimals that fit the precision.
    pub fn extend_decimals<E>(&mut self, values: impl ExactSizeIterator<Item = Result<i128, E>>) -> Result<(), E> {
        let Values::Decimal(v) = &mut self.values else { panic!("adding decimals to {:?}", self.ty) };
        let count = extend(v, values)?;
        self.valid_rows(count);
        Ok(())
    }

    /// Adds texts; `false`, and nothing added, where one of them is not UTF-8.
    pub fn extend_text<'a, E>(
        &mut self,
        mut values: impl ExactSizeIterator<Item = Result<&'a [u8], E>>,
    ) -> Result<bool, E> {
        debug_assert_eq!(self.ty, ColumnType::Text);
        let Values::Bytes { offsets, data } = &mut self.values else { panic!("adding texts to {:?}", self.ty) };
        let (rows, bytes) = (offsets.len(), data.len());
        offsets.reserve(values.len());
        let added = values.try_for_each(|value| {
            data.extend_from_slice(value?);
            offsets.push(i32::try_from(data.len()).expect("a batch is closed long before 2 GiB"));
            Ok(())
        });
        // Most text is ASCII, which is told faster, and of all values at once.
        let is_utf8 = added.is_ok() && {
            data[bytes..].is_ascii()
                || offsets[rows - 1..]
                    .windows(2)
                    .all(|at| std::str::from_utf8(&data[at[0] as usize..at[1] as usize]).is_ok())
        };
        if !is_utf8 {
            offsets.truncate(rows);
            data.truncate(bytes);
            return added.map(|()| false);
        }
        let count = offsets.len() - rows;
        self.valid_rows(count);
        Ok(true)
    }

    fn valid_rows(&mut self, count: usize) {
        if self.null_count > 0 {
            self.validity.push_ones(count);
        }
        self.len += count;
    }
}

/// Gives how many there were; on an error nothing is added.
fn extend<T, E>(to: &mut Vec<T>, values: impl ExactSizeIterator<Item = Result<T, E>>) -> Result<usize, E> {
    let before = to.len();
    to.reserve(values.len());
    for value in values {
        match value {
            Ok(value) => to.push(value),
            Err(error) => {
                to.truncate(before);
                return Err(error);
            }
        }
    }
    Ok(to.len() - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_added_together_or_not_at_all() {
        let mut numbers = ColumnVec::new(&ColumnType::Int32);
        numbers.push_null();
        numbers.extend_i32([Ok(1), Ok(2)].map(|value: Result<i32, ()>| value).into_iter()).unwrap();
        assert_eq!(numbers.extend_i32([Ok(3), Err("no")].into_iter()), Err("no"));
        let texts: Vec<_> = (0..numbers.len()).map(|row| numbers.cell_text(row)).collect();
        assert_eq!(texts, [None, Some("1".into()), Some("2".into())]);

        let mut words = ColumnVec::new(&ColumnType::Text);
        let add = |words: &mut ColumnVec, values: &[&'static [u8]]| {
            words.extend_text(values.iter().map(|value| Ok::<_, ()>(*value)))
        };
        assert_eq!(add(&mut words, &[b"a", "ä".as_bytes(), b""]), Ok(true));
        // Together they are UTF-8, each of them is not.
        assert_eq!(add(&mut words, &[b"b", b"\xc3", b"\xa4"]), Ok(false));
        assert_eq!(words.extend_text([Ok(&b"c"[..]), Err("no")].into_iter()), Err("no"));
        words.push_str("d");
        let texts: Vec<_> = (0..words.len()).map(|row| words.cell_text(row).unwrap()).collect();
        assert_eq!(texts, ["a", "ä", "", "d"]);
    }
}
