//! The connection against a real server.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use millrace_core::{Kind, Secret, SecretSource, Tls, TlsMode};

use super::*;
use crate::test_server::TestServer;

#[tokio::test]
async fn queries_copies_and_errors() {
    let Some(server) = TestServer::start(&[]) else { return };
    let mut session = server.session().await;
    assert_eq!(session.query("select 1; select 'ä', null").await.unwrap(), [[Some("ä".to_string()), None]]);
    let settings =
        "select current_setting('TimeZone'), current_setting('IntervalStyle'), current_setting('row_security')";
    let text = |t: &str| Some(t.to_string());
    assert_eq!(session.query(settings).await.unwrap(), [[text("UTC"), text("postgres"), text("off")]]);
    assert!(session.major_version() >= 14);

    let error = session.query("select nothing").await.unwrap_err();
    assert_eq!((sqlstate(&error), error.kind), (Some("42703"), Kind::SourceSetup));
    assert_eq!(error.doing, "running \"select nothing\"");
    session.execute("select 1").await.expect("the session goes on after an error");

    let sql = "copy (select g, repeat('x', 1000) from generate_series(1, 20000) g) to stdout";
    let mut copy = session.copy_out(sql).await.unwrap();
    let mut bytes = vec![];
    while let Some(piece) = copy.next().await.unwrap() {
        bytes.extend_from_slice(piece);
    }
    assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), 20_000);
    assert!(bytes.ends_with(&[b'x'; 1000].iter().chain(b"\n").copied().collect::<Vec<_>>()));
    let value = "copy (select repeat('y', 3000000)) to stdout";
    let mut copy = session.into_copy_out(value).await.unwrap();
    let mut length = 0;
    while let Some(piece) = copy.next().await.unwrap() {
        length += piece.len();
    }
    assert_eq!(length, 3_000_001);

    let mut session = copy.into_connection();
    let mut copy = session.copy_out("copy (select 1 / (3 - g) from generate_series(1, 5) g) to stdout").await.unwrap();
    let error = loop {
        match copy.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a failed COPY ended well"),
            Err(error) => break error,
        }
    };
    assert_eq!(sqlstate(&error), Some("22012"));
    assert_eq!(session.query("select 2").await.unwrap(), [[text("2")]]);

    // Notices stand between the rows, and none is taken for another.
    let noisy = "create function pg_temp.noisy(g int) returns int language plpgsql as \
                 'begin raise notice ''row %'', g; return g; end'";
    session.execute(noisy).await.unwrap();
    let mut copy =
        session.copy_out("copy (select pg_temp.noisy(g) from generate_series(1, 3000) g) to stdout").await.unwrap();
    let mut rows = 0;
    while let Some(payload) = copy.next().await.unwrap() {
        rows += payload.iter().filter(|&&byte| byte == b'\n').count();
    }
    assert_eq!(rows, 3000);

    // A reader that is gone half-way leaves a session that can be used.
    let mut copy = session.copy_out(sql).await.unwrap();
    copy.next().await.unwrap();
    assert_eq!(session.query("select 3").await.unwrap(), [[text("3")]]);
    session.close().await;
}

