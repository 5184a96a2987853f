//! What a table's definition tells and no catalog does: `SHOW CREATE TABLE` asks for no right but the one to read the whole
//! table, and shows its foreign keys, which `information_schema` hides from who may only read (MariaDB; tried with 10.11).

use millrace_core::{Result, TableName};

use crate::{
    discover::{Row, quote_table},
    wire::Connection,
};

/// The foreign keys by which the engine changes this table's rows when those of another one change, and writes nothing of it
/// to the binary log (manual, "InnoDB and MySQL Replication"). A user with rights on some of the columns only is refused.
pub async fn silent_foreign_keys(session: &mut Connection, table: &TableName) -> Result<Vec<String>> {
    let rows = session.query(&format!("SHOW CREATE TABLE {}", quote_table(table))).await?;
    let found = rows.first().map(|row| cascades(Row(row).text(1))).unwrap_or_default();
    if found.is_empty() || logs_cascades(session).await? { Ok(vec![]) } else { Ok(found) }
}

/// From MySQL 9.6 on the server cascades by itself, and logs what it does, unless it is told to leave that to the engine.
async fn logs_cascades(session: &mut Connection) -> Result<bool> {
    let rows = session.query("SHOW GLOBAL VARIABLES LIKE 'innodb_native_foreign_keys'").await?;
    Ok(rows.first().is_some_and(|row| Row(row).text(1) == "OFF"))
}

/// Each constraint stands on a line of its own, and its actions behind the last parenthesis.
fn cascades(definition: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim_start().strip_prefix("CONSTRAINT ")?;
        let (constraint, actions) = (line.split(" FOREIGN KEY ").next()?, line.rsplit_once(')')?.1);
        let acts = ["CASCADE", "SET NULL", "SET DEFAULT"].iter().any(|action| actions.contains(action));
        acts.then(|| constraint.to_string())
    };
    definition.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_found() {
        let definition = "CREATE TABLE `child` (\n  `id` int(11) NOT NULL COMMENT 'ON DELETE CASCADE',\n  PRIMARY KEY (`id`),\n  \
            CONSTRAINT `a` FOREIGN KEY (`p`) REFERENCES `parent` (`id`) ON DELETE CASCADE,\n  \
            CONSTRAINT `b` FOREIGN KEY (`CASCADE`) REFERENCES `parent` (`id`) ON DELETE NO ACTION,\n  \
            CONSTRAINT `c` FOREIGN KEY (`p`) REFERENCES `parent` (`id`) ON UPDATE SET NULL,\n  \
            CONSTRAINT `d` CHECK (`id` <> 'CASCADE')\n) ENGINE=InnoDB COMMENT='CASCADE'";
        assert_eq!(cascades(definition), ["`a`", "`c`"]);
    }
}
