//! `check` against real servers: every mistake is found, told in at most twelve lines, and gone when the remedy that was
//! printed has been applied.

use std::{fs, time::Duration};

use millrace_core::{
    Finding, Secret, SecretSource, Selection, Severity, TablePattern, Tls, TlsMode,
    source::{Scope, Source},
};
use millrace_postgres::{Options, PostgresConfig, PostgresSource, wire};

#[allow(dead_code)]
#[path = "../src/test_server.rs"]
mod test_server;
use test_server::TestServer;

fn scope(patterns: &[&str]) -> Scope {
    let include = patterns.iter().map(|pattern| TablePattern::parse(pattern).unwrap()).collect();
    Scope { selection: Selection { include, exclude: vec![] }, full_load: true, cdc: true }
}

async fn check(config: &PostgresConfig, patterns: &[&str]) -> Vec<Finding> {
    let findings = PostgresSource::new(config.clone(), "shop", Options::default()).check(&scope(patterns)).await;
    for finding in &findings {
        let lines = 1 + finding.detail.len() + finding.fix.len();
        assert!(lines <= 12 && !finding.fix.is_empty(), "{finding:?}");
        assert!(finding.detail.iter().chain(&finding.fix).all(|line| !line.contains('\n')), "{finding:?}");
    }
    findings
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

fn find<'a>(findings: &'a [Finding], code: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.code == code).unwrap_or_else(|| panic!("no {code} in {findings:?}"))
}

/// Runs the lines of a remedy that are SQL, as the person who reads it would.
async fn apply(session: &mut wire::Connection, finding: &Finding) {
    let sql: Vec<&String> = finding
        .fix
        .iter()
        .filter(|line| ["ALTER", "GRANT", "CREATE", "DROP"].iter().any(|verb| line.starts_with(verb)))
        .collect();
    let after_colon = finding.fix.iter().filter_map(|line| line.split_once("run: ")).map(|(_, sql)| sql.to_string());
    let all: Vec<String> = sql.into_iter().cloned().chain(after_colon).collect();
    assert!(!all.is_empty(), "{finding:?}");
    for statement in all {
        session.execute(&statement).await.unwrap();
    }
}

