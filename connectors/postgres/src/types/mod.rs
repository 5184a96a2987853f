//! What PostgreSQL's types become, and how their values are taken from the wire.
//!
//! The one place that maps `(type oid, typmod)` to a [`ColumnType`]; [`binary`] decodes COPY's binary values, [`text`]
//! those of pgoutput, [`render`] turns binary values into the server's text, [`unfit`] takes what does not fit. Both ways
//! give the same cells, which `tests/types.rs` holds.
//!
//! Manual: chapter 8 "Data Types", section 53.64 `pg_type`; sources: the `*_send` functions in `src/backend/utils/adt`.

pub mod binary;
pub mod block;
pub mod copy_data;
pub mod render;
pub mod text;
pub mod unfit;

use std::collections::HashMap;

use millrace_core::{ColumnType, Kind, Result, error::Error};

/// A base type whose values we take apart; everything else is [`Scalar::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// `boolean`.
    Bool,
    /// `smallint`.
    Int2,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// `real`.
    Float4,
    /// `double precision`.
    Float8,
    /// `numeric(p,s)` that fits 128 bits.
    Decimal {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits behind the point, at most `precision`.
        scale: u8,
    },
    /// Every other `numeric`, as exact text.
    Numeric,
    /// `text`, `varchar`, `bpchar`, `name`, `citext`, `json` and enums: the binary form is the text.
    Text,
    /// `jsonb`: a version byte, then text.
    Jsonb,
    /// `bytea`.
    Bytea,
    /// `uuid`.
    Uuid,
    /// `date`.
    Date,
    /// `time` without time zone.
    Time,
    /// `timestamp` without time zone.
    Timestamp,
    /// `timestamptz`.
    TimestampTz,
    /// `interval`, as text in the server's `postgres` style.
    Interval,
    /// `"char"`, whose text differs by server version: the server is asked for it.
    Char,
    /// Any other type, as the server prints it.
    Other,
}

/// A column's type at the source, resolved through domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PgType {
    /// One value.
    Scalar(Scalar),
    /// An array of values.
    Array(Scalar),
}

impl Scalar {
    /// What its values become.
    pub fn column_type(self) -> ColumnType {
        match self {
            Self::Bool => ColumnType::Boolean,
            Self::Int2 => ColumnType::Int16,
            Self::Int4 => ColumnType::Int32,
            Self::Int8 => ColumnType::Int64,
            Self::Float4 => ColumnType::Float32,
            Self::Float8 => ColumnType::Float64,
            Self::Decimal { precision, scale } => ColumnType::Decimal { precision, scale },
            Self::Bytea => ColumnType::Binary,
            Self::Date => ColumnType::Date,
            Self::Time => ColumnType::Time,
            Self::Timestamp => ColumnType::Timestamp,
            Self::TimestampTz => ColumnType::TimestampTz,
            Self::Numeric | Self::Text | Self::Jsonb | Self::Uuid | Self::Interval | Self::Char | Self::Other => {
                ColumnType::Text
            }
        }
    }

    /// Whether the server is asked for the text, because we do not know the binary form.
    fn is_cast(self) -> bool {
        matches!(self, Self::Char | Self::Other)
    }
}

impl PgType {
    /// What its values become.
    pub fn column_type(self) -> ColumnType {
        match self {
            Self::Scalar(scalar) => scalar.column_type(),
            Self::Array(item) => ColumnType::List(Box::new(item.column_type())),
        }
    }

    /// Whether a SELECT must ask for the server's text instead of the value.
    pub fn is_cast(self) -> bool {
        matches!(self, Self::Scalar(scalar) | Self::Array(scalar) if scalar.is_cast())
    }

    /// What a SELECT says for the column so that [`binary`] can read it.
    ///
    /// The text must be that of the type's output function, which is what the log sends. A cast to text is not always
    /// that: `inet` has one of its own, which appends `/32`, and so may any extension's type. `format` calls the output
    /// function, and so does an array's conversion to text. `IS NOT NULL` would be false for a row with a null in it.
    pub fn selected(self, column: &str) -> String {
        match self {
            _ if !self.is_cast() => column.to_string(),
            Self::Scalar(_) => {
                format!("CASE WHEN {column} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {column}) END")
            }
            Self::Array(_) => format!("{column}::pg_catalog.text::pg_catalog.text[]"),
        }
    }

