//! Character sets: a load's text comes in UTF-8, converted by the server; the log's text is as the column stores it.
//!
//! Unicode's own are converted here. For the others the server is asked for its table once, so that both ways give the same
//! by construction; MySQL's mappings are not always those of other programs (`cp932`, `latin1` above 0x7F).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use millrace_core::Result;

use crate::wire::Connection;

/// How bytes of a column become text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charset {
    /// `utf8mb4`, `utf8mb3`, `ascii`.
    Utf8,
    /// `utf16` and `ucs2`: most significant byte first.
    Utf16Be,
    /// `utf16le`.
    Utf16Le,
    /// `utf32`.
    Utf32,
    /// One or two bytes for a character, by the server's table.
    Table {
        /// Characters of one byte.
        single: Vec<Option<char>>,
        /// Characters of two.
        double: HashMap<u16, char>,
    },
}

/// Sets with two bytes for most characters. `ujis`, `eucjpms` and `gb18030` have three and four.
const DOUBLE: [&str; 6] = ["big5", "cp932", "euckr", "gb2312", "gbk", "sjis"];
const LONGER: [&str; 3] = ["eucjpms", "gb18030", "ujis"];

impl Charset {
    /// Appends the text of the bytes; `false` if they are none.
    pub fn decode(&self, bytes: &[u8], out: &mut String) -> bool {
        match self {
            Self::Utf8 => std::str::from_utf8(bytes).map(|text| out.push_str(text)).is_ok(),
            Self::Utf16Be | Self::Utf16Le => {
                let unit = |pair: &[u8; 2]| match self {
                    Self::Utf16Be => u16::from_be_bytes(*pair),
                    _ => u16::from_le_bytes(*pair),
                };
                let (pairs, rest) = bytes.as_chunks::<2>();
                let mut decoded = char::decode_utf16(pairs.iter().map(unit));
                rest.is_empty() && decoded.try_for_each(|c| c.map(|c| out.push(c))).is_ok()
            }
            Self::Utf32 => {
                let (units, rest) = bytes.as_chunks::<4>();
                let mut chars = units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit)));
                rest.is_empty() && chars.try_for_each(|c| c.map(|c| out.push(c))).is_some()
            }
            Self::Table { single, double } => {
                let mut bytes = bytes.iter();
                while let Some(&first) = bytes.next() {
                    let found = match single.get(usize::from(first)).copied().flatten() {
                        Some(c) => Some(c),
                        None => {
                            bytes.next().and_then(|&second| double.get(&u16::from_be_bytes([first, second])).copied())
                        }
                    };
                    match found {
                        Some(c) => out.push(c),
                        None => return false,
                    }
                }
                true
            }
        }
    }
}

/// The character sets of a server: those that were asked for, and which collation belongs to which.
#[derive(Debug, Clone, Default)]
pub struct Charsets {
    by_name: HashMap<String, Arc<Charset>>,
    collations: HashMap<u64, String>,
}

impl Charsets {
    /// Asks the server for these sets, and for its collations.
    pub async fn read(connection: &mut Connection, names: &BTreeSet<String>) -> Result<Self> {
        let mut charsets = Self::default();
        for row in connection.query(&collations(connection.is_mariadb())).await? {
            if let [Some(id), Some(charset)] = row.as_slice()
                && let Ok(id) = id.parse()
            {
                charsets.collations.insert(id, charset.clone());
            }
        }
        for name in names {
            charsets.learn(connection, name).await?;
        }
        Ok(charsets)
    }

    /// Asks the server for one more set.
    pub async fn learn(&mut self, connection: &mut Connection, name: &str) -> Result<()> {
        if self.by_name.contains_key(name) || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(());
        }
        let charset = match name {
            "utf8mb4" | "utf8mb3" | "utf8" | "ascii" => Charset::Utf8,
            "utf16" | "ucs2" => Charset::Utf16Be,
            "utf16le" => Charset::Utf16Le,
            "utf32" => Charset::Utf32,
            _ if LONGER.contains(&name) => {
                let single = (0..=255_u8).map(|byte| byte.is_ascii().then_some(char::from(byte))).collect();
                Charset::Table { single, double: HashMap::new() }
            }
            _ => read_table(connection, name).await?,
        };
        self.by_name.insert(name.to_string(), Arc::new(charset));
        Ok(())
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Arc<Charset>> {
        self.by_name.get(name)
    }

