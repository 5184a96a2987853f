//! What statements in the log do to the captured tables.

use std::sync::Arc;

use millrace_core::{Change, Ddl, Error, Kind, Order, Result, Table, TableName};

use super::Reader;
use crate::{
    log::{
        alter::{self, Step},
        ddl::{self, Effect},
        events::Query,
        statement_text,
    },
    server::Place,
    types::{self, charset::Charsets},
    wire::binlog_dump::{EventHeader, FLAG_THREAD_SPECIFIC},
};

impl Reader {
    pub(super) fn query(
        &mut self,
        header: &EventHeader,
        start: Place,
        query: Query<'_>,
        charsets: &Charsets,
    ) -> Result<()> {
        let sql = statement_text::read(&query, charsets);
        let word: String = sql.trim_start().chars().take_while(|c| c.is_ascii_alphabetic()).collect();
        match word.to_ascii_uppercase().as_str() {
            "BEGIN" => {
                if self.transaction.is_none() {
                    self.begin(header, start)?;
                }
                self.standalone = false;
                return Ok(());
            }
            "COMMIT" => return self.end_transaction(header),
            "ROLLBACK" if sql.trim().len() == "ROLLBACK".len() => {
                self.roll_back(start)?;
                return self.end_transaction(header);
            }
            "XA" => return self.two_phases(header, start, &sql),
            _ => {}
        }
        if self.transaction.is_none() {
            self.begin(header, start)?;
            self.standalone = true;
        }
        let effects = ddl::effects(&sql, &String::from_utf8_lossy(query.schema));
        let of_session = header.flags & FLAG_THREAD_SPECIFIC != 0;
        for effect in effects {
            match effect {
                // Of a temporary table that hides one of ours, or so it seems: what is there by now is loaded.
                Effect::Truncated(name) if of_session => {
                    self.all_unsupported(&name, "a temporary table of its name was truncated")?;
                }
                effect => self.apply(effect, start)?,
            }
        }
        if self.standalone { self.end_transaction(header) } else { Ok(()) }
    }

    fn apply(&mut self, effect: Effect, start: Place) -> Result<()> {
        match effect {
            Effect::Truncated(name) if is_read(&name) => {
                let tables = self.concerned(&name);
                if !tables.is_empty() {
                    let order = self.next_order()?;
                    tables.iter().for_each(|name| self.close(name));
                    self.items.push(Change::Truncate { tables, order });
                }
                Ok(())
            }
            Effect::Truncated(name) => self.all_unsupported(&name, "a table whose name was not read was truncated"),
            Effect::Altered(name) => self.all_unsupported(&name, ALTERED),
            Effect::Reshaped(name, steps) => match &*self.concerned(&name) {
                [own] if is_read(&name) => self.begin_reshape(own, steps),
                _ => self.all_unsupported(&name, ALTERED),
            },
            Effect::Replaced(name) => {
                self.look_again |= self.concerned(&name).is_empty();
                self.all_unsupported(&name, "it was dropped, renamed or made anew at the source")
            }
            Effect::Made(name) => {
                self.look_again |= self.concerned(&name).is_empty();
                Ok(())
            }
            Effect::Dropped(schema) => {
                let names: Vec<TableName> =
                    self.tables.keys().filter(|name| self.may_be(&schema, &name.schema)).cloned().collect();
                names.iter().try_for_each(|name| self.unsupported(name, "its database was dropped at the source".into()))
            }
            Effect::Unknown => {
                let names: Vec<TableName> = self.tables.keys().cloned().collect();
                let what = "the log has a statement of which it is not known what it does";
                names.iter().try_for_each(|name| self.unsupported(name, what.into()))
            }
            Effect::Rows => Err(Error::new(Kind::LogLost, "reading the binary log")
                .with("it has a change as a statement instead of its rows")
                .fix(
                    "SET GLOBAL binlog_format = 'ROW'; end the sessions that set another one; then: millrace reload TASK",
                )),
            Effect::Savepoint(name) => {
                self.savepoint(start, &name);
                Ok(())
            }
            Effect::RolledBackTo(name) => self.roll_back_to(start, &name),
        }
    }

