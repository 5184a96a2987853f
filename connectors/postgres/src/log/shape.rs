//! A table's shape as the log shows it, compared with the one we have.
//!
//! A Relation message names columns, type OIDs and modifiers; the catalog, which may be ahead of the log, tells the rest.

use std::collections::HashMap;

use millrace_core::{Capture, Column, ColumnType, Result, Table, TableName};

use super::attributes::{self, Attribute};
use crate::{
    discover::{self, CatalogRow, Shape},
    types::unfit,
    wire::{
        Connection,
        relation::{Relation, RelationColumn},
    },
};

/// What a type OID and a modifier stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeName {
    /// As `format_type` prints it.
    pub source_type: String,
    /// What its values become.
    pub ty: ColumnType,
}

/// The types seen so far. They do not change their meaning while a session lasts; a re-made type has another OID.
pub type TypeNames = HashMap<(u32, i32), TypeName>;

/// How a Relation stands to a table.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They are the same.
    Same,
    /// Columns from this one on are new; everything before is the same.
    Appended(usize),
    /// Something that is not applied; one sentence.
    Different(String),
    /// A type in it is not known yet.
    UnknownType,
}

/// Compares them.
pub fn compare(table: &Table, relation: &Relation, types: &TypeNames) -> Comparison {
    let name = TableName::new(schema_of(relation), relation.name.as_str());
    if table.name != name {
        return Comparison::Different(format!("it was renamed to {name}"));
    }
    for (column, shown) in table.columns.iter().zip(&relation.columns) {
        if column.name != shown.name {
            return Comparison::Different(format!("column {:?} was renamed or dropped", column.name));
        }
        match types.get(&(shown.type_oid, shown.type_modifier)) {
            None => return Comparison::UnknownType,
            Some(known) if known.source_type != column.source_type || !is_type_of(known, column) => {
                return Comparison::Different(format!(
                    "column {:?} changed its type from {} to {}",
                    column.name, column.source_type, known.source_type
                ));
            }
            Some(_) => {}
        }
    }
    if let Some(dropped) = table.columns.get(relation.columns.len()) {
        return Comparison::Different(format!("column {:?} was dropped", dropped.name));
    }
    if let Some(what) = compare_identity(table, relation) {
        return Comparison::Different(what);
    }
    if relation.columns.len() > table.columns.len() {
        return Comparison::Appended(table.columns.len());
    }
    Comparison::Same
}

/// Whether a column has the type that the log shows, or the one that a rule of the task gave it instead.
fn is_type_of(shown: &TypeName, column: &Column) -> bool {
    shown.ty == column.ty || unfit::may_be_retyped(&shown.ty, &column.ty)
}

/// A key or an identity that no longer carries what is captured.
fn compare_identity(table: &Table, relation: &Relation) -> Option<String> {
    if table.capture == Capture::InsertsOnly || relation.replica_identity == b'f' {
        return None;
    }
    let mut key = table.key.clone();
    key.sort_unstable();
    let identity = relation.columns.iter().enumerate().filter(|(_, column)| column.is_key).map(|(index, _)| index);
    (key.is_empty() || !identity.eq(key)).then(|| "its key or its replica identity changed".into())
}

/// The message leaves `pg_catalog` out.
pub fn schema_of(relation: &Relation) -> &str {
    if relation.schema.is_empty() { "pg_catalog" } else { &relation.schema }
}

/// Learns the types of these tables' columns, as they are now.
pub async fn learn_tables(connection: &mut Connection, oids: &[u64], types: &mut TypeNames) -> Result<()> {
    if oids.is_empty() {
        return Ok(());
    }
    let oids: Vec<String> = oids.iter().map(u64::to_string).collect();
    let rows = connection
        .query(&format!(
            "SELECT DISTINCT atttypid, atttypmod FROM pg_attribute WHERE attrelid IN ({}) AND attnum > 0 \
             AND NOT attisdropped",
            oids.join(",")
        ))
        .await?;
    let pairs: Result<Vec<(u32, i32)>> =
        rows.iter().map(|row| Ok((CatalogRow(row).number(0)?, CatalogRow(row).number(1)?))).collect();
    learn(connection, &pairs?, types).await
}

