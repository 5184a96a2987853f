//! Table rules: names at the target, renamed and dropped columns.

use std::{collections::BTreeMap, sync::Arc};

use millrace_core::{Becomes, ChangeBatch, Column, ColumnType, Columns, Finding, Selection, Table, TableName};

use crate::{
    catalog::CatalogName,
    config::{TableRule, TaskConfig},
};

/// The rules of a task.
#[derive(Debug, Clone)]
pub struct Rules {
    config: TaskConfig,
}

impl Rules {
    /// Of this task.
    pub fn new(config: &TaskConfig) -> Self {
        Self { config: config.clone() }
    }

    /// Which source tables the task takes.
    pub fn selection(&self) -> Selection {
        self.config.selection()
    }

    /// The table's name at the target.
    pub fn target(&self, table: &TableName) -> TableName {
        let Some(to) = self.rule(table).and_then(|rule| rule.to.as_ref()) else { return table.clone() };
        let part = |pattern: &str, name: &str| if pattern == "*" { name.to_string() } else { pattern.to_string() };
        TableName::new(part(&to.schema, &table.schema), part(&to.name, &table.name))
    }

    /// The column rules of a table as text, to tell when they change.
    pub fn text(&self, table: &TableName) -> String {
        self.rule(table).map(|rule| format!("rename {:?} drop {:?}", rule.rename, rule.drop)).unwrap_or_default()
    }

    fn rule(&self, table: &TableName) -> Option<&TableRule> {
        self.config.tables.iter().find(|rule| rule.from.matches(table))
    }

    /// The table as the target sees it: renamed, without dropped columns.
    pub fn shape(&self, table: &Table) -> Mapped {
        let rule = self.rule(&table.name);
        let dropped = |name: &str| rule.is_some_and(|rule| rule.drop.iter().any(|drop| drop == name));
        let kept: Vec<usize> = (0..table.columns.len()).filter(|&i| !dropped(&table.columns[i].name)).collect();
        let columns = kept.iter().map(|&index| {
            let mut column = table.columns[index].clone();
            if let Some(name) = rule.and_then(|rule| rule.rename.get(&column.name)) {
                column.name = name.clone();
            }
            column
        });
        let columns = columns.collect();
        let key: Option<Vec<usize>> = table.key.iter().map(|key| kept.iter().position(|kept| kept == key)).collect();
        let target = Table { name: self.target(&table.name), columns, key: key.unwrap_or_default(), ..table.clone() };
        let all = kept.len() == table.columns.len();
        Mapped { source: table.clone(), target: Arc::new(target), kept: (!all).then_some(kept) }
    }

    /// What is wrong with the rules for these tables: a dropped key, a rename of a column that is not there, two tables
    /// or columns that would meet in one name (the catalog lower-cases names).
    pub fn check(&self, tables: &[Table]) -> Vec<Finding> {
        let mut findings: Vec<Finding> = tables.iter().flat_map(|table| self.check_columns(table, false)).collect();
        findings.extend(self.check_names(tables).into_iter().map(|(_, finding)| finding));
        findings
    }

