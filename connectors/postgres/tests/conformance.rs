//! The shared tests of all sources, on a real server.

use std::time::Duration;

use async_trait::async_trait;
use millrace_conformance::{Database, Rows, Write};
use millrace_core::source::Source;
use millrace_postgres::{Options, PostgresConfig, PostgresSource, wire};
use tokio::sync::Mutex;

#[allow(dead_code)]
#[path = "../src/test_server.rs"]
mod test_server;
use test_server::TestServer;

struct Postgres {
    server: TestServer,
    session: Mutex<wire::Connection>,
}

fn text(value: Option<&str>) -> String {
    value.map_or("null".into(), |value| format!("'{}'", value.replace('\'', "''")))
}

#[async_trait]
impl Database for Postgres {
    fn source(&self, task: &str) -> Box<dyn Source> {
        Box::new(PostgresSource::new(self.server.config("postgres"), task, Options::default()))
    }

    fn schema(&self) -> &str {
        "public"
    }

    async fn make(&self, table: &str, keyed: bool) {
        let key = if keyed { "primary key" } else { "not null" };
        let sql = format!("create table {table} (id bigint {key}, v text)");
        self.session.lock().await.execute(&sql).await.unwrap();
    }

    async fn commit(&self, changes: &[Write<'_>]) {
        let statement = |change: &Write<'_>| match *change {
            Write::Insert(table, id, value) => format!("insert into {table} values ({id}, {})", text(value)),
            Write::Fill(table, from, count, length) => {
                let to = from + count as i64 - 1;
                format!("insert into {table} select n, repeat('x', {length}) from generate_series({from}, {to}) n")
            }
            Write::Update(table, id, value) => format!("update {table} set v = {} where id = {id}", text(value)),
            Write::Move(table, from, to) => format!("update {table} set id = {to} where id = {from}"),
            Write::Delete(table, id) => format!("delete from {table} where id = {id}"),
        };
        let statements: Vec<String> = changes.iter().map(statement).collect();
        let sql = format!("begin; {}; commit", statements.join("; "));
        self.session.lock().await.execute(&sql).await.unwrap();
    }

    async fn rows(&self, table: &str) -> Rows {
        let rows = self.session.lock().await.query(&format!("select id, v from {table}")).await.unwrap();
        rows.into_iter().map(|row| (row[0].as_deref().unwrap().parse().unwrap(), row[1].clone())).collect()
    }

    async fn lose_patience(&self) -> Duration {
        let mut session = self.session.lock().await;
        session.execute("alter system set wal_sender_timeout = '2s'").await.unwrap();
        session.execute("select pg_reload_conf()").await.unwrap();
        Duration::from_secs(2)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_sources_is_kept() {
    let Some(server) = TestServer::start(&[]) else { return };
    let session = Mutex::new(server.session().await);
    millrace_conformance::run(&Postgres { server, session }).await;
}