/// Learns these types.
pub async fn learn(connection: &mut Connection, pairs: &[(u32, i32)], types: &mut TypeNames) -> Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let catalog = discover::type_catalog(connection).await?;
    let values: Vec<String> = pairs.iter().map(|(oid, modifier)| format!("({oid}::oid,{modifier})")).collect();
    let rows = connection
        .query(&format!(
            "SELECT oid, modifier, format_type(oid, modifier) FROM (VALUES {}) v(oid, modifier)",
            values.join(",")
        ))
        .await?;
    for row in &rows {
        let row = CatalogRow(row);
        let (oid, modifier) = (row.number(0)?, row.number(1)?);
        let ty = catalog.resolve_or_text(oid, modifier).column_type();
        types.insert((oid, modifier), TypeName { source_type: row.word(2)?.into(), ty });
    }
    Ok(())
}

/// What the catalog says now about a table that the log shows in another shape.
#[derive(Debug)]
pub struct Facts {
    /// Its shape; `None` if it is gone.
    pub shape: Option<Shape>,
    /// Its columns, dropped ones too.
    pub attributes: Vec<Attribute>,
    /// Whether its primary key is checked at the end of a statement or transaction only.
    pub deferrable: bool,
    /// Up to where the log is reflected in it.
    pub upto: u64,
}

/// Asks the catalog, and learns the types that the Relation names.
pub async fn read_facts(connection: &mut Connection, relation: &Relation, types: &mut TypeNames) -> Result<Facts> {
    let pair = |column: &RelationColumn| (column.type_oid, column.type_modifier);
    let unknown: Vec<_> = relation.columns.iter().map(pair).filter(|pair| !types.contains_key(pair)).collect();
    learn(connection, &unknown, types).await?;
    let upto = attributes::position(connection).await?;
    let name = TableName::new(schema_of(relation), relation.name.as_str());
    let oid = u64::from(relation.oid);
    // Two queries may see two states of the catalog.
    let (shape, attributes) = loop {
        let shapes = discover::named(connection, std::slice::from_ref(&name)).await?;
        let shape = shapes.into_iter().find(|shape| shape.table.source_id == oid);
        let stored = attributes::read(connection, &[oid]).await?.remove(&oid).unwrap_or_default();
        if shape.as_ref().is_none_or(|shape| attributes::is_as_it_was(&shape.table, &stored)) {
            break (shape, stored.attributes);
        }
    };
    let deferrable = connection
        .query(&format!(
            "SELECT 1 FROM pg_index WHERE indrelid = {} AND indisprimary AND NOT indimmediate",
            relation.oid
        ))
        .await?;
    Ok(Facts { shape, attributes, deferrable: !deferrable.is_empty(), upto })
}

/// Whether the log may show another column by the name and type of one that was dropped. Where the catalog is ahead of
/// the log, nothing tells whether this row comes from before or after that.
pub fn find_replaced(table: &Table, relation: &Relation, types: &TypeNames, facts: &Facts) -> Option<String> {
    let column = attributes::replaced(table, &facts.attributes)?;
    let is_shown = relation.columns.iter().filter(|shown| shown.name == column.name).any(|shown| {
        let known = types.get(&(shown.type_oid, shown.type_modifier));
        known.is_some_and(|known| known.source_type == column.source_type)
    });
    is_shown.then(|| format!("column {:?} was dropped, and another one may have its name", column.name))
}