    /// The type of what arrives after [`Self::selected`].
    pub fn after_cast(self) -> Self {
        match self {
            Self::Scalar(scalar) if scalar.is_cast() => Self::Scalar(Scalar::Text),
            Self::Array(item) if item.is_cast() => Self::Array(Scalar::Text),
            other => other,
        }
    }
}

/// What `pg_type` says about one type.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TypeRow {
    name: String,
    /// `b` base, `d` domain, `e` enum, and others.
    kind: u8,
    /// The type a domain stands for.
    base: u32,
    /// The modifier a domain gives it.
    base_typmod: i32,
    /// The items' type of a true array; 0 otherwise.
    element: u32,
}

/// The types of one database. Types made later are not in it: load it again when [`TypeCatalog::resolve`] gives `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeCatalog {
    types: HashMap<u32, TypeRow>,
}

impl TypeCatalog {
    /// The query whose text rows [`Self::from_rows`] takes. Row types of tables are left out: there are two per table,
    /// and they are all [`Scalar::Other`].
    pub const QUERY: &'static str = "SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typtypmod, \
         CASE WHEN e.typarray = t.oid THEN t.typelem ELSE 0 END \
         FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typelem <> 0 \
         WHERE t.typtype <> 'c' AND (e.typtype IS NULL OR e.typtype <> 'c')";

    /// Builds it from the rows of [`Self::QUERY`].
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a [Option<String>]>) -> Result<Self> {
        let mut types = HashMap::new();
        for row in rows {
            let [Some(oid), Some(name), Some(kind), Some(base), Some(base_typmod), Some(element)] = row else {
                return Err(Error::new(Kind::Protocol, "reading pg_type: a row of another shape"));
            };
            let row = TypeRow {
                name: name.clone(),
                kind: kind.bytes().next().unwrap_or(b'b'),
                base: parse(base)?,
                base_typmod: parse(base_typmod)?,
                element: parse(element)?,
            };
            types.insert(parse(oid)?, row);
        }
        Ok(Self { types })
    }

    /// What the type is; `None` if the catalog does not have it (a new type, or a table's row type).
    pub fn resolve(&self, oid: u32, typmod: i32) -> Option<PgType> {
        if let Some(scalar) = built_in(oid, typmod) {
            return Some(PgType::Scalar(scalar));
        }
        let row = self.types.get(&oid)?;
        match row.kind {
            b'd' => self.resolve(row.base, row.base_typmod),
            b'e' => Some(PgType::Scalar(Scalar::Text)),
            _ if row.element != 0 => Some(self.resolve_array(row.element, typmod)),
            _ if row.name == "citext" => Some(PgType::Scalar(Scalar::Text)),
            _ => Some(PgType::Scalar(Scalar::Other)),
        }
    }

    /// As [`Self::resolve`]; what the catalog does not have is text.
    pub fn resolve_or_text(&self, oid: u32, typmod: i32) -> PgType {
        self.resolve(oid, typmod).unwrap_or(PgType::Scalar(Scalar::Other))
    }

    /// An array of arrays (by way of a domain) and one of types that we do not take apart is text as a whole: its
    /// delimiter and its quoting are the server's business.
    fn resolve_array(&self, element: u32, typmod: i32) -> PgType {
        match self.resolve_or_text(element, typmod) {
            PgType::Scalar(Scalar::Other) | PgType::Array(_) => PgType::Scalar(Scalar::Other),
            PgType::Scalar(item) => PgType::Array(item),
        }
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::new(Kind::Protocol, "reading pg_type: a number that is none"))
}

