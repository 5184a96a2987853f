//! From messages to changes: transactions, tables, positions. No input and no output happens here.

use std::{collections::HashMap, sync::Arc};

use millrace_core::{
    Change, Changes, Ddl, Error, Kind, Order, Position, Result, Table, TableName, ValueRules, error::Context,
    source::Budget,
};

use super::{
    attributes::{self, Stored},
    captured::{Captured, State},
    deferrable::KeyTracker,
    past::Memory,
    shape::{self, Comparison, Facts, TypeNames},
    transaction::Transaction,
};
use crate::{
    ddl_trigger::{self, Announced},
    fence::VisibilityFence,
    types::unfit,
    wire::{
        begin::Begin,
        commit::Commit,
        logical_message::LogicalMessage,
        pgoutput::{Incoming, Message},
        relation::Relation,
        tuple::Tuple,
    },
};

/// What is known of the stream so far.
#[derive(Debug)]
pub struct Decoder {
    tables: HashMap<u32, Captured>,
    /// Shapes as the log showed them last, of captured tables and of others.
    relations: HashMap<u32, Relation>,
    /// Types that have been looked up.
    pub types: TypeNames,
    /// Up to where in the log a table has the columns that it has here, whatever their names are, by its OID.
    numbered: HashMap<u32, u64>,
    /// Captured tables whose shape is to be compared with the catalog's help before the next row.
    unresolved: Vec<u32>,
    /// The same, shown within skipped transactions.
    waiting: Vec<u32>,
    /// Tables that were altered here, to be compared before the next message.
    announced: Vec<Announced>,
    transaction: Option<Transaction>,
    /// Commits before this were taken in an earlier session.
    from: u64,
    /// Every transaction that commits before this is decoded.
    upto: u64,
    source_end: u64,
    newest_commit_us: Option<i64>,
    items: Vec<Change>,
    /// Tables with pending rows.
    dirty: Vec<u32>,
    /// Changes of complete transactions since the last pull, and their bytes.
    rows: usize,
    bytes: usize,
    value_bytes_max: usize,
    values: Arc<ValueRules>,
    fence: Arc<VisibilityFence>,
    /// A partitioned table's shape was shown again: its partitions may have changed.
    look_again: bool,
    /// The server asked how far we are, while no transaction was open.
    awaited: bool,
    /// Transactions with an origin are left out.
    pub own_changes_only: bool,
    /// What was read so far, beside the position.
    memory: Memory,
}

/// What a message asks of the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Nothing.
    Done,
    /// The server waits for a status update.
    ReplyRequested,
}

impl Decoder {
    /// Begins at `from`.
    pub fn new(
        tables: &[Arc<Table>],
        from: u64,
        value_bytes_max: usize,
        values: Arc<ValueRules>,
        fence: Arc<VisibilityFence>,
    ) -> Self {
        let captured = |table: &Arc<Table>| {
            let captured = Captured::new(table.clone(), false, value_bytes_max, values.clone());
            Some((u32::try_from(table.source_id).ok()?, captured))
        };
        Self {
            tables: tables.iter().filter_map(captured).collect(),
            relations: HashMap::new(),
            types: TypeNames::new(),
            numbered: HashMap::new(),
            unresolved: vec![],
            waiting: vec![],
            announced: vec![],
            transaction: None,
            from,
            upto: from,
            source_end: from,
            newest_commit_us: None,
            items: vec![],
            dirty: vec![],
            rows: 0,
            bytes: 0,
            value_bytes_max,
            values,
            fence,
            look_again: false,
            awaited: false,
            own_changes_only: false,
            memory: Memory::default(),
        }
    }

