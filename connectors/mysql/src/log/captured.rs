//! One captured table: its rows in the log become rows of a batch, or rejects.

use std::sync::Arc;

use millrace_core::{
    BatchBuilder, Change, Error, Kind, Op, Order, Reject, Result, Table, Unfit, ValueRules, batch::Cell, error::Context,
};

use super::{
    LogOptions,
    alter::Step,
    events::{MapColumn, RowsEvent, RowsKind, Slot, TableMap, image, parts},
};
use crate::{
    types::{
        self,
        charset::Charsets,
        image::{ImageColumn, Scratch, Stored, decode},
    },
    wire::Malformed,
};

/// The transaction whose rows are being read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Transaction {
    /// Where its first event begins, as a position.
    pub commit: u128,
    /// Its time, in microseconds since 1970-01-01 UTC.
    pub time_us: i64,
    /// Changes so far.
    pub ordinal: u32,
}

impl Transaction {
    /// The place of its next change.
    pub fn next(&mut self) -> Result<Order> {
        let next = self.ordinal.checked_add(1);
        self.ordinal =
            next.ok_or_else(|| Error::new(Kind::Protocol, "reading a transaction of more than 2^32 changes"))?;
        Ok(Order { commit: self.commit, ordinal: self.ordinal })
    }
}

/// How the columns of the log are those of the table.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// All columns of the log.
    stored: Vec<Stored>,
    /// For each column of the table: its place in the log.
    places: Vec<usize>,
    columns: Vec<ImageColumn>,
}

/// A table and its pending rows.
#[derive(Debug)]
pub struct Captured {
    /// Its shape.
    pub table: Arc<Table>,
    /// It is loaded, and has no shape of its own before that is done.
    pub adopting: bool,
    /// Generated columns, which the log may have and the table has not.
    pub generated: Option<Vec<String>>,
    /// What the log shows is not the table's shape: its rows are left out.
    pub suspended: bool,
    builder: BatchBuilder,
    rejects: Vec<Reject>,
    policies: Vec<Unfit>,
    value_bytes_max: usize,
    /// The last TABLE_MAP_EVENT, without its number, and what it came to.
    known: Option<(Arc<[u8]>, Arc<Mapping>)>,
    scratch: Scratch,
    /// The log had rows of it without all of their columns.
    is_partial: bool,
    /// The log does not name its columns.
    is_nameless: bool,
}

impl Captured {
    /// Nothing is known of it in the log yet.
    pub fn new(table: Arc<Table>, adopting: bool, rules: &ValueRules, value_bytes_max: usize) -> Self {
        Self {
            builder: BatchBuilder::new(table.clone()),
            policies: types::policies(rules, &table),
            table,
            adopting,
            generated: None,
            suspended: false,
            rejects: vec![],
            value_bytes_max,
            known: None,
            scratch: Scratch::default(),
            is_partial: false,
            is_nameless: false,
        }
    }

    /// From here on it has another shape; nothing is pending.
    pub fn reshape(&mut self, table: Arc<Table>, options: &LogOptions) {
        let is_partial = self.is_partial;
        *self = Self::new(table, false, &options.values, options.value_bytes_max);
        self.is_partial = is_partial;
    }

    /// Whether the batch must be closed.
    pub fn is_full(&self) -> bool {
        self.builder.is_full()
    }

    /// Takes back what was read of a row that cannot be read.
    pub fn abort_row(&mut self) {
        self.builder.abort_row();
    }

    /// Moves what is pending to `items`.
    pub fn close(&mut self, items: &mut Vec<Change>) {
        items.extend(self.builder.take().map(Change::Rows));
        if !self.rejects.is_empty() {
            items.push(Change::Rejected(std::mem::take(&mut self.rejects)));
        }
    }

    /// Something was altered: what the log shows next is looked at anew.
    pub fn forget(&mut self) {
        self.known = None;
        self.generated = None;
    }

