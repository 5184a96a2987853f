//! Objects in a bucket of moto's S3 server, and of an endpoint that ignores `If-None-Match`.
//!
//! moto is looked for as `$MOTO_SERVER`, then as `moto_server` on the path; without it the tests say so and end.

mod objects;

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener as StdListener},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use millrace_core::{
    Kind,
    destination::Destination,
    secret::{Secret, SecretSource},
};
use millrace_object_store::{Compression, ObjectStore, ObjectStoreConfig, Place, S3Config};
use objects::{batch, spec, stage};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

fn s3(address: SocketAddr, bucket: &str) -> S3Config {
    let secret = |text: &str| Some(SecretSource::Value(Secret::new(text)));
    S3Config {
        bucket: bucket.into(),
        prefix: "shop/a b".replace(' ', "-"),
        endpoint: Some(format!("http://{address}")),
        region: None,
        access_key_id: secret("key"),
        secret_access_key: secret("secret"),
        path_style: true,
    }
}

fn store(config: S3Config, spool: &std::path::Path) -> ObjectStore {
    let config = ObjectStoreConfig { place: Place::S3(config), compression: Compression::Snappy };
    ObjectStore::new(config, spool.into()).unwrap()
}

struct Moto {
    child: Child,
    address: SocketAddr,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn moto() -> Option<Moto> {
    let program = std::env::var("MOTO_SERVER").unwrap_or_else(|_| "moto_server".into());
    let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(&program);
    command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        eprintln!("skipped: {program} is not there (pip install \"moto[server]\")");
        return None;
    };
    let moto = Moto { child, address };
    let start = Instant::now();
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "moto does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let make = format!("PUT /lake HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(make.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Some(moto)
}

#[tokio::test]
async fn objects_reach_a_bucket_once() {
    let Some(moto) = moto().await else { return };
    let spool = tempfile::tempdir().unwrap();
    let store = store(s3(moto.address, "lake"), spool.path());
    assert_eq!(store.check().await, []);
    // Percent signs come from escaped names and must not be escaped once more.
    let key = "public/a%20b/LOAD00000001.parquet";
    let published = store.publish(stage(&store, spec(key, "1-2"), &[batch(0..1000)])).await.unwrap();
    assert_eq!(published.location, format!("s3://lake/shop/a-b/{key}"));
    assert!(!published.was_there);
    assert!(store.publish(stage(&store, spec(key, "1-2"), &[batch(0..1000)])).await.unwrap().was_there);
    let other = store.publish(stage(&store, spec(key, "1-2"), &[batch(0..999)])).await.unwrap_err();
    assert_eq!(other.kind, Kind::TargetConflict);
    store.sweep().await.unwrap();
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0, "nothing stays in the spool");

    let letters = "_dead_letters/public/t/a.jsonl";
    store.publish(store.stage_bytes(letters, b"{}\n").unwrap()).await.unwrap();
    assert!(store.publish(store.stage_bytes(letters, b"{}\n").unwrap()).await.unwrap().was_there);
    let other = store.publish(store.stage_bytes(letters, b"{1}\n").unwrap()).await.unwrap_err();
    assert_eq!(other.kind, Kind::TargetConflict);
    store.delete(letters).await.unwrap();
    store.delete(letters).await.unwrap();
    assert!(!store.publish(store.stage_bytes(letters, b"{1}\n").unwrap()).await.unwrap().was_there);
}

fn codes(findings: &[millrace_core::Finding]) -> Vec<&str> {
    assert!(findings.iter().all(|f| !f.fix.is_empty()), "every finding has a remedy: {findings:?}");
    assert!(findings.iter().all(|f| 2 + f.detail.len() + f.fix.len() <= 12), "{findings:?}");
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

#[tokio::test]
async fn check_names_what_is_wrong() {
    let spool = tempfile::tempdir().unwrap();
    let nobody = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(codes(&store(s3(nobody, "lake"), spool.path()).check().await), ["S3-CONNECT"]);
    let unset = SecretSource::Env("MILLRACE_TEST_NOT_SET".into());
    let config = S3Config { secret_access_key: Some(unset), ..s3(nobody, "lake") };
    assert_eq!(codes(&store(config, spool.path()).check().await), ["S3-CREDENTIALS"]);
    let Some(moto) = moto().await else { return };
    assert_eq!(codes(&store(s3(moto.address, "nobodys"), spool.path()).check().await), ["S3-BUCKET"]);
}

/// Keeps objects by path; a PUT overwrites whatever the headers say. `deny` answers like a bucket without rights.
async fn careless_endpoint(deny: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let objects: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let objects = objects.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let (mut request, mut length) = (String::new(), 0);
                    if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                    loop {
                        let mut line = String::new();
                        stream.read_line(&mut line).await.unwrap();
                        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                        if name.eq_ignore_ascii_case("content-length") {
                            length = value.parse().unwrap();
                        }
                    }
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).await.unwrap();
                    let mut words = request.split(' ');
                    let (method, path) = (words.next().unwrap(), words.next().unwrap().to_string());
                    let denied = b"<Error><Code>AccessDenied</Code></Error>".to_vec();
                    let (status, body) = match method {
                        _ if deny => ("403 Forbidden", denied),
                        "PUT" => {
                            objects.lock().unwrap().insert(path, body);
                            ("200 OK", vec![])
                        }
                        // The client deletes by DeleteObjects; the test needs no more than its answer.
                        "POST" => ("200 OK", b"<DeleteResult><Deleted><Key>k</Key></Deleted></DeleteResult>".to_vec()),
                        _ => ("200 OK", objects.lock().unwrap().get(&path).cloned().unwrap_or_default()),
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\n\
                         Last-Modified: Mon, 23 Nov 2026 00:00:00 GMT\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&body).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn an_endpoint_that_ignores_if_none_match_is_found_out() {
    let spool = tempfile::tempdir().unwrap();
    let careless = store(s3(careless_endpoint(false).await, "lake"), spool.path());
    assert_eq!(codes(&careless.check().await), ["S3-IF-NONE-MATCH"]);
    let denying = store(s3(careless_endpoint(true).await, "lake"), spool.path());
    assert_eq!(codes(&denying.check().await), ["S3-DENIED"]);
    let staged = denying.stage_bytes("a.jsonl", b"{}").unwrap();
    assert_eq!(denying.publish(staged).await.unwrap_err().kind, Kind::Permission);
}