/// The table as the catalog has it stored and defined now, if that is different, or why its values may be others. The
/// log shows the columns that it has.
pub fn refresh(table: &Table, facts: &Facts) -> Result<Option<Table>, String> {
    let ids = |table: &Table| -> Vec<i32> { table.columns.iter().map(|column| column.id).collect() };
    let now = facts.shape.as_ref().map(|shape| &shape.table);
    // A catalog with other columns is ahead of the log, and what rewrote the rows may come with them.
    let Some(now) = now.filter(|now| ids(now) == ids(table)) else { return Ok(None) };
    let definition_id = attributes::definition_of(table, &facts.attributes);
    let (rewritten, redefined) = (now.storage_id != table.storage_id, definition_id != table.definition_id);
    match (rewritten, redefined) {
        // A record from before there were marks tells nothing.
        (true, true) if table.definition_id != 0 => Err("a change of its columns rewrote its rows".into()),
        (false, false) => Ok(None),
        _ => Ok(Some(Table { version: table.version + 1, storage_id: now.storage_id, definition_id, ..table.clone() })),
    }
}

/// The table with the columns that the Relation appends, or why they cannot simply be null in older rows.
pub fn evolve(table: &Table, relation: &Relation, types: &TypeNames, facts: &Facts) -> Result<Table, String> {
    let rewritten = facts.shape.as_ref().is_some_and(|shape| shape.table.storage_id != table.storage_id);
    let captured = facts.shape.as_ref().map(|shape| shape.table.columns.as_slice()).unwrap_or_default();
    let mut evolved = table.clone();
    evolved.version += 1;
    for shown in relation.columns.iter().skip(table.columns.len()) {
        let last_id = evolved.columns.last().map_or(0, |column| column.id);
        // The next one that is there and captured, or the catalog is ahead of the log.
        let next = captured.iter().filter(|column| column.id > last_id).map(|column| column.id).min();
        let attribute = facts.attributes.iter().find(|attribute| Some(attribute.id) == next && attribute.is(shown));
        let Some(attribute) = attribute.filter(|new| !attributes::is_in_doubt(table, &facts.attributes, new)) else {
            return Err(format!("column {:?} was added and has changed again since", shown.name));
        };
        let Some(known) = types.get(&(shown.type_oid, shown.type_modifier)) else {
            return Err(format!("column {:?} was added with a type that is gone", shown.name));
        };
        attribute.fits_older_rows(rewritten, &known.ty)?;
        evolved.columns.push(Column {
            id: attribute.id,
            name: shown.name.clone(),
            ty: known.ty.clone(),
            source_type: known.source_type.clone(),
            nullable: !attribute.not_null,
            older_rows: attribute.missing.clone(),
        });
        evolved.columns_ever = evolved.columns_ever.max(attribute.id);
    }
    if rewritten {
        return Err("columns were added, and its rows were rewritten".into());
    }
    evolved.definition_id = attributes::definition_of(&evolved, &facts.attributes);
    Ok(evolved)
}

/// The table in the shape that the Relation shows, where that follows from the old one without a look at its rows:
/// columns were renamed, dropped, added, or have a wider type. It needs the catalog to show the same shape: columns are
/// told apart by their numbers, which the log does not have.
pub fn follow(table: &Table, relation: &Relation, facts: &Facts) -> Result<Table, String> {
    let now = facts.shape.as_ref().map(|shape| &shape.table).filter(|now| now.name == table.name);
    let now = now.filter(|now| now.columns.len() == relation.columns.len());
    let now = now.ok_or("its columns changed more than once")?;
    // The catalog also has columns that are not captured, such as generated ones.
    let attribute = |column: &Column| facts.attributes.iter().find(|attribute| attribute.id == column.id);
    let attributes: Vec<&Attribute> = now.columns.iter().filter_map(attribute).collect();
    let same = attributes.len() == now.columns.len()
        && attributes.iter().zip(&relation.columns).all(|(attribute, shown)| attribute.is(shown));
    if !same {
        return Err("its columns changed more than once".into());
    }
    let key = |table: &Table| -> Vec<i32> { table.key.iter().map(|&index| table.columns[index].id).collect() };
    if key(table) != key(now) || table.capture != now.capture || compare_identity(now, relation).is_some() {
        return Err("its key or its replica identity changed".into());
    }
    let rewritten = table.storage_id != now.storage_id;
    // What became of its partitions is told by comparing those that the rows were loaded from.
    let mut followed = Table { version: table.version + 1, parts: table.parts.clone(), ..now.clone() };
    for (column, attribute) in followed.columns.iter_mut().zip(attributes) {
        let Some(old) = table.columns.iter().find(|old| old.id == column.id) else {
            if attributes::is_in_doubt(table, &facts.attributes, attribute) {
                return Err(format!("column {:?} may have been another one that was dropped", column.name));
            }
            attribute.fits_older_rows(rewritten, &column.ty)?;
            column.older_rows.clone_from(&attribute.missing);
            continue;
        };
        column.older_rows.clone_from(&old.older_rows);
        let respelled = column.ty == ColumnType::Text && !is_same_text(&old.source_type, &column.source_type);
        if old.source_type != column.source_type && (respelled || !widens(&old.ty, &column.ty)) {
            return Err(format!(
                "column {:?} changed its type from {} to {}",
                old.name, old.source_type, column.source_type
            ));
        }
    }
    if rewritten {
        return Err("its rows were rewritten".into());
    }
    Ok(followed)
}