    /// The character set of a collation, by its number in the log.
    pub fn of_collation(&self, id: u64) -> Option<&str> {
        self.collations.get(&id).map(String::as_str)
    }
}

/// MariaDB's newer collations have their numbers in another table only.
fn collations(mariadb: bool) -> String {
    let all = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS WHERE ID IS NOT NULL";
    let applicable = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY";
    if mariadb { applicable.to_string() } else { all.to_string() }
}

async fn read_table(connection: &mut Connection, name: &str) -> Result<Charset> {
    let double = DOUBLE.contains(&name);
    let numbers = "(WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 255) SELECT n FROM n)";
    let converted = |bytes: &str| format!("HEX(CONVERT(CONVERT({bytes} USING {name}) USING utf32))");
    let one = converted("UNHEX(LPAD(HEX(a.n), 2, '0'))");
    let mut single = vec![None; 256];
    for row in connection.query(&format!("SELECT a.n, {one} FROM {numbers} a")).await? {
        if let Some((byte, c)) = mapping(&row, u32::from(b'?'))
            && let Some(slot) = single.get_mut(byte as usize)
            // The first of two bytes is no character of its own.
            && (!double || byte < 0x80 || name == "sjis" || name == "cp932")
        {
            *slot = Some(c);
        }
    }
    let mut pairs = HashMap::new();
    if double {
        let two = converted("UNHEX(LPAD(HEX(a.n * 256 + b.n), 4, '0'))");
        let sql =
            format!("SELECT a.n * 256 + b.n, {two} FROM {numbers} a JOIN {numbers} b WHERE a.n > 128 AND b.n > 47");
        let rows = connection.query(&sql).await?;
        pairs.extend(rows.iter().filter_map(|row| mapping(row, u32::MAX)).map(|(pair, c)| (pair as u16, c)));
    }
    Ok(Charset::Table { single, double: pairs })
}

/// One row of the server's table: a number and exactly one character. What has none comes as a question mark.
fn mapping(row: &[Option<String>], question_mark: u32) -> Option<(u32, char)> {
    let [Some(number), Some(hex)] = row else { return None };
    let number = number.parse().ok()?;
    let c = u32::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 8).and_then(char::from_u32)?;
    (c != '?' || number == question_mark).then_some((number, c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(charset: &Charset, bytes: &[u8]) -> Option<String> {
        let mut text = String::new();
        charset.decode(bytes, &mut text).then_some(text)
    }

    #[test]
    fn tables_take_one_byte_or_two() {
        let mut single: Vec<Option<char>> = (0..128).map(char::from_u32).collect();
        single.resize(256, None);
        let charset = Charset::Table { single, double: HashMap::from([(0xd6d0, '中')]) };
        assert_eq!(decoded(&charset, b"a\xd6\xd0b").as_deref(), Some("a中b"));
        assert_eq!(decoded(&charset, b"a\xd6"), None);
        assert_eq!(decoded(&charset, b"\xff\xff"), None);
        let row = |number: &str, hex: &str| mapping(&[Some(number.into()), Some(hex.into())], 63);
        assert_eq!(
            (row("63", "0000003F"), row("129", "0000003F"), row("233", "000000E9")),
            (Some((63, '?')), None, Some((233, 'é')))
        );
        assert_eq!(row("50000", "0000003F00000041"), None);
    }

    proptest! {
        #[test]
        fn unicode_round_trips(text: String) {
            let be: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            let le: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let utf32: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
            for (charset, bytes) in [(Charset::Utf8, text.as_bytes()), (Charset::Utf16Be, &be), (Charset::Utf16Le, &le), (Charset::Utf32, &utf32)] {
                prop_assert_eq!(decoded(&charset, bytes), Some(text.clone()));
            }
        }
    }
}
