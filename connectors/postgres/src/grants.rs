//! SQL for people to run: a role with no more rights than a task needs (manual, GRANT; Logical Replication: Security).
//!
//! A role with REPLICATION, CONNECT, USAGE and SELECT can make a slot and read. It cannot publish tables that it does not
//! own: either their owner runs the statements that `check` prints, which is the least, or the role becomes a member of
//! the owner, which may do everything with the tables.

use millrace_core::{Selection, Table, TableName, TablePattern};

use crate::{
    config::{Names, PostgresConfig},
    discover::{quote_identifier, quote_literal, quote_table},
};

/// Makes a table's replica identity carry its whole old row, so that updates and deletes can be captured without a key. It
/// is a property of each partition too, which a partitioned table does not hand on.
pub fn replica_identity_full(table: &Table) -> String {
    let name = quote_table(&table.name);
    if table.parts.is_none() {
        return format!("ALTER TABLE {name} REPLICA IDENTITY FULL;");
    }
    execute(&format!(
        "SELECT format('ALTER TABLE %s REPLICA IDENTITY FULL', t.relid::regclass) FROM pg_partition_tree({}) t \
         JOIN pg_class c ON c.oid = t.relid WHERE c.relkind IN ('r', 'p')",
        quote_literal(&name).trim_start()
    ))
}

/// The statements, one per entry, to be run by a superuser in the task's database; entries that begin with `--` are for
/// people. Patterns are looked up when the statements run. With `own_publications` the role can make its publications.
pub fn grants(config: &PostgresConfig, task: &str, selection: &Selection, own_publications: bool) -> Vec<String> {
    let (role, names) = (quote_identifier(&config.user), Names::of_task(task));
    let database = quote_identifier(&config.database);
    let mut lines = vec![
        format!("-- in database {}, as a superuser", quote_literal(&config.database)),
        format!("CREATE ROLE {role} LOGIN REPLICATION;  -- then: \\password {role}"),
        format!("GRANT CONNECT ON DATABASE {database} TO {role};"),
    ];
    let mut schemas: Vec<&str> = vec![];
    for pattern in &selection.include {
        if pattern.schema.contains('*') || schemas.contains(&pattern.schema.as_str()) {
            continue;
        }
        schemas.push(&pattern.schema);
        lines.push(format!("GRANT USAGE ON SCHEMA {} TO {role};", quote_identifier(&pattern.schema)));
    }
    lines.extend(selection.include.iter().map(|pattern| select(pattern, selection, &role)));
    lines.push(execute(&format!(
        "SELECT DISTINCT format('GRANT SELECT ON %s TO %s', t.relid::regclass, r.role) {}",
        tables(&selection.include, selection)
            .replacen(
                "FROM pg_class c",
                &format!("FROM (SELECT {}::text AS role) r, pg_class c", quote_literal(&role).trim_start()),
                1
            )
            .replacen("WHERE c.relkind IN ('r', 'p')", PARTITIONS, 1)
    )));
    lines.push("-- for tables and partitions that are made later, run the statements with GRANT SELECT again".into());
    lines.push(format!("-- publications {} and {}:", names.publication, names.publication_inserts));
    if own_publications {
        lines.push(format!("GRANT CREATE ON DATABASE {database} TO {role};"));
        let owners = format!(
            "SELECT DISTINCT format('GRANT %I TO %s', pg_get_userbyid(c.relowner), {}) {} \
             AND NOT pg_has_role({}, c.relowner, 'MEMBER') \
             AND NOT (SELECT rolsuper FROM pg_roles WHERE oid = c.relowner)",
            quote_literal(&role).trim_start(),
            tables(&selection.include, selection),
            quote_literal(&config.user).trim_start(),
        );
        lines.push(execute(&owners));
        lines.push(
            "-- not of a superuser: what one owns is published by the statements that `millrace check` prints".into(),
        );
    } else {
        lines.push("-- the tables' owner, or a superuser, runs the statements that `millrace check` prints;".into());
        lines.push(
            "-- the role could also make them itself, as a member of the tables' owner, which may do everything".into(),
        );
        lines.push("-- with them: millrace grants --own-publications".into());
    }
    lines
}

fn select(pattern: &TablePattern, selection: &Selection, role: &str) -> String {
    let schema = quote_identifier(&pattern.schema);
    if pattern.is_exact() {
        let table = TableName::new(&*pattern.schema, &*pattern.name);
        return format!("GRANT SELECT ON {} TO {role};", quote_table(&table));
    }
    if !pattern.schema.contains('*') && pattern.name == "*" && selection.exclude.is_empty() {
        return format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};");
    }
    let usage = if pattern.schema.contains('*') { "GRANT USAGE ON SCHEMA %I TO %s; " } else { "" };
    let arguments = if usage.is_empty() { "" } else { "n.nspname, r.role, " };
    execute(&format!(
        "SELECT format('{usage}GRANT SELECT ON %I.%I TO %s', {arguments}n.nspname, c.relname, r.role) {}",
        tables(std::slice::from_ref(pattern), selection).replacen(
            "FROM pg_class c",
            &format!("FROM (SELECT {}::text AS role) r, pg_class c", quote_literal(role).trim_start()),
            1
        )
    ))
}

/// Partitions are loaded one by one, and a right on a partitioned table is none on them.
const PARTITIONS: &str = "CROSS JOIN LATERAL pg_partition_tree(c.oid) t WHERE c.relkind = 'p'";

