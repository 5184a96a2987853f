//! What the server's types are, and what they become.
//!
//! - [`value`]: one value, and how it gets into its column; both ways of reading end there
//! - [`text`]: from the text protocol, for loads; [`direct`]: a short way for most of them; [`image`]: from the binary log
//! - [`json`]: MySQL's binary JSON of the binary log
//! - [`charset`]: text of the binary log is in the column's own character set

pub mod charset;
pub mod direct;
pub mod image;
pub mod json;
pub mod text;
pub mod value;

use std::sync::Arc;

use millrace_core::{Becomes, Column, ColumnType, Table, TableName, Unfit, ValueRules};

/// A type as the server declares it. It is read from [`Column::source_type`], so that a stored shape tells all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlType {
    /// TINYINT to BIGINT.
    Int {
        /// 1, 2, 3, 4 or 8.
        bytes: u8,
        /// Without a sign.
        unsigned: bool,
    },
    /// YEAR.
    Year,
    /// FLOAT.
    Float,
    /// DOUBLE.
    Double,
    /// DECIMAL.
    Decimal {
        /// Digits in all, 1 to 65.
        precision: u8,
        /// Digits behind the point, 0 to 38.
        scale: u8,
    },
    /// BIT of 1 to 64 bits.
    Bit(u8),
    /// DATE.
    Date,
    /// TIME with so many digits of a second.
    Time(u8),
    /// DATETIME, likewise.
    Datetime(u8),
    /// TIMESTAMP, likewise.
    Timestamp(u8),
    /// CHAR, VARCHAR, TEXT in this character set.
    Text(Arc<str>),
    /// VARBINARY, BLOB; BINARY with its length, to which the log's values are padded.
    Binary(Option<usize>),
    /// ENUM: its labels.
    Enum(Arc<[String]>),
    /// SET: its labels.
    Set(Arc<[String]>),
    /// MySQL's JSON, which the log has in a binary form. (MariaDB's is a text.)
    Json,
    /// POINT to GEOMETRYCOLLECTION: the server's own form, four bytes of SRID and then WKB. MySQL's VECTOR: its floats.
    Opaque,
    /// MariaDB's UUID.
    Uuid,
    /// MariaDB's INET6.
    Inet6,
    /// MariaDB's INET4.
    Inet4,
}

impl SqlType {
    /// Reads `information_schema.COLUMNS.COLUMN_TYPE`, with `character set …` behind it where there is one.
    pub fn parse(source_type: &str) -> Option<Self> {
        let (declared, charset) = match source_type.rsplit_once(" character set ") {
            Some((declared, charset)) => (declared, Some(charset)),
            None => (source_type, None),
        };
        let end = declared.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(declared.len());
        let (name, rest) = declared.split_at(end);
        let arguments = rest.strip_prefix('(').and_then(|rest| rest.rsplit_once(')')).map(|(inside, _)| inside);
        let number =
            |index: usize| arguments.and_then(|inside| inside.split(',').nth(index)?.trim().parse::<u8>().ok());
        let int = |bytes| Self::Int { bytes, unsigned: rest.contains("unsigned") };
        let text = || Some(Self::Text(charset?.into()));
        Some(match name {
            "tinyint" => int(1),
            "smallint" => int(2),
            "mediumint" => int(3),
            "int" => int(4),
            "bigint" => int(8),
            "year" => Self::Year,
            "float" => Self::Float,
            "double" => Self::Double,
            "decimal" => Self::Decimal { precision: number(0)?, scale: number(1)? },
            "bit" => Self::Bit(number(0)?),
            "date" => Self::Date,
            "time" => Self::Time(number(0).unwrap_or(0)),
            "datetime" => Self::Datetime(number(0).unwrap_or(0)),
            "timestamp" => Self::Timestamp(number(0).unwrap_or(0)),
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => text()?,
            "binary" => Self::Binary(Some(arguments?.parse().ok()?)),
            "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Self::Binary(None),
            "enum" => Self::Enum(labels(arguments?)?.into()),
            "set" => Self::Set(labels(arguments?)?.into()),
            "json" => Self::Json,
            "uuid" => Self::Uuid,
            "inet6" => Self::Inet6,
            "inet4" => Self::Inet4,
            "vector" | "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
            | "multipolygon" | "geometrycollection" | "geomcollection" => Self::Opaque,
            _ => return None,
        })
    }

    /// What its values become where no rule says otherwise.
    pub fn column_type(&self) -> ColumnType {
        match self {
            Self::Int { bytes: 1, .. } | Self::Int { bytes: 2, unsigned: false } | Self::Year => ColumnType::Int16,
            Self::Int { bytes: 2 | 3, .. } | Self::Int { bytes: 4, unsigned: false } => ColumnType::Int32,
            Self::Int { bytes: 8, unsigned: true } | Self::Bit(64) => ColumnType::Decimal { precision: 20, scale: 0 },
            Self::Bit(1) => ColumnType::Boolean,
            Self::Int { .. } | Self::Bit(_) => ColumnType::Int64,
            Self::Float => ColumnType::Float32,
            Self::Double => ColumnType::Float64,
            Self::Decimal { precision, scale } if *precision <= 38 => {
                ColumnType::Decimal { precision: *precision, scale: *scale }
            }
            Self::Date => ColumnType::Date,
            Self::Time(_) => ColumnType::Time,
            Self::Datetime(_) => ColumnType::Timestamp,
            Self::Timestamp(_) => ColumnType::TimestampTz,
            Self::Binary(_) | Self::Opaque => ColumnType::Binary,
            Self::Decimal { .. } | Self::Text(_) | Self::Enum(_) | Self::Set(_) | Self::Json => ColumnType::Text,
            Self::Uuid | Self::Inet6 | Self::Inet4 => ColumnType::Text,
        }
    }

