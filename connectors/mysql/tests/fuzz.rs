//! Bytes from outside, at random: whatever a server sends, the answer is a value, a refusal or an error, never a panic
//! and never more memory than the bytes can account for.
//!
//! Each target runs for `MILLRACE_FUZZ_SECONDS` (default 2; `make test` gives 10, `make test-all` 600). A failure prints
//! the input and how to run it again.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use bolero::check;
use millrace_core::{ColumnType, Columns, Unfit};
use millrace_mysql::{
    gtid::Executed,
    log::{
        compressed::{Payload, unpack},
        ddl,
        events::{self, Query, RowsEvent, TableMap, image, parts},
    },
    types::{
        SqlType,
        charset::Charset,
        image::{ImageColumn, Scratch, Stored, decode},
        json, text,
    },
    wire::{Reader, ServerError, binlog_dump, greeting::Greeting},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The address space that all targets together may take. Inputs have a few KiB; what allocates by a length that only
/// stands in the bytes does not fit.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Every kind of type, as the server declares it.
const DECLARED: [&str; 25] = [
    "tinyint(4)",
    "smallint(5) unsigned",
    "mediumint(9)",
    "int(11)",
    "bigint(20) unsigned",
    "year(4)",
    "float",
    "double",
    "decimal(38,38)",
    "decimal(10,2)",
    "decimal(65,30)",
    "bit(64)",
    "date",
    "time(6)",
    "datetime(3)",
    "timestamp(6)",
    "varchar(20) character set utf8mb4",
    "binary(9)",
    "longblob",
    "enum('a','b')",
    "set('x','y')",
    "json",
    "point",
    "uuid",
    "inet6",
];

fn time() -> Duration {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        let maximum = getrlimit(Resource::As).maximum;
        setrlimit(Resource::As, Rlimit { current: Some(MEMORY_BYTES_MAX), maximum }).expect("a lower limit is allowed");
    });
    let seconds = std::env::var("MILLRACE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

#[test]
fn packets_and_events() {
    check!().with_test_time(time()).for_each(|bytes: &[u8]| {
        let _ = (Greeting::parse(bytes), ServerError::parse(bytes), binlog_dump::event(bytes));
        let _ =
            (Query::parse(bytes), events::rotate(bytes), events::mariadb_gtid(1, bytes), events::has_checksum(bytes));
        let _ = (events::gtid(bytes), events::tagged_gtid(bytes), events::gtid_list(bytes), Executed::decode(bytes));
        if let Ok((_, _, rest)) = events::table_id(bytes) {
            let _ = TableMap::parse(rest);
        }
        let mut reader = Reader::new(bytes);
        while reader.cell().is_ok() {}
    });
}

/// The first half of the input is a table's shape, the second half its rows.
#[test]
fn rows_of_any_table() {
    check!().with_test_time(time()).for_each(|bytes: &[u8]| {
        let (shape, rows) = bytes.split_at(bytes.len() / 2);
        let Ok(map) = TableMap::parse(shape) else { return };
        let stored: Vec<Stored> = map.columns.iter().map(|column| column.stored).collect();
        for kind in [23, 24, 25, 30, 31, 32, 39] {
            let Some(kind) = RowsEvent::kind_of(kind) else { return };
            let Ok(mut event) = RowsEvent::parse(kind, rows) else { continue };
            let mut slots = vec![];
            for _ in 0..rows.len() {
                let parts = if event.is_partial { parts(&mut event.rows, &stored).unwrap_or_default() } else { &[] };
                if event.rows.is_empty() || image(&mut event.rows, event.first, parts, &stored, &mut slots).is_err() {
                    break;
                }
            }
        }
    });
}

/// What comes compressed grows as it is read, not as its head says.
#[test]
fn compressed_events() {
    check!().with_test_time(time()).for_each(|bytes: &[u8]| {
        let _ = unpack(bytes);
        if let Ok(mut payload) = Payload::open(bytes) {
            while let Ok(Some(_)) = payload.next_event() {}
        }
    });
}

#[test]
fn values_of_every_type() {
    let types: Vec<SqlType> = DECLARED.iter().map(|declared| SqlType::parse(declared).expect("it is known")).collect();
    check!().with_test_time(time()).for_each(|bytes: &[u8]| {
        let [which, number, rest @ ..] = bytes else { return };
        let ty = &types[usize::from(*which) % types.len()];
        for column_type in [ty.column_type(), ColumnType::Text] {
            let mut columns = Columns::new([&column_type]);
            if let Ok(value) = text::decode(ty, rest) {
                for policy in [Unfit::Companion, Unfit::Clamp, Unfit::DeadLetter] {
                    if value.push(0, policy, &mut columns).is_ok() {
                        columns.end_row();
                    }
                }
            }
            let mut reader = Reader::new(rest);
            let Ok(stored) = Stored::read(*number, &mut reader) else { continue };
            if !stored.is_of(ty) {
                continue;
            }
            let column = ImageColumn { stored, ty: ty.clone(), charset: Some(Arc::new(Charset::Utf8)) };
            let Ok(value) = stored.take(&mut reader) else { continue };
            if let Ok(Ok(value)) = decode(&column, value, &mut Scratch::default())
                && value.push(0, Unfit::Companion, &mut columns).is_ok()
            {
                columns.end_row();
            }
        }
    });
}

#[test]
fn binary_json() {
    check!().with_test_time(time()).for_each(|bytes: &[u8]| {
        let mut text = String::new();
        if json::print(bytes, &mut text).is_ok() {
            // The three bytes of an element can be a number of 24 characters.
            assert!(text.len() <= 10 * bytes.len() + 32, "{} bytes became {}", bytes.len(), text.len());
        }
    });
}

#[test]
fn statements_and_declarations() {
    check!().with_test_time(time()).for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let _ = (ddl::effects(&text, "schema"), SqlType::parse(&text));
    });
}
