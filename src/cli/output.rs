//! What commands print: JSON for programs, text for people; plain tables without colour, so that they can be piped.

use std::io::Write;

use comfy_table::{CellAlignment, Table, TableStyle};
use serde::Serialize;
use serde_json::json;

use super::Context;
use crate::telemetry::report::Told;

/// Prints the one or the other.
pub fn print<T: Serialize>(context: &Context, value: &T, text: impl FnOnce() -> String) {
    let text = match context.json {
        true => serde_json::to_string_pretty(value)
            .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string()),
        false => text(),
    };
    line(&text);
}

/// Prints lines to stdout. A reader that closed its end (`| head`) is no error of ours.
pub fn line(text: &str) {
    let text = text.trim_end_matches('\n');
    if !text.is_empty() {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Tells why a command failed: text on stderr, JSON on stdout.
pub fn failure(context: &Context, told: &[Told]) {
    if context.json {
        return print(context, &json!({ "findings": told }), String::new);
    }
    for told in told {
        let _ = writeln!(std::io::stderr(), "{told}");
    }
}

/// Rows below a header, columns two spaces apart; those of numbers to the right.
pub fn table(header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).force_no_tty().set_header(header.to_vec()).add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A whole number with its thousands apart: `1,234,567`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_and_aligned() {
        let rows = vec![vec!["public.orders".into(), number(1_234_567)], vec!["a".into(), number(12)]];
        let text = table(&["TABLE", "ROWS"], &[1], rows);
        assert_eq!(text, "TABLE               ROWS\npublic.orders  1,234,567\na                     12");
    }
}
