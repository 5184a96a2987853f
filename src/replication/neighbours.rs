//! Tables of several tasks that would be one table in the catalog: each would replace and extend the other's files.

use std::collections::BTreeMap;

use millrace_core::{Finding, Result, Table, TableName};

use super::rules::Rules;
use crate::{
    catalog::CatalogName,
    config::TaskConfig,
    state::{
        StateStore,
        keys::table::{TableRecord, TableState},
        read_all,
    },
};

/// The catalog's tables with the task and the source table that each belongs to.
#[derive(Debug, Clone, Default)]
pub struct Owners(BTreeMap<CatalogName, (String, TableName)>);

impl Owners {
    /// As the state knows them. Tables that left their task own nothing any more.
    pub fn of_state(state: &dyn StateStore) -> Result<Self> {
        let mut owners = Self::default();
        let records: Vec<(String, TableRecord)> = read_all(state, "table/")?;
        for (key, record) in records.into_iter().filter(|(_, record)| record.state != TableState::Cancelled) {
            let task = key.split('/').next().unwrap_or_default().to_string();
            owners.0.insert(CatalogName::of(&record.target), (task, record.table.name));
        }
        Ok(owners)
    }

    /// Adds a task's tables; gives those that belong to another task already.
    pub fn add(&mut self, config: &TaskConfig, tables: &[Table]) -> Vec<(TableName, Finding)> {
        let rules = Rules::new(config);
        let mut findings = vec![];
        for table in tables {
            let target = rules.target(&table.name);
            let name = CatalogName::of(&target);
            match self.0.get(&name) {
                Some((task, owner)) if *task != config.name => {
                    let summary =
                        format!("{} would be table {name} in the catalog, which belongs to task {task}", table.name);
                    let finding = Finding::error("CATALOG-NAME", summary);
                    let finding = finding.detail(format!("there it is {owner}; two tasks would write to one table"));
                    let fix = format!("tables: - {{ from: {}, to: {}_{target} }}", table.name, config.name);
                    findings.push((table.name.clone(), finding.fix(fix)));
                }
                _ => {
                    self.0.insert(name, (config.name.clone(), table.name.clone()));
                }
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::{Config, Surroundings},
        state::{Put, keys::table, memory::MemoryState},
    };

    fn table(name: &str) -> Table {
        let (columns, key) = (vec![], vec![]);
        Table {
            name: TableName::new("public", name),
            source_id: 1,
            version: 1,
            columns,
            key,
            capture: millrace_core::Capture::All,
            storage_id: 1,
            definition_id: 1,
            columns_ever: 0,
            estimated_rows: 0,
            estimated_bytes: 0,
            parts: None,
        }
    }

    #[test]
    fn two_tasks_never_share_a_table() {
        let text = "endpoints: { h: { type: hello }, l: file:///l }\ntasks:\n  one: { source: h, target: l, tables: \
                    [public.*] }\n  two: { source: h, target: l, tables: [{ from: public.a, to: other.a }, public.*] }\n";
        let config = Config::parse(Path::new("t.yaml"), text, &Surroundings::of(Path::new("t.yaml"))).unwrap();
        let state = MemoryState::default();
        let record = |state, name: &str| TableRecord {
            state,
            target: table(name).name,
            table: table(name),
            rule: String::new(),
            stale: false,
            published: None,
            spelling: None,
            read_to: millrace_core::Position::default(),
            evolving: vec![],
            load: None,
            error: None,
            mends: false,
            unfit: false,
            loaded_rows: 0,
            load_elapsed_ms: 0,
        };
        let put = |name: &str, state| Put::set(table::key("one", &table(name).name), &record(state, name));
        let table_states =
            [put("a", TableState::Completed), put("B", TableState::Error), put("c", TableState::Cancelled)];
        state.commit(&table_states).unwrap();
        let mut owners = Owners::of_state(&state).unwrap();
        assert_eq!(owners.clone().add(&config.tasks["one"], &[table("a"), table("B"), table("c")]), []);
        let found = owners.add(&config.tasks["two"], &[table("a"), table("b"), table("c")]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].1.summary.contains("public.b in the catalog, which belongs to task one"), "{found:#?}");
        assert_eq!(found[0].1.fix, ["tables: - { from: public.b, to: two_public.b }"]);
    }
}
