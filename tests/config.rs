//! The config, from the outside: the examples are true, and everything wrong is told at once with its place.

use std::{collections::BTreeSet, path::Path, time::Duration};

use millrace::config::{
    Config, EndpointKind, GuardAction, Mode, SourceGuard, SourceLogConfig, Surroundings, known_keys, used_keys,
};
use millrace_core::{Becomes, SecretSource, TableName, TablePattern, TlsMode, Unfit};
use millrace_object_store::Place;
use millrace_postgres::PostgresConfig;

const MINIMAL: &str = include_str!("../config/minimal.yaml");
const EVERY_OPTION: &str = include_str!("../config/every-option.yaml");

fn surroundings() -> Surroundings {
    Surroundings { state_directory: None, credentials: "/creds".into(), folder: "/etc/millrace".into() }
}

fn parse(text: &str) -> Config {
    match Config::parse(Path::new("t.yaml"), text, &surroundings()) {
        Ok(config) => config,
        Err(problems) => panic!("{problems:#?}"),
    }
}

/// The problems of a text as `line:column code summary | fix`.
fn problems(text: &str) -> Vec<String> {
    let problems = Config::parse(Path::new("t.yaml"), text, &surroundings()).expect_err("the config is wrong");
    let line = |problem: &millrace::config::Problem| {
        let at = problem.at.unwrap_or_default();
        let finding = &problem.finding;
        format!("{}:{} {} {} | {}", at.line, at.column, finding.code, finding.summary, finding.fix.join(" "))
    };
    problems.iter().map(line).collect()
}

