//! What would keep a task from working, everything at once, each with its remedy.
//!
//! Codes are stable: `PG-CONNECT`, `PG-AUTH`, `PG-DATABASE`, `PG-TLS`, `PG-VERSION`, `PG-STANDBY`,
//! `PG-STANDBY-FEEDBACK`, `PG-WAL-LEVEL`, `PG-SLOTS`, `PG-WALSENDERS`, `PG-REPLICATION-ROLE`, `PG-USAGE`, `PG-SELECT`,
//! `PG-RLS`, `PG-PUBLICATION`, `PG-ROW-FILTER`, `PG-TABLE-MISSING`; as warnings `PG-PATTERN`, `PG-REPLICA-IDENTITY`,
//! `PG-PARTITION`, `PG-OTHER-PUBLICATION`, `PG-FAILOVER`, `PG-WAL-KEEP`, `PG-LONG-TRANSACTION`, `PG-SUPERUSER`. What cannot be looked at
//! is reported with its error.

mod server;

use std::io;

use millrace_core::{Error, Finding, Kind, Result, TableName, TablePattern, source::Scope};

use crate::{
    Options, PostgresConfig,
    config::Names,
    discover::{self, CatalogRow, IdentityGap, Shape, quote_identifier, quote_literal, quote_table},
    grants::replica_identity_full,
    publication,
    wire::{Connection, Mode, ServerError},
};

/// The oldest server that can be read: TID range scans and `pg_replication_slots.safe_wal_size` need it.
const MAJOR_VERSION_MIN: u32 = 14;
/// Names that one finding lists; it must stay within twelve lines.
const NAMES_SHOWN: usize = 5;

/// Every problem of the scope.
pub async fn check(config: &PostgresConfig, names: &Names, options: &Options, scope: &Scope) -> Vec<Finding> {
    let mut connection = match Connection::connect(config, Mode::Plain, "millrace check").await {
        Ok(connection) => connection,
        Err(error) => return vec![connect_finding(config, &error).await],
    };
    if connection.major_version() < MAJOR_VERSION_MIN {
        let version = connection.parameter("server_version").unwrap_or("unknown").to_string();
        return vec![
            Finding::error("PG-VERSION", format!("PostgreSQL {version} is too old"))
                .fix(format!("upgrade the server to PostgreSQL {MAJOR_VERSION_MIN} or later")),
        ];
    }
    let mut check = Check {
        connection: &mut connection,
        names,
        options,
        scope,
        role: String::new(),
        is_standby: false,
        findings: vec![],
    };
    if let Err(error) = check.everything().await {
        check.findings.push(Finding::from(&error));
    }
    let findings = check.findings;
    connection.close().await;
    findings
}

/// One run of the checks.
struct Check<'a> {
    connection: &'a mut Connection,
    names: &'a Names,
    options: &'a Options,
    scope: &'a Scope,
    /// Publications are made elsewhere.
    is_standby: bool,
    /// The role that is logged in, quoted.
    role: String,
    findings: Vec<Finding>,
}

