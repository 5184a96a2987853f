//! SQL for people to run: a role with no more rights than a task needs (manual, GRANT; Logical Replication: Security).
//!
//! A role with REPLICATION, CONNECT, USAGE and SELECT can make a slot and read. It cannot publish tables that it does not
//! own: either their owner runs the statements that `check` prints, or the role is made a member of the owner.

use millrace_core::{Selection, TableName, TablePattern};

use crate::{
    config::{Names, PostgresConfig},
    discover::{quote_identifier, quote_literal, quote_table},
};

/// Makes a table's replica identity carry its whole old row, so that updates and deletes can be captured without a key.
pub fn replica_identity_full(table: &TableName) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL;", quote_table(table))
}

/// The statements, to be run by a superuser in the task's database. Patterns that name no single table become grants on
/// whole schemas; a pattern of schemas becomes a comment, because rights cannot be given that way.
pub fn grants(config: &PostgresConfig, task: &str, selection: &Selection) -> Vec<String> {
    let (role, names) = (quote_identifier(&config.user), Names::of_task(task));
    let mut lines = vec![
        format!("-- in database {}, as a superuser", quote_literal(&config.database)),
        format!("CREATE ROLE {role} LOGIN REPLICATION;  -- then: \\password {role}"),
        format!("GRANT CONNECT ON DATABASE {} TO {role};", quote_identifier(&config.database)),
    ];
    let mut schemas: Vec<&str> = vec![];
    for pattern in &selection.include {
        if pattern.schema.contains('*') {
            lines.push(format!("-- {pattern}: grant USAGE on each schema, and SELECT on its tables, as below"));
        } else if !schemas.contains(&pattern.schema.as_str()) {
            schemas.push(&pattern.schema);
            lines.push(format!("GRANT USAGE ON SCHEMA {} TO {role};", quote_identifier(&pattern.schema)));
        }
    }
    lines.extend(selection.include.iter().filter_map(|pattern| select(pattern, &role)));
    lines.push(format!("-- publications {} and {}:", names.publication, names.publication_inserts));
    lines.push("-- either the tables' owner runs the statements that `millrace check` prints,".into());
    lines.push(format!("-- or the role makes them itself: GRANT CREATE ON DATABASE {} TO {role};", {
        quote_identifier(&config.database)
    }));
    lines.push(format!("-- and, for each owner of a table: GRANT owner TO {role};"));
    lines
}

fn select(pattern: &TablePattern, role: &str) -> Option<String> {
    let schema = quote_identifier(&pattern.schema);
    match (pattern.schema.contains('*'), pattern.name.contains('*')) {
        (true, _) => None,
        (false, true) => Some(format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};  -- {pattern}")),
        (false, false) => {
            let table = TableName::new(&*pattern.schema, &*pattern.name);
            Some(format!("GRANT SELECT ON {} TO {role};", quote_table(&table)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Tls, TlsMode};

    #[test]
    fn names_are_quoted_and_rights_are_the_least() {
        let config = PostgresConfig {
            host: "h".into(),
            port: 5432,
            database: "my shop".into(),
            user: "c\"dc".into(),
            password: None,
            tls: Tls { mode: TlsMode::VerifyFull, ca_file: None },
            connect_timeout: Duration::from_secs(1),
        };
        let parse = |text| TablePattern::parse(text).unwrap();
        let include = vec![parse("public.Orders"), parse("public.log_*"), parse("s_*.x")];
        let lines = grants(&config, "shop", &Selection { include, exclude: vec![] });
        for expected in [
            "CREATE ROLE \"c\"\"dc\" LOGIN REPLICATION;  -- then: \\password \"c\"\"dc\"",
            "GRANT CONNECT ON DATABASE \"my shop\" TO \"c\"\"dc\";",
            "GRANT USAGE ON SCHEMA \"public\" TO \"c\"\"dc\";",
            "GRANT SELECT ON \"public\".\"Orders\" TO \"c\"\"dc\";",
            "GRANT SELECT ON ALL TABLES IN SCHEMA \"public\" TO \"c\"\"dc\";  -- public.log_*",
        ] {
            assert_eq!(lines.iter().filter(|line| *line == expected).count(), 1, "{expected}\n{lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.contains("SUPERUSER") || line.contains("OWNER")));
    }
}
