//! Values that the log did not send, read anew by key (`binlog_row_image` MINIMAL and NOBLOB, `binlog_row_value_options`).

use std::{slice, time::Duration};

use millrace_core::{
    Column, ColumnType, ColumnVec, Columns, Error, Kind, Result, Table, Values, error::Context, source::Lookup,
};

use crate::{
    MysqlConfig, Options,
    discover::{self, quote_literal, quote_name, quote_table},
    gtid::Executed,
    log::HandedOut,
    lower_bound,
    server::Place,
    snapshot::{begin, begin_under_lock, begin_with_place},
    two_phases,
    types::{self, SqlType, text, value::Value},
    wire::{Connection, Reader, code},
};

/// Keys of one statement.
const KEYS_AT_ONCE: usize = 500;
/// A statement is not made longer; bytes. Servers take 4 MiB or more (`max_allowed_packet`), and a key has 3 KiB at most.
const STATEMENT_BYTES_MAX: usize = 1 << 20;

/// While a snapshot does not have yet what the log has handed out.
const PAUSE: Duration = Duration::from_millis(2);
/// A commit that waits for a replica takes as long as the server waits for that; beyond, the log is opened anew.
const VISIBLE_MAX: Duration = Duration::from_secs(60);
/// What takes longer is asked for under the lock: the server may have forgotten its GTIDs.
const COMMITTED_MAX: Duration = Duration::from_secs(10);