#[tokio::test]
async fn connects_that_fail_say_why() {
    let Some(server) = TestServer::start(&["password_encryption='scram-sha-256'"]) else { return };
    let mut session = server.session().await;
    session.execute("create role cdc login replication password 'right'").await.unwrap();
    session.execute("create database shop").await.unwrap();
    let hba = "hostnossl all refused 127.0.0.1/32 reject\nhost all cdc 127.0.0.1/32 scram-sha-256\n\
               host all postgres 127.0.0.1/32 trust\n";
    fs::write(format!("{}/pg_hba.conf", server.data()), hba).unwrap();
    session.execute("select pg_reload_conf()").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let password = |text: &str| Some(SecretSource::Value(Secret::new(text)));
    let good = PostgresConfig { user: "cdc".into(), password: password("right"), ..server.config("shop") };
    let verify = Tls { mode: TlsMode::VerifyFull, ca_file: None };
    let free_port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    for (config, code, words) in [
        (PostgresConfig { port: free_port, ..good.clone() }, "PG-CONNECT", "check port"),
        (PostgresConfig { host: "/nowhere".into(), ..good.clone() }, "PG-CONNECT", "no such socket"),
        (PostgresConfig { host: "no-such-host.invalid".into(), ..good.clone() }, "PG-CONNECT", "check host"),
        (PostgresConfig { password: password("wrong"), ..good.clone() }, "PG-AUTH", "correct the password"),
        (PostgresConfig { user: "nobody".into(), ..good.clone() }, "PG-AUTH", "pg_hba.conf"),
        (PostgresConfig { database: "shpo".into(), ..good.clone() }, "PG-DATABASE", "did you mean database: shop"),
        (PostgresConfig { tls: verify, ..good.clone() }, "PG-TLS", "ssl = on"),
    ] {
        let findings = check(&config, &["public.*"]).await;
        assert_eq!(codes(&findings), [code]);
        assert!(findings[0].fix.join(" ").contains(words), "{findings:?}");
        assert!(!findings[0].detail.is_empty() && !format!("{findings:?}").contains("wrong\""));
    }
    let findings = check(&good, &["public.*"]).await;
    assert!(
        !codes(&findings).iter().any(|code| ["PG-CONNECT", "PG-AUTH", "PG-DATABASE"].contains(code)),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_set_up_for_replication() {
    let Some(server) = TestServer::start(&["wal_level=replica", "max_replication_slots=1", "max_wal_senders=1"]) else {
        return;
    };
    let mut session = server.session().await;
    session.execute("create table t (id int primary key)").await.unwrap();
    let findings = check(&server.config("postgres"), &["public.t"]).await;
    assert_eq!(codes(&findings), ["PG-SUPERUSER", "PG-WAL-LEVEL", "PG-SLOTS", "PG-WALSENDERS", "PG-WAL-KEEP"]);
    for finding in &findings[1..4] {
        assert_eq!(finding.severity, Severity::Error);
        apply(&mut session, finding).await;
    }
    session.execute("alter system set max_slot_wal_keep_size = '8GB'").await.unwrap();
    server.stop("fast");
    server.begin();
    assert_eq!(codes(&check(&server.config("postgres"), &["public.t"]).await), ["PG-SUPERUSER"]);
}

#[tokio::test]
async fn a_role_without_rights_and_what_the_owner_must_run() {
    let Some(server) = TestServer::start(&["max_slot_wal_keep_size='8GB'", "max_prepared_transactions=5"]) else {
        return;
    };
    let mut session = server.session().await;
    session
        .execute(
            "create role cdc login; create schema \"My Shop\"; create table \"My Shop\".orders (id int primary key); \
             create table \"My Shop\".events (id int); create table \"My Shop\".secret (id int primary key); \
             alter table \"My Shop\".secret enable row level security; grant select on \"My Shop\".secret to cdc",
        )
        .await
        .unwrap();
    session.execute("begin; insert into \"My Shop\".events values (1); prepare transaction 'held'").await.unwrap();
    let config = PostgresConfig { user: "cdc".into(), ..server.config("postgres") };
    let mut findings = check(&config, &["My Shop.*"]).await;
    assert_eq!(
        codes(&findings),
        [
            "PG-REPLICATION-ROLE",
            "PG-LONG-TRANSACTION",
            "PG-USAGE",
            "PG-SELECT",
            "PG-RLS",
            "PG-REPLICA-IDENTITY",
            "PG-PUBLICATION"
        ]
    );
    for code in ["PG-REPLICATION-ROLE", "PG-USAGE", "PG-SELECT", "PG-RLS", "PG-PUBLICATION"] {
        assert_eq!(find(&findings, code).severity, Severity::Error);
        apply(&mut session, find(&findings, code)).await;
    }
    session.execute("rollback prepared 'held'").await.unwrap();
    findings = check(&config, &["My Shop.*"]).await;
    assert_eq!(codes(&findings), ["PG-REPLICA-IDENTITY"]);
    assert_eq!(findings[0].severity, Severity::Warning);

    // The publications that the owner made are right, and the role may go on without being their owner.
    let source = PostgresSource::new(config.clone(), "shop", Options::default());
    let tables: Vec<_> = source.tables(&scope(&["My Shop.*"]).selection).await.unwrap();
    let tables: Vec<_> = tables.into_iter().map(std::sync::Arc::new).collect();
    source.prepare(&tables).await.unwrap();
    let error = source.prepare(&tables[..1]).await.unwrap_err();
    assert!(error.fix.contains("ALTER PUBLICATION \"millrace_shop\" DROP TABLE ONLY"), "{}", error.fix);
    let left = source.remove().await.unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    for statement in left {
        session.execute(&statement).await.unwrap();
    }

    // With the identity the publications change, so the owner is asked again.
    apply(&mut session, &findings[0]).await;
    findings = check(&config, &["My Shop.*"]).await;
    assert_eq!(codes(&findings), ["PG-PUBLICATION"]);
    apply(&mut session, &findings[0]).await;
    assert_eq!(check(&config, &["My Shop.*"]).await, []);
}

#[tokio::test]
async fn an_ordinary_role_is_told_of_a_transaction_that_stays_open() {
    let Some(server) = TestServer::start(&["max_slot_wal_keep_size='8GB'"]) else { return };
    let mut session = server.session().await;
    session.execute("create role cdc login replication; create table t (id int primary key)").await.unwrap();
    session.execute("alter table t owner to cdc; grant create on database postgres to cdc").await.unwrap();
    let mut open = server.session().await;
    open.execute("begin; create table new (id int)").await.unwrap();
    let config = PostgresConfig { user: "cdc".into(), ..server.config("postgres") };
    let findings = check(&config, &["public.t"]).await;
    assert_eq!(codes(&findings), ["PG-LONG-TRANSACTION"]);
    let pid = open.process_id().to_string();
    assert!(findings[0].detail[0].contains(&pid) && findings[0].fix[0].contains(&pid), "{findings:?}");
    open.execute("commit").await.unwrap();
    assert_eq!(check(&config, &["public.t"]).await, []);
}

#[tokio::test]
async fn publications_that_break_the_application() {
    let Some(server) = TestServer::start(&["max_slot_wal_keep_size='8GB'"]) else { return };
    let mut session = server.session().await;
    session
        .execute(
            "create table orders (id int primary key, state int); create table events (id int); \
             create publication millrace_shop for table orders where (state = 1); \
             create publication millrace_shop_inserts with (publish = 'insert, truncate'); \
             create publication theirs for table events, orders where (state = 2)",
        )
        .await
        .unwrap();
    session.execute("insert into events values (1); insert into orders values (1, 1)").await.unwrap();
    session.execute("update events set id = 2").await.expect_err("the application is broken");
    session.execute("update orders set state = 2").await.expect_err("the application is broken");
    let config = server.config("postgres");
    let findings = check(&config, &["public.*"]).await;
    assert_eq!(
        codes(&findings),
        ["PG-SUPERUSER", "PG-REPLICA-IDENTITY", "PG-ROW-FILTER", "PG-OTHER-PUBLICATION", "PG-ROW-FILTER"]
    );
    for finding in &findings[1..] {
        apply(&mut session, finding).await;
    }
    session.execute("update events set id = 2; update orders set state = 2").await.unwrap();
    assert_eq!(codes(&check(&config, &["public.*"]).await), ["PG-SUPERUSER"]);
}

#[tokio::test]
async fn tables_that_are_not_there() {
    let Some(server) = TestServer::start(&["max_slot_wal_keep_size='8GB'"]) else { return };
    let mut session = server.session().await;
    session
        .execute(
            "create table orders (id int primary key); create view seen as select 1; create unlogged table quick (id int); \
             create table root (id int primary key) partition by range (id)",
        )
        .await
        .unwrap();
    let patterns = ["public.order", "public.seen", "public.quick", "public.root", "else.where", "x.*", "public.orders"];
    let findings = check(&server.config("postgres"), &patterns).await;
    let expected = "PG-SUPERUSER PG-TABLE-MISSING PG-TABLE-MISSING PG-TABLE-MISSING PG-TABLE-MISSING PG-PATTERN";
    assert_eq!(codes(&findings).join(" "), expected);
    for (finding, words) in findings[1..].iter().zip([
        "did you mean public.orders?",
        "name the tables",
        "SET LOGGED",
        "psql",
        "case-sensitive",
    ]) {
        assert!(finding.fix.join(" ").contains(words), "{finding:?}");
    }
}

#[tokio::test]
async fn a_standby_and_a_failover_slot_are_told_where_they_do_not_work() {
    let Some(server) = TestServer::start(&["max_slot_wal_keep_size='8GB'"]) else { return };
    let mut session = server.session().await;
    session.execute("create table t (id int primary key)").await.unwrap();
    let major = session.major_version();
    let options = Options { failover: true, ..Options::default() };
    let source = PostgresSource::new(server.config("postgres"), "shop", options);
    let found = source.check(&scope(&["public.t"])).await;
    let finding = find(&found, "PG-FAILOVER");
    assert_eq!(finding.severity, Severity::Warning);
    let expected = if major < 17 { "needs PostgreSQL 17" } else { "synchronized_standby_slots is empty" };
    assert!(finding.summary.contains(expected), "{finding:?}");

    // A standby of nobody.
    server.stop("fast");
    fs::write(std::path::Path::new(&server.data()).join("standby.signal"), "").unwrap();
    server.begin();
    let found = check(&server.config("postgres"), &["public.t"]).await;
    let finding = find(&found, "PG-STANDBY");
    if major < 16 {
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.fix[0].contains("set host to the primary"), "{finding:?}");
    } else {
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(find(&found, "PG-STANDBY-FEEDBACK").severity, Severity::Error);
    }
    let finding = find(&found, "PG-PUBLICATION");
    assert!(finding.summary.contains("a standby cannot make them"), "{finding:?}");
}