fn postgres(source: &str) -> PostgresConfig {
    let config = parse(&format!("source: {source}\ntarget: file:///lake\ntables: [a.b]\n"));
    match &config.endpoints["source"].kind {
        EndpointKind::Postgres(postgres) => postgres.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn minimal_config_is_what_the_comments_say() {
    let config = parse(MINIMAL);
    let written_out = MINIMAL.replace("# task:", "task:").replace("# mode:", "mode:");
    let written_out = parse(&written_out.replace("# state-dir:", "state-dir:").replace("# listen:", "listen:"));
    assert!(config.same_task(&written_out, "shop"));
    assert_eq!((&config.state_dir, config.listen), (&written_out.state_dir, written_out.listen));
    let task = &config.tasks["shop"];
    assert_eq!(task.mode, Mode::FullLoadAndCdc);
    assert_eq!(
        task.tables.iter().map(|rule| rule.from.to_string()).collect::<Vec<_>>(),
        ["public.orders", "public.customers"]
    );
    let (source, target) = config.endpoints_of(task).unwrap();
    let EndpointKind::Postgres(postgres) = &source.kind else { panic!("{source:?}") };
    assert_eq!((postgres.port, postgres.tls.mode, &postgres.password), (5432, TlsMode::VerifyFull, &None));
    let EndpointKind::ObjectStore(store) = &target.kind else { panic!("{target:?}") };
    let Place::S3(s3) = &store.place else { panic!("{store:?}") };
    assert_eq!((s3.bucket.as_str(), s3.prefix.as_str(), s3.path_style), ("lake", "shop", false));
    assert_eq!((target.buffer.size, target.buffer.interval), (128 << 20, Duration::from_secs(60)));
}

#[test]
fn every_option_names_every_key() {
    let config = parse(EVERY_OPTION);
    assert_eq!(config.tasks.len(), 2);
    let used: BTreeSet<_> = used_keys(Path::new("every-option.yaml"), EVERY_OPTION).into_iter().collect();
    let missing: Vec<_> = known_keys().into_iter().filter(|key| !used.contains(key)).collect();
    assert_eq!(missing, [], "keys that config/every-option.yaml does not show");
    let warnings: Vec<&str> = config.warnings.iter().map(|warning| warning.finding.code.as_str()).collect();
    assert_eq!(warnings, ["CFG-PLAIN-SECRET"]);
}

#[test]
fn defaults_written_out_change_nothing() {
    let text = |options: &str| {
        format!("source: postgres://u@h/shop\ntarget: {{ url: file:///lake{options}\ntables: [public.*]\n")
    };
    let written = " , format: { type: parquet, compression: zstd }, buffer: { size: 128MiB, interval: 60s } }\n\
                   stream: { shards: 1, retention: 24h, compress: true }\non-error: { record: dead-letter, \
                   table: suspend, task: retry }\nmax-value: 64MiB\non-slot-lost: stop\n\
                   failover-slot: false\norigin: any\nremoved: false\nversion: 1\n\
                   on-change: { partition-attached: reload, partition-gone: reload }";
    assert!(parse(&text(" }")).same_task(&parse(&text(written)), "shop"));
}

#[test]
fn care_of_the_source_is_off_by_default_and_makes_sense() {
    let text =
        |options: &str| format!("source: postgres://u@h/shop\ntarget: file:///lake\ntables: [public.*]\n{options}");
    let care = |options: &str| parse(&text(options)).tasks["shop"].source_log.clone();
    assert_eq!(care(""), SourceLogConfig::default());
    let options = "on-slot-lost: reload\nheartbeat: 10s\nfailover-slot: true\norigin: none\n\
                   source-guard: { warn-at: 1GiB, act-at: 2GiB, action: drop-slot }\n";
    let guard = SourceGuard { warn_bytes: Some(1 << 30), act_bytes: Some(2 << 30), action: GuardAction::DropSlot };
    let heartbeat = Some(Duration::from_secs(10));
    assert_eq!(
        care(options),
        SourceLogConfig { reload_when_lost: true, guard, heartbeat, failover_slot: true, own_changes_only: true }
    );
    for (options, expected) in [
        (
            "mode: cdc\non-slot-lost: reload",
            "5:15 CFG-VALUE \"on-slot-lost\" of the config is reload, but the task loads nothing",
        ),
        ("heartbeat: 10ms", "4:12 CFG-VALUE \"heartbeat\" of the config is too short"),
        ("source-guard: { action: stop }", "4:25 CFG-VALUE \"action\" of \"source-guard\" of the config never happens"),
        (
            "source-guard: { warn-at: 2GiB, act-at: 1GiB }",
            "4:40 CFG-VALUE \"act-at\" of \"source-guard\" of the config is less than \"warn-at\"",
        ),
        (
            "mode: cdc\nsource-guard: { act-at: 1GiB, action: drop-slot }",
            "5:39 CFG-VALUE \"action\" of \"source-guard\" of the config is drop-slot, but the task loads nothing",
        ),
    ] {
        let found = problems(&text(options));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:#?}\n{expected}");
    }
}

#[test]
fn mysql_urls() {
    let source = |url: &str| {
        let config = parse(&format!("source: '{url}'\ntarget: file:///lake\ntables: [shop.*]\n"));
        let EndpointKind::Mysql(mysql) = config.endpoints["source"].kind.clone() else { panic!("{url}") };
        (mysql, config.tasks.keys().next().unwrap().clone())
    };
    let (plain, task) = source("mysql://c%40c@db.example/shop");
    assert_eq!((plain.host.as_str(), plain.port, plain.user.as_str()), ("db.example", 3306, "c@c"));
    assert_eq!((plain.tls.mode, task.as_str()), (TlsMode::VerifyFull, "shop"));
    let (local, task) = source("mariadb://u@127.0.0.1:3307/?ssl-mode=require");
    assert_eq!((local.port, local.tls.mode, task.as_str()), (3307, TlsMode::Require, "mysql"));
    let (socket, _) = source("mysql://u@localhost/shop?socket=/run/mysqld/mysqld.sock");
    assert!(socket.is_socket() && socket.tls.mode == TlsMode::Disable);
    for url in ["mysql://u@h/d?ssl-mode=preferred", "mysql://u@h/d?ssl-ca=relative", "mysql://u@h/d?x=1"] {
        let found = problems(&format!("source: {url}\ntarget: file:///lake\ntables: [shop.*]\n"));
        assert!(found.len() == 1 && found[0].contains("CFG-URL"), "{found:#?}");
    }
}

#[test]
fn postgres_urls() {
    let full = postgres("'postgres://c%40c:p%2Fw%20d@db.example:6000/my%20db?sslmode=require&connect_timeout=3'");
    assert_eq!((full.host.as_str(), full.port, full.database.as_str()), ("db.example", 6000, "my db"));
    assert_eq!((full.user.as_str(), full.tls.mode), ("c@c", TlsMode::Require));
    assert_eq!(full.password.unwrap().read().unwrap().expose(), "p/w d");
    assert_eq!(full.connect_timeout, Duration::from_secs(3));

    let socket = postgres("postgresql://u@%2Fvar%2Frun%2Fpostgresql/shop");
    assert_eq!((socket.host.as_str(), socket.tls.mode), ("/var/run/postgresql", TlsMode::Disable));
    let socket = postgres("'postgres:///shop?host=/tmp/pg&port=5433&user=u'");
    assert_eq!((socket.host.as_str(), socket.port, socket.user.as_str()), ("/tmp/pg", 5433, "u"));

    for (url, mode) in [
        ("postgres://u@localhost/d", TlsMode::Disable),
        ("postgres://u@127.0.0.1/d", TlsMode::Disable),
        ("'postgres://u@[::1]/d'", TlsMode::Disable),
        ("postgres://u@10.0.0.1/d", TlsMode::VerifyFull),
        ("postgres://u@localhost/d?sslmode=verify-full", TlsMode::VerifyFull),
    ] {
        assert_eq!(postgres(url).tls.mode, mode, "{url}");
    }
    assert_eq!(postgres("'postgres://u@[::1]/d'").host, "::1");
}

#[test]
fn secrets_say_where_they_come_from() {
    let with = |password: &str| {
        let text = format!("{{ type: postgres, host: h, database: d, user: u, password: {password} }}");
        postgres(&text).password.unwrap()
    };
    assert_eq!(with("{ file: pw }"), SecretSource::File("/etc/millrace/pw".into()));
    assert_eq!(with("{ credential: pg }"), SecretSource::File("/creds/pg".into()));
    assert_eq!(with("{ env: PW }"), SecretSource::Env("PW".into()));
    assert_eq!(with("012").read().unwrap().expose(), "012");
    let text = "source: postgres://u:secret@h/d\ntarget: file:///lake\ntables: [a.b]\n";
    let warnings = parse(text).warnings;
    assert_eq!(warnings[0].finding.code, "CFG-PLAIN-SECRET");
    assert!(!format!("{warnings:?} {:?}", parse(text)).contains("secret@"));
}

#[test]
fn all_errors_come_at_once_with_place_and_nearest_key() {
    let text = "\
version: 2
endpoints:
  pg: { type: postgres, host: h, databse: d, user: u, port: http }
  lake:
    type: s3
    bucket: b
    bufer: { size: 1MiB }
    buffer: { interval: 60 }
    format: { compression: gzip }
tasks:
  a/b:
    source: pgg
    target: pg
    tabels: [public.x]
    tables:
      - { from: public.customers, renames: { a: b } }
      - orders
      - { from: public.*, to: lake.all }
    mode: full_load
    mode: cdc
    stream: { shards: 0, retention: 9000h }
";
    let found = problems(text);
    let expected = [
        "1:10 CFG-VALUE \"version\" of the config is something else",
        "3:7 CFG-MISSING-KEY endpoint pg has no database",
        "3:34 CFG-UNKNOWN-KEY unknown key \"databse\" in endpoint pg | did you mean \"database\"?",
        "3:61 CFG-VALUE \"port\" of endpoint pg is something else | write a whole number from 1 to 65535",
        "7:5 CFG-UNKNOWN-KEY unknown key \"bufer\" in endpoint lake | did you mean \"buffer\"?",
        "8:25 CFG-VALUE \"interval\" of \"buffer\" of endpoint lake is something else | write a duration with its unit",
        "9:28 CFG-VALUE \"compression\" of \"format\" of endpoint lake cannot be \"gzip\"",
        "11:3 CFG-NAME \"a/b\" cannot be a task's name",
        "12:13 CFG-UNKNOWN-ENDPOINT \"source\" of task a/b names an endpoint that is not there: \"pgg\" | did you mean \"pg\"?",
        "14:5 CFG-UNKNOWN-KEY unknown key \"tabels\" in task a/b | did you mean \"tables\"?",
        "16:35 CFG-UNKNOWN-KEY unknown key \"renames\" in table public.customers of task a/b | did you mean \"rename\"?",
        "17:9 CFG-VALUE table \"orders\" of task a/b is not of the form schema.table",
        "18:9 CFG-VALUE table public.* of task a/b: many tables would become one | keep the table's name: to: lake.*",
        "19:11 CFG-VALUE \"mode\" of task a/b cannot be \"full_load\" | did you mean \"full-load\"?",
        "20:5 CFG-DUPLICATE-KEY key \"mode\" stands twice in task a/b",
        "21:23 CFG-VALUE \"shards\" of \"stream\" of task a/b is something else",
        "21:37 CFG-VALUE \"retention\" of \"stream\" of task a/b is longer than 8760h",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "found    {found}\nexpected {expected}\nof {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn single_mistakes() {
    let short = |source: &str, target: &str, rest: &str| format!("source: {source}\ntarget: {target}\n{rest}");
    let pg = "postgres://u@h/d";
    let lake = "file:///lake";
    for (text, code, place) in [
        ("", "CFG-MISSING-KEY", (1, 1)),
        ("[1]", "CFG-VALUE", (1, 1)),
        ("a: [", "CFG-YAML", (2, 1)),
        (&short(pg, lake, ""), "CFG-MISSING-KEY", (1, 1)),
        (&short(pg, lake, "tables: []"), "CFG-VALUE", (3, 9)),
        (&short(pg, lake, "tables: [a.b]\nlisten: 0.0.0.0:80"), "CFG-LISTEN", (4, 9)),
        (&short(pg, lake, "tables: [a.b]\nlisten: 4566"), "CFG-VALUE", (4, 9)),
        (&short(pg, lake, "tables: [a.b]\ntask: a b"), "CFG-NAME", (4, 7)),
        (&short(pg, "file://lake", "tables: [a.b]"), "CFG-URL", (2, 9)),
        (&short(pg, "file:///a/../b", "tables: [a.b]"), "CFG-URL", (2, 9)),
        (&short(pg, "s3:///x", "tables: [a.b]"), "CFG-URL", (2, 9)),
        (&short(pg, pg, "tables: [a.b]"), "CFG-VALUE", (2, 9)),
        (&short(lake, lake, "tables: [a.b]"), "CFG-VALUE", (1, 9)),
        (&short("oracle://u@h/d", lake, "tables: [a.b]"), "CFG-URL", (1, 9)),
        (&short("postgres://h/d", lake, "tables: [a.b]"), "CFG-MISSING-KEY", (1, 9)),
        (&short("postgres://u@h/d?sslmode=prefer", lake, "tables: [a.b]"), "CFG-URL", (1, 9)),
        (&short("postgres://u@h/d?sslmod=require", lake, "tables: [a.b]"), "CFG-URL", (1, 9)),
        (&short("{ type: postgres, url: x }", lake, "tables: [a.b]"), "CFG-URL", (1, 32)),
        (&short(pg, "{ type: s3, bucket: b, access-key-id: k }", "tables: [a.b]"), "CFG-MISSING-KEY", (2, 9)),
        (&short(pg, "{ type: file, path: lake }", "tables: [a.b]"), "CFG-URL", (2, 29)),
        ("endpoints: {}\ntasks: {}\nsource: x", "CFG-UNKNOWN-KEY", (3, 1)),
    ] {
        let found = Config::parse(Path::new("t.yaml"), text, &surroundings()).expect_err(text);
        let first = found.first().unwrap();
        let at = first.at.unwrap();
        assert_eq!((first.finding.code.as_str(), (at.line, at.column)), (code, place), "{text}\n{found:#?}");
        assert!(!first.finding.fix.is_empty(), "{text}");
    }
}

#[test]
fn rules_for_values() {
    let config = parse(EVERY_OPTION);
    let rules = config.tasks["shop-to-lake"].value_rules();
    let of = |table: &str, column: &str, ty: &str| {
        let table = TablePattern::parse(table).unwrap();
        rules.of(&TableName::new(table.schema, table.name), column, |name| name == ty)
    };
    let decimal = Some(Becomes::Decimal { precision: 38, scale: 9 });
    assert_eq!(of("public.invoices", "total", "numeric"), (Unfit::Clamp, decimal));
    assert_eq!(of("public.invoices", "due", "date"), (Unfit::Companion, Some(Becomes::Text)));
    assert_eq!(of("public.orders", "at", "timestamp with time zone"), (Unfit::Clamp, None));

    let text = "\
source: postgres://u@h/d
target: file:///lake
tables:
  - { from: a.b, values: { c: { as: \"decimal(39,1)\" }, d: clamp } }
values:
  unfit: companions
  types:
    numeric: { as: \"decimal(4,5)\", unfits: text }
";
    let found = problems(text);
    let expected = [
        "4:37 CFG-VALUE \"as\" of c in \"values\" of table a.b of the config cannot be \"decimal(39,1)\" | write text, or decimal",
        "4:59 CFG-VALUE d in \"values\" of table a.b of the config is something else | write a mapping",
        "6:10 CFG-VALUE \"unfit\" of \"values\" of the config cannot be \"companions\" | did you mean \"companion\"?",
        "8:20 CFG-VALUE \"as\" of numeric in \"types\" of \"values\" of the config cannot be \"decimal(4,5)\"",
        "8:36 CFG-UNKNOWN-KEY unknown key \"unfits\"",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "found    {found}\nexpected {expected}\nof {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn a_password_in_a_wrong_url_is_not_repeated() {
    for source in ["postgres://u:hunter2@h:port/d", "pg://u:hunter2@h/d", "'postgres://u:hunter2@h/d?sslmode=x'"] {
        let found = problems(&format!("source: {source}\ntarget: file:///lake\ntables: [a.b]\n"));
        assert!(!found.is_empty() && !format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}

#[test]
fn a_place_in_the_file_is_no_change() {
    let text = "endpoints:\n  pg: postgres://u@h/d\n  lake: file:///lake\ntasks:\n  t: { source: pg, target: lake, \
                tables: [a.b] }\n";
    let config = parse(text);
    assert!(config.same_task(&parse(&format!("# moved\n\n{text}")), "t"));
    assert!(!config.same_task(&parse(&text.replace("@h/", "@i/")), "t"));
    assert!(!config.same_task(&parse(&text.replace("a.b", "a.c")), "t"));
    assert!(!config.same_task(&parse(&text.replace(" t:", " u:")), "t"));
}

#[test]
fn state_folder_falls_back_to_systemd() {
    let systemd = Surroundings { state_directory: Some("/var/lib/private/millrace".into()), ..surroundings() };
    let read = |text: &str| Config::parse(Path::new("t.yaml"), text, &systemd).unwrap().state_dir;
    assert_eq!(read(MINIMAL), Path::new("/var/lib/private/millrace"));
    assert_eq!(read(&format!("{MINIMAL}\nstate-dir: state\n")), Path::new("/etc/millrace/state"));
}

proptest::proptest! {
    /// Whatever an editor leaves behind is read, or told with places and remedies; it never ends the process.
    #[test]
    fn a_damaged_config_is_told(from in 0_usize..5_000, length in 0_usize..40, typed in "[ a-z:{}\\[\\],'\"#&*!\\n-]{0,12}") {
        let text = EVERY_OPTION;
        let at = |index: usize| (0..=index.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let damaged = format!("{}{typed}{}", &text[..at(from)], &text[at(from + length)..]);
        if let Err(problems) = Config::parse(Path::new("t.yaml"), &damaged, &surroundings()) {
            proptest::prop_assert!(!problems.is_empty());
            for problem in problems {
                proptest::prop_assert!(problem.at.is_some() && !problem.finding.fix.is_empty(), "{problem:?}");
            }
        }
    }
}