/// Types with a fixed oid (`src/include/catalog/pg_type.dat`).
fn built_in(oid: u32, typmod: i32) -> Option<Scalar> {
    Some(match oid {
        16 => Scalar::Bool,
        17 => Scalar::Bytea,
        18 => Scalar::Char,
        20 => Scalar::Int8,
        21 => Scalar::Int2,
        23 => Scalar::Int4,
        // name, text, json, bpchar, varchar
        19 | 25 | 114 | 1042 | 1043 => Scalar::Text,
        700 => Scalar::Float4,
        701 => Scalar::Float8,
        1082 => Scalar::Date,
        1083 => Scalar::Time,
        1114 => Scalar::Timestamp,
        1184 => Scalar::TimestampTz,
        1186 => Scalar::Interval,
        1700 => numeric(typmod),
        2950 => Scalar::Uuid,
        3802 => Scalar::Jsonb,
        _ => return None,
    })
}

/// `numeric`'s modifier: precision in the upper half, scale in the lower 11 bits, signed since PostgreSQL 15
/// (`numeric_typmod_scale`), plus 4; -1 is none.
fn numeric(typmod: i32) -> Scalar {
    let Some(packed) = typmod.checked_sub(4).filter(|packed| *packed >= 0) else { return Scalar::Numeric };
    let precision = (packed >> 16) & 0xffff;
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale <= precision => Scalar::Decimal { precision, scale },
        _ => Scalar::Numeric,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: [&str; 6]) -> Vec<Option<String>> {
        cells.iter().map(|cell| Some(cell.to_string())).collect()
    }

    fn catalog() -> TypeCatalog {
        let rows = [
            row(["1231", "_numeric", "b", "0", "-1", "1700"]),
            row(["600", "point", "b", "0", "-1", "0"]),
            row(["1017", "_point", "b", "0", "-1", "600"]),
            row(["9001", "mood", "e", "0", "-1", "0"]),
            row(["9002", "_mood", "b", "0", "-1", "9001"]),
            row(["9003", "price", "d", "1700", "655366", "0"]),
            row(["9004", "_price", "b", "0", "-1", "9003"]),
            row(["9005", "price2", "d", "9003", "-1", "0"]),
            row(["9006", "prices", "d", "1231", "655366", "0"]),
            row(["9007", "_prices", "b", "0", "-1", "9006"]),
            row(["9008", "citext", "b", "0", "-1", "0"]),
        ];
        TypeCatalog::from_rows(rows.iter().map(Vec::as_slice)).unwrap()
    }

    #[test]
    fn resolves_domains_enums_and_arrays() {
        let decimal = Scalar::Decimal { precision: 10, scale: 2 };
        let catalog = catalog();
        for (oid, typmod, expected) in [
            (1231, 655_366, Some(PgType::Array(decimal))),
            (1231, -1, Some(PgType::Array(Scalar::Numeric))),
            (600, -1, Some(PgType::Scalar(Scalar::Other))),
            (1017, -1, Some(PgType::Scalar(Scalar::Other))),
            (9001, -1, Some(PgType::Scalar(Scalar::Text))),
            (9002, -1, Some(PgType::Array(Scalar::Text))),
            (9003, -1, Some(PgType::Scalar(decimal))),
            (9004, -1, Some(PgType::Array(decimal))),
            (9005, -1, Some(PgType::Scalar(decimal))),
            (9006, -1, Some(PgType::Array(decimal))),
            (9007, -1, Some(PgType::Scalar(Scalar::Other))),
            (9008, -1, Some(PgType::Scalar(Scalar::Text))),
            (18, -1, Some(PgType::Scalar(Scalar::Char))),
            (77_777, -1, None),
        ] {
            assert_eq!(catalog.resolve(oid, typmod), expected, "{oid} {typmod}");
        }
    }

    #[test]
    fn numeric_modifiers() {
        let typmod = |precision: i32, scale: i32| ((precision << 16) | (scale & 0x7ff)) + 4;
        assert_eq!(numeric(typmod(38, 38)), Scalar::Decimal { precision: 38, scale: 38 });
        assert_eq!(numeric(typmod(1, 0)), Scalar::Decimal { precision: 1, scale: 0 });
        for other in [-1, typmod(39, 2), typmod(5, -2), typmod(2, 3), typmod(1000, 1000), 0, 4, i32::MIN, i32::MAX] {
            assert_eq!(numeric(other), Scalar::Numeric, "{other}");
        }
    }
}
