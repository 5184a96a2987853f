//! What would keep a task from working, everything at once, each with its remedy.
//!
//! Codes are stable: `MYSQL-CONNECT`, `MYSQL-AUTH`, `MYSQL-BINLOG`, `MYSQL-BINLOG-FORMAT`, `MYSQL-ROW-IMAGE`,
//! `MYSQL-ROW-METADATA`, `MYSQL-REPLICATION-RIGHTS`, `MYSQL-RELOAD`, `MYSQL-SELECT`, `MYSQL-ENGINE`, `MYSQL-TYPE`,
//! `MYSQL-SERVER-ID`, `MYSQL-TABLE-MISSING`, `MYSQL-CASCADE`, `MYSQL-BINLOG-FILTER`, `MYSQL-REPLICA`, `MYSQL-SERVICE`, `MYSQL-READER`; as warnings
//! `MYSQL-KEY`, `MYSQL-RETENTION`, `MYSQL-PATTERN`, `MYSQL-CHARSET`, `MYSQL-GTID`, `MYSQL-VERSIONED`, and of a filter that does not concern the
//! task `MYSQL-BINLOG-FILTER`.

use std::collections::BTreeMap;

use millrace_core::{Finding, Kind, Result, TableName, TablePattern, source::Scope};

use crate::{
    MysqlConfig,
    config::Service,
    definition,
    discover::{self, Row, Shape, quote_table},
    server,
    types::SqlType,
    wire::{Connection, code},
};

/// Names that one finding lists; it must stay within twelve lines.
const NAMES_SHOWN: usize = 5;
/// Binary logs that are kept for less make a weekend dangerous.
const RETENTION_SECONDS_MIN: u64 = 86_400;

/// What tells whether the log names columns.
const METADATA: &str = "binlog_row_metadata";

/// How a variable is set, by whoever runs the server (Amazon RDS and Aurora User Guides, "Configuring MySQL binary logging").
fn set_global(service: Service, finding: Finding, name: &str, wanted: &str) -> Finding {
    match service {
        Service::Own => finding
            .fix(format!("SET GLOBAL {name} = '{wanted}';"))
            .fix(format!("and in the server's configuration: {name} = {wanted}")),
        Service::Rds => finding.fix(format!("in the DB parameter group: {name} = {wanted}")),
        Service::Aurora => {
            finding.fix(format!("in the DB cluster parameter group: {name} = {wanted}; then reboot the writer"))
        }
    }
}

/// Every problem of the scope.
pub async fn check(config: &MysqlConfig, server_id: u32, scope: &Scope) -> Vec<Finding> {
    let mut session = match Connection::connect(config).await {
        Ok(session) => session,
        Err(error) => {
            let finding = Finding::from(&error);
            let code = if error.kind == Kind::Authentication { "MYSQL-AUTH" } else { "MYSQL-CONNECT" };
            return vec![Finding { code: code.into(), ..finding }];
        }
    };
    let mut check = Check { session: &mut session, config, server_id, scope, findings: vec![] };
    if let Err(error) = check.everything().await {
        check.findings.push(Finding::from(&error));
    }
    check.findings
}

/// One run of the checks.
struct Check<'a> {
    session: &'a mut Connection,
    config: &'a MysqlConfig,
    server_id: u32,
    scope: &'a Scope,
    findings: Vec<Finding>,
}

