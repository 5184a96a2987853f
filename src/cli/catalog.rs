//! `millrace catalog databases|tables|files|view`: the catalog, read from the state.

use std::{process::ExitCode, sync::Arc};

use clap::Subcommand;
use millrace_core::Finding;
use serde_json::{Value, json};

use super::{Context, Failure, Outcome, output, verify};
use crate::{
    catalog::{Catalog, CatalogName, CatalogTable},
    config::units::show_bytes,
};

#[derive(Debug, Subcommand)]
pub enum Look {
    /// The databases
    Databases,
    /// The tables, with their columns, locations and how far they are complete
    Tables {
        /// Of this database only
        database: Option<String>,
    },
    /// The files that make up a table
    Files {
        /// The table: database.table
        table: String,
    },
    /// The SQL (DuckDB) of a table's current state
    View {
        /// The table: database.table
        table: String,
    },
    /// Whether the files that the catalog lists are at the target, with their size
    Verify {
        /// Of this table only: database.table
        table: Option<String>,
    },
}

pub fn catalog(context: &Context, look: Look) -> Outcome {
    let config = context.config()?;
    let catalog = Catalog::new(Arc::new(context.state(&config)?));
    match look {
        Look::Databases => {
            let databases = catalog.databases()?;
            output::print(context, &databases, || databases.join("\n"));
        }
        Look::Tables { database } => tables(context, &catalog, database)?,
        Look::Files { table } => files(context, &catalog, &table)?,
        Look::View { table } => {
            let name = known_table(&catalog, &table)?.name;
            let sql = catalog.view_sql(&name)?.ok_or_else(|| unknown(&table))?;
            output::print(context, &json!({ "sql": sql }), || sql.clone());
        }
        Look::Verify { table } => return verify::verify(context, &config, &catalog, table.as_deref()),
    }
    Ok(ExitCode::SUCCESS)
}

fn tables(context: &Context, catalog: &Catalog, database: Option<String>) -> Result<(), Failure> {
    let databases = match database {
        Some(database) => vec![database.to_lowercase()],
        None => catalog.databases()?,
    };
    let mut tables = vec![];
    for database in databases {
        tables.extend(catalog.tables(&database)?);
    }
    let json: Vec<Value> = tables.iter().map(to_json).collect();
    output::print(context, &json, || {
        let row = |table: &CatalogTable| {
            vec![
                table.name.database.clone(),
                table.name.table.clone(),
                table.version.to_string(),
                table.generation.to_string(),
                table.complete_through.to_string(),
                table.location.clone(),
            ]
        };
        let header = ["DATABASE", "TABLE", "VERSION", "GENERATION", "COMPLETE THROUGH", "LOCATION"];
        output::table(&header, &[2, 3], tables.iter().map(row).collect())
    });
    Ok(())
}

/// The record with plain `database` and `name`, and positions as people read them.
fn to_json(table: &CatalogTable) -> Value {
    let mut value = json!(table);
    value["database"] = json!(table.name.database);
    value["name"] = json!(table.name.table);
    value["complete_through"] = json!(table.complete_through.to_string());
    value["complete_through_log"] = json!(table.complete_through_log.to_string());
    value
}

fn files(context: &Context, catalog: &Catalog, table: &str) -> Result<(), Failure> {
    let name = known_table(catalog, table)?.name;
    let files = catalog.files(&name)?;
    output::print(context, &files, || {
        let rows = files.iter().map(|file| {
            let kind = json!(file.kind).as_str().unwrap_or_default().to_string();
            vec![file.path.clone(), output::number(file.rows), show_bytes(file.bytes), kind]
        });
        output::table(&["PATH", "ROWS", "BYTES", "KIND"], &[1, 2], rows.collect())
    });
    Ok(())
}

/// The table of this name. The catalog's names are lower case; an operator may write them as the source does.
pub(super) fn known_table(catalog: &Catalog, table: &str) -> Result<CatalogTable, Failure> {
    let name = CatalogName::parse(&table.to_lowercase()).ok_or_else(|| unknown(table))?;
    catalog.table(&name)?.ok_or_else(|| unknown(table))
}

fn unknown(table: &str) -> Failure {
    let finding = Finding::error("UNKNOWN-TABLE", format!("the catalog has no table {table}"));
    Failure::of(finding.fix("see what is there: millrace catalog tables"))
}
