//! Sessions at random: messages in any order, of any content, from whole transactions to nonsense. Whatever a server sends,
//! the decoder gives changes or an error; it never panics, and never gives more rows than it was sent.
//!
//! `MILLRACE_FUZZ_SECONDS` says for how long (default 2), as for `tests/fuzz.rs`.

use std::{path::Path, sync::Arc, time::Duration};

use millrace_core::{
    Capture, Change, Column, ColumnType, Table, TableName,
    source::{Budget, UnboundedRoom},
};

use super::{
    decoder::Decoder,
    shape::{TypeName, TypeNames},
    streamed::Streamed,
};
use crate::fence::VisibilityFence;

/// What a script of bytes makes the server say.
struct Script<'a> {
    bytes: &'a [u8],
    lsn: u64,
    /// Messages belong to a part of an open transaction.
    receiving: bool,
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    /// A cell: mostly well-formed, of one of the kinds that pgoutput has.
    fn cell(&mut self) -> Vec<u8> {
        let kind = self.byte().unwrap_or(0);
        let taken = usize::from(kind >> 4).min(self.bytes.len());
        let (value, rest) = self.bytes.split_at(taken);
        let mut cell = match kind % 16 {
            0 | 1 => b"n".to_vec(),
            2 | 3 => b"u".to_vec(),
            4..=9 => [b"t\0\0\0\x02".as_slice(), &[b'0' + kind % 10, b'7']].concat(),
            10 => [b"t".as_slice(), &u32::MAX.to_be_bytes()].concat(),
            11 => [b"b\0\0\0\x01".as_slice(), b"x"].concat(),
            _ => [b"t".as_slice(), &(taken as u32).to_be_bytes(), value].concat(),
        };
        if kind % 16 > 11 {
            self.bytes = rest;
        }
        cell.shrink_to_fit();
        cell
    }

    fn tuple(&mut self) -> Vec<u8> {
        let count = match self.byte().unwrap_or(0) % 16 {
            0 => u16::MAX,
            1 => 2,
            _ => 3,
        };
        let mut tuple = count.to_be_bytes().to_vec();
        (0..count.min(3)).for_each(|_| tuple.extend(self.cell()));
        tuple
    }

    /// One of three transactions.
    fn top(&mut self) -> u8 {
        self.byte().unwrap_or(0) % 3 * 16
    }

    /// One of them, or of their sub-transactions.
    fn sub(&mut self) -> u8 {
        self.byte().unwrap_or(0) % 48
    }

    fn oid(&mut self) -> [u8; 4] {
        u32::from(self.byte().unwrap_or(0) % 4 + 1).to_be_bytes()
    }

    fn relation(&mut self) -> Vec<u8> {
        let (oid, odd) = (self.oid(), self.byte().unwrap_or(0));
        let identity = if oid == 2_u32.to_be_bytes() { b'f' } else { b'd' };
        let identity = if odd % 16 == 15 { odd } else { identity };
        let name = if odd % 32 == 14 { b'x' } else { b'0' + oid[3] };
        let key = u8::from(oid == 1_u32.to_be_bytes());
        let mut relation = [b"R".as_slice(), &oid, b"s\0t", &[name, 0, identity]].concat();
        relation.extend_from_slice(b"\0\x03");
        for (index, (name, oid)) in [("id", 23_u32), ("v", 25), ("n", 23)].into_iter().enumerate() {
            relation.push(if index == 0 { key } else { 0 });
            relation.extend_from_slice(name.as_bytes());
            relation.push(0);
            relation.extend_from_slice(&oid.to_be_bytes());
            relation.extend_from_slice(&(-1_i32).to_be_bytes());
        }
        relation
    }

    /// One CopyData.
    fn message(&mut self) -> Option<Vec<u8>> {
        let kind = self.byte()?;
        self.lsn += u64::from(kind);
        let lsn = self.lsn.to_be_bytes();
        let mut message = match kind % 24 {
            0 | 1 => [b"B".as_slice(), &lsn, &[0; 8], &[0, 0, 0, kind]].concat(),
            2 | 3 => [b"C\0".as_slice(), &lsn, &(self.lsn + 8).to_be_bytes(), &[0; 8]].concat(),
            4 | 5 => self.relation(),
            6..=8 => [b"I".as_slice(), &self.oid(), b"N", &self.tuple()].concat(),
            9 => [b"U".as_slice(), &self.oid(), b"N", &self.tuple()].concat(),
            10 => [b"U".as_slice(), &self.oid(), b"K", &self.tuple(), b"N", &self.tuple()].concat(),
            11 => [b"D".as_slice(), &self.oid(), if kind & 16 == 0 { b"K" } else { b"O" }, &self.tuple()].concat(),
            12 => [b"T\0\0\0\x02\0".as_slice(), &self.oid(), &self.oid()].concat(),
            13 => return Some([b"k".as_slice(), &lsn, &[0; 8], &[kind & 1]].concat()),
            14 => [b"M\x01".as_slice(), &lsn, b"p\0\0\0\0\x02hi"].concat(),
            16 | 17 => [b"S\0\0\0".as_slice(), &[self.top(), self.byte().unwrap_or(1) & 1]].concat(),
            18 => b"E".to_vec(),
            19 | 20 => [b"c\0\0\0".as_slice(), &[self.top(), 0], &lsn, &(self.lsn + 8).to_be_bytes(), &[0; 8]].concat(),
            21 => [b"A\0\0\0".as_slice(), &[self.top(), 0, 0, 0, self.top()]].concat(),
            22 => [b"A\0\0\0".as_slice(), &[self.top(), 0, 0, 0, self.sub()], &[0; 16]].concat(),
            _ => return Some(std::mem::take(&mut self.bytes).to_vec()),
        };
        let tag = message.first().copied().unwrap_or_default();
        self.receiving = (self.receiving && tag != b'E') || tag == b'S';
        if self.receiving && tag != b'S' && kind < 248 {
            let sub = self.sub();
            message.splice(1..1, [0, 0, 0, sub]);
        }
        // Within a transaction the place does not move: a commit stands where its begin said.
        self.lsn -= if matches!(kind % 24, 2 | 3 | 13 | 19 | 20) { 0 } else { u64::from(kind) };
        Some([b"w".as_slice(), &lsn, &lsn, &[0; 8], &message].concat())
    }
}