    /// What a load selects. The text protocol prints a FLOAT with six digits, and a DOUBLE(M,D) with D behind the point;
    /// as part of an expression both come with all they have.
    pub fn selected(&self, quoted_name: &str) -> String {
        match self {
            Self::Float | Self::Double => format!("{quoted_name} * 1e0"),
            _ => quoted_name.to_string(),
        }
    }

    /// Whether the server has values that the column cannot hold.
    fn has_unfit_values(&self) -> bool {
        matches!(self, Self::Date | Self::Time(_) | Self::Datetime(_) | Self::Timestamp(_))
    }
}

/// The labels between the parentheses of ENUM or SET. The catalog doubles a quote within one, and writes a backslash before
/// itself and before the letters that stand for a line's end, a carriage return, and zero.
fn labels(arguments: &str) -> Option<Vec<String>> {
    let mut labels = vec![];
    let mut rest = arguments.chars().peekable();
    loop {
        let mut label = String::new();
        (rest.next()? == '\'').then_some(())?;
        loop {
            match rest.next()? {
                '\\' => label.push(match rest.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    '0' => '\0',
                    itself => itself,
                }),
                '\'' if rest.next_if_eq(&'\'').is_none() => break,
                plain => label.push(plain),
            }
        }
        labels.push(label);
        match rest.next() {
            None => return Some(labels),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

/// The types of a table's columns.
pub fn of_table(table: &Table) -> Option<Vec<SqlType>> {
    table.columns.iter().map(|column| SqlType::parse(&column.source_type)).collect()
}

/// Gives the columns the types that the task's rules say.
pub fn retype(rules: &ValueRules, table: &mut Table) {
    let name = table.name.clone();
    for column in &mut table.columns {
        let Some(sql) = SqlType::parse(&column.source_type) else { continue };
        let (unfit, becomes) = rule(rules, &name, column);
        column.ty = match becomes {
            Some(Becomes::Text) => ColumnType::Text,
            Some(Becomes::Decimal { precision, scale }) if matches!(sql, SqlType::Decimal { .. }) => {
                ColumnType::Decimal { precision, scale }
            }
            _ if unfit == Unfit::Text && sql.has_unfit_values() => ColumnType::Text,
            _ => sql.column_type(),
        };
    }
}

/// What becomes of the values of each column that it cannot hold. A key's values are never clamped: two rows would become
/// one.
pub fn policies(rules: &ValueRules, table: &Table) -> Vec<Unfit> {
    let policy = |(index, column): (usize, &Column)| match rule(rules, &table.name, column).0 {
        Unfit::Clamp if table.key.contains(&index) => Unfit::Companion,
        policy => policy,
    };
    table.columns.iter().enumerate().map(policy).collect()
}

fn rule(rules: &ValueRules, table: &TableName, column: &Column) -> (Unfit, Option<Becomes>) {
    let name = |text: &str| {
        let word = text.split(['(', ' ']).next().unwrap_or_default().to_ascii_lowercase();
        if word == "numeric" { "decimal".to_string() } else { word }
    };
    let own = name(&column.source_type);
    rules.of(table, &column.name, |rule| name(rule) == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let text = |charset: &str| Some(SqlType::Text(charset.into()));
        for (declared, expected) in [
            ("tinyint(1)", Some(SqlType::Int { bytes: 1, unsigned: false })),
            ("bigint(20) unsigned zerofill", Some(SqlType::Int { bytes: 8, unsigned: true })),
            ("decimal(65,30)", Some(SqlType::Decimal { precision: 65, scale: 30 })),
            ("double(10,2)", Some(SqlType::Double)),
            ("time(6)", Some(SqlType::Time(6))),
            ("datetime", Some(SqlType::Datetime(0))),
            ("varchar(20) character set gbk", text("gbk")),
            ("binary(300)", Some(SqlType::Binary(Some(300)))),
            ("set('x','y') character set utf8mb4", Some(SqlType::Set(vec!["x".into(), "y".into()].into()))),
            ("enum('it''s','a,b',')')", Some(SqlType::Enum(vec!["it's".into(), "a,b".into(), ")".into()].into()))),
            ("point", Some(SqlType::Opaque)),
            (r"enum('a\\b\n','''')", Some(SqlType::Enum(vec!["a\\b\n".into(), "'".into()].into()))),
            ("varchar(20)", None),
            ("something", None),
            ("enum('a", None),
        ] {
            assert_eq!(SqlType::parse(declared), expected, "{declared}");
        }
    }

    #[test]
    fn every_integer_fits_its_column() {
        let ty = |declared: &str| SqlType::parse(declared).unwrap().column_type();
        assert_eq!(ty("tinyint(3) unsigned"), ColumnType::Int16);
        assert_eq!(ty("smallint(5) unsigned"), ColumnType::Int32);
        assert_eq!(ty("mediumint(8) unsigned"), ColumnType::Int32);
        assert_eq!(ty("int(10) unsigned"), ColumnType::Int64);
        assert_eq!(ty("bigint(20) unsigned"), ColumnType::Decimal { precision: 20, scale: 0 });
        assert_eq!(ty("bit(1)"), ColumnType::Boolean);
        assert_eq!(ty("bit(63)"), ColumnType::Int64);
        assert_eq!(ty("decimal(39,0)"), ColumnType::Text);
    }
}
