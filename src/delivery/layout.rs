//! Names of objects, as DMS lays them out; escaped so that no schema or table name can leave its folder.
//!
//! What stays as it is: letters and digits of any script, `-`, `_` and `.`. Everything else becomes `%XX` per byte of
//! UTF-8: slashes, percent signs, blanks, control characters, and what readers take for a pattern (`*`, `?`, `[`) or a
//! partition (`=`). A leading `.` or `_` is escaped too, because readers that follow Hive's conventions pass over such
//! names, and because folders of ours begin with an underscore.

use arrow_array::temporal_conversions::timestamp_us_to_datetime;
use md5::{Digest, Md5};
use millrace_core::TableName;

use crate::stream::LogPosition;

/// Rejected rows stand below this folder.
pub const DEAD_LETTERS: &str = "_dead_letters";

/// A file name may have 255 bytes on the usual filesystems.
const PART_BYTES_MAX: usize = 200;

/// `<schema>/<table>`.
pub fn folder(table: &TableName) -> String {
    format!("{}/{}", escape(&table.schema), escape(&table.name))
}

/// `<schema>/<table>/LOAD00000001.parquet`.
pub fn load_key(table: &TableName, number: u32) -> String {
    format!("{}/LOAD{number:08X}.parquet", folder(table))
}

/// `<schema>/<table>/20261123-140509123-000000000000a0f0.parquet`: when its round began, and where in the stream its
/// first change stands. No two objects have the same name: a place in a stream belongs to one table.
pub fn change_key(table: &TableName, time_us: i64, at: LogPosition) -> String {
    format!("{}/{}-{at}.parquet", folder(table), time_text(time_us))
}

/// `_dead_letters/<schema>/<table>/20261123-140509123-000000000000a0f0.jsonl`, with `name` behind the time.
pub fn dead_letters_key(table: &TableName, time_us: i64, name: &str) -> String {
    format!("{DEAD_LETTERS}/{}/{}-{name}.jsonl", folder(table), time_text(time_us))
}

fn time_text(time_us: i64) -> String {
    let time = timestamp_us_to_datetime(time_us).unwrap_or_default();
    time.format("%Y%m%d-%H%M%S%3f").to_string()
}

fn escape(part: &str) -> String {
    let mut escaped = String::with_capacity(part.len());
    for (index, c) in part.chars().enumerate() {
        let leading = index == 0 && matches!(c, '.' | '_');
        if !leading && (c.is_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            escaped.push(c);
        } else {
            let mut utf8 = [0; 4];
            escaped.extend(c.encode_utf8(&mut utf8).bytes().map(|byte| format!("%{byte:02X}")));
        }
    }
    if escaped.len() > PART_BYTES_MAX {
        // What is left of a name that is too long, with a hash of the whole to keep it apart from its like. `%-` comes
        // from here alone.
        let hash: String = Md5::digest(part).iter().map(|byte| format!("{byte:02x}")).collect();
        let end = (0..=PART_BYTES_MAX - 40).rev().find(|&end| escaped.is_char_boundary(end)).unwrap_or(0);
        return format!("{}%-{hash}", &escaped[..end]);
    }
    if escaped.is_empty() { "%".into() } else { escaped }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_those_of_dms() {
        let table = TableName::new("public", "orders");
        assert_eq!(load_key(&table, 26), "public/orders/LOAD0000001A.parquet");
        let time = 1_795_442_709_123_456;
        let at = LogPosition(0xa0f0);
        assert_eq!(change_key(&table, time, at), "public/orders/20261123-140509123-000000000000a0f0.parquet");
        let letters = dead_letters_key(&table, time, &at.to_string());
        assert_eq!(letters, "_dead_letters/public/orders/20261123-140509123-000000000000a0f0.jsonl");
    }

    // trap: 22
    #[test]
    fn what_could_leave_the_folder_is_escaped() {
        for (schema, name, expected) in [
            ("..", "a/../b", "%2E./a%2F..%2Fb"),
            ("_dead_letters", ".hidden", "%5Fdead_letters/%2Ehidden"),
            ("100%", "order items", "100%25/order%20items"),
            ("a=b", "x[1]*?", "a%3Db/x%5B1%5D%2A%3F"),
            ("Über", "\0\n", "Über/%00%0A"),
            ("", "t", "%/t"),
        ] {
            assert_eq!(folder(&TableName::new(schema, name)), expected);
        }
    }

    proptest! {
        #[test]
        fn every_part_is_one_plain_name(part in "\\PC{0,80}|[./_%a\\x00-\\x1f]{0,12}") {
            let escaped = escape(&part);
            prop_assert!(!escaped.is_empty() && escaped.len() <= PART_BYTES_MAX);
            prop_assert!(!escaped.contains('/') && !escaped.starts_with(['.', '_']));
            let unsafe_chars = escaped.chars().any(|c| c.is_control() || "\\:*?[]{}= '\"".contains(c));
            prop_assert!(!unsafe_chars);
        }

        // trap: 22
        #[test]
        fn different_names_stay_different(a in "[a./%_ é]{0,40}|[a./%_ é]{90,95}", b in "[a./%_ é]{0,40}|[a./%_ é]{90,95}") {
            prop_assert_eq!(a == b, escape(&a) == escape(&b));
        }
    }
}
