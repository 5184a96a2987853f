//! The events that are read, parsed from their bodies (manual, "Binlog Events"; MariaDB Knowledge Base, "Replication
//! Protocol"). Foreign bytes: nothing here indexes or panics.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use crate::{
    gtid::{Gtid, Newest},
    types::image::{Stored, number},
    wire::{Malformed, Reader},
};

/// The numbers of events (`Log_event_type`).
pub mod kind {
    #![allow(missing_docs)]
    pub const QUERY: u8 = 2;
    pub const STOP: u8 = 3;
    pub const ROTATE: u8 = 4;
    pub const INTVAR: u8 = 5;
    pub const RAND: u8 = 13;
    pub const USER_VAR: u8 = 14;
    pub const FORMAT_DESCRIPTION: u8 = 15;
    pub const XID: u8 = 16;
    pub const TABLE_MAP: u8 = 19;
    pub const WRITE_ROWS_V1: u8 = 23;
    pub const UPDATE_ROWS_V1: u8 = 24;
    pub const DELETE_ROWS_V1: u8 = 25;
    pub const HEARTBEAT: u8 = 27;
    pub const IGNORABLE: u8 = 28;
    pub const ROWS_QUERY: u8 = 29;
    pub const WRITE_ROWS: u8 = 30;
    pub const UPDATE_ROWS: u8 = 31;
    pub const DELETE_ROWS: u8 = 32;
    pub const GTID: u8 = 33;
    pub const ANONYMOUS_GTID: u8 = 34;
    pub const PREVIOUS_GTIDS: u8 = 35;
    pub const TRANSACTION_CONTEXT: u8 = 36;
    pub const VIEW_CHANGE: u8 = 37;
    pub const XA_PREPARE: u8 = 38;
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    pub const HEARTBEAT_V2: u8 = 41;
    pub const GTID_TAGGED: u8 = 42;
    pub const MARIADB_ANNOTATE: u8 = 160;
    pub const MARIADB_CHECKPOINT: u8 = 161;
    pub const MARIADB_GTID: u8 = 162;
    pub const MARIADB_GTID_LIST: u8 = 163;
    pub const MARIADB_START_ENCRYPTION: u8 = 164;
    pub const MARIADB_QUERY_COMPRESSED: u8 = 165;
    pub const MARIADB_WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub const MARIADB_UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub const MARIADB_DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub const MARIADB_WRITE_ROWS_COMPRESSED: u8 = 169;
    pub const MARIADB_UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub const MARIADB_DELETE_ROWS_COMPRESSED: u8 = 171;
}

/// Whether the events of a file have a checksum, from the body of its FORMAT_DESCRIPTION_EVENT.
pub fn has_checksum(body: &[u8]) -> bool {
    // The algorithm stands before the event's own checksum, which is always there.
    body.len().checked_sub(5).and_then(|at| body.get(at)).is_some_and(|&algorithm| algorithm == 1)
}

/// ROTATE_EVENT: the byte that the log goes on at, and the file's name.
pub fn rotate(body: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    Ok((reader.u64()?, reader.rest()))
}

/// MariaDB's GTID_EVENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MariadbGtid {
    /// Its name.
    pub gtid: Gtid,
    /// What follows is one statement without an end of its own.
    pub standalone: bool,
    /// What follows is the first half of a transaction of two phases.
    pub prepares: bool,
}

/// MariaDB's GTID_EVENT of this server.
pub fn mariadb_gtid(server: u32, body: &[u8]) -> Result<MariadbGtid, Malformed> {
    let (standalone, prepares) = (1, 64);
    let mut reader = Reader::new(body);
    let (number, domain, flags) = (reader.u64()?, reader.u32()?, reader.u8()?);
    Ok(MariadbGtid {
        gtid: Gtid::Mariadb(domain, Newest { server, number }),
        standalone: flags & standalone != 0,
        prepares: flags & prepares != 0,
    })
}

/// MySQL's GTID_EVENT.
pub fn gtid(body: &[u8]) -> Result<Gtid, Malformed> {
    let mut reader = Reader::new(body);
    reader.u8()?;
    let uuid = u128::from(reader.big(8)?) << 64 | u128::from(reader.big(8)?);
    Ok(Gtid::Mysql((uuid, String::new()), reader.u64()?))
}