    /// Why these changes of its columns are not followed, whatever the catalog says.
    pub fn unfollowed(&self, steps: &[Step]) -> Option<&'static str> {
        if self.adopting {
            return Some("its columns were altered before its load was done");
        }
        if self.is_nameless {
            return Some(
                "its columns were altered, and the log has no names of columns (binlog_row_metadata is not FULL)",
            );
        }
        // What is missing in a row is looked up by name, where names may be those of later.
        let renames = steps.iter().any(|step| match step {
            Step::Rename { .. } => true,
            Step::Modify { from, to, .. } => from != to,
            Step::Add { .. } | Step::Drop { .. } => false,
        });
        (renames && self.is_partial).then_some("a column was renamed, and the log has only a part of each row")
    }

    /// The mapping that these bytes came to before.
    pub fn known(&self, map: &[u8]) -> Option<(Arc<[u8]>, Arc<Mapping>)> {
        self.known.clone().filter(|(known, _)| **known == *map)
    }

    /// Compares what the log shows with the table. An error is a sentence on what is different.
    pub fn map(&mut self, bytes: &Arc<[u8]>, map: &TableMap<'_>, charsets: &Charsets) -> Result<Arc<Mapping>, String> {
        // Then they are known by their places, which every change of the table makes anew.
        self.is_nameless = map.columns.iter().any(|column| column.name.is_none());
        if self.is_nameless && map.columns.len() != self.table.columns.len() {
            return Err("the log has other columns, and no names for them (binlog_row_metadata is not FULL)".into());
        }
        // It was followed so far by the names of its columns.
        if self.is_nameless && self.table.version > 1 {
            return Err("the log does not name its columns any more (binlog_row_metadata is not FULL)".into());
        }
        let ours = types::of_table(&self.table).ok_or("a column has a type that is not known")?;
        let mut mapping = Mapping {
            stored: map.columns.iter().map(|column| column.stored).collect(),
            places: vec![],
            columns: vec![],
        };
        for (index, (column, ty)) in self.table.columns.iter().zip(ours).enumerate() {
            let named = || map.columns.iter().position(|shown| shown.name == Some(column.name.as_bytes()));
            let place = if self.is_nameless { Some(index) } else { named() };
            let place = place.ok_or_else(|| format!("column {:?} is gone", column.name))?;
            let shown = &map.columns[place];
            let declared = match &ty {
                types::SqlType::Text(charset) => Some(&**charset),
                types::SqlType::Binary(_) => Some("binary"),
                _ => None,
            };
            let charset = shown.collation.map(|id| charsets.of_collation(id).unwrap_or("unknown"));
            let same_charset = declared.is_none() || charset.is_none() || declared == charset;
            if !shown.stored.is_of(&ty) || !same_charset || !is_said_of(&ty, shown) {
                return Err(format!("column {:?} has another type", column.name));
            }
            let charset = match declared.filter(|_| matches!(ty, types::SqlType::Text(_))) {
                // Of a table that came while the log was running: the server is asked for it.
                Some(name) => Some(charsets.get(name).ok_or("a character set is not known")?.clone()),
                None => None,
            };
            mapping.columns.push(ImageColumn { stored: shown.stored, ty, charset });
            mapping.places.push(place);
        }
        let generated = self.generated.as_deref().unwrap_or_default();
        let is_known = |name: &[u8]| {
            self.table.columns.iter().any(|column| column.name.as_bytes() == name)
                || generated.iter().any(|column| column.as_bytes() == name)
        };
        if let Some(name) = map.columns.iter().filter_map(|column| column.name).find(|name| !is_known(name)) {
            return Err(format!("column {:?} was added", String::from_utf8_lossy(name)));
        }
        let mapping = Arc::new(mapping);
        self.known = Some((bytes.clone(), mapping.clone()));
        Ok(mapping)
    }

    /// Takes all rows of an event; gives about how many bytes they hold.
    pub fn take(&mut self, transaction: &mut Transaction, mapping: &Mapping, event: RowsEvent<'_>) -> Result<usize> {
        let name = self.table.name.clone();
        let malformed =
            |error: Malformed| Error::new(Kind::Protocol, format!("reading rows of {name} in the log")).with(error);
        if event.width != mapping.stored.len() {
            return Err(malformed(Malformed("there are more or fewer columns than were announced")));
        }
        let mut rows = event.rows;
        let bytes = rows.len();
        let (mut first, mut second) = (vec![], vec![]);
        if rows.is_empty() {
            return Err(malformed(Malformed("the log has no column of its rows")));
        }
        while !rows.is_empty() {
            let left = rows.len();
            image(&mut rows, event.first, &[], &mapping.stored, &mut first).map_err(malformed)?;
            if event.kind == RowsKind::Update {
                let parts = if event.is_partial { parts(&mut rows, &mapping.stored) } else { Ok(&[][..]) };
                let parts = parts.map_err(malformed)?;
                image(&mut rows, event.second, parts, &mapping.stored, &mut second).map_err(malformed)?;
            }
            if rows.len() == left {
                return Err(malformed(Malformed("a row has no columns")));
            }
            self.row(transaction, mapping, event.kind, &first, &second)?;
        }
        Ok(bytes)
    }

    fn row(
        &mut self,
        transaction: &mut Transaction,
        mapping: &Mapping,
        kind: RowsKind,
        first: &[Slot<'_>],
        second: &[Slot<'_>],
    ) -> Result<()> {
        match kind {
            RowsKind::Write => self.write(transaction, mapping, Op::Insert, first, None),
            RowsKind::Delete => self.write(transaction, mapping, Op::Delete, first, None),
            RowsKind::Update => {
                let moved = self.table.key.iter().any(|&index| {
                    let place = mapping.places[index];
                    second[place] != Slot::Absent && second[place] != first[place]
                });
                if moved || !self.table.is_keyed() {
                    self.write(transaction, mapping, Op::Delete, first, None)?;
                    return self.write(transaction, mapping, Op::Insert, second, Some(first));
                }
                self.write(transaction, mapping, Op::Update, second, Some(first))
            }
        }
    }

    /// Writes one row to the batch; one that its columns cannot hold becomes a reject. What the new image leaves out is in
    /// the old one, or is looked up.
    fn write(
        &mut self,
        transaction: &mut Transaction,
        mapping: &Mapping,
        op: Op,
        slots: &[Slot<'_>],
        old: Option<&[Slot<'_>]>,
    ) -> Result<()> {
        let order = transaction.next()?;
        let slot = |index: usize| {
            let place = mapping.places[index];
            match (slots[place], old) {
                (Slot::Absent, Some(old)) => old[place],
                (slot, _) => slot,
            }
        };
        let (mut bytes, mut unfit) = (0, None);
        for (index, column) in mapping.columns.iter().enumerate() {
            match slot(index) {
                Slot::Null => self.builder.column(index).push_null(),
                // Of a row that went, what the log does not have is null; but its key tells which one it was.
                Slot::Absent | Slot::Part if self.table.is_keyed() && !self.table.key.contains(&index) => match op {
                    Op::Delete => self.builder.column(index).push_null(),
                    _ => {
                        self.is_partial = true;
                        self.builder.absent(index);
                    }
                },
                Slot::Absent | Slot::Part => {
                    let doing = format!("reading rows of {} in the log", self.table.name);
                    return Err(Error::new(Kind::SourceSetup, doing)
                        .with("the log has only a part of its rows, and nothing tells them apart")
                        .fix("SET GLOBAL binlog_row_image = 'FULL'; MySQL: SET GLOBAL binlog_row_value_options = '';")
                        .fix("then: millrace reload TASK TABLE"));
                }
                Slot::Bytes(value) => {
                    bytes += value.len();
                    if let Err(reason) = self.value(index, column, value)? {
                        unfit = Some((index, reason));
                        break;
                    }
                }
            }
        }
        match unfit {
            None => self.builder.end_row(op, order, transaction.time_us, bytes),
            Some((index, reason)) => {
                self.builder.abort_row();
                let reject = self.reject(transaction, order, op, index, reason, mapping, &slot);
                self.rejects.push(reject);
            }
        }
        Ok(())
    }

    fn value(&mut self, index: usize, column: &ImageColumn, value: &[u8]) -> Result<Result<(), String>> {
        if column.stored.whole_len(value) > self.value_bytes_max {
            return Ok(Err(format!("it is longer than max-value ({} bytes)", self.value_bytes_max)));
        }
        let doing = || format!("reading column {:?} of {} in the log", self.table.columns[index].name, self.table.name);
        let decoded = decode(column, value, &mut self.scratch).context(Kind::Protocol, doing)?;
        let pushed = decoded.and_then(|value| value.push(index, self.policies[index], self.builder.columns()));
        Ok(pushed.map_err(String::from))
    }

    #[allow(clippy::too_many_arguments)]
    fn reject<'a>(
        &self,
        transaction: &Transaction,
        order: Order,
        op: Op,
        column: usize,
        reason: String,
        mapping: &Mapping,
        slot: &dyn Fn(usize) -> Slot<'a>,
    ) -> Reject {
        let cell = |index: usize| match slot(index) {
            Slot::Absent | Slot::Part => Cell::Absent,
            Slot::Null => Cell::Null,
            Slot::Bytes(bytes) => match decode(&mapping.columns[index], bytes, &mut Scratch::default()) {
                Ok(Ok(value)) => value.cell(),
                _ => Cell::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            },
        };
        let row: Vec<(String, Cell)> =
            self.table.columns.iter().enumerate().map(|(index, column)| (column.name.clone(), cell(index))).collect();
        let key = self.table.key.iter().map(|&index| {
            let text = match &row[index].1 {
                Cell::Text(text) | Cell::Hex(text) => Some(text.clone()),
                Cell::Null | Cell::Absent => None,
            };
            (row[index].0.clone(), text)
        });
        Reject {
            table: self.table.name.clone(),
            key: key.collect(),
            op,
            order,
            commit_time_us: Some(transaction.time_us),
            column: self.table.columns[column].name.clone(),
            reason,
            row,
        }
    }
}

/// Whether what the log tells of a column's signs and labels is as it is declared.
fn is_said_of(ty: &types::SqlType, shown: &MapColumn<'_>) -> bool {
    use types::SqlType::{Enum, Int, Set};
    match (ty, shown.unsigned, &shown.labels) {
        (Int { unsigned, .. }, Some(said), _) => *unsigned == said,
        // They are in the column's character set, which may write ASCII with zeros.
        (Enum(labels) | Set(labels), _, Some(said)) => {
            let alike =
                |(own, said): (&String, &&[u8])| own.as_bytes() == *said || !own.is_ascii() || said.contains(&0);
            labels.len() == said.len() && labels.iter().zip(said).all(alike)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use millrace_core::{Capture, Column, ColumnType, TableName};

    use super::*;
    use crate::{
        types::{SqlType, image::number},
        wire::Reader,
    };

    /// A table of two numbers, of which the first is its key if it has one.
    fn captured(key: &[usize]) -> (Captured, Mapping) {
        let column = |id: i32, name: &str| Column {
            id,
            name: name.into(),
            ty: ColumnType::Int16,
            source_type: "tinyint(4)".into(),
            nullable: true,
            older_rows: None,
        };
        let table = Table {
            source_id: 1,
            name: TableName::new("shop", "t"),
            version: 1,
            columns: vec![column(1, "id"), column(2, "a")],
            key: key.to_vec(),
            capture: Capture::All,
            storage_id: 0,
            definition_id: 0,
            columns_ever: 2,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        };
        let stored = Stored { number: number::TINY, meta: 0 };
        let ty = SqlType::Int { bytes: 1, unsigned: false };
        let columns = vec![ImageColumn { stored, ty, charset: None }; 2];
        let mapping = Mapping { stored: vec![stored; 2], places: vec![0, 1], columns };
        (Captured::new(Arc::new(table), false, &ValueRules::default(), 1 << 20), mapping)
    }

    #[test]
    fn rows_of_which_too_little_is_there_are_an_error() {
        let (id, a, none) = (&[1][..], &[2][..], &[0][..]);
        for (key, kind, first, second, bytes, is_read) in [
            (&[0][..], RowsKind::Delete, id, none, &[0, 7][..], true),
            (&[0], RowsKind::Delete, a, none, &[0, 7], false),
            (&[], RowsKind::Delete, id, none, &[0, 7], false),
            (&[], RowsKind::Write, id, none, &[0, 7], false),
            (&[0], RowsKind::Update, id, a, &[0, 7, 0, 8], true),
            (&[0], RowsKind::Write, none, none, &[], false),
            (&[0], RowsKind::Delete, none, none, &[1], false),
            (&[], RowsKind::Update, none, none, &[1], false),
        ] {
            let (mut captured, mapping) = captured(key);
            let event = RowsEvent { kind, width: 2, first, second, is_partial: false, rows: Reader::new(bytes) };
            let taken = captured.take(&mut Transaction::default(), &mapping, event);
            assert_eq!(taken.is_ok(), is_read, "{key:?} {kind:?} {first:?} {bytes:?}");
            captured.abort_row();
            let mut items = vec![];
            captured.close(&mut items);
            assert_eq!(items.len(), usize::from(is_read));
        }
    }
}