    /// The captured tables that a statement may mean by this name.
    fn concerned(&self, name: &TableName) -> Vec<TableName> {
        let meant = |own: &&TableName| self.may_be(&name.schema, &own.schema) && self.may_be(&name.name, &own.name);
        self.tables.keys().filter(meant).cloned().collect()
    }

    /// Whether a statement means our name by what it says.
    fn may_be(&self, said: &str, own: &str) -> bool {
        (said.contains(ddl::UNREAD) && !own.is_ascii())
            || said == own
            || (self.ignores_case && said.to_lowercase() == own.to_lowercase())
    }

    fn all_unsupported(&mut self, name: &TableName, what: &str) -> Result<()> {
        self.concerned(name).iter().try_for_each(|name| self.unsupported(name, what.into()))
    }

    /// The table changed in a way that is not applied: it is loaded anew. What lies before the position of a load that is
    /// under way does not concern it.
    pub(super) fn unsupported(&mut self, name: &TableName, what: String) -> Result<()> {
        let order = self.next_order()?;
        if self.concerns(name, order) {
            self.suspend(name, what, order);
        }
        Ok(())
    }

    /// Whether an altered table is read, and the change is not one from before its load.
    fn concerns(&mut self, name: &TableName, order: Order) -> bool {
        let Some(captured) = self.tables.get_mut(name) else { return false };
        captured.forget();
        !captured.suspended && !self.options.loads.passes_over(name, order.commit, captured.adopting)
    }

    fn suspend(&mut self, name: &TableName, what: String, order: Order) {
        let Some(captured) = self.tables.get_mut(name) else { return };
        captured.suspended = true;
        self.close(name);
        self.items.push(Change::Ddl(Ddl::Unsupported { table: name.clone(), what, order }));
    }

    /// The columns of a table changed in a way that may be followed: the catalog is to be asked.
    fn begin_reshape(&mut self, name: &TableName, steps: Vec<Step>) -> Result<()> {
        let order = self.next_order()?;
        if !self.concerns(name, order) {
            return Ok(());
        }
        match self.tables.get(name).map_or(Some(ALTERED), |captured| captured.unfollowed(&steps)) {
            Some(why) => self.suspend(name, why.into(), order),
            None => self.altered = Some(Altered { table: name.clone(), steps, order }),
        }
        Ok(())
    }

    /// The table that was altered and that the catalog is to be asked about.
    pub fn altered(&self) -> Option<&TableName> {
        self.altered.as_ref().map(|altered| &altered.table)
    }

    /// What the catalog said of it; nothing if it is gone, or has a column that is not known.
    pub fn reshape(&mut self, now: Option<&Table>, default_charset: &str) {
        let Some(Altered { table: name, steps, order }) = self.altered.take() else { return };
        // It may have been taken up for a load meanwhile.
        if !self.concerns(&name, order) {
            return;
        }
        let Some(captured) = self.tables.get_mut(&name) else { return };
        let followed = match (captured.unfollowed(&steps), now) {
            (Some(why), _) => Err(why.into()),
            (None, Some(now)) => alter::follow(&captured.table, &steps, now, default_charset),
            (None, None) => Err("its columns were altered, and have changed again since".into()),
        };
        let followed = followed.and_then(|mut table| {
            types::retype(&self.options.values, &mut table);
            alter::keeps_rules(&captured.table, &table).map(|()| table)
        });
        match followed {
            Err(why) => self.suspend(&name, why, order),
            Ok(table) => {
                captured.close(&mut self.items);
                let table = Arc::new(table);
                tracing::info!(table = %name, version = table.version, "a table was altered");
                captured.reshape(table.clone(), &self.options);
                self.items.push(Change::Ddl(Ddl::Evolved { table, order }));
            }
        }
    }
}

const ALTERED: &str = "its columns or values were altered";

/// A table whose columns changed.
#[derive(Debug)]
pub(super) struct Altered {
    table: TableName,
    steps: Vec<Step>,
    order: Order,
}

fn is_read(name: &TableName) -> bool {
    !name.schema.contains(ddl::UNREAD) && !name.name.contains(ddl::UNREAD)
}