/// MySQL's GTID_TAGGED_LOG_EVENT: fields behind their numbers, in the form of its serialization library: the lowest bits of an
/// integer tell how many bytes follow the first (`mysql/serialization`).
pub fn tagged_gtid(body: &[u8]) -> Result<Gtid, Malformed> {
    let mut reader = Reader::new(body);
    // Version, size, and the last field that must be understood.
    for _ in 0..3 {
        serialized(&mut reader)?;
    }
    let (mut uuid, mut number, mut tag) = (0_u128, 0, "");
    for wanted in 0..4 {
        if serialized(&mut reader)? != wanted {
            return Err(Malformed("a field of a GTID is missing"));
        }
        match wanted {
            0 => drop(serialized(&mut reader)?),
            1 => {
                for _ in 0..16 {
                    uuid = uuid << 8 | u128::from(serialized(&mut reader)? & 0xff);
                }
            }
            // It has a sign, in its lowest bit.
            2 => number = serialized(&mut reader)? >> 1,
            _ => {
                let length = serialized(&mut reader)? as usize;
                tag = std::str::from_utf8(reader.bytes(length)?).map_err(|_| Malformed("a tag is none"))?;
            }
        }
    }
    Ok(Gtid::Mysql((uuid, tag.into()), number))
}

fn serialized(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let first = reader.u8()?;
    let more = first.trailing_ones() as usize;
    let rest = reader.little(more)?;
    Ok(if more >= 7 { rest } else { u64::from(first) >> (more + 1) | rest << (7 - more) })
}

/// MariaDB's GTID_LIST_EVENT: the newest transaction of each domain and server, that of each domain last.
pub fn gtid_list(body: &[u8]) -> Result<Vec<Gtid>, Malformed> {
    let mut reader = Reader::new(body);
    let count = reader.u32()? & 0x0fff_ffff;
    let mut item = || {
        let (domain, server, number) = (reader.u32()?, reader.u32()?, reader.u64()?);
        Ok(Gtid::Mariadb(domain, Newest { server, number }))
    };
    (0..count).map(|_| item()).collect()
}

/// QUERY_EVENT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// The database that the session was in.
    pub schema: &'a [u8],
    /// The statement, in the client's character set.
    pub sql: &'a [u8],
    /// What of the session it depends on.
    pub status: &'a [u8],
    /// The number of an error that it ended with at the source, after having done a part.
    pub error: u16,
}

impl<'a> Query<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        reader.bytes(4 + 4)?;
        let schema_length = usize::from(reader.u8()?);
        let error = reader.u16()?;
        let variables = usize::from(reader.u16()?);
        let status = reader.bytes(variables)?;
        let schema = reader.bytes(schema_length)?;
        reader.bytes(1)?;
        Ok(Self { schema, sql: reader.rest(), status, error })
    }
}

/// A column of a TABLE_MAP_EVENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapColumn<'a> {
    /// Its name; `None` where `binlog_row_metadata` is not FULL.
    pub name: Option<&'a [u8]>,
    /// How its values are stored.
    pub stored: Stored,
    /// The collation of its text; `None` where it has none.
    pub collation: Option<u64>,
    /// Whether its numbers have no sign; `None` where it has none.
    pub unsigned: Option<bool>,
    /// What the values of ENUM and SET are called, in the column's character set; `None` where the log does not tell.
    pub labels: Option<Vec<&'a [u8]>>,
}

/// TABLE_MAP_EVENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableMap<'a> {
    /// Schema and name.
    pub schema: &'a [u8],
    /// The table's name.
    pub table: &'a [u8],
    /// Its columns in their order.
    pub columns: Vec<MapColumn<'a>>,
}

/// The table's number in a TABLE_MAP_EVENT or an event of rows, and what stands behind it and the flags.
pub fn table_id(body: &[u8]) -> Result<(u64, u16, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    Ok((reader.little(6)?, reader.u16()?, reader.rest()))
}

/// Schema and name of a table, from what stands behind number and flags, and the rest.
pub fn table_name(rest: &[u8]) -> Result<(&[u8], &[u8], Reader<'_>), Malformed> {
    let mut reader = Reader::new(rest);
    let mut text = || {
        let length = usize::from(reader.u8()?);
        let text = reader.bytes(length)?;
        reader.bytes(1)?;
        Ok(text)
    };
    let (schema, table) = (text()?, text()?);
    Ok((schema, table, reader))
}