    /// Those of the tables that would be one of the catalog's with an earlier one of them.
    pub fn check_names<'t>(&self, tables: impl IntoIterator<Item = &'t Table>) -> Vec<(&'t TableName, Finding)> {
        let mut taken: BTreeMap<CatalogName, &TableName> = BTreeMap::new();
        let mut findings = vec![];
        for table in tables {
            let twin = *taken.entry(CatalogName::of(&self.target(&table.name))).or_insert(&table.name);
            if *twin != table.name {
                findings.push((&table.name, self.twins(twin, &table.name)));
            }
        }
        findings
    }

    /// What is said of two tables that would be one in the catalog: the other keeps out, or has another name.
    fn twins(&self, one: &TableName, other: &TableName) -> Finding {
        let target = self.target(other);
        let summary = format!("{one} and {other} would both be table {} in the catalog", CatalogName::of(&target));
        Finding::error("CATALOG-NAME", summary)
            .detail("the catalog lower-cases names, as Glue does")
            .fix(format!("tables: - {{ from: {other}, to: {target}_2 }}"))
    }

    /// What is said of a column that has another name than before, of which no rule speaks, though one spoke of the old
    /// name. Where columns are known by their names only, one that is left out and is not there any more counts as such;
    /// and behind a load, one that may be a new column of its type.
    pub fn lost_hold(&self, before: &Table, now: &Table, known: Known) -> Option<Finding> {
        let rule = self.rule(&before.name)?;
        let treated = |name: &String| {
            (rule.drop.contains(name), rule.rename.get(name), rule.values.get(name).map(|value| format!("{value:?}")))
        };
        let lost = before.columns.iter().find_map(|old| {
            if known != Known::ById {
                let is_new = |column: &Column| before.column_index(&column.name).is_none();
                let mut new = now.columns.iter().filter(|column| is_new(column));
                let may_be = known == Known::ByNameBeforeLoad && new.any(|new| new.source_type == old.source_type);
                let is_lost = rule.drop.contains(&old.name) && (may_be || now.column_index(&old.name).is_none());
                return is_lost.then(|| (&old.name, "may have another name now, or is gone".to_string()));
            }
            let renamed = now.columns.iter().find(|column| column.id == old.id && column.name != old.name)?;
            let is_lost = treated(&old.name) != (false, None, None) && treated(&old.name) != treated(&renamed.name);
            is_lost.then(|| (&old.name, format!("is named \"{}\" now", renamed.name)))
        });
        let (name, now_is) = lost?;
        let summary = format!("{}: column \"{name}\", of which a rule speaks, {now_is}", before.name);
        Some(
            Finding::error("TABLE-COLUMN", summary)
                .detail("the rule knows it by its name; nothing of the table is delivered before the rules are clear")
                .fix(format!(
                    "name the column as it is now in a rule of its own: tables: - {{ from: {}, … }}",
                    before.name
                ))
                .fix("then have the config read: kill -HUP, or a restart"),
        )
    }

    /// Rules for values of columns that are not there, or are no numbers.
    fn check_values(
        &self,
        table: &Table,
        rule: &TableRule,
        misses: &dyn Fn(&str) -> bool,
        findings: &mut Vec<Finding>,
    ) {
        for (name, value) in &rule.values {
            let column = table.column_index(name).map(|index| &table.columns[index]);
            let Some(column) = column else {
                if misses(name) {
                    let what = format!("{} has no column \"{name}\" to set values for", table.name);
                    findings.push(
                        Finding::error("TABLE-COLUMN", what)
                            .fix("correct the name: it is case-sensitive, as the source shows it"),
                    );
                }
                continue;
            };
            let item = match &column.ty {
                ColumnType::List(item) => item,
                ty => ty,
            };
            if matches!(value.becomes, Some(Becomes::Decimal { .. })) && !matches!(item, ColumnType::Decimal { .. }) {
                let what = format!("{}: column \"{name}\" cannot be a decimal", table.name);
                findings.push(
                    Finding::error("TABLE-COLUMN", what)
                        .detail(format!("it is of type {}; only numeric can be told its digits", column.source_type))
                        .fix(format!("take `as` out of the values of \"{name}\", or write as: text")),
                );
            }
        }
    }

    /// What is wrong with the rules for the columns of this table. `followed`: the rules fitted it before; where its columns keep
    /// their identities, one of which they speak and that is not there was dropped, which is no mistake of theirs.
    pub fn check_columns(&self, table: &Table, followed: bool) -> Vec<Finding> {
        let mut findings = vec![];
        let shape = self.shape(table).target;
        for (index, column) in shape.columns.iter().enumerate() {
            if shape.columns[..index].iter().any(|other| other.name.to_lowercase() == column.name.to_lowercase()) {
                let name = column.name.to_lowercase();
                let summary = format!("{}: two columns would be named \"{name}\" in the catalog", table.name);
                let renamed = format!("{}_2", column.name);
                findings.push(
                    Finding::error("TABLE-COLUMN", summary)
                        .detail("the catalog lower-cases names, as Glue does")
                        .fix(format!("rename: {{ {:?}: {renamed:?} }}", column.name)),
                );
            }
        }
        let Some(rule) = self.rule(&table.name) else { return findings };
        let may_miss = !rule.from.is_exact() || followed && table.definition_id != 0;
        let misses = |name: &str| !may_miss && table.column_index(name).is_none();
        for name in rule.rename.keys().chain(&rule.drop).filter(|name| misses(name)) {
            findings.push(
                Finding::error("TABLE-COLUMN", format!("{} has no column \"{name}\" to rename or drop", table.name))
                    .fix("correct the name: it is case-sensitive, as the source shows it"),
            );
        }
        self.check_values(table, rule, &misses, &mut findings);
        for &key in &table.key {
            let name = &table.columns[key].name;
            if rule.drop.contains(name) {
                findings.push(
                    Finding::error(
                        "TABLE-KEY-DROPPED",
                        format!("{}: the key column \"{name}\" cannot be dropped", table.name),
                    )
                    .detail("without its key the current rows of the table could not be told apart")
                    .fix(format!("take \"{name}\" out of `drop`")),
                );
            }
        }
        findings
    }
}

/// What is known of a table's columns over changes of its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Their identities stay.
    ById,
    /// Their names only; changes of them come by the log.
    ByName,
    /// The same, and the next look at the table is a load.
    ByNameBeforeLoad,
}

/// A table's two shapes.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// As the source has it.
    pub source: Table,
    /// As the target gets it.
    pub target: Arc<Table>,
    kept: Option<Vec<usize>>,
}

impl Mapped {
    /// Rows as the target gets them.
    pub fn columns(&self, columns: Columns) -> Columns {
        match &self.kept {
            Some(kept) => columns.project(kept),
            None => columns,
        }
    }

    /// A whole batch as the target gets it.
    pub fn batch(&self, batch: ChangeBatch) -> ChangeBatch {
        ChangeBatch { table: self.target.clone(), after: self.columns(batch.after), ..batch }
    }
}
