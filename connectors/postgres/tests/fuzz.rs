//! Bytes from outside, at random: whatever a server sends, the answer is a value, a refusal or an error, never a panic
//! and never more memory than the bytes can account for.
//!
//! Each target runs for `MILLRACE_FUZZ_SECONDS` (default 2; `make test` gives 10, `make test-all` 600). A failure prints
//! the input and how to run it again.

use std::{sync::Once, time::Duration};

use bolero::check;
use millrace_core::{ColumnType, ColumnVec, Columns};
use millrace_postgres::{
    types::{
        PgType, Scalar,
        binary::{self, Tuple, TupleDecoder},
        copy_data::CopyData,
        render, text,
    },
    wire::{
        pgoutput::{Incoming, Message, StreamMessage},
        reader::Reader,
    },
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The address space that all targets together may take. Inputs have a few KiB; what allocates by a length that only
/// stands in the bytes (up to 2 GiB) does not fit.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// How long a target runs.
fn time() -> Duration {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        let maximum = getrlimit(Resource::As).maximum;
        setrlimit(Resource::As, Rlimit { current: Some(MEMORY_BYTES_MAX), maximum }).expect("a lower limit is allowed");
    });
    let seconds = std::env::var("MILLRACE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

const SCALARS: [Scalar; 20] = [
    Scalar::Bool,
    Scalar::Int2,
    Scalar::Int4,
    Scalar::Int8,
    Scalar::Float4,
    Scalar::Float8,
    Scalar::Decimal { precision: 10, scale: 2 },
    Scalar::Decimal { precision: 38, scale: 38 },
    Scalar::Numeric,
    Scalar::Text,
    Scalar::Jsonb,
    Scalar::Bytea,
    Scalar::Uuid,
    Scalar::Date,
    Scalar::Time,
    Scalar::Timestamp,
    Scalar::TimestampTz,
    Scalar::Interval,
    Scalar::Char,
    Scalar::Other,
];

/// Every type, alone and as an array.
fn types() -> impl Iterator<Item = PgType> {
    SCALARS.into_iter().flat_map(|scalar| [PgType::Scalar(scalar), PgType::Array(scalar)])
}

/// The type that the first byte chooses, and the rest of the input.
fn choose(input: &[u8]) -> Option<(PgType, &[u8])> {
    let (first, rest) = input.split_first()?;
    let all: Vec<PgType> = types().collect();
    Some((all[usize::from(*first) % all.len()], rest))
}

#[test]
fn pgoutput_messages() {
    check!().with_test_time(time()).for_each(|input: &[u8]| {
        let _ = Incoming::parse(input);
        // By itself a random input has neither the envelope's letter nor its length.
        let _ = Incoming::parse(&[b"w".as_slice(), &[0; 24], input].concat());
        for tag in *b"BCRYOIUDTM" {
            let bytes = [&[tag], input].concat();
            if let Ok(message) = Message::parse(Reader::new(&bytes)) {
                assert!(!format!("{message:?}").is_empty());
            }
        }
        for tag in *b"SEcA" {
            let bytes = [&[tag], input].concat();
            // Their lengths are fixed, so what is taken can only be what was sent.
            match StreamMessage::parse(Reader::new(&bytes)) {
                Ok(message) => assert!(message.is_some() && matches!(bytes.len(), 1 | 6 | 9 | 25 | 30), "{message:?}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    });
}

#[test]
fn copy_data() {
    check!().with_test_time(time()).for_each(|input: &[u8]| {
        let Some((first, rest)) = choose(input) else { return };
        let Some((second, rest)) = choose(rest) else { return };
        let cut = usize::from(rest.first().copied().unwrap_or(1)) % 61 + 1;
        let columns: Vec<ColumnType> = [first, second].into_iter().map(PgType::column_type).collect();
        let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".as_slice();
        // A tuple of two fields whose bytes are the input's, and then whatever follows.
        let half = rest.len() / 2;
        let field = |bytes: &[u8]| [&(bytes.len() as i32).to_be_bytes(), bytes].concat();
        let tuple = [&2_i16.to_be_bytes(), field(&rest[..half]).as_slice(), &field(&rest[half..]), rest].concat();
        for payload in [rest.to_vec(), [header, rest].concat(), [header, &tuple].concat()] {
            let mut decoder = TupleDecoder::new(vec![first, second], vec![], 1 << 20);
            let mut taken = Columns::new(columns.iter());
            let mut data = CopyData::new();
            for piece in payload.chunks(cut) {
                if data.take(piece, |bytes| decoder.decode(bytes, &mut taken)).is_err() {
                    break;
                }
            }
            let _ = data.finish();
            assert!(
                taken.byte_size() <= 64 * (payload.len() + 1024),
                "{} bytes of {}",
                taken.byte_size(),
                payload.len()
            );
        }
    });
}

#[test]
fn binary_values_and_their_text() {
    check!().with_test_time(time()).for_each(|input: &[u8]| {
        let Some((ty, value)) = choose(input) else { return };
        let mut decoder = TupleDecoder::new(vec![ty], vec![], 1 << 20);
        let column = ty.column_type();
        let mut columns = Columns::new([&column]);
        let tuple = [&1_i16.to_be_bytes(), (value.len() as i32).to_be_bytes().as_slice(), value].concat();
        let decoded = decoder.decode(&tuple, &mut columns);
        let mut rendered = String::new();
        let shown = render::value(ty, value, &mut rendered);
        assert!(rendered.len() <= 1 << 20, "{} bytes of text for {} of a {ty:?}", rendered.len(), value.len());
        if matches!(decoded, Ok(Tuple::Row(_))) {
            // What stands in a column is printed; both ways into a column give the same cell.
            shown.unwrap_or_else(|_| panic!("a {ty:?} that is a cell has no text"));
            let mut again = ColumnVec::new(&column);
            if text::decode(&column, rendered.as_bytes(), &mut again).is_ok() {
                let cell = columns.columns()[0].cell_text(0);
                assert_eq!(again.cell_text(0), cell, "{ty:?} {rendered:?}");
            }
        }
        let _ = binary::bytes_wanted(input);
        binary::fields(input).for_each(drop);
    });
}

#[test]
fn text_values() {
    let columns: Vec<ColumnType> = types().map(PgType::column_type).collect();
    check!().with_test_time(time()).for_each(|input: &[u8]| {
        let Some((first, value)) = input.split_first() else { return };
        let ty = &columns[usize::from(*first) % columns.len()];
        // Random bytes are hardly ever digits and braces; the same ones, folded onto what the parsers know, are.
        let known = b"0123456789-+:. ,{}\"\\()[]=eETZBCADinfyNaLUxtrue";
        let folded: Vec<u8> = value.iter().map(|byte| known[usize::from(*byte) % known.len()]).collect();
        for value in [value, &folded] {
            let mut column = ColumnVec::new(ty);
            column.push_null();
            let taken = text::decode(ty, value, &mut column).is_ok();
            assert_eq!(column.len(), 1 + usize::from(taken), "a refused value leaves the column as it was");
            if taken {
                assert!(
                    column.byte_size() <= 64 * (value.len() + 64),
                    "{} bytes of {}",
                    column.byte_size(),
                    value.len()
                );
            }
        }
    });
}
