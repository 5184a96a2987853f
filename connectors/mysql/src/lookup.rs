//! Values that the log did not send, read anew by key (`binlog_row_image` MINIMAL and NOBLOB).

use millrace_core::{Columns, Error, Kind, Result, Table, error::Context, source::Lookup};

use crate::{
    Options,
    discover::{quote_literal, quote_name, quote_table},
    types::{self, text},
    wire::{Connection, Reader},
};

/// Keys of one statement.
const KEYS_AT_ONCE: usize = 500;

/// Reads columns of rows by key.
pub async fn read(
    session: &mut Connection,
    table: &Table,
    keys: &Columns,
    columns: &[usize],
    options: &Options,
) -> Result<Lookup> {
    let doing = || format!("looking unchanged values of {} up", table.name);
    let all_types = types::of_table(table).ok_or_else(|| Error::new(Kind::SchemaChange, doing()))?;
    let policies = types::policies(&options.values, table);
    let wanted = columns.iter().map(|&index| &table.columns[index].ty);
    let mut answer = Lookup { found: vec![], columns: Columns::new(wanted), rejected: vec![] };
    let selected: Vec<String> =
        columns.iter().map(|&index| all_types[index].selected(&quote_name(&table.columns[index].name))).collect();
    for first in (0..keys.rows()).step_by(KEYS_AT_ONCE) {
        let rows = first..(first + KEYS_AT_ONCE).min(keys.rows());
        let one = |row: usize| {
            let conditions = table.key.iter().enumerate().map(|(place, &index)| {
                let name = quote_name(&table.columns[index].name);
                match keys.columns()[place].bytes(row).filter(|_| matches!(all_types[index], types::SqlType::Binary(_)))
                {
                    Some(bytes) => format!("{name} = x'{}'", hex(bytes)),
                    None => {
                        let text =
                            keys.exact(row, place).map(String::from).or_else(|| keys.columns()[place].cell_text(row));
                        format!("{name} = {}", quote_literal(&text.unwrap_or_default()))
                    }
                }
            });
            let condition = conditions.collect::<Vec<_>>().join(" AND ");
            format!("(SELECT {row}, {} FROM {} WHERE {condition})", selected.join(", "), quote_table(&table.name))
        };
        let sql = rows.map(one).collect::<Vec<_>>().join(" UNION ALL ") + " ORDER BY 1";
        session.rows(&sql).await.map_err(|error| Error { doing: doing(), ..error })?;
        while let Some(row) = session.next_row().await? {
            let mut reader = Reader::new(row);
            let number = reader.cell().context(Kind::Protocol, doing)?.unwrap_or_default();
            let number: u32 = std::str::from_utf8(number).ok().and_then(|n| n.parse().ok()).unwrap_or_default();
            let mut refused = None;
            for (place, &index) in columns.iter().enumerate() {
                match reader.cell().context(Kind::Protocol, doing)? {
                    None => answer.columns.column_mut(place).push_null(),
                    Some(bytes) => {
                        let pushed = text::decode(&all_types[index], bytes)
                            .and_then(|value| value.push(place, policies[index], &mut answer.columns));
                        if let Err(reason) = pushed {
                            refused = Some(format!("column {:?}: {reason}", table.columns[index].name));
                            break;
                        }
                    }
                }
            }
            match refused {
                Some(reason) => {
                    answer.columns.abort_row();
                    answer.rejected.push((number, reason));
                }
                None => {
                    answer.columns.end_row();
                    answer.found.push(number);
                }
            }
        }
    }
    Ok(answer)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