impl<'a> TableMap<'a> {
    /// Reads what stands behind number and flags.
    pub fn parse(rest: &'a [u8]) -> Result<Self, Malformed> {
        let (schema, table, mut reader) = table_name(rest)?;
        let count = reader.length()?;
        let types = reader.bytes(count)?;
        let mut metadata = Reader::new(reader.length_bytes()?);
        let stored = types.iter().map(|&number| Stored::read(number, &mut metadata));
        let column = |stored| MapColumn { name: None, stored, collation: None, unsigned: None, labels: None };
        let mut columns = stored.map(|stored| stored.map(column)).collect::<Result<Vec<_>, _>>()?;
        reader.bytes(count.div_ceil(8))?;
        while !reader.is_empty() {
            let field = reader.u8()?;
            let value = Reader::new(reader.length_bytes()?);
            Self::metadata(&mut columns, field, value)?;
        }
        Ok(Self { schema, table, columns })
    }

    /// One field of the optional metadata; those that are not needed are passed over.
    fn metadata(columns: &mut [MapColumn<'a>], field: u8, mut value: Reader<'a>) -> Result<(), Malformed> {
        let texts = |column: &&mut MapColumn<'_>| column.stored.is_character();
        let labels = |column: &&mut MapColumn<'_>| matches!(column.stored.number, number::ENUM | number::SET);
        match field {
            // SIGNEDNESS: a bit for each column of numbers, the highest one first.
            1 => {
                let bits = value.rest();
                for (index, column) in columns.iter_mut().filter(|column| column.stored.is_number()).enumerate() {
                    column.unsigned = bits.get(index / 8).map(|byte| byte & (0x80 >> (index % 8)) != 0);
                }
            }
            // SET_STR_VALUE, ENUM_STR_VALUE.
            5 | 6 => {
                let wanted = if field == 5 { number::SET } else { number::ENUM };
                for column in columns.iter_mut().filter(|column| column.stored.number == wanted) {
                    let count = value.length()?;
                    let labels: Result<Vec<&[u8]>, Malformed> = (0..count).map(|_| value.length_bytes()).collect();
                    column.labels = Some(labels?);
                }
            }
            // DEFAULT_CHARSET and its twin for ENUM and SET: one for all, and the exceptions by number.
            2 | 10 => {
                let default = value.length()? as u64;
                let mut exceptions = vec![];
                while !value.is_empty() {
                    exceptions.push((value.length()?, value.length()? as u64));
                }
                let of = |index| exceptions.iter().find(|(at, _)| *at == index).map_or(default, |(_, id)| *id);
                let wanted =
                    columns.iter_mut().filter(|column| if field == 2 { texts(column) } else { labels(column) });
                wanted.enumerate().for_each(|(index, column)| column.collation = Some(of(index)));
            }
            // COLUMN_CHARSET and its twin: one for each.
            3 | 11 => {
                for column in
                    columns.iter_mut().filter(|column| if field == 3 { texts(column) } else { labels(column) })
                {
                    column.collation = Some(value.length()? as u64);
                }
            }
            // COLUMN_NAME.
            4 => {
                for column in columns.iter_mut() {
                    column.name = Some(value.length_bytes()?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What happened to the rows of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsKind {
    /// They came.
    Write,
    /// They changed: two images for each.
    Update,
    /// They went.
    Delete,
}

/// An event of rows.
#[derive(Debug, Clone, Copy)]
pub struct RowsEvent<'a> {
    /// What happened.
    pub kind: RowsKind,
    /// Number of columns.
    pub width: usize,
    /// Which columns the first image has: the old row, or the new one of a write.
    pub first: &'a [u8],
    /// Which columns the second image of an update has.
    pub second: &'a [u8],
    /// The second image may have parts of JSON values.
    pub is_partial: bool,
    /// The rows.
    pub rows: Reader<'a>,
}

impl<'a> RowsEvent<'a> {
    /// What an event of this number is, if it is one of rows, and its version: 3 is the second one with parts of values.
    pub fn kind_of(event: u8) -> Option<(RowsKind, u8)> {
        Some(match event {
            kind::WRITE_ROWS_V1 => (RowsKind::Write, 1),
            kind::UPDATE_ROWS_V1 => (RowsKind::Update, 1),
            kind::DELETE_ROWS_V1 => (RowsKind::Delete, 1),
            kind::WRITE_ROWS => (RowsKind::Write, 2),
            kind::UPDATE_ROWS => (RowsKind::Update, 2),
            kind::DELETE_ROWS => (RowsKind::Delete, 2),
            kind::PARTIAL_UPDATE_ROWS => (RowsKind::Update, 3),
            kind::MARIADB_WRITE_ROWS_COMPRESSED_V1 => (RowsKind::Write, 1),
            kind::MARIADB_UPDATE_ROWS_COMPRESSED_V1 => (RowsKind::Update, 1),
            kind::MARIADB_DELETE_ROWS_COMPRESSED_V1 => (RowsKind::Delete, 1),
            kind::MARIADB_WRITE_ROWS_COMPRESSED => (RowsKind::Write, 2),
            kind::MARIADB_UPDATE_ROWS_COMPRESSED => (RowsKind::Update, 2),
            kind::MARIADB_DELETE_ROWS_COMPRESSED => (RowsKind::Delete, 2),
            _ => return None,
        })
    }

    /// Reads what stands behind the table's number and the flags.
    pub fn parse((kind, version): (RowsKind, u8), rest: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(rest);
        if version >= 2 {
            let extra = usize::from(reader.u16()?);
            reader.bytes(extra.saturating_sub(2))?;
        }
        let width = reader.length()?;
        let first = reader.bytes(width.div_ceil(8))?;
        let second = if kind == RowsKind::Update { reader.bytes(width.div_ceil(8))? } else { &[] };
        Ok(Self { kind, width, first, second, is_partial: version == 3, rows: reader })
    }
}

/// A cell of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot<'a> {
    /// Not in the image.
    Absent,
    /// SQL's null.
    Null,
    /// Its bytes.
    Bytes(&'a [u8]),
    /// Its bytes are not there, only what is different from before.
    Part,
}

/// What stands before an image that may have parts of JSON values, as `binlog_row_value_options` tells: for each JSON column
/// of the table, whether it is one (`Rows_log_event::print_verbose_one_row` of `log_event.cc`).
pub fn parts<'a>(reader: &mut Reader<'a>, stored: &[Stored]) -> Result<&'a [u8], Malformed> {
    const PARTIAL_JSON: usize = 1;
    if reader.length()? & PARTIAL_JSON == 0 {
        return Ok(&[]);
    }
    let count = stored.iter().filter(|stored| stored.number == number::JSON).count();
    reader.bytes(count.div_ceil(8))
}

/// Reads one image into `slots`, one for each column of the log; `parts` as [`parts`] gives it, or nothing.
pub fn image<'a>(
    reader: &mut Reader<'a>,
    present: &[u8],
    parts: &[u8],
    stored: &[Stored],
    slots: &mut Vec<Slot<'a>>,
) -> Result<(), Malformed> {
    let is_set = |bits: &[u8], index: usize| bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
    slots.clear();
    let count = (0..stored.len()).filter(|&index| is_set(present, index)).count();
    let nulls = reader.bytes(count.div_ceil(8))?;
    let (mut place, mut json) = (0, 0);
    for (index, stored) in stored.iter().enumerate() {
        // Columns that are not in the image have a bit as well.
        let is_part = stored.number == number::JSON && is_set(parts, json);
        json += usize::from(stored.number == number::JSON);
        if !is_set(present, index) {
            slots.push(Slot::Absent);
            continue;
        }
        let null = is_set(nulls, place);
        place += 1;
        slots.push(match (null, is_part) {
            (true, _) => Slot::Null,
            (false, false) => Slot::Bytes(stored.take(reader)?),
            // Nothing is different.
            (false, true) if stored.take(reader)?.is_empty() => Slot::Absent,
            (false, true) => Slot::Part,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A TABLE_MAP_EVENT of MariaDB 10.11 with `binlog_row_metadata=FULL`, as `mariadb-binlog --hexdump` shows it.
    const MAP: &str = "0473686f7000017400120 3fefefefefe0f0405fefe100d131211fcf61afe10fe10fe04fe05fe05280004\
        08f701f80102010306020441 1efeff03010110 02073f0408051c062e042c0269640175026936026934016201630176016601640\
        1650173026274017902746d02647402747301 6a0264650a010805050201780179060502016101620801 00";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    }

    #[test]
    fn a_table_map_tells_names_and_collations() {
        let map = bytes(MAP);
        let map = TableMap::parse(&map).unwrap();
        assert_eq!((map.schema, map.table, map.columns.len()), (&b"shop"[..], &b"t"[..], 18));
        let column = |name: &str| map.columns.iter().find(|c| c.name == Some(name.as_bytes())).unwrap().clone();
        assert_eq!(column("v").collation, Some(28), "gbk_chinese_ci");
        assert_eq!(column("u").stored, Stored { number: number::STRING, meta: 16 });
        assert_eq!(column("u").collation, Some(63), "binary");
        assert_eq!(column("bt").stored, Stored { number: number::BIT, meta: 10 });
        assert_eq!(column("e").stored.number, number::ENUM);
        assert_eq!(column("de").stored, Stored { number: number::NEWDECIMAL, meta: 0x411e });
        assert_eq!(column("id").collation, None);
        assert_eq!(column("e").labels, Some(vec![&b"a"[..], b"b"]));
        assert_eq!(column("s").labels, Some(vec![&b"x"[..], b"y"]));
        assert_eq!([column("id"), column("y"), column("v")].map(|c| c.unsigned), [Some(false), Some(true), None]);
    }

    #[test]
    fn transactions_have_names() {
        let uuid = 0x3e11_fa47_71ca_11e1_9e33_c80a_a942_9562_u128;
        let mut body = vec![1];
        body.extend(uuid.to_be_bytes());
        body.extend(23_u64.to_le_bytes());
        body.extend([2, 0, 0]);
        assert_eq!(gtid(&body).unwrap(), Gtid::Mysql((uuid, String::new()), 23));

        let body = [&7_u64.to_le_bytes()[..], &3_u32.to_le_bytes(), &[1 | 64]].concat();
        let gtid = Gtid::Mariadb(3, Newest { server: 5, number: 7 });
        assert_eq!(mariadb_gtid(5, &body).unwrap(), MariadbGtid { gtid, standalone: true, prepares: true });
    }

    #[test]
    fn serialized_integers_have_nine_sizes() {
        for (bytes, expected) in [
            (&[0b0000_0010][..], 1),
            (&[0b1111_1110], 127),
            (&[0b0000_0001, 0b0000_0010], 128),
            (&[0b0000_0011, 0, 0b0000_0010], 1 << 14),
            (&[0xff, 1, 0, 0, 0, 0, 0, 0, 0x80], 1 << 63 | 1),
        ] {
            assert_eq!(serialized(&mut Reader::new(bytes)).unwrap(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn parts_of_json_have_a_bit_for_each_column_of_that_type() {
        let json = Stored { number: number::JSON, meta: 4 };
        let stored = [json, Stored { number: number::TINY, meta: 0 }, json, json, json];
        // All columns but the first; the second JSON column is a part, the third is as it was, the fourth is whole.
        let bytes = [&[1, 0b0110][..], &[0], &[7], &[2, 0, 0, 0, 1, 1], &[0, 0, 0, 0], &[1, 0, 0, 0, 4]].concat();
        let (mut reader, mut slots) = (Reader::new(&bytes), vec![]);
        let parts = parts(&mut reader, &stored).unwrap();
        image(&mut reader, &[0b11110], parts, &stored, &mut slots).unwrap();
        assert!(reader.is_empty());
        let expected = [Slot::Absent, Slot::Bytes(&[7]), Slot::Part, Slot::Absent, Slot::Bytes(&[4])];
        assert_eq!(slots, expected);
        assert_eq!(super::parts(&mut Reader::new(&[0]), &stored).unwrap(), &[] as &[u8]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_events_or_an_error(body in prop::collection::vec(any::<u8>(), 0..200), event: u8) {
            let _ = (rotate(&body), Query::parse(&body), mariadb_gtid(1, &body), has_checksum(&body));
            let _ = (gtid(&body), tagged_gtid(&body), gtid_list(&body));
            let _ = TableMap::parse(&body);
            if let Ok((_, _, rest)) = table_id(&body)
                && let Some(kind) = RowsEvent::kind_of(event)
                && let Ok(mut rows) = RowsEvent::parse(kind, rest)
            {
                let map = bytes(MAP);
                let stored: Vec<Stored> = TableMap::parse(&map).unwrap().columns.iter().map(|c| c.stored).collect();
                let parts = parts(&mut rows.rows.clone(), &stored).unwrap_or_default();
                let _ = image(&mut rows.rows, rows.first, parts, &stored, &mut vec![]);
            }
        }
    }
}