/// A block that runs every statement that the query gives.
fn execute(query: &str) -> String {
    let block = format!("DECLARE s text; BEGIN FOR s IN {query} LOOP EXECUTE s; END LOOP; END");
    format!("DO {};", quote_literal(&block).trim_start())
}

/// The tables that match one of the patterns, and none of the selection's excluded ones.
fn tables(include: &[TablePattern], selection: &Selection) -> String {
    let any = |patterns: &[TablePattern]| {
        let one = |pattern: &TablePattern| {
            let [schema, name] = [&pattern.schema, &pattern.name].map(|part| quote_literal(&regex(part)));
            format!("(n.nspname ~ {} AND c.relname ~ {})", schema.trim_start(), name.trim_start())
        };
        patterns.iter().map(one).collect::<Vec<_>>().join(" OR ")
    };
    let mut text = format!(
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') \
         AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND ({})",
        any(include)
    );
    if !selection.exclude.is_empty() {
        text.push_str(&format!(" AND NOT ({})", any(&selection.exclude)));
    }
    text
}

/// A part of a pattern as a regular expression (manual, 9.7.3).
fn regex(part: &str) -> String {
    let mut text = String::from("^");
    for c in part.chars() {
        match c {
            '*' => text.push_str(".*"),
            c if c.is_ascii_punctuation() && c != '_' => text.extend(['\\', c]),
            c => text.push(c),
        }
    }
    text.push('$');
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use millrace_core::{Tls, TlsMode};

    fn config() -> PostgresConfig {
        PostgresConfig {
            host: "h".into(),
            port: 5432,
            database: "my shop".into(),
            user: "c\"dc".into(),
            password: None,
            tls: Tls { mode: TlsMode::VerifyFull, ca_file: None },
            connect_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn names_are_quoted_and_rights_are_the_least() {
        let parse = |text| TablePattern::parse(text).unwrap();
        let include = vec![parse("public.Orders"), parse("public.log_*"), parse("s_*.x"), parse("all.*")];
        let selection = Selection { include, exclude: vec![] };
        let lines = grants(&config(), "shop", &selection, false);
        for expected in [
            "CREATE ROLE \"c\"\"dc\" LOGIN REPLICATION;  -- then: \\password \"c\"\"dc\"",
            "GRANT CONNECT ON DATABASE \"my shop\" TO \"c\"\"dc\";",
            "GRANT USAGE ON SCHEMA \"public\" TO \"c\"\"dc\";",
            "GRANT SELECT ON \"public\".\"Orders\" TO \"c\"\"dc\";",
            "GRANT SELECT ON ALL TABLES IN SCHEMA \"all\" TO \"c\"\"dc\";",
        ] {
            assert_eq!(lines.iter().filter(|line| *line == expected).count(), 1, "{expected}\n{lines:#?}");
        }
        let sql = lines.iter().filter(|line| !line.starts_with("--")).cloned().collect::<Vec<_>>().join("\n");
        for too_much in ["SUPERUSER", "CREATE ON DATABASE", "relowner"] {
            assert!(!sql.contains(too_much), "{sql}");
        }
        let own = grants(&config(), "shop", &selection, true).join("\n");
        assert!(own.contains("GRANT CREATE ON DATABASE \"my shop\"") && own.contains("relowner"), "{own}");
    }

    #[tokio::test]
    async fn the_server_gives_what_the_patterns_name_and_nothing_else() {
        let Some(server) = crate::test_server::TestServer::start(&[]) else { return };
        let mut session = server.session().await;
        session
            .execute(
                "create role shop; create schema s_1; create schema \"t.*\"; create schema all_of; \
                 create table public.log_1 (a int); create table public.\"log_'\\2\" (a int); \
                 create table public.catalog_1 (a int); create table public.log_tmp (a int); \
                 create table s_1.x (a int); create table s_1.y (a int); create table \"t.*\".z (a int); \
                 create table all_of.p (a int); create table all_of.q_tmp (a int); \
                 create table public.log_p (a int) partition by list (a); \
                 create table t partition of log_p for values in (1) partition by list (a); \
                 create table u partition of t for values in (1); \
                 alter table s_1.x owner to shop; alter table s_1.y owner to shop",
            )
            .await
            .unwrap();
        let parse = |text| TablePattern::parse(text).unwrap();
        let include = vec![parse("public.log_*"), parse("s_*.x"), parse("all_of.*")];
        let selection = Selection { include, exclude: vec![parse("*.*tmp")] };
        let config = PostgresConfig { database: "postgres".into(), ..config() };
        for statement in grants(&config, "shop", &selection, true).iter().filter(|line| !line.starts_with("--")) {
            session.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        let rows = session
            .query(
                "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = relnamespace \
                 where relkind in ('r', 'p') and n.nspname !~ '^pg_|^info' and exists (select from aclexplode(relacl) a \
                 where a.grantee = 'c\"dc'::regrole) order by 1",
            )
            .await
            .unwrap();
        let granted: Vec<String> = rows.into_iter().flatten().flatten().collect();
        assert_eq!(granted, ["\"log_'\\2\"", "all_of.p", "log_1", "log_p", "s_1.x", "t", "u"]);
        let member = "select pg_has_role('c\"dc', 'shop', 'MEMBER') and not pg_has_role('c\"dc', 'postgres', 'MEMBER'), has_schema_privilege('c\"dc', 's_1', 'USAGE'), \
                      has_schema_privilege('c\"dc', 't.*', 'USAGE')";
        let row = session.query(member).await.unwrap().remove(0);
        assert_eq!(row, ["t", "t", "f"].map(|text| Some(text.to_string())));
    }
}