impl Check<'_> {
    async fn everything(&mut self) -> Result<()> {
        let shapes = discover::select(self.session, &self.scope.selection).await?;
        if self.scope.cdc {
            self.binary_log(&shapes).await?;
            self.rights().await?;
        }
        if self.scope.cdc && self.scope.full_load && !self.session.is_mariadb() {
            self.lock_rights(&shapes).await?;
        }
        self.patterns(&shapes);
        self.versioned().await?;
        self.shapes(&shapes);
        if self.scope.cdc {
            self.filters(&shapes).await?;
            self.replica().await?;
        }
        self.select(&shapes).await
    }

    async fn variables(&mut self) -> Result<BTreeMap<String, String>> {
        let rows = self.session.query("SHOW GLOBAL VARIABLES").await?;
        Ok(rows.iter().map(|row| (Row(row).text(0).to_ascii_lowercase(), Row(row).text(1).to_string())).collect())
    }

    async fn binary_log(&mut self, shapes: &[Shape]) -> Result<()> {
        let variables = self.variables().await?;
        let value = |name: &str| variables.get(name).map(String::as_str);
        if self.config.service == Service::Aurora && value("innodb_read_only") == Some("ON") {
            self.findings.push(
                Finding::error(
                    "MYSQL-READER",
                    "this is a reader of an Aurora cluster, and only the writer has a binary log",
                )
                .fix("host: the cluster's endpoint, which leads to the writer after a failover, too"),
            );
            return Ok(());
        }
        if value("log_bin") != Some("ON") {
            let finding =
                Finding::error("MYSQL-BINLOG", "the server writes no binary log, so changes cannot be captured");
            self.findings.push(finding.fix(match self.config.service {
                Service::Own => "set log_bin and a server_id in the server's configuration, and restart it",
                Service::Rds => "set the instance's backup retention period to one day or more",
                Service::Aurora => "in the DB cluster parameter group: binlog_format = ROW; then reboot the writer",
            }));
            return Ok(());
        }
        if let Some(found) = value(METADATA).filter(|found| !found.eq_ignore_ascii_case("FULL")) {
            self.nameless(found, shapes);
        }
        for (name, wanted, finding, why) in [
            ("binlog_format", "ROW", "MYSQL-BINLOG-FORMAT", "the log has statements instead of rows"),
            ("binlog_row_image", "FULL", "MYSQL-ROW-IMAGE", "the log has only a part of each row"),
            ("binlog_row_value_options", "", "MYSQL-ROW-IMAGE", "the log has only parts of JSON values"),
        ] {
            let Some(found) = value(name).filter(|found| !found.eq_ignore_ascii_case(wanted)) else { continue };
            self.findings.push(
                set_global(
                    self.config.service,
                    Finding::error(finding, format!("{name} is {found}: {why}")),
                    name,
                    wanted,
                )
                .fix("sessions that are open keep what they had: end them, or wait for their end"),
            );
        }
        if value("server_id") == Some(&self.server_id.to_string()) {
            self.findings.push(
                Finding::error("MYSQL-SERVER-ID", format!("the server itself has the number {}", self.server_id))
                    .fix("give the task's reader another one: server-id in the endpoint's section"),
            );
        }
        // MariaDB has them always.
        if let Some(mode) = value("gtid_mode").filter(|mode| *mode != "ON") {
            self.findings.push(
                Finding::warning(
                    "MYSQL-GTID",
                    format!("gtid_mode is {mode}: a failover to a replica cannot be followed"),
                )
                .detail("everything is loaded anew from another server")
                .fix("set gtid_mode = ON and enforce_gtid_consistency = ON at all servers, one after the other"),
            );
        }
        self.retention(&variables).await
    }

    /// For how long the log is kept.
    async fn retention(&mut self, variables: &BTreeMap<String, String>) -> Result<()> {
        let value = |name: &str| variables.get(name).map(String::as_str);
        let seconds =
            |name: &str, unit: u64| value(name)?.parse::<f64>().ok().map(|number| (number * unit as f64) as u64);
        if let Some(kept) = self.amazon_retention().await? {
            return self.amazon_keeps(kept);
        }
        if self.config.service != Service::Own {
            let summary = "the server is not run by Amazon: it has no readable table mysql.rds_configuration";
            self.findings.push(
                Finding::error("MYSQL-SERVICE", summary)
                    .fix("type: mysql, or mariadb")
                    .fix(format!("or: GRANT SELECT ON mysql.rds_configuration TO '{}'@'%';", self.config.user)),
            );
            return Ok(());
        }
        let kept =
            seconds("binlog_expire_logs_seconds", 1).filter(|&kept| kept > 0).or(seconds("expire_logs_days", 86_400));
        if let Some(kept) = kept.filter(|&kept| kept > 0 && kept < RETENTION_SECONDS_MIN) {
            self.findings.push(
                Finding::warning("MYSQL-RETENTION", format!("the server keeps its binary logs for {kept} s only"))
                    .detail("a task that stands still for longer must load everything anew")
                    .fix("SET GLOBAL binlog_expire_logs_seconds = 259200;"),
            );
        }
        Ok(())
    }

    /// Without their names, columns are known by their places in the shape that a table was loaded with.
    fn nameless(&mut self, found: &str, shapes: &[Shape]) {
        let summary = format!("{METADATA} is {found}: the log does not tell names of columns");
        let generated = shapes.iter().find(|shape| shape.has_generated);
        let finding = match generated {
            _ if !self.scope.full_load => Finding::error("MYSQL-ROW-METADATA", summary)
                .detail("which shape a table had is known where it is loaded, and this task loads nothing"),
            Some(shape) => Finding::error("MYSQL-ROW-METADATA", summary).detail(format!(
                "the places of the columns of {} are not known: it has generated ones",
                shape.table.name
            )),
            None => Finding::warning("MYSQL-ROW-METADATA", summary)
                .detail("columns are known by their places, so a table whose columns are altered is loaded anew"),
        };
        self.findings.push(set_global(self.config.service, finding, METADATA, "FULL"));
    }

    /// What Amazon RDS and Aurora keep in a table of theirs instead of a variable: hours, or nothing for "as short as possible"
    /// (Amazon RDS User Guide, "Configuring MySQL binary logging"). Outer `None`: this is no such server.
    async fn amazon_retention(&mut self) -> Result<Option<Option<u64>>> {
        let sql = "SELECT value FROM mysql.rds_configuration WHERE name = 'binlog retention hours'";
        match self.session.query(sql).await {
            Ok(rows) => Ok(rows.first().map(|row| Row(row).text(0).parse().ok())),
            Err(error) if code(&error).is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn amazon_keeps(&mut self, hours: Option<u64>) -> Result<()> {
        if hours.is_none_or(|hours| hours * 3600 < RETENTION_SECONDS_MIN) {
            let kept = hours.map_or("for as short as it can".to_string(), |hours| format!("for {hours} h only"));
            self.findings.push(
                Finding::warning("MYSQL-RETENTION", format!("the server keeps its binary logs {kept}"))
                    .detail("a task that stands still for longer must load everything anew")
                    .fix("CALL mysql.rds_set_configuration('binlog retention hours', 72);"),
            );
        }
        Ok(())
    }

    async fn rights(&mut self) -> Result<()> {
        let mut missing = vec![];
        if !self.has_global_right(&["REPLICATION SLAVE"]).await? {
            missing.push("REPLICATION SLAVE");
        }
        if let Err(error) = server::log_files(self.session).await {
            match code(&error) {
                Some(1227) => missing.push("REPLICATION CLIENT"),
                _ => return Err(error),
            }
        }
        if !missing.is_empty() {
            let rights = missing.join(", ");
            let user = &self.config.user;
            self.findings.push(
                Finding::error(
                    "MYSQL-REPLICATION-RIGHTS",
                    format!("the user {user:?} may not read the binary log: {rights}"),
                )
                .fix(format!("GRANT {rights} ON *.* TO '{user}'@'%';")),
            );
        }
        Ok(())
    }

    /// Who may not lock has a lower bound of what a snapshot has, by GTIDs, which serves tables with a key.
    async fn lock_rights(&mut self, shapes: &[Shape]) -> Result<()> {
        // Amazon's servers refuse the lock also to who has the right.
        let is_amazon = self.config.service != Service::Own || self.amazon_retention().await?.is_some();
        if !is_amazon && self.has_global_right(&["RELOAD", "FLUSH_TABLES"]).await? {
            return Ok(());
        }
        let user = &self.config.user;
        let has_gtids = server::has_gtids(self.session).await?;
        let keyless: Vec<TableName> =
            shapes.iter().filter(|shape| !shape.table.is_keyed()).map(|shape| shape.table.name.clone()).collect();
        let why = match (has_gtids, keyless.is_empty()) {
            (true, true) => return Ok(()),
            (true, false) => format!("{} without a primary key need it", listed(&keyless)),
            (false, _) => "with gtid_mode = ON tables with a primary key would not need it".to_string(),
        };
        let finding = Finding::error(
            "MYSQL-RELOAD",
            format!("the user {user:?} may not hold commits for the moment of a snapshot"),
        );
        let fix = match (is_amazon, has_gtids) {
            (false, _) => format!("GRANT RELOAD ON *.* TO '{user}'@'%';"),
            (true, true) => "give them a primary key, or leave them out of the task".to_string(),
            (true, false) => "set gtid-mode and enforce_gtid_consistency to ON in the parameter group".to_string(),
        };
        self.findings.push(finding.detail(why).fix(fix));
        Ok(())
    }

    /// Whether the user has one of these rights everywhere.
    async fn has_global_right(&mut self, rights: &[&str]) -> Result<bool> {
        let rows = self.session.query("SHOW GRANTS").await?;
        let is_given = |line: &str| {
            let is_named = rights.iter().any(|right| line.contains(right)) || line.contains("ALL PRIVILEGES");
            line.contains(" ON *.* ") && is_named
        };
        Ok(rows.iter().any(|row| is_given(Row(row).text(0))))
    }

    /// Patterns that match nothing.
    fn patterns(&mut self, shapes: &[Shape]) {
        let name = |pattern: &TablePattern| TableName::new(&pattern.schema, &pattern.name);
        for pattern in &self.scope.selection.include {
            if shapes.iter().any(|shape| pattern.matches(&shape.table.name)) {
                continue;
            }
            let finding = match pattern.is_exact() {
                true => {
                    Finding::error("MYSQL-TABLE-MISSING", format!("there is no table {pattern}, or no right to see it"))
                        .fix("correct the name, or:")
                        .fix(format!("GRANT SELECT ON {} TO '{}'@'%';", quote_table(&name(pattern)), self.config.user))
                }
                false => Finding::warning("MYSQL-PATTERN", format!("no table matches {pattern}"))
                    .fix("correct the pattern; tables that come later and match are taken then"),
            };
            self.findings.push(finding);
        }
    }

    async fn versioned(&mut self) -> Result<()> {
        let versioned = discover::versioned(self.session, &self.scope.selection).await?;
        if !versioned.is_empty() {
            self.findings.push(
                Finding::warning("MYSQL-VERSIONED", format!("{} with system versioning: left out", listed(&versioned)))
                    .detail("the log has the rows of their history, too")
                    .fix(format!("ALTER TABLE {} DROP SYSTEM VERSIONING;", quote_table(&versioned[0])))
                    .fix("or leave them out: except in the task's section"),
            );
        }
        Ok(())
    }

    fn shapes(&mut self, shapes: &[Shape]) {
        for shape in shapes {
            for (column, ty) in &shape.unknown {
                let name = &shape.table.name;
                self.findings.push(
                    Finding::error(
                        "MYSQL-TYPE",
                        format!("column {column:?} of {name} has a type that is not known: {ty}"),
                    )
                    .fix("leave the table out of the task"),
                );
            }
            for column in &shape.table.columns {
                let Some(SqlType::Text(charset)) = SqlType::parse(&column.source_type) else { continue };
                if matches!(&*charset, "eucjpms" | "gb18030" | "ujis") {
                    let summary = format!("column {:?} of {} is in {charset}", column.name, shape.table.name);
                    self.findings.push(
                        Finding::warning("MYSQL-CHARSET", summary)
                            .detail("changes of rows with other characters than ASCII go to the dead letters")
                            .fix("convert the column to utf8mb4"),
                    );
                }
            }
        }
        if !self.scope.cdc {
            return;
        }
        let of = |is: &dyn Fn(&Shape) -> bool| shapes.iter().filter(|s| is(s)).map(|s| s.table.name.clone()).collect();
        let unsafe_engine: Vec<TableName> = of(&|shape| !shape.is_transactional());
        if !unsafe_engine.is_empty() {
            self.findings.push(
                Finding::error(
                    "MYSQL-ENGINE",
                    format!("the engine of {} knows no transactions", listed(&unsafe_engine)),
                )
                .detail("a load of it has no exact position, so changes could be lost or doubled")
                .fix(format!("ALTER TABLE {} ENGINE = InnoDB;", quote_table(&unsafe_engine[0]))),
            );
        }
        let keyless: Vec<TableName> = of(&|shape| !shape.table.is_keyed());
        if !keyless.is_empty() {
            self.findings.push(
                Finding::warning(
                    "MYSQL-KEY",
                    format!("{} without a primary key: an update is told as a delete and an insert", listed(&keyless)),
                )
                .fix(format!("ALTER TABLE {} ADD PRIMARY KEY (…);", quote_table(&keyless[0]))),
            );
        }
    }

    async fn select(&mut self, shapes: &[Shape]) -> Result<()> {
        let mut refused = vec![];
        for shape in shapes {
            // The catalog hides columns that the user has no right on: they would be missing without a word.
            let sql = format!("SELECT * FROM {} LIMIT 0", quote_table(&shape.table.name));
            let read = match self.session.execute(&sql).await {
                Ok(()) => definition::silent_foreign_keys(self.session, &shape.table.name).await,
                Err(error) => Err(error),
            };
            match read {
                Err(error) if error.kind == Kind::Permission => refused.push(shape.table.name.clone()),
                Err(error) => return Err(error),
                Ok(cascades) if self.scope.cdc => self.cascades(&shape.table.name, &cascades),
                Ok(_) => {}
            }
        }
        if !refused.is_empty() {
            let mut finding = Finding::error(
                "MYSQL-SELECT",
                format!("the user may not read {}, or not all columns", listed(&refused)),
            );
            for table in refused.iter().take(NAMES_SHOWN) {
                finding = finding.fix(format!("GRANT SELECT ON {} TO '{}'@'%';", quote_table(table), self.config.user));
            }
            self.findings.push(finding);
        }
        Ok(())
    }
}

// What the server leaves out of its log.
impl Check<'_> {
    fn cascades(&mut self, table: &TableName, constraints: &[String]) {
        for constraint in constraints {
            self.findings.push(
                Finding::error("MYSQL-CASCADE", format!("the foreign key {constraint} of {table} changes rows by itself"))
                    .detail("the server writes nothing of that to its binary log: the lake would keep what is gone")
                    .fix("make it again with ON DELETE RESTRICT and ON UPDATE RESTRICT, and change the rows in the application;")
                    .fix("or leave the table out of the task; or replicate from MySQL 9.6 or later, which logs it"),
            );
        }
    }

    /// `binlog_do_db` and `binlog_ignore_db`, which no variable shows.
    async fn filters(&mut self, shapes: &[Shape]) -> Result<()> {
        let Ok(rows) = server::status(self.session).await else { return Ok(()) };
        let Some(row) = rows.first().map(|row| Row(row)) else { return Ok(()) };
        let names = |index: usize| row.text(index).split(',').filter(|name| !name.is_empty()).collect::<Vec<_>>();
        let (only, ignored) = (names(2), names(3));
        if only.is_empty() && ignored.is_empty() {
            return Ok(());
        }
        let is_left_out = |shape: &&Shape| {
            let schema = shape.table.name.schema.as_str();
            ignored.contains(&schema) || !(only.is_empty() || only.contains(&schema))
        };
        let left_out: Vec<TableName> =
            shapes.iter().filter(is_left_out).map(|shape| shape.table.name.clone()).collect();
        let finding = match left_out.is_empty() {
            false => {
                let summary = format!("the server leaves changes of {} out of its binary log", listed(&left_out));
                Finding::error("MYSQL-BINLOG-FILTER", summary)
            }
            true => Finding::warning("MYSQL-BINLOG-FILTER", "the server leaves some databases out of its binary log")
                .detail(
                    "an ALTER or TRUNCATE of a captured table by a session whose own database is left out is not seen",
                ),
        };
        let fix = "take binlog_do_db and binlog_ignore_db out of the server's configuration, and restart it";
        self.findings.push(finding.fix(fix));
        Ok(())
    }

    /// A replica that does not write down what comes from its own source.
    async fn replica(&mut self) -> Result<()> {
        let variables = self.variables().await?;
        let logs = |name: &str| variables.get(name).is_none_or(|value| value == "ON");
        if logs("log_slave_updates") && logs("log_replica_updates") {
            return Ok(());
        }
        // The first asks for a right that MariaDB's readers of the log need not have; the second shows a running one only.
        let command = if self.session.is_mariadb() { "SHOW ALL SLAVES STATUS" } else { "SHOW REPLICA STATUS" };
        let is_set_up = self.session.query(command).await.is_ok_and(|rows| !rows.is_empty());
        let running = self.session.query("SHOW GLOBAL STATUS LIKE 'Slaves_running'").await?;
        let is_running = running.first().is_some_and(|row| Row(row).text(1) != "0");
        if is_set_up || is_running {
            self.findings.push(
                Finding::error("MYSQL-REPLICA", "the server is a replica, and does not log what it replicates")
                    .fix(
                        "set log_slave_updates = ON (MySQL: log_replica_updates) in its configuration, and restart it;",
                    )
                    .fix("or replicate from the server that is written to"),
            );
        }
        Ok(())
    }
}

fn listed(tables: &[TableName]) -> String {
    let shown: Vec<String> = tables.iter().take(NAMES_SHOWN).map(ToString::to_string).collect();
    let more = tables.len().saturating_sub(NAMES_SHOWN);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