/// Opens a snapshot in which everything that the log has handed out is visible: a transaction is in the log a moment before
/// its engine shows it. MySQL does not tell what a snapshot has, but what is committed, if everything has a GTID; else the
/// snapshot is opened when no transaction is between the two, or by what it has at least.
pub async fn wait_until_visible(config: &MysqlConfig, session: &mut Connection, handed_out: &HandedOut) -> Result<()> {
    if session.is_mariadb() {
        two_phases::wait_until_shown(session, &handed_out.two_phases).await?;
    } else {
        if let Some(executed) = &handed_out.executed
            && wait_until_committed(session, executed).await?
        {
            return begin(session).await;
        }
        match begin_under_lock(config, slice::from_mut(session)).await {
            Err(error) if lower_bound::is_lock_refused(&error) => {}
            begun => return begun.map(|_| ()),
        }
    }
    let (wanted, began) = (Place::of(handed_out.position), tokio::time::Instant::now());
    loop {
        let (number, offset) = if session.is_mariadb() {
            let (file, offset) = begin_with_place(session).await?;
            (file.rsplit('.').next().and_then(|digits| digits.parse::<u32>().ok()).unwrap_or_default(), offset)
        } else {
            let place = lower_bound::begin_behind_bound(config, slice::from_mut(session)).await?;
            (place.file, place.offset)
        };
        if (number, offset) >= (wanted.file, wanted.offset) {
            return Ok(());
        }
        if began.elapsed() > VISIBLE_MAX {
            return Err(Error::new(Kind::Connection, "waiting for what the log has to be visible")
                .with("the server does not show it; it may have begun its log anew"));
        }
        session.execute("COMMIT").await?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether all these transactions are committed within some seconds.
async fn wait_until_committed(session: &mut Connection, executed: &Executed) -> Result<bool> {
    let sql = format!("SELECT GTID_SUBSET({}, @@global.gtid_executed)", quote_literal(&executed.to_string()));
    let began = tokio::time::Instant::now();
    while began.elapsed() < COMMITTED_MAX {
        let rows = session.query(&sql).await?;
        if rows.first().and_then(|row| row.first()?.as_deref()) == Some("1") {
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(false)
}

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
    let (mut rows, selected) = ((0..keys.rows()).peekable(), selected.join(", "));
    while rows.peek().is_some() {
        let sql = statement(table, &all_types, keys, &selected, &mut rows);
        session.rows(&sql).await.map_err(|error| {
            // The column is gone by now.
            let kind = if code(&error) == Some(1054) { Kind::SchemaChange } else { error.kind };
            Error { kind, doing: doing(), ..error }
        })?;
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
    // A name may be that of another column by now. The transaction keeps the table as its rows were read.
    let now = discover::named(session, slice::from_ref(&table.name)).await?.pop().map(|shape| shape.table);
    let alike = |(own, now): (&Column, &Column)| own.name == now.name && own.source_type == now.source_type;
    let is_same = now.is_some_and(|now| {
        now.columns.len() == table.columns.len() && table.columns.iter().zip(&now.columns).all(alike)
    });
    if keys.rows() > 0 && !is_same {
        return Err(Error::new(Kind::SchemaChange, doing()).with("the table was altered since these rows were written"));
    }
    Ok(answer)
}

/// Selects the next rows by their keys, each with its number.
fn statement(
    table: &Table,
    all_types: &[SqlType],
    keys: &Columns,
    selected: &str,
    rows: &mut impl Iterator<Item = usize>,
) -> String {
    let (mut sql, mut count) = (String::new(), 0);
    while count < KEYS_AT_ONCE && sql.len() < STATEMENT_BYTES_MAX {
        let Some(row) = rows.next() else { break };
        let conditions = table.key.iter().enumerate().map(|(place, &index)| {
            let name = quote_name(&table.columns[index].name);
            let key = match keys.exact(row, place) {
                Some(text) if is_number(&all_types[index]) => text.to_string(),
                Some(text) => quote_literal(text),
                None => literal(&keys.columns()[place], row, &all_types[index]),
            };
            format!("{name} = {key}")
        });
        let condition = conditions.collect::<Vec<_>>().join(" AND ");
        let union = if count == 0 { "" } else { " UNION ALL " };
        sql += &format!("{union}(SELECT {row}, {selected} FROM {} WHERE {condition})", quote_table(&table.name));
        count += 1;
    }
    sql + " ORDER BY 1"
}

/// Whether its values, as text, are written without quotes.
fn is_number(ty: &SqlType) -> bool {
    matches!(ty, SqlType::Bit(_) | SqlType::Decimal { .. })
}

/// A value as SQL takes it in a comparison with its column.
fn literal(column: &ColumnVec, row: usize, ty: &SqlType) -> String {
    let printed = |value: Value<'_>| {
        let mut text = String::new();
        value.print(&mut text);
        quote_literal(&text)
    };
    match (column.ty(), column.values()) {
        (ColumnType::Date, Values::Int32(days)) => printed(Value::Date(days[row])),
        (ColumnType::Timestamp | ColumnType::TimestampTz, Values::Int64(micros)) => {
            printed(Value::Moment(micros[row], 6))
        }
        (ColumnType::Time, Values::Int64(micros)) => printed(Value::Time(micros[row], 6)),
        (ColumnType::Binary, _) => {
            let bytes = column.bytes(row).unwrap_or_default();
            format!("x'{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
        // A text would be taken for its bytes, or compared as a float.
        (ColumnType::Text, _) if is_number(ty) => column.cell_text(row).unwrap_or_default(),
        (ColumnType::Text, _) => quote_literal(&column.cell_text(row).unwrap_or_default()),
        // Unquoted, so that it is compared exactly.
        (&ColumnType::Decimal { scale, .. }, Values::Decimal(unscaled)) => {
            let mut text = String::new();
            Value::Decimal(unscaled[row], scale).print(&mut text);
            text
        }
        // As doubles, which both are compared as: the shortest text of a FLOAT is another double than the one stored.
        (_, Values::Float32(values)) => format!("{:e}", f64::from(values[row])),
        (_, Values::Float64(values)) => format!("{:e}", values[row]),
        // Numbers, and `true`: in quotes they would be compared as floats.
        _ => column.cell_text(row).unwrap_or_else(|| "NULL".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_the_server_reads_them() {
        let of = |ty: ColumnType, push: &dyn Fn(&mut ColumnVec)| {
            let mut column = ColumnVec::new(&ty);
            push(&mut column);
            literal(&column, 0, &SqlType::Year)
        };
        assert_eq!(of(ColumnType::Timestamp, &|c| c.push_i64(1_500_000)), "'1970-01-01 00:00:01.500000'");
        assert_eq!(of(ColumnType::Date, &|c| c.push_i32(1)), "'1970-01-02'");
        assert_eq!(of(ColumnType::Text, &|c| c.push_str("it's")), "'it''s'");
        assert_eq!(of(ColumnType::Binary, &|c| c.push_bytes(&[0, 255])), "x'00ff'");
        let mut bits = ColumnVec::new(&ColumnType::Text);
        bits.push_str("300");
        assert_eq!(literal(&bits, 0, &SqlType::Bit(16)), "300");
        assert_eq!(of(ColumnType::Int64, &|c| c.push_i64(-5)), "-5");
        assert_eq!(of(ColumnType::Float32, &|c| c.push_f32(1.1)), "1.100000023841858e0");
        assert_eq!(of(ColumnType::Float64, &|c| c.push_f64(-1e300)), "-1e300");
        let money = ColumnType::Decimal { precision: 20, scale: 5 };
        assert_eq!(of(money.clone(), &|c| c.push_decimal(-110_000)), "-1.10000");
        assert_eq!(of(money, &|c| c.push_decimal(1)), "0.00001");
        assert_eq!(of(ColumnType::Boolean, &|c| c.push_bool(true)), "true");
    }
}
