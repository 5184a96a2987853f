//! What a transaction of two phases (XA) is called (manual, "XA Transactions").

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use crate::wire::{Malformed, Reader};

/// The name that its transaction manager gave it: the whole transaction's, this server's branch of it, and in which format.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Xid {
    format: i64,
    global: Vec<u8>,
    branch: Vec<u8>,
}

/// What a statement does to such a transaction, or to all that this session says from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// What follows belongs to it.
    Start,
    /// Nothing more belongs to it.
    End,
    /// It counts from here on.
    Commit(Xid),
    /// It never counts.
    Rollback(Xid),
}

impl Statement {
    /// Reads a statement as the log has it: `XA COMMIT X'6f6e65',X'62',5`.
    pub fn parse(sql: &str) -> Option<Self> {
        let mut words = sql.split_ascii_whitespace();
        let is_xa = words.next()?.eq_ignore_ascii_case("XA");
        let (verb, name) = (words.next()?.to_ascii_uppercase(), words.next()?);
        match (is_xa, verb.as_str()) {
            (true, "START" | "BEGIN") => Some(Self::Start),
            (true, "END") => Some(Self::End),
            (true, "COMMIT") => Xid::parse(name).map(Self::Commit),
            (true, "ROLLBACK") => Xid::parse(name).map(Self::Rollback),
            _ => None,
        }
    }
}

impl Xid {
    /// Reads `X'6f6e65',X'62',5`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let (global, branch) = (bytes(parts.next()?)?, bytes(parts.next()?)?);
        let format = parts.next()?.trim().parse().ok()?;
        parts.next().is_none().then_some(Self { format, global, branch })
    }

    /// Reads what `XA RECOVER` lists: the format, how many bytes of the data are the global name, and the data.
    pub fn of_columns(format: &[u8], global: &[u8], data: &[u8]) -> Option<Self> {
        let number = |text| std::str::from_utf8(text).ok();
        let (global, branch) = data.split_at_checked(number(global)?.parse().ok()?)?;
        Some(Self { format: number(format)?.parse().ok()?, global: global.to_vec(), branch: branch.to_vec() })
    }

    /// Reads XA_PREPARE_LOG_EVENT (`XA_prepare_log_event` of `log_event.cc`): whether the transaction is committed at once
    /// (`XA COMMIT … ONE PHASE`), and its name.
    pub fn of_prepare(body: &[u8]) -> Result<(bool, Self), Malformed> {
        let mut reader = Reader::new(body);
        let (one_phase, format) = (reader.u8()? != 0, reader.u32()?);
        let (global, branch) = (reader.u32()? as usize, reader.u32()? as usize);
        let (global, branch) = (reader.bytes(global)?.to_vec(), reader.bytes(branch)?.to_vec());
        Ok((one_phase, Self { format: i64::from(format.cast_signed()), global, branch }))
    }
}

fn bytes(literal: &str) -> Option<Vec<u8>> {
    let digits = literal.trim().strip_prefix(['X', 'x'])?.strip_prefix('\'')?.strip_suffix('\'')?;
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if digits.len() % 2 == 1 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    digits.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An event of MariaDB 10.11: `XA PREPARE 'one','b',5`.
    #[test]
    fn an_event_and_a_statement_name_the_same() {
        let body = [&[0][..], &[5, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0], b"oneb"].concat();
        let (one_phase, xid) = Xid::of_prepare(&body).unwrap();
        assert!(!one_phase);
        assert_eq!(Statement::parse("XA COMMIT X'6f6e65',X'62',5"), Some(Statement::Commit(xid.clone())));
        assert_eq!(Xid::of_columns(b"5", b"3", b"oneb").as_ref(), Some(&xid));
        assert_eq!(Xid::of_columns(b"5", b"7", b"oneb"), None);
        assert_eq!(Statement::parse("xa rollback X'6F6E65',X'62',5"), Some(Statement::Rollback(xid)));
        assert_eq!(Statement::parse("XA START X'6f',X'',1"), Some(Statement::Start));
        for wrong in ["XA COMMIT 'one'", "XA COMMIT X'6',X'',1", "XA RECOVER", "XA", "XA COMMIT X'+1',X'',1"] {
            assert_eq!(Statement::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn names_come_back(format in any::<i32>(), global in prop::collection::vec(any::<u8>(), 1..64),
            branch in prop::collection::vec(any::<u8>(), 0..64))
        {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let text = format!("X'{}',X'{}',{format}", hex(&global), hex(&branch));
            let lengths = [(global.len() as u32).to_le_bytes(), (branch.len() as u32).to_le_bytes()].concat();
            let body = [&[1][..], &format.to_le_bytes(), &lengths, &global, &branch].concat();
            prop_assert_eq!(Xid::of_prepare(&body).unwrap(), (true, Xid::parse(&text).unwrap()));
        }

        #[test]
        fn any_bytes_are_a_name_or_an_error(body in prop::collection::vec(any::<u8>(), 0..60), text in ".{0,40}") {
            let _ = (Xid::of_prepare(&body), Xid::parse(&text), Statement::parse(&text));
        }
    }
}
