//! The text of a statement in the log. It is in the character set of the client that ran it, and its backslashes mean what
//! that client's `sql_mode` says; both stand before it (manual, "Query_event": status variables).

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use super::{ddl::UNREAD, events::Query};
use crate::{types::charset::Charsets, wire::Reader};

const NO_BACKSLASH_ESCAPES: u64 = 1 << 20;
/// Client character sets whose characters may have a second byte that looks like ASCII.
const DOUBLE: [&str; 5] = ["big5", "cp932", "gb18030", "gbk", "sjis"];

/// The statement in UTF-8. What is not read is [`UNREAD`]: characters beyond ASCII of other character sets, and backslashes
/// that escape nothing.
pub fn read(query: &Query<'_>, charsets: &Charsets) -> String {
    let session = Session::parse(query.status);
    let charset = session.collation.and_then(|id| charsets.of_collation(id)).unwrap_or("utf8mb4");
    let is_utf8 = charset.starts_with("utf8") || matches!(charset, "ascii" | "binary");
    let text = match std::str::from_utf8(query.sql) {
        Ok(text) if is_utf8 || text.is_ascii() => text.to_string(),
        _ => plain(query.sql, charset),
    };
    if session.sql_mode & NO_BACKSLASH_ESCAPES == 0 { text } else { text.replace('\\', &UNREAD.to_string()) }
}

fn plain(bytes: &[u8], charset: &str) -> String {
    let is_double = DOUBLE.contains(&charset);
    let is_lead = |byte: u8| is_double && !(matches!(charset, "sjis" | "cp932") && (0xa1..=0xdf).contains(&byte));
    let mut text = String::with_capacity(bytes.len());
    let mut bytes = bytes.iter();
    while let Some(&byte) = bytes.next() {
        if byte.is_ascii() {
            text.push(char::from(byte));
            continue;
        }
        text.push(UNREAD);
        if is_lead(byte) {
            bytes.next();
        }
    }
    text
}

/// What is needed of the session that ran it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    sql_mode: u64,
    collation: Option<u64>,
}

impl Session {
    /// They stand in the order of their numbers, nearly: those that are wanted are among the first.
    fn parse(status: &[u8]) -> Self {
        let (mut session, mut reader) = (Self::default(), Reader::new(status));
        let mut next = || {
            match reader.u8().ok()? {
                0 => drop(reader.bytes(4).ok()?),
                1 => session.sql_mode = reader.little(8).ok()?,
                3 => drop(reader.bytes(4).ok()?),
                4 => {
                    session.collation = Some(u64::from(reader.u16().ok()?));
                    reader.bytes(4).ok()?;
                }
                // The name of the catalog.
                6 => {
                    let length = usize::from(reader.u8().ok()?);
                    reader.bytes(length).ok()?;
                }
                _ => return None,
            }
            Some(())
        };
        while next().is_some() {}
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As MariaDB 10.11 and MySQL 9 write them: flags, `sql_mode`, catalog, character sets.
    fn status(sql_mode: u64, collation: u16) -> Vec<u8> {
        let modes = [&[0, 0, 0, 0, 0, 1][..], &sql_mode.to_le_bytes(), b"\x06\x03std\x04"].concat();
        [&modes[..], &collation.to_le_bytes(), &[8, 0, 8, 0, 0x80, 1, 2, 3]].concat()
    }

    #[test]
    fn the_session_tells_how_a_text_is_read() {
        assert_eq!(Session::parse(&status(7, 45)), Session { sql_mode: 7, collation: Some(45) });
        assert_eq!(Session::parse(&[99]), Session::default());
        assert_eq!(plain(b"`gr\xf6\xdfe`", "latin1"), "`gr\u{fffd}\u{fffd}e`");
        assert_eq!(plain(b"`\x95\x5c`\xb1`", "sjis"), "`\u{fffd}`\u{fffd}`");
        assert_eq!(plain(b"`\x95\x60`", "gbk"), "`\u{fffd}`");
        let sql = b"comment 'a\\'";
        let strict = status(NO_BACKSLASH_ESCAPES, 45);
        let read = |status: &[u8]| read(&Query { schema: b"", sql, error: 0, status }, &Charsets::default());
        assert_eq!(read(&strict), "comment 'a\u{fffd}'");
        assert_eq!(read(&status(0, 45)), "comment 'a\\'");
    }
}
