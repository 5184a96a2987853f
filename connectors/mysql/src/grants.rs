//! The statements that make a user with no more rights than a task needs.

use millrace_core::Selection;

use crate::{
    MysqlConfig,
    config::Service,
    discover::{quote_literal, quote_name},
};

/// The statements, for an administrator to run. `REPLICATION CLIENT` is MariaDB's `BINLOG MONITOR`, which it takes under both
/// names; `RELOAD` is for MySQL, which takes its snapshots under FLUSH TABLES WITH READ LOCK (tables with a key can do
/// without), and for MariaDB where transactions of two phases are under way; Amazon gives it to nobody.
pub fn grants(config: &MysqlConfig, selection: &Selection) -> Vec<String> {
    let user = format!("{}@'%'", quote_literal(&config.user));
    let mut statements = vec![
        format!("CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '…';"),
        format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {user};"),
        match config.service {
            Service::Own => format!(
                "GRANT RELOAD ON *.* TO {user}; -- for the moment in which the snapshot of a load is taken; MariaDB: only \
                 beside XA"
            ),
            Service::Rds | Service::Aurora => {
                format!("GRANT SELECT ON mysql.rds_configuration TO {user}; -- for how long the log is kept")
            }
        },
    ];
    let mut selected: Vec<String> = selection
        .include
        .iter()
        .map(|pattern| match (pattern.schema.contains('*'), pattern.name.contains('*')) {
            (true, _) => format!("GRANT SELECT ON *.* TO {user};"),
            (false, true) => format!("GRANT SELECT ON {}.* TO {user};", escaped(&pattern.schema)),
            (false, false) => {
                format!("GRANT SELECT ON {}.{} TO {user};", quote_name(&pattern.schema), quote_name(&pattern.name))
            }
        })
        .collect();
    selected.dedup();
    statements.extend(selected);
    statements
}

/// In a grant on a whole database `_` and `%` stand for other characters (manual, "GRANT Statement").
fn escaped(schema: &str) -> String {
    quote_name(&schema.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%"))
}