#[tokio::test]
async fn logs_in_by_every_method() {
    let Some(server) = TestServer::start(&["password_encryption='scram-sha-256'"]) else { return };
    let mut session = server.session().await;
    session.execute("create role scram login password 'se:cret'").await.unwrap();
    session.execute("create role clear login password 'se:cret'").await.unwrap();
    session.execute("set password_encryption='md5'; create role md login password 'se:cret'").await.unwrap();
    let hba = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all scram 127.0.0.1/32 scram-sha-256\n\
               host all md 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\n";
    fs::write(Path::new(&server.data()).join("pg_hba.conf"), hba).unwrap();
    session.execute("select pg_reload_conf()").await.unwrap();
    for user in ["scram", "md", "clear"] {
        let mut config = server.config("postgres");
        config.user = user.into();
        config.password = Some(SecretSource::Value(Secret::new("se:cret")));
        let mut one = Connection::connect(&config, Mode::Plain, "test").await.unwrap();
        assert_eq!(one.query("select current_user").await.unwrap(), [[Some(user.to_string())]]);
        config.password = Some(SecretSource::Value(Secret::new("wrong")));
        let error = Connection::connect(&config, Mode::Plain, "test").await.unwrap_err();
        assert_eq!((error.kind, sqlstate(&error)), (Kind::Authentication, Some("28P01")), "{error}");
        assert!(!format!("{error} {error:?}").contains("wrong"), "a password is never shown");
    }
    let mut socket = server.config("postgres");
    socket.host = server.socket_folder();
    assert!(Connection::connect(&socket, Mode::Replication, "test").await.is_ok());

    let mut wrong = server.config("nowhere");
    let error = Connection::connect(&wrong, Mode::Plain, "test").await.unwrap_err();
    assert_eq!((error.kind, sqlstate(&error)), (Kind::SourceSetup, Some("3D000")));
    wrong.port = 1;
    assert_eq!(Connection::connect(&wrong, Mode::Plain, "test").await.unwrap_err().kind, Kind::Connection);
    wrong = server.config("postgres");
    wrong.tls.mode = TlsMode::Require;
    let error = Connection::connect(&wrong, Mode::Plain, "test").await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

/// An authority, and a certificate for "localhost" that it signed.
fn make_certificates(folder: &Path) -> bool {
    let extensions = "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    fs::write(folder.join("leaf.ext"), extensions.replace("\\n", "\n")).unwrap();
    [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out leaf.csr",
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out cert.pem",
    ]
    .iter()
    .all(|line| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
        output.is_ok_and(|output| output.status.success())
    })
}

#[tokio::test]
async fn tls_is_as_strict_as_it_says() {
    let Some(server) = TestServer::start(&["password_encryption='scram-sha-256'"]) else { return };
    let data = server.data();
    let folder = Path::new(&data);
    if !make_certificates(folder) {
        eprintln!("skipped: openssl is not there to make a certificate");
        return;
    }
    // The server's user owns the folder; the key must be its own, and readable by it alone.
    if let Ok(meta) = fs::metadata(folder) {
        use std::os::unix::fs::{MetadataExt, chown};
        let _ = chown(folder.join("key.pem"), Some(meta.uid()), Some(meta.gid()));
    }
    fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(folder.join("cert.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let conf = fs::read_to_string(folder.join("millrace.conf")).unwrap();
    fs::write(folder.join("millrace.conf"), conf + "ssl=on\nssl_cert_file='cert.pem'\nssl_key_file='key.pem'\n")
        .unwrap();
    let mut session = server.session().await;
    session.execute("create role scram superuser login password 'secret'").await.unwrap();
    fs::write(folder.join("pg_hba.conf"), "hostssl all scram 127.0.0.1/32 scram-sha-256\n").unwrap();
    session.execute("select pg_reload_conf()").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;

    let certificate = folder.join("ca.pem");
    for (mode, host, ca, works) in [
        (TlsMode::Disable, "127.0.0.1", true, false),
        (TlsMode::Require, "127.0.0.1", false, true),
        (TlsMode::VerifyCa, "127.0.0.1", true, true),
        (TlsMode::VerifyCa, "127.0.0.1", false, false),
        (TlsMode::VerifyFull, "127.0.0.1", true, false),
        (TlsMode::VerifyFull, "localhost", true, true),
        (TlsMode::VerifyFull, "localhost", false, false),
    ] {
        let mut config = server.config("postgres");
        config.host = host.into();
        config.user = "scram".into();
        config.password = Some(SecretSource::Value(Secret::new("secret")));
        config.tls = Tls { mode, ca_file: ca.then(|| certificate.clone()) };
        match Connection::connect(&config, Mode::Replication, "test").await {
            Ok(mut one) => {
                assert!(works, "{mode:?} {host} {ca} connected");
                let rows = one.query("select ssl from pg_stat_ssl where pid = pg_backend_pid()").await.unwrap();
                assert_eq!(rows, [[Some("t".to_string())]]);
            }
            Err(error) => {
                assert!(!works, "{mode:?} {host} {ca}: {error}");
                assert_eq!(error.kind, Kind::Authentication, "{mode:?} {host} {ca}: {error}");
            }
        }
    }
}