pub(super) fn table(oid: u64, capture: Capture, key: Vec<usize>) -> Arc<Table> {
    let column = |id, name: &str, ty, source_type: &str| Column {
        id,
        name: name.into(),
        ty,
        source_type: source_type.into(),
        nullable: true,
        older_rows: None,
    };
    Arc::new(Table {
        name: TableName::new("s", format!("t{oid}")),
        source_id: oid,
        version: 1,
        columns: vec![
            column(1, "id", ColumnType::Int32, "integer"),
            column(2, "v", ColumnType::Text, "text"),
            column(3, "n", ColumnType::Int32, "integer"),
        ],
        key,
        capture,
        storage_id: oid,
        definition_id: 1,
        columns_ever: 0,
        estimated_rows: 0,
        estimated_bytes: 0,
        parts: None,
    })
}

pub(super) fn types() -> TypeNames {
    let name = |source_type: &str, ty| TypeName { source_type: source_type.into(), ty };
    TypeNames::from([((23, -1), name("integer", ColumnType::Int32)), ((25, -1), name("text", ColumnType::Text))])
}

/// Over a table with a key, one without, and one of which only inserts are captured.
pub(super) fn decoder() -> Decoder {
    let tables =
        [table(1, Capture::All, vec![0]), table(2, Capture::All, vec![]), table(3, Capture::InsertsOnly, vec![])];
    let mut decoder = Decoder::new(&tables, 1, 1 << 20, Arc::default(), Arc::new(VisibilityFence::default()));
    decoder.types = types();
    // No catalog is asked, as if nothing had been altered.
    decoder.trust_catalog();
    decoder
}

/// Plays a script; gives how many rows were sent, came out, and were refused.
fn play(input: &[u8], folder: &Path) -> (usize, usize) {
    let mut decoder = decoder();
    let mut streamed = Streamed::open(Arc::new(UnboundedRoom(folder.join("spill")))).unwrap();
    let budget = Budget { rows: 100, bytes: 1 << 20, wait: Duration::ZERO };
    let mut script = Script { bytes: input, lsn: 2, receiving: false };
    let (mut sent, mut out, mut upto) = (0, 0, None);
    while let Some(message) = script.message() {
        sent += usize::from(matches!(message.get(25), Some(b'I' | b'U' | b'D')));
        if streamed.feed(&mut decoder, &message).is_err() || decoder.unresolved().is_some() {
            break;
        }
        if decoder.is_full(&budget) || message.len() % 7 == 0 {
            let changes = decoder.take();
            assert!(changes.upto.is_none() || changes.upto >= upto, "a position went back");
            upto = changes.upto.or(upto);
            out += rows(&changes.items);
        }
    }
    out += rows(&decoder.take().items);
    (sent, out)
}

fn rows(items: &[Change]) -> usize {
    let whole = |item: &Change| match item {
        Change::Rows(batch) => {
            assert_eq!((batch.ops.len(), batch.order.len()), (batch.after.rows(), batch.after.rows()));
            assert!(batch.order.windows(2).all(|pair| pair[0] < pair[1]), "of one table in commit order");
            batch.rows()
        }
        Change::Rejected(rejects) => rejects.len(),
        _ => 0,
    };
    items.iter().map(whole).sum()
}

#[test]
fn sessions() {
    let folder = tempfile::tempdir().unwrap();
    let seconds = std::env::var("MILLRACE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    bolero::check!().with_test_time(Duration::from_secs(seconds.unwrap_or(2))).for_each(|input: &[u8]| {
        let (sent, out) = play(input, folder.path());
        // An update of a key, and one without a key, are a delete and an insert.
        assert!(out <= 2 * sent, "{out} rows of {sent} messages");
    });
}

/// Found at random: the old row of an update with fewer columns than the new one.
#[test]
fn an_old_row_of_other_columns_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(play(&[0, 4, 0, 0, 10, 0, 1, 4, 0, 2], folder.path()), (1, 0));
}

/// What the scripts must be able to reach, or they show nothing.
#[test]
fn a_script_can_be_a_whole_transaction() {
    let insert = [6, 0, 2, 4, 4, 4];
    let script = [[4, 0, 0].as_slice(), &[0], &insert, &insert, &[9, 0, 2, 4, 2, 5], &[2]].concat();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(play(&script, folder.path()), (3, 3));
    // The same sent ahead in two parts, of which the second row is of a sub-transaction that rolls back.
    let start = |first: u8| [16, 1, first];
    let (relation, kept, undone) = ([4, 0, 0, 1], [6, 0, 2, 4, 4, 4, 16], [6, 0, 2, 4, 4, 4, 17]);
    let rows = [start(1).as_slice(), &relation, &kept, &undone, &[18], &start(0), &kept, &[18]].concat();
    let (commit, rollback) = ([19, 1], [21, 1, 1]);
    assert_eq!(play(&[rows.as_slice(), &commit].concat(), folder.path()), (3, 3));
    assert_eq!(play(&[rows.as_slice(), &[22, 1, 17], &commit].concat(), folder.path()), (3, 2));
    assert_eq!(play(&[rows.as_slice(), &rollback].concat(), folder.path()), (3, 0));
}
