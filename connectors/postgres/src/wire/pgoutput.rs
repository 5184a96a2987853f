//! What comes in on a logical replication stream: keepalives, and pgoutput's messages in their envelopes.

use super::{
    begin::Begin,
    commit::Commit,
    delete::Delete,
    insert::Insert,
    keepalive::Keepalive,
    logical_message::LogicalMessage,
    origin::Origin,
    reader::{Malformed, Reader},
    relation::Relation,
    stream_abort::StreamAbort,
    stream_commit::StreamCommit,
    stream_start::StreamStart,
    truncate::Truncate,
    type_name::TypeName,
    update::Update,
    xlog_data::XLogData,
};

/// A CopyData from a walsender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A pgoutput message.
    XLogData(XLogData<'a>),
    /// A sign of life.
    Keepalive(Keepalive),
}

impl<'a> Incoming<'a> {
    /// Reads a CopyData's payload.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        match reader.u8()? {
            b'w' => XLogData::parse(reader).map(Self::XLogData),
            b'k' => Keepalive::parse(reader).map(Self::Keepalive),
            _ => Err(Malformed("a replication message of an unknown kind")),
        }
    }
}

/// A message of pgoutput about a transaction that has committed; without two-phase commit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Message<'a> {
    Begin(Begin),
    Commit(Commit),
    Relation(Relation),
    TypeName(TypeName<'a>),
    Origin(Origin<'a>),
    Insert(Insert<'a>),
    Update(Update<'a>),
    Delete(Delete<'a>),
    Truncate(Truncate),
    LogicalMessage(LogicalMessage<'a>),
}

impl<'a> Message<'a> {
    /// Reads a message from its tag on.
    #[inline]
    pub fn parse(mut reader: Reader<'a>) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            b'I' => Self::Insert(Insert::parse(reader)?),
            b'U' => Self::Update(Update::parse(reader)?),
            b'D' => Self::Delete(Delete::parse(reader)?),
            b'B' => Self::Begin(Begin::parse(reader)?),
            b'C' => Self::Commit(Commit::parse(reader)?),
            b'R' => Self::Relation(Relation::parse(reader)?),
            b'Y' => Self::TypeName(TypeName::parse(reader)?),
            b'O' => Self::Origin(Origin::parse(reader)?),
            b'T' => Self::Truncate(Truncate::parse(reader)?),
            b'M' => Self::LogicalMessage(LogicalMessage::parse(reader)?),
            _ => return Err(Malformed("a pgoutput message that was not asked for")),
        })
    }
}

/// What stands around the messages of transactions that have not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamMessage {
    /// A part of an open transaction begins.
    Start(StreamStart),
    /// It ends.
    Stop,
    /// An open transaction commits.
    Commit(StreamCommit),
    /// An open transaction, or a part of it, rolls back.
    Abort(StreamAbort),
}

impl StreamMessage {
    /// Reads a message from its tag on; `None` for any other message.
    pub fn parse(mut reader: Reader<'_>) -> Result<Option<Self>, Malformed> {
        Ok(Some(match reader.u8()? {
            b'S' => Self::Start(StreamStart::parse(reader)?),
            b'E' => reader.end().map(|()| Self::Stop)?,
            b'c' => Self::Commit(StreamCommit::parse(reader)?),
            b'A' => Self::Abort(StreamAbort::parse(reader)?),
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{delete::Old, tuple::Value};

    fn message(bytes: &[u8]) -> String {
        match Message::parse(Reader::new(bytes)) {
            Ok(message) => format!("{message:?}"),
            Err(error) => error.to_string(),
        }
    }

    fn lsn(value: u64) -> [u8; 8] {
        value.to_be_bytes()
    }

    #[test]
    fn every_message_is_decoded() {
        let key_column = b"\x01id\0\0\0\0\x17\xff\xff\xff\xff".as_slice();
        let column = b"\0price\0\0\0\x06\xa4\0\x0a\0\x06".as_slice();
        let row = b"\0\x03t\0\0\0\x0242nu".as_slice();
        let key = b"\0\x03t\0\0\0\x0241nn".as_slice();
        let oid = 7_u32.to_be_bytes();
        let decoded = [
            message(&[b"B".as_slice(), &lsn(0x10), &5_i64.to_be_bytes(), &9_u32.to_be_bytes()].concat()),
            message(&[b"C\0".as_slice(), &lsn(0x10), &lsn(0x20), &5_i64.to_be_bytes()].concat()),
            message(&[b"R".as_slice(), &oid, b"public\0t\0d\0\x02", key_column, column].concat()),
            message(&[b"Y".as_slice(), &oid, b"public\0mood\0"].concat()),
            message(&[b"O".as_slice(), &lsn(1), b"elsewhere\0"].concat()),
            message(&[b"I".as_slice(), &oid, b"N", row].concat()),
            message(&[b"U".as_slice(), &oid, b"N", row].concat()),
            message(&[b"U".as_slice(), &oid, b"K\0\x01t\0\0\0\x011", b"N", row].concat()),
            message(&[b"D".as_slice(), &oid, b"O", row].concat()),
            message(&[b"T\0\0\0\x02\x01".as_slice(), &oid, &oid].concat()),
            message(&[b"M\x01".as_slice(), &lsn(3), b"p\0\0\0\0\x02hi"].concat()),
            message(&[b"D".as_slice(), &oid, b"K", key].concat()),
            message(b"S\0\0\0\x01\x01"),
            message(&[b"I".as_slice(), &oid, b"N", row, b"x"].concat()),
            message(&[b"I".as_slice(), &oid, b"N\0\x01b\0\0\0\x01x"].concat()),
            message(b"T\xff\xff\xff\xff\0"),
        ];
        insta::assert_snapshot!(decoded.join("\n"), @r#"
        Begin(Begin { final_lsn: 16, commit_time: 5, xid: 9 })
        Commit(Commit { commit_lsn: 16, end_lsn: 32, commit_time: 5 })
        Relation(Relation { oid: 7, schema: "public", name: "t", replica_identity: 100, columns: [RelationColumn { is_key: true, name: "id", type_oid: 23, type_modifier: -1 }, RelationColumn { is_key: false, name: "price", type_oid: 1700, type_modifier: 655366 }] })
        TypeName(TypeName { oid: 7, schema: "public", name: "mood" })
        Origin(Origin { commit_lsn: 1, name: "elsewhere" })
        Insert(Insert { relation: 7, new: ["42", "Null", "Unchanged"] })
        Update(Update { relation: 7, old: None, new: ["42", "Null", "Unchanged"] })
        Update(Update { relation: 7, old: Some(Key(["1"])), new: ["42", "Null", "Unchanged"] })
        Delete(Delete { relation: 7, old: Row(["42", "Null", "Unchanged"]) })
        Truncate(Truncate { relations: [7, 7] })
        LogicalMessage(LogicalMessage { transactional: true, lsn: 3, prefix: "p", content: [104, 105] })
        Delete(Delete { relation: 7, old: Key(["41", "Null", "Null"]) })
        malformed message: a pgoutput message that was not asked for
        malformed message: it is longer than it should be
        malformed message: a binary cell, which was not asked for
        malformed message: a truncate with another number of tables than it says
        "#);
    }

    #[test]
    fn envelopes_and_keepalives() {
        let keepalive = [b"k".as_slice(), &lsn(0xAB), &lsn(5), b"\x01"].concat();
        let expected = Incoming::Keepalive(Keepalive { wal_end: 0xAB, clock: 5, reply_requested: true });
        assert_eq!(Incoming::parse(&keepalive), Ok(expected));
        let data = [b"w".as_slice(), &lsn(1), &lsn(2), &lsn(5), b"I\0\0\0\x07N\0\x02u", b"t\0\0\0\x01x"].concat();
        let Ok(Incoming::XLogData(XLogData { wal_end: 2, clock: 5, message: Message::Insert(insert) })) =
            Incoming::parse(&data)
        else {
            panic!("{:?}", Incoming::parse(&data))
        };
        let cells: Vec<_> = insert.new.cells().collect();
        assert_eq!(cells, [Value::Unchanged, Value::Text(b"x")]);
        assert_eq!((insert.new.cell(1), insert.new.cell(2)), (Value::Text(b"x"), Value::Null));
    }

    #[test]
    fn parts_of_open_transactions_are_told() {
        let xid = 7_u32.to_be_bytes();
        let decoded = [
            [b"S".as_slice(), &xid, b"\x01"].concat(),
            [b"S".as_slice(), &xid, b"\0"].concat(),
            b"E".to_vec(),
            [b"c".as_slice(), &xid, b"\0", &lsn(0x10), &lsn(0x20), &5_i64.to_be_bytes()].concat(),
            [b"A".as_slice(), &xid, &9_u32.to_be_bytes()].concat(),
            [b"A".as_slice(), &xid, &xid, &lsn(0x10), &lsn(0)].concat(),
            b"C\0".to_vec(),
            [b"c".as_slice(), &xid, b"\0"].concat(),
            b"E\0".to_vec(),
        ]
        .map(|bytes| match StreamMessage::parse(Reader::new(&bytes)) {
            Ok(message) => format!("{message:?}"),
            Err(error) => error.to_string(),
        });
        insta::assert_snapshot!(decoded.join("\n"), @r"
        Some(Start(StreamStart { xid: 7, is_first: true }))
        Some(Start(StreamStart { xid: 7, is_first: false }))
        Some(Stop)
        Some(Commit(StreamCommit { xid: 7, commit_lsn: 16, end_lsn: 32, commit_time: 5 }))
        Some(Abort(StreamAbort { xid: 7, subxid: 9 }))
        Some(Abort(StreamAbort { xid: 7, subxid: 7 }))
        None
        malformed message: it ends too early
        malformed message: it is longer than it should be
        ");
    }

    proptest! {
        /// Foreign bytes never panic, and what was taken for a row has as many cells as it says.
        #[test]
        fn arbitrary_bytes_do_no_harm(kind in prop::sample::select(b"BCRYOIUDTMwkSEcA?".to_vec()), body in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [&[kind][..], &body].concat();
            let _ = Incoming::parse(&bytes);
            let _ = StreamMessage::parse(Reader::new(&bytes));
            match Message::parse(Reader::new(&bytes)) {
                Ok(Message::Insert(insert)) => prop_assert_eq!(insert.new.cells().count(), insert.new.len()),
                Ok(Message::Delete(delete)) => {
                    let (Old::Key(tuple) | Old::Row(tuple)) = delete.old;
                    prop_assert_eq!(tuple.cells().count(), tuple.len());
                }
                _ => {}
            }
        }

        /// Rows are read as they were written, however they are cut short.
        #[test]
        fn rows_round_trip(cells in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 0..8), cut in 0_usize..40) {
            let mut bytes = [b"I\0\0\0\x01N".as_slice(), &(cells.len() as u16).to_be_bytes()].concat();
            for cell in &cells {
                match cell {
                    Some(text) => bytes.extend([b"t".as_slice(), &(text.len() as u32).to_be_bytes(), text].concat()),
                    None => bytes.push(b'n'),
                }
            }
            let Ok(Message::Insert(insert)) = Message::parse(Reader::new(&bytes)) else { panic!("a sound insert") };
            let read: Vec<_> = insert.new.cells().map(|cell| match cell {
                Value::Text(text) => Some(text.to_vec()),
                _ => None,
            }).collect();
            prop_assert_eq!(read, cells);
            let short = &bytes[..bytes.len().saturating_sub(1 + cut)];
            prop_assert!(Message::parse(Reader::new(short)).is_err());
        }
    }
}