/// Whether values of both types, which both are text here, are printed alike: where no row is rewritten they may still have
/// another form (`cidr` with its mask, `inet` without).
fn is_same_text(old: &str, new: &str) -> bool {
    let name = |ty: &str| ty.split('(').next().unwrap_or_default().trim_end().to_string();
    let alike = ["text", "character varying", "citext", "numeric", "bit", "bit varying"];
    name(old) == name(new) || (alike.contains(&name(old).as_str()) && alike.contains(&name(new).as_str()))
}

/// Whether every value of a type is the same value of the other.
fn widens(old: &ColumnType, new: &ColumnType) -> bool {
    match (old, new) {
        (ColumnType::Decimal { precision, scale }, ColumnType::Decimal { precision: wider, scale: same }) => {
            precision <= wider && scale == same
        }
        (ColumnType::Decimal { .. }, ColumnType::Text) => true,
        _ => old == new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types() -> TypeNames {
        let name = |source_type: &str, ty| TypeName { source_type: source_type.into(), ty };
        HashMap::from([
            ((23, -1), name("integer", ColumnType::Int32)),
            ((25, -1), name("text", ColumnType::Text)),
            ((1043, 14), name("character varying(10)", ColumnType::Text)),
            ((1043, 24), name("character varying(20)", ColumnType::Text)),
        ])
    }

    fn shown(columns: &[(&str, u32, i32, bool)]) -> Relation {
        let column = |&(name, type_oid, type_modifier, is_key): &(&str, u32, i32, bool)| RelationColumn {
            is_key,
            name: name.into(),
            type_oid,
            type_modifier,
        };
        Relation {
            oid: 7,
            schema: "s".into(),
            name: "t".into(),
            replica_identity: b'd',
            columns: columns.iter().map(column).collect(),
        }
    }

    fn table() -> Table {
        let column = |id, name: &str, ty, source_type: &str| Column {
            id,
            name: name.into(),
            ty,
            source_type: source_type.into(),
            nullable: true,
            older_rows: None,
        };
        Table {
            name: TableName::new("s", "t"),
            source_id: 7,
            version: 1,
            columns: vec![
                column(1, "id", ColumnType::Int32, "integer"),
                column(2, "v", ColumnType::Text, "character varying(10)"),
            ],
            key: vec![0],
            capture: Capture::All,
            storage_id: 70,
            definition_id: 1,
            columns_ever: 0,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        }
    }

    const ID: (&str, u32, i32, bool) = ("id", 23, -1, true);
    const V: (&str, u32, i32, bool) = ("v", 1043, 14, false);
    const X: (&str, u32, i32, bool) = ("x", 25, -1, false);

    // trap: 17
    #[test]
    fn what_the_log_shows_is_compared() {
        let what = |columns: &[_]| compare(&table(), &shown(columns), &types());
        assert_eq!(what(&[ID, V]), Comparison::Same);
        assert_eq!(what(&[ID, V, X]), Comparison::Appended(2));
        assert_eq!(what(&[ID, ("v", 9999, -1, false)]), Comparison::UnknownType);
        let different = |columns: &[_], expected: &str| {
            let Comparison::Different(what) = what(columns) else { panic!("{expected}") };
            assert_eq!(what, expected);
        };
        different(&[ID], "column \"v\" was dropped");
        different(&[ID, X], "column \"v\" was renamed or dropped");
        let longer = ("v", 1043, 24, false);
        different(&[ID, longer], "column \"v\" changed its type from character varying(10) to character varying(20)");
        different(&[("id", 23, -1, false), ("v", 1043, 14, true)], "its key or its replica identity changed");
        different(&[("id", 23, -1, false), V], "its key or its replica identity changed");
        let mut full = shown(&[("id", 23, -1, true), ("v", 1043, 14, true)]);
        full.replica_identity = b'f';
        assert_eq!(compare(&table(), &full, &types()), Comparison::Same);
        full.name = "u".into();
        assert_eq!(compare(&table(), &full, &types()), Comparison::Different("it was renamed to s.u".into()));
        let mut keyless = table();
        keyless.key.clear();
        let shown = shown(&[("id", 23, -1, false), V]);
        assert!(
            matches!(compare(&keyless, &shown, &types()), Comparison::Different(_)),
            "updates need a full identity"
        );
        keyless.capture = Capture::InsertsOnly;
        assert_eq!(compare(&keyless, &shown, &types()), Comparison::Same);
    }

    // trap: 17
    #[test]
    fn a_column_with_values_for_older_rows_is_not_simply_appended() {
        let plain = Attribute {
            id: 3,
            name: "x".into(),
            type_oid: 25,
            type_modifier: -1,
            storage: (-1, "i".into()),
            dropped: false,
            defined_by: 900,
            not_null: false,
            missing: None,
            has_default: false,
            computed: false,
        };
        let evolved = |attribute: Attribute, storage_id| {
            let mut now = table();
            now.storage_id = storage_id;
            now.columns.push(Column { id: attribute.id, ..now.columns[1].clone() });
            let (storages, left_out, ancestors) = (vec![], vec![], vec![]);
            let shape = Some(Shape { table: now, types: vec![], gap: None, storages, left_out, ancestors });
            let facts = Facts { shape, attributes: vec![attribute], deferrable: false, upto: 0 };
            evolve(&table(), &shown(&[ID, V, X]), &types(), &facts)
        };
        let table = evolved(plain.clone(), 70).unwrap();
        assert_eq!((table.version, table.columns[2].id, table.columns[2].source_type.as_str()), (2, 3, "text"));
        assert!(evolved(plain.clone(), 71).is_err(), "a rewrite may have changed other columns too");
        assert!(evolved(Attribute { has_default: true, ..plain.clone() }, 70).is_ok(), "SET DEFAULT came later");
        let with_default = Attribute { missing: Some("7".into()), has_default: true, ..plain.clone() };
        assert_eq!(evolved(with_default, 70).unwrap().columns[2].older_rows.as_deref(), Some("7"));
        assert!(evolved(Attribute { computed: true, ..plain.clone() }, 70).is_err());
        assert!(evolved(Attribute { id: 2, ..plain.clone() }, 70).is_err(), "an older column of that name");
        assert!(evolved(Attribute { type_oid: 23, ..plain.clone() }, 70).is_err(), "its type changed since");
        // A column came and went in between, and its rows look like those of the one that is there.
        let gone = Attribute {
            id: 3,
            dropped: true,
            type_oid: 0,
            name: "........pg.dropped.3........".into(),
            ..plain.clone()
        };
        let next = Attribute { id: 4, ..plain };
        assert!(attributes::is_in_doubt(&super::tests::table(), &[gone.clone(), next.clone()], &next));
        let known = Table { columns_ever: 3, ..super::tests::table() };
        assert!(!attributes::is_in_doubt(&known, &[gone.clone(), next.clone()], &next), "it went before");
        let other = Attribute { storage: (8, "d".into()), ..gone };
        assert!(!attributes::is_in_doubt(&super::tests::table(), &[other, next.clone()], &next));
    }
}