impl Check<'_> {
    async fn everything(&mut self) -> Result<()> {
        self.role().await?;
        if self.scope.cdc {
            self.server().await?;
            self.failover().await?;
            self.long_transactions().await?;
        }
        let shapes = discover::select(self.connection, &self.scope.selection).await?;
        self.patterns(&shapes).await?;
        self.rights(&shapes).await?;
        if self.scope.cdc {
            self.identities(&shapes);
        }
        self.partitions(&shapes);
        if self.scope.cdc {
            self.publications(&shapes).await?;
            self.other_publications(&shapes).await?;
        }
        Ok(())
    }

    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    async fn one_row(&mut self, sql: &str) -> Result<Vec<Option<String>>> {
        let row = self.connection.query(sql).await?.into_iter().next();
        row.ok_or_else(|| Error::new(Kind::Protocol, "reading the catalog: a row is missing"))
    }

    async fn role(&mut self) -> Result<()> {
        // On Amazon RDS the right comes with membership in rds_replication.
        let row = self
            .one_row(
                "SELECT rolname, rolsuper, rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE \
                 m.rolname = 'rds_replication' AND pg_has_role(m.oid, 'MEMBER')) FROM pg_roles WHERE rolname = current_user",
            )
            .await?;
        let row = CatalogRow(&row);
        self.role = quote_identifier(row.word(0)?);
        if row.text(1) == Some("t") {
            let role = self.role.clone();
            self.add(
                Finding::warning(
                    "PG-SUPERUSER",
                    format!("the role {role} is a superuser, which replication does not need"),
                )
                .fix("CREATE ROLE cdc LOGIN REPLICATION PASSWORD '…'; with SELECT on the tables, and use that"),
            );
        } else if self.scope.cdc && row.text(2) != Some("t") {
            let role = self.role.clone();
            self.add(
                Finding::error("PG-REPLICATION-ROLE", format!("the role {role} may not replicate"))
                    .fix(format!("let a superuser run: ALTER ROLE {role} REPLICATION;")),
            );
        }
        Ok(())
    }

    /// Patterns that match nothing.
    async fn patterns(&mut self, shapes: &[Shape]) -> Result<()> {
        let unmatched = |pattern: &&TablePattern| !shapes.iter().any(|shape| pattern.matches(&shape.table.name));
        let selection = &self.scope.selection;
        let excluded = |pattern: &TablePattern| {
            let name = TableName::new(pattern.schema.clone(), pattern.name.clone());
            selection.exclude.iter().any(|exclude| exclude.matches(&name))
        };
        let unmatched: Vec<TablePattern> = selection.include.iter().filter(unmatched).cloned().collect();
        for pattern in unmatched {
            if !pattern.is_exact() {
                let finding = Finding::warning("PG-PATTERN", format!("no table matches {pattern}"));
                self.add(finding.fix("each part is case-sensitive; * stands for any characters within it"));
            } else if !excluded(&pattern) {
                let finding = self.missing_table(&pattern).await?;
                self.add(finding);
            }
        }
        Ok(())
    }

    async fn missing_table(&mut self, pattern: &TablePattern) -> Result<Finding> {
        let rows = self
            .connection
            .query(&format!(
                "SELECT c.relkind, c.relpersistence FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = {} AND c.relname = {}",
                quote_literal(&pattern.schema),
                quote_literal(&pattern.name)
            ))
            .await?;
        let code = "PG-TABLE-MISSING";
        if let Some(row) = rows.first().map(|row| CatalogRow(row)) {
            let (what, fix) = match (row.text(0), row.text(1)) {
                (Some("v" | "m"), _) => ("a view", "name the tables it reads"),
                (Some("f"), _) => ("a foreign table", "replicate it from its own server"),
                (Some("r" | "p"), Some("u")) => {
                    ("an unlogged table, whose changes are not in the log", "ALTER TABLE … SET LOGGED;")
                }
                _ => ("no ordinary table", "take it out of the tables"),
            };
            return Ok(Finding::error(code, format!("{pattern} is {what}")).fix(fix));
        }
        let tables = self
            .connection
            .query(&format!(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {} LIMIT 20000",
                discover::USER_TABLE
            ))
            .await?;
        let wanted = pattern.to_string();
        let near = tables
            .iter()
            .filter_map(|row| Some(format!("{}.{}", row.first()?.as_deref()?, row.get(1)?.as_deref()?)))
            .map(|name| (strsim::damerau_levenshtein(&name.to_lowercase(), &wanted.to_lowercase()), name))
            .filter(|(distance, _)| *distance <= 3)
            .min();
        let finding = Finding::error(code, format!("there is no table {pattern}"));
        Ok(match near {
            Some((_, name)) => finding.fix(format!("did you mean {name}?")),
            None => finding.fix("write it as the server shows it (\\dt *.* in psql); each part is case-sensitive"),
        })
    }

    /// USAGE, SELECT and row security.
    async fn rights(&mut self, shapes: &[Shape]) -> Result<()> {
        if shapes.is_empty() {
            return Ok(());
        }
        let rows = self
            .connection
            .query(&format!(
                "SELECT n.nspname, c.relname, has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), \
                 row_security_active(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.oid IN ({})",
                oids_of_all(shapes)
            ))
            .await?;
        let (mut schemas, mut tables, mut hidden) = (vec![], vec![], vec![]);
        for row in &rows {
            let row = CatalogRow(row);
            let name = TableName::new(row.word(0)?, row.word(1)?);
            if row.text(2) != Some("t") && !schemas.contains(&quote_identifier(&name.schema)) {
                schemas.push(quote_identifier(&name.schema));
            }
            if row.text(3) != Some("t") {
                tables.push(quote_table(&name));
            } else if row.text(4) == Some("t") {
                hidden.push(quote_table(&name));
            }
        }
        let role = self.role.clone();
        if !schemas.is_empty() {
            let finding = Finding::error("PG-USAGE", format!("the role {role} may not use the schemas of all tables"));
            self.add(finding.fix(format!("GRANT USAGE ON SCHEMA {} TO {role};", schemas.join(", "))));
        }
        if !tables.is_empty() {
            let finding = Finding::error("PG-SELECT", format!("the role {role} may not read {}", some_of(&tables)));
            self.add(finding.fix(format!("GRANT SELECT ON {} TO {role};", tables.join(", "))));
        }
        if !hidden.is_empty() {
            let summary = format!("row security hides rows of {} from the role {role}", some_of(&hidden));
            self.add(Finding::error("PG-RLS", summary).fix(format!("ALTER ROLE {role} BYPASSRLS;")));
        }
        Ok(())
    }

    /// Tables of which only inserts are captured.
    fn identities(&mut self, shapes: &[Shape]) {
        let reasons = [
            IdentityGap::NoKey,
            IdentityGap::Deferrable,
            IdentityGap::Nothing,
            IdentityGap::IndexGone,
            IdentityGap::Generated,
            IdentityGap::Partition,
        ];
        for reason in reasons {
            let with_gap: Vec<&Shape> = shapes.iter().filter(|shape| shape.gap == Some(reason)).collect();
            if with_gap.is_empty() {
                continue;
            }
            let tables: Vec<String> = with_gap.iter().map(|shape| quote_table(&shape.table.name)).collect();
            let alter: Vec<String> = with_gap.iter().map(|shape| replica_identity_full(&shape.table)).collect();
            self.add(
                Finding::warning(
                    "PG-REPLICA-IDENTITY",
                    format!("updates and deletes of {} are not captured", some_of(&tables)),
                )
                .detail(format!("Of each of these tables this is the reason: {}.", reason.reason()))
                .detail("Publishing them would make the application's own UPDATE and DELETE fail.")
                .fix(alter.join(" ")),
            );
        }
    }

    /// Partitions whose rows are not taken with their table's, and tables that new partitions may break.
    fn partitions(&mut self, shapes: &[Shape]) {
        for shape in shapes.iter().filter(|shape| shape.is_partitioned()) {
            let table = quote_table(&shape.table.name);
            if !shape.left_out.is_empty() {
                let names: Vec<String> = shape.left_out.iter().map(quote_table).collect();
                let summary = format!("rows of {table} are left out: those in {}", some_of(&names));
                self.add(
                    Finding::warning("PG-PARTITION", summary)
                        .detail("Of partitions that are foreign tables or unlogged, nothing is in the server's log.")
                        .fix("replicate a foreign table from its own server; ALTER TABLE … SET LOGGED an unlogged one"),
                );
            }
            if self.scope.cdc && shape.gap.is_none() && !shape.table.is_keyed() {
                let summary = format!("new partitions of {table} begin without REPLICA IDENTITY FULL");
                self.add(
                    Finding::warning("PG-PARTITION", summary)
                        .detail(
                            "It has no key, so the application's UPDATE and DELETE fail on them until they have it.",
                        )
                        .fix(format!("after a partition is made: {}", replica_identity_full(&shape.table))),
                );
            }
        }
    }

    /// Whether our publications are right, or can be made so by this role.
    async fn publications(&mut self, shapes: &[Shape]) -> Result<()> {
        let tables = shapes.iter().map(|shape| &shape.table);
        let statements = publication::missing(self.connection, self.names, tables).await?;
        let both = [
            (&self.names.publication, "insert, update, delete, truncate"),
            (&self.names.publication_inserts, "insert, truncate"),
        ];
        let mut narrowed = vec![];
        for (name, operations) in both {
            let published = publication::published(self.connection, name, operations).await?;
            narrowed.extend(published.narrowed.iter().map(quote_table));
        }
        if !narrowed.is_empty() {
            self.add(
                Finding::error(
                    "PG-ROW-FILTER",
                    format!("our publications filter rows or columns of {}", some_of(&narrowed)),
                )
                .detail("Rows would be missing; and a filter on a column outside the replica identity makes the")
                .detail("application's own UPDATE and DELETE fail. Filter in the task's rules instead.")
                .fix(statements.join(" ")),
            );
            return Ok(());
        }
        if self.findings.iter().any(|finding| finding.code == "PG-TABLE-MISSING") {
            // By a name that is misspelt nobody is told to take the table out that is meant.
            return Ok(());
        }
        if statements.is_empty() || (!self.is_standby && self.may_publish(shapes).await?) {
            return Ok(());
        }
        let mut finding = match self.is_standby {
            true => Finding::error("PG-PUBLICATION", "publications are missing, and a standby cannot make them")
                .detail("They are made at the primary, and come to the standby from there.")
                .fix("let the owner of the tables, or a superuser, run at the primary:"),
            false => {
                let summary = format!(
                    "the role {} may not make or alter the publications, and they are not as the tables need them",
                    self.role
                );
                Finding::error("PG-PUBLICATION", summary)
                    .detail("It needs CREATE on the database, and must own the tables and the publications.")
                    .fix("let the owner of the tables, or a superuser, run:")
            }
        };
        for statement in statements {
            finding = finding.fix(statement);
        }
        self.add(finding);
        Ok(())
    }

    async fn may_publish(&mut self, shapes: &[Shape]) -> Result<bool> {
        let [ours, inserts] =
            [&self.names.publication, &self.names.publication_inserts].map(|name| quote_literal(name));
        let tables = match shapes.is_empty() {
            true => "true".into(),
            false => format!(
                "(SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class WHERE oid IN ({}))",
                oids(shapes)
            ),
        };
        let row = self
            .one_row(&format!(
                "SELECT {tables} AND (has_database_privilege(current_database(), 'CREATE')) AND coalesce((SELECT \
                 bool_and(pg_has_role(pubowner, 'USAGE')) FROM pg_publication WHERE pubname IN ({ours}, {inserts})), true)"
            ))
            .await?;
        Ok(CatalogRow(&row).text(0) == Some("t"))
    }

    /// Publications of others that make the application's statements fail. They do so without us, but it is we who are
    /// asked.
    async fn other_publications(&mut self, shapes: &[Shape]) -> Result<()> {
        let [ours, inserts] =
            [&self.names.publication, &self.names.publication_inserts].map(|name| quote_literal(name));
        let rows = self
            .connection
            .query(&format!(
                "SELECT p.pubname, t.schemaname, t.tablename FROM pg_publication p \
                 JOIN pg_publication_tables t USING (pubname) \
                 WHERE (p.pubupdate OR p.pubdelete) AND p.pubname NOT IN ({ours}, {inserts})"
            ))
            .await?;
        let mut tables = vec![];
        for row in &rows {
            let row = CatalogRow(row);
            let name = TableName::new(row.word(1)?, row.word(2)?);
            let shape = shapes.iter().find(|shape| shape.table.name == name);
            if shape.and_then(|shape| shape.gap).is_some_and(|gap| gap != IdentityGap::Generated) {
                tables.push((quote_identifier(row.word(0)?), quote_table(&name)));
            }
        }
        if !tables.is_empty() {
            let shown: Vec<String> = tables.iter().map(|(by, table)| format!("{table} (by {by})")).collect();
            let fixes: Vec<String> =
                tables.iter().map(|(_, table)| format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")).collect();
            self.add(
                Finding::warning(
                    "PG-OTHER-PUBLICATION",
                    format!(
                        "another publication publishes updates of tables without replica identity: {}",
                        some_of(&shown)
                    ),
                )
                .detail("The application's UPDATE and DELETE fail on them now.")
                .fix(fixes.join(" ")),
            );
        }
        self.other_filters(shapes, &[ours, inserts]).await
    }

    /// Row filters on columns outside the replica identity. `pg_depend` has the columns that a filter uses, and those of
    /// a column list, which are told apart by being in it.
    async fn other_filters(&mut self, shapes: &[Shape], ours: &[String]) -> Result<()> {
        if self.connection.major_version() < 15 || shapes.is_empty() {
            return Ok(());
        }
        let rows = self
            .connection
            .query(&format!(
                "SELECT p.pubname, n.nspname, c.relname, a.attname FROM pg_publication p \
                 JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid \
                 AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid > 0 \
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid \
                 WHERE (p.pubupdate OR p.pubdelete) AND r.prqual IS NOT NULL AND p.pubname NOT IN ({}) \
                 AND d.refobjsubid <> ALL (coalesce(r.prattrs, '')::int2[]) AND c.relreplident <> 'f' \
                 AND c.oid IN ({})",
                ours.join(", "),
                oids(shapes)
            ))
            .await?;
        for row in &rows {
            let row = CatalogRow(row);
            let (name, column) = (TableName::new(row.word(1)?, row.word(2)?), row.word(3)?);
            let Some(shape) = shapes.iter().find(|shape| shape.table.name == name) else { continue };
            if shape.table.column_index(column).is_some_and(|index| shape.table.key.contains(&index)) {
                continue;
            }
            let (by, table) = (quote_identifier(row.word(0)?), quote_table(&name));
            self.add(
                Finding::warning(
                    "PG-ROW-FILTER",
                    format!(
                        "publication {by} filters {table} by column {column:?}, which is outside its replica identity"
                    ),
                )
                .detail("The application's UPDATE and DELETE fail on this table now.")
                .fix(format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")),
            );
        }
        Ok(())
    }
}

fn oids(shapes: &[Shape]) -> String {
    shapes.iter().map(|shape| shape.table.source_id.to_string()).collect::<Vec<_>>().join(",")
}

/// The same with the partitions of partitioned tables.
fn oids_of_all(shapes: &[Shape]) -> String {
    let partitions = shapes.iter().filter(|shape| shape.is_partitioned()).flat_map(|shape| &shape.storages);
    let partitions: String = partitions.map(|storage| format!(",{}", storage.oid)).collect();
    oids(shapes) + &partitions
}

/// A few names, and how many more there are.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMES_SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// What is wrong with a connect: the place, the password, the database, or the encryption.
pub async fn connect_finding(config: &PostgresConfig, error: &Error) -> Finding {
    let finding = match error.source.as_ref().and_then(|source| source.downcast_ref::<ServerError>()) {
        Some(said) => refusal(config, said).await,
        None => no_answer(config, error),
    };
    Finding { detail: Finding::from(error).detail, ..finding }
}

/// The server answered, and refused.
async fn refusal(config: &PostgresConfig, said: &ServerError) -> Finding {
    let place = format!("{}:{}", config.host, config.port);
    let (role, database) = (quote_identifier(&config.user), quote_identifier(&config.database));
    match said.code.as_str() {
        "3D000" => {
            let finding = Finding::error("PG-DATABASE", format!("there is no database {database} at {place}"));
            match near_database(config).await {
                Some(near) => finding.fix(format!("did you mean database: {near} ?")),
                None => finding.fix("set database to one that exists (psql -l lists them)"),
            }
        }
        "28P01" => Finding::error("PG-AUTH", format!("the server at {place} refuses the password of role {role}"))
            .fix("correct the password, PGPASSWORD or ~/.pgpass, or set a new one:")
            .fix(format!("ALTER ROLE {role} PASSWORD '…';")),
        "28000" => {
            let finding = Finding::error("PG-AUTH", format!("the server at {place} refuses the role {role}"))
                .fix("check user; and pg_hba.conf needs a line such as:")
                .fix(format!("host {database} {role} <our address>/32 scram-sha-256"));
            match said.message.contains("no encryption") {
                true => finding.fix("or, if it has such a line that begins with hostssl, set tls.mode to verify-full"),
                false => finding,
            }
        }
        "42501" => Finding::error("PG-AUTH", format!("the role {role} may not connect to the database {database}"))
            .fix(format!("GRANT CONNECT ON DATABASE {database} TO {role};")),
        _ => Finding::error("PG-CONNECT", format!("the server at {place} refuses connections now"))
            .fix("wait until it has started, or give it more max_connections"),
    }
}

/// It did not come so far that the server could refuse.
fn no_answer(config: &PostgresConfig, error: &Error) -> Finding {
    let place = format!("{}:{}", config.host, config.port);
    let advice = |otherwise: &str| if error.fix.is_empty() { otherwise.to_string() } else { error.fix.clone() };
    if is_tls(error) {
        return Finding::error("PG-TLS", format!("no encrypted connection to {place} can be made"))
            .fix(advice("check tls.mode and tls.ca-file"));
    }
    match error.kind {
        Kind::Authentication => Finding::error("PG-AUTH", format!("logging in to {place} as {:?} failed", config.user))
            .fix(advice("check user and password")),
        Kind::Config => Finding::from(error),
        _ => {
            let io = error.source.as_ref().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
            Finding::error("PG-CONNECT", format!("cannot connect to {place}")).fix(match io {
                Some(io::ErrorKind::ConnectionRefused) => {
                    "check port, and whether the server listens there (listen_addresses)"
                }
                Some(io::ErrorKind::NotFound) => "check host and port: there is no such socket or address",
                Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                    "check port: what answers there is no PostgreSQL, or it is stopping"
                }
                _ => "check host, port, and the firewalls in between",
            })
        }
    }
}

fn is_tls(error: &Error) -> bool {
    let text = |source: &(dyn std::error::Error + Send + Sync)| source.to_string().contains("speak TLS");
    error.doing.contains("TLS") || error.source.as_ref().is_some_and(|source| text(&**source))
}

/// The database whose name is nearest; found by way of `postgres`, where that may be entered.
async fn near_database(config: &PostgresConfig) -> Option<String> {
    let other = PostgresConfig { database: "postgres".into(), ..config.clone() };
    let mut connection = Connection::connect(&other, Mode::Plain, "millrace check").await.ok()?;
    let rows =
        connection.query("SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate").await.ok()?;
    connection.close().await;
    let databases = discover::first_cells(rows).into_iter();
    let near = databases.map(|name| (strsim::damerau_levenshtein(&name, &config.database), name)).min()?;
    (near.0 <= 3).then_some(near.1)
}