    /// What was read up to the beginning.
    pub fn remember(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// Whether it is still open that this is the log that was read.
    pub fn is_comparing(&self) -> bool {
        self.memory.is_comparing()
    }

    /// Takes one CopyData of the stream.
    #[inline]
    pub fn apply(&mut self, payload: &[u8]) -> Result<Applied> {
        let doing = || "decoding the log";
        match Incoming::parse(payload).context(Kind::Protocol, doing)? {
            Incoming::XLogData(data) => {
                self.source_end = self.source_end.max(data.wal_end);
                self.memory.note_clock(data.clock);
                self.message(data.message)?;
                Ok(Applied::Done)
            }
            Incoming::Keepalive(keepalive) => {
                self.source_end = self.source_end.max(keepalive.wal_end);
                if self.transaction.is_none() {
                    self.memory.reach(keepalive.wal_end)?;
                    self.memory.note_clock(keepalive.clock);
                    self.upto = self.upto.max(keepalive.wal_end);
                    self.awaited |= keepalive.reply_requested;
                }
                Ok(if keepalive.reply_requested { Applied::ReplyRequested } else { Applied::Done })
            }
        }
    }

    /// The server's log ends here at the earliest, and its clock is at least here.
    pub fn note_source_end(&mut self, (end, clock): (u64, i64)) {
        self.source_end = self.source_end.max(end);
        self.memory.note_clock(clock);
    }

    /// Whether a transaction has begun and not ended.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether there is something to hand out, if only how far we are.
    pub fn has_changes(&self) -> bool {
        !self.items.is_empty() || !self.dirty.is_empty() || self.awaited
    }

    /// Whether the budget is used up: at the end of a transaction, or by one transaction alone.
    pub fn is_full(&self, budget: &Budget) -> bool {
        match &self.transaction {
            None => self.rows >= budget.rows || self.bytes >= budget.bytes,
            Some(open) => open.rows >= budget.rows || open.bytes >= budget.bytes,
        }
    }

    /// Hands out what was decoded.
    pub fn take(&mut self) -> Changes {
        for oid in std::mem::take(&mut self.dirty) {
            if let Some(captured) = self.tables.get_mut(&oid) {
                captured.close(&mut self.items);
            }
        }
        (self.rows, self.bytes) = (0, 0);
        if let Some(open) = &mut self.transaction {
            (open.rows, open.bytes) = (0, 0);
        }
        Changes {
            items: std::mem::take(&mut self.items),
            upto: self.transaction.is_none().then_some(Position(u128::from(self.upto))),
            lineage: self.transaction.is_none().then(|| self.memory.text()),
            newest_commit_us: self.newest_commit_us.take(),
            source_end: Some(Position(u128::from(self.source_end))),
            look_again: std::mem::take(&mut self.look_again),
            awaited: self.transaction.is_none() && std::mem::take(&mut self.awaited),
        }
    }

    /// A table to capture from now on, in whatever shape the log shows it.
    pub fn add_table(&mut self, table: Arc<Table>) {
        let Ok(oid) = u32::try_from(table.source_id) else { return };
        let captured = Captured::new(table, true, self.value_bytes_max, self.values.clone());
        self.numbered.remove(&oid);
        if let Some(mut before) = self.tables.insert(oid, captured) {
            before.close(&mut self.items);
            self.dirty.retain(|&dirty| dirty != oid);
        }
        if self.relations.contains_key(&oid) && !self.unresolved.contains(&oid) {
            self.unresolved.push(oid);
        }
    }

    /// A table that was added has this shape until the log shows that it changed.
    pub fn settle_table(&mut self, table: Arc<Table>) {
        let oid = u32::try_from(table.source_id).unwrap_or_default();
        if let Some(captured) = self.tables.get_mut(&oid).filter(|captured| captured.adopting) {
            captured.adopting = false;
            captured.reshape(table);
            self.numbered.remove(&oid);
        }
    }

    /// A table to leave out from now on, with what is pending of it.
    pub fn remove_table(&mut self, name: &TableName) {
        let gone = self.tables.extract_if(|_, captured| captured.table.name == *name);
        let oids: Vec<u32> = gone.map(|(oid, _)| oid).collect();
        self.dirty.retain(|oid| !oids.contains(oid));
        self.unresolved.retain(|oid| !oids.contains(oid));
        self.waiting.retain(|oid| !oids.contains(oid));
    }

    /// Takes a message of a transaction that has committed.
    pub fn message(&mut self, message: Message<'_>) -> Result<()> {
        match message {
            Message::Insert(insert) => self.change(insert.relation, Some(insert.new), |captured, transaction| {
                captured.insert(transaction, insert.new).map(|()| true)
            }),
            Message::Update(update) if update.old.is_some_and(|old| old.tuple().len() != update.new.len()) => {
                Err(protocol("the old row of an update has another number of columns than the new one"))
            }
            Message::Update(update) => self.change(update.relation, Some(update.new), |captured, transaction| {
                captured.update(transaction, update.old, update.new)
            }),
            Message::Delete(delete) => {
                self.change(delete.relation, Some(delete.old.tuple()), |captured, transaction| {
                    captured.delete(transaction, delete.old).map(|()| true)
                })
            }
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(commit),
            Message::Relation(relation) => {
                self.relation(relation);
                Ok(())
            }
            Message::Truncate(truncate) => self.truncate(&truncate.relations),
            Message::LogicalMessage(message) => {
                self.announce(&message);
                Ok(())
            }
            Message::Origin(_) => {
                // It comes right behind its Begin.
                if let Some(transaction) = &mut self.transaction {
                    transaction.is_foreign = true;
                    transaction.skipped |= self.own_changes_only;
                }
                Ok(())
            }
            Message::TypeName(_) => Ok(()),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<()> {
        if self.transaction.is_some() {
            return Err(protocol("a transaction begins within another one"));
        }
        let transaction = Transaction::new(begin, self.from);
        if !transaction.skipped {
            self.memory.reach(transaction.commit)?;
            // Shapes that were shown within skipped transactions have waited until a row may need them.
            for oid in &self.waiting {
                if let Some(captured) = self.tables.get_mut(oid) {
                    captured.shown_before = true;
                }
            }
            self.unresolved.append(&mut self.waiting);
        }
        self.transaction = Some(transaction);
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<()> {
        let Some(transaction) = self.transaction.take() else {
            return Err(protocol("a transaction ends that did not begin"));
        };
        if transaction.commit != commit.commit_lsn {
            return Err(protocol("a transaction ends at another place than it said"));
        }
        self.upto = self.upto.max(commit.end_lsn);
        self.memory.sent(commit.end_lsn, (!transaction.is_foreign).then_some(commit.commit_time))?;
        if transaction.skipped {
            return Ok(());
        }
        // What has an origin is not sent again where that is asked for by then.
        if transaction.has_changes() && !transaction.is_foreign {
            self.memory.note_commit(commit.end_lsn, commit.commit_time);
        }
        self.newest_commit_us = Some(transaction.commit_time_us);
        self.rows += transaction.rows;
        self.bytes += transaction.bytes;
        Ok(())
    }

    /// Applies one row change to its table, if it is captured.
    #[inline]
    fn change(
        &mut self,
        oid: u32,
        tuple: Option<Tuple<'_>>,
        apply: impl FnOnce(&mut Captured, &mut Transaction) -> Result<bool>,
    ) -> Result<()> {
        let Some(transaction) = &mut self.transaction else { return Err(protocol("a row outside of a transaction")) };
        let Some(captured) = self.tables.get_mut(&oid).filter(|_| !transaction.skipped) else { return Ok(()) };
        match captured.state {
            State::Matched => {}
            State::Suspended => {
                captured.skipped += 1;
                return Ok(());
            }
            State::Outdated => {
                captured.skipped += 1;
                return self.suspend(oid, "a row has a shape from before the table was loaded anew");
            }
            State::Unresolved => return Err(protocol("a row comes before the shape of its table")),
        }
        if tuple.is_some_and(|tuple| tuple.len() != captured.table.columns.len()) {
            return Err(protocol("a row has another number of columns than its table"));
        }
        if captured.is_empty() {
            self.dirty.push(oid);
        }
        let sent = apply(captured, transaction)?;
        if std::mem::take(&mut transaction.has_absent) {
            self.fence.add(transaction.commit, transaction.xid);
        }
        if captured.is_full() {
            captured.close(&mut self.items);
            self.dirty.retain(|&dirty| dirty != oid);
        }
        let overflow = captured.tracker.as_ref().is_some_and(KeyTracker::is_full);
        if !sent {
            return self.suspend(oid, "an update came without the old row, which a table without a key needs");
        }
        if overflow {
            return self.suspend(oid, "one transaction changed too many rows for its deferrable key");
        }
        Ok(())
    }

    fn truncate(&mut self, oids: &[u32]) -> Result<()> {
        let Some(transaction) = &mut self.transaction else {
            return Err(protocol("a truncate outside of a transaction"));
        };
        if transaction.skipped {
            return Ok(());
        }
        let mut tables = vec![];
        for oid in oids {
            let Some(captured) = self.tables.get_mut(oid).filter(|captured| captured.state != State::Suspended) else {
                continue;
            };
            captured.close(&mut self.items);
            self.dirty.retain(|dirty| dirty != oid);
            tables.push(captured.table.name.clone());
        }
        if !tables.is_empty() {
            let order = transaction.next()?;
            transaction.count(0);
            self.items.push(Change::Truncate { tables, order });
        }
        Ok(())
    }

    /// The log shows a table's shape. The server shows it again after anything that may have changed the table; one that
    /// looks the same may be of other columns.
    fn relation(&mut self, relation: Relation) {
        let oid = relation.oid;
        self.relations.insert(oid, relation);
        let Some(captured) = self.tables.get_mut(&oid) else { return };
        // Shown for each partition that changes first, and again when the partition was altered or attached.
        self.look_again |= captured.table.parts.is_some();
        captured.state = State::Unresolved;
        captured.shown_before = false;
        if self.settle_same(oid) {
            return;
        }
        let skipped = self.transaction.as_ref().is_none_or(|transaction| transaction.skipped);
        let list = if skipped { &mut self.waiting } else { &mut self.unresolved };
        if !list.contains(&oid) {
            list.push(oid);
        }
    }

    /// The catalog has the captured tables like this (by OID), and reflects the log up to `upto`.
    pub fn note_stored(&mut self, stored: &HashMap<u64, Stored>, upto: u64) {
        for (oid, captured) in &self.tables {
            let table = &captured.table;
            if stored.get(&table.source_id).is_some_and(|now| attributes::is_as_it_was(table, now)) {
                self.numbered.insert(*oid, upto);
            }
        }
    }

    /// The transaction that is being decoded.
    pub fn open_xid(&self) -> Option<u32> {
        self.transaction.as_ref().filter(|transaction| !transaction.skipped).map(|transaction| transaction.xid)
    }

    /// Of captured tables, all of them or one.
    pub fn oids(&self, only: Option<u32>) -> Vec<u64> {
        match only {
            Some(oid) => vec![u64::from(oid)],
            None => self.tables.keys().map(|oid| u64::from(*oid)).collect(),
        }
    }

    /// Takes a table to be compared as it is, if nothing that matters can have changed before its row; false if more must
    /// be asked.
    pub fn settle_same(&mut self, oid: u32) -> bool {
        let commit = self.transaction.as_ref().map_or(self.upto, |transaction| transaction.commit);
        let numbered = self.numbered.get(&oid).is_some_and(|&upto| commit < upto);
        let (Some(captured), Some(relation)) = (self.tables.get_mut(&oid), self.relations.get(&oid)) else {
            return false;
        };
        if !numbered
            || needs_catalog(&captured.table, relation)
            || shape::compare(&captured.table, relation, &self.types) != Comparison::Same
        {
            return false;
        }
        captured.settle(None);
        self.unresolved.retain(|&unresolved| unresolved != oid);
        true
    }

    /// What looks the same is the same, for ever.
    #[cfg(test)]
    pub fn trust_catalog(&mut self) {
        self.numbered = self.tables.keys().map(|oid| (*oid, u64::MAX)).collect();
    }

    /// Somebody's message; ours say that a table was altered.
    fn announce(&mut self, message: &LogicalMessage<'_>) {
        let takes = self.transaction.as_ref().is_some_and(|transaction| !transaction.skipped);
        if !takes || !message.transactional || message.prefix != ddl_trigger::PREFIX {
            return;
        }
        let goes_on = |oid| self.tables.get(&oid).is_some_and(|captured| captured.state != State::Suspended);
        self.announced.extend(Announced::parse(message.content).filter(|announced| goes_on(announced.oid)));
    }

    /// A table that was altered here.
    pub fn announced(&self) -> Option<&Announced> {
        self.announced.first()
    }

    /// The table is like this, as the log would show it; `None` if the catalog is ahead of the log, which then shows it
    /// itself with the next row.
    pub fn settle_announced(&mut self, relation: Option<Relation>) {
        if !self.announced.is_empty() {
            self.announced.remove(0);
        }
        let Some(relation) = relation else { return };
        let oid = relation.oid;
        if let Some(captured) = self.tables.get_mut(&oid) {
            captured.state = State::Unresolved;
            self.relations.insert(oid, relation);
            if !self.unresolved.contains(&oid) {
                self.unresolved.push(oid);
            }
        }
    }

    /// A table whose shape must be compared with the catalog's help before anything else is decoded.
    pub fn unresolved(&self) -> Option<(u32, &Relation)> {
        let oid = *self.unresolved.first()?;
        Some((oid, self.relations.get(&oid)?))
    }

    /// Compares a table's shape, with what the catalog says.
    pub fn resolve(&mut self, oid: u32, facts: &Facts) -> Result<()> {
        self.unresolved.retain(|&unresolved| unresolved != oid);
        let (Some(captured), Some(relation)) = (self.tables.get_mut(&oid), self.relations.get(&oid)) else {
            return Ok(());
        };
        let table = captured.table.clone();
        let replaced = shape::find_replaced(&table, relation, &self.types, facts);
        let outcome = match (replaced, shape::compare(&table, relation, &self.types)) {
            (Some(what), _) => Err(what),
            (None, Comparison::Same) => shape::refresh(&table, facts),
            (None, Comparison::Appended(_)) => shape::evolve(&table, relation, &self.types, facts).map(Some),
            (None, Comparison::Different(what)) => match adopt(captured, relation, &self.types, facts) {
                Some(table) => Ok(Some(table)),
                None => shape::follow(&table, relation, facts).map(Some).map_err(|why| join(&what, &why)),
            },
            (None, Comparison::UnknownType) => Err("it has a type that is gone".into()),
        };
        let full = relation.replica_identity == b'f';
        match outcome {
            Ok(new) => {
                if let Some(new) = new {
                    self.reshape(oid, new);
                }
                let table = self.tables.get(&oid).map(|captured| captured.table.clone());
                if table.is_some_and(|table| attributes::has_all(&facts.attributes, &table)) {
                    self.numbered.insert(oid, facts.upto);
                }
                if let Some(captured) = self.tables.get_mut(&oid) {
                    let deferrable = full && facts.deferrable && captured.table.is_keyed();
                    captured.settle(deferrable.then(KeyTracker::default));
                }
                Ok(())
            }
            // The shape of then says nothing of now, before a row comes with it.
            Err(_) if captured.adopting || captured.shown_before => {
                captured.state = State::Outdated;
                Ok(())
            }
            Err(what) => self.suspend(oid, &what),
        }
    }

    /// From here on the table has another shape; its earlier rows are closed.
    fn reshape(&mut self, oid: u32, mut table: Table) {
        let order = self.here();
        unfit::retype(&self.values, &mut table);
        let Some(captured) = self.tables.get_mut(&oid) else { return };
        let evolved = table.version != captured.table.version;
        let has_new_columns = table.columns != captured.table.columns;
        captured.close(&mut self.items);
        self.dirty.retain(|&dirty| dirty != oid);
        let table = Arc::new(table);
        captured.reshape(table.clone());
        if evolved {
            tracing::info!(table = %table.name, version = table.version, has_new_columns, "a table was altered");
            self.items.push(Change::Ddl(Ddl::Evolved { table, order }));
        }
    }

    /// From here on the table's rows are left out.
    fn suspend(&mut self, oid: u32, what: &str) -> Result<()> {
        let order = self.here();
        let Some(captured) = self.tables.get_mut(&oid) else { return Ok(()) };
        captured.close(&mut self.items);
        self.dirty.retain(|&dirty| dirty != oid);
        captured.state = State::Suspended;
        captured.tracker = None;
        let table = captured.table.name.clone();
        tracing::warn!(%table, what, "a table changed in a way that is not applied");
        self.items.push(Change::Ddl(Ddl::Unsupported { table, what: what.into(), order }));
        Ok(())
    }

    /// The place of the next change.
    fn here(&self) -> Order {
        let outside = Order { commit: u128::from(self.upto), ordinal: 0 };
        self.transaction.as_ref().map_or(outside, Transaction::here)
    }
}

/// A table that was added while the log was running takes the shape that both the log and the catalog show.
fn adopt(captured: &Captured, relation: &Relation, types: &TypeNames, facts: &Facts) -> Option<Table> {
    let shape = facts.shape.as_ref().filter(|_| captured.adopting)?;
    let table = Table { version: captured.table.version, ..shape.table.clone() };
    (shape::compare(&table, relation, types) == Comparison::Same).then_some(table)
}

/// Whether its key is deferrable only the catalog tells.
fn needs_catalog(table: &Table, relation: &Relation) -> bool {
    relation.replica_identity == b'f' && table.is_keyed()
}

fn join(what: &str, why: &str) -> String {
    if what == why { what.into() } else { format!("{what} ({why})") }
}

fn protocol(what: &'static str) -> Error {
    Error::new(Kind::Protocol, "decoding the log").with(what)
}
