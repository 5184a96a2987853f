//! `millrace catalog verify`: whether the files that the catalog lists are at the target.

use std::{process::ExitCode, sync::Arc};

use millrace_core::Finding;
use serde_json::json;

use super::{Context, Failure, Outcome, block_on, catalog::known_table, check::throwaway, output};
use crate::{
    catalog::Catalog,
    config::{Config, units::show_bytes},
    daemon::tasks::wire,
    delivery::verify::{Verified, verify as look},
    telemetry::report::Told,
};

pub fn verify(context: &Context, config: &Config, catalog: &Catalog, table: Option<&str>) -> Outcome {
    let only = table.map(|table| known_table(catalog, table)).transpose()?.map(|table| table.name);
    let state = Arc::new(context.state(config)?);
    let (mut verified, mut told) = (vec![], vec![]);
    for task in config.tasks.values() {
        let wiring = wire(config, task, &throwaway())?;
        match block_on(look(catalog, &*state, &*wiring.destination, &task.name, only.as_ref()))? {
            Ok(found) => {
                let wrong = found.iter().filter_map(|table| table.finding(&task.name));
                told.extend(wrong.map(|finding| Told::of_task(config, &task.name, &finding.at(&task.target))));
                verified.extend(found);
            }
            Err(error) => {
                let finding = Finding::from(&error).at(&task.target);
                return Err(Failure::world(vec![Told::of_task(config, &task.name, &finding)]));
            }
        }
    }
    output::print(context, &json!({ "tables": verified, "findings": told }), || {
        let row = |table: &Verified| {
            vec![
                table.target.to_string(),
                output::number(table.files),
                output::number(table.rows),
                show_bytes(table.bytes),
                output::number(table.missing.len() as u64),
                output::number(table.changed.len() as u64),
            ]
        };
        let header = ["TABLE", "FILES", "ROWS", "BYTES", "MISSING", "CHANGED"];
        let tables = output::table(&header, &[1, 2, 3, 4, 5], verified.iter().map(row).collect());
        [tables].into_iter().chain(told.iter().map(|told| format!("\n{told}"))).collect()
    });
    Ok(if told.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}
