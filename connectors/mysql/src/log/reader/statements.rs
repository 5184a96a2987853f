//! What statements in the log do to the captured tables.

use millrace_core::{Change, Ddl, Error, Kind, Result, TableName};

use super::Reader;
use crate::{
    log::{
        ddl::{self, Effect},
        events::Query,
        statement_text,
    },
    server::Place,
    types::charset::Charsets,
    wire::binlog_dump::EventHeader,
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
        for effect in effects {
            self.apply(effect, start)?;
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
            Effect::Altered(name) => self.all_unsupported(&name, "its columns or values were altered"),
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
        let Some(captured) = self.tables.get_mut(name) else { return Ok(()) };
        captured.forget();
        if captured.suspended || self.options.loads.passes_over(name, order.commit, captured.adopting) {
            return Ok(());
        }
        captured.suspended = true;
        self.close(name);
        self.items.push(Change::Ddl(Ddl::Unsupported { table: name.clone(), what, order }));
        Ok(())
    }
}

fn is_read(name: &TableName) -> bool {
    !name.schema.contains(ddl::UNREAD) && !name.name.contains(ddl::UNREAD)
}
