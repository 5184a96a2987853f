//! The shared tests of all sources, on real servers of both flavours.

use std::time::Duration;

use async_trait::async_trait;
use millrace_conformance::{Database, Rows, Write};
use millrace_core::source::Source;
use millrace_mysql::{MysqlSource, Options, wire::Connection};
use tokio::sync::Mutex;

mod test_server;
use test_server::{Flavour, TestServer};

const SCHEMA: &str = "shop";

struct Mysql {
    server: TestServer,
    session: Mutex<Connection>,
}

fn text(value: Option<&str>) -> String {
    value.map_or("null".into(), |value| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''")))
}

#[async_trait]
impl Database for Mysql {
    fn source(&self, task: &str) -> Box<dyn Source> {
        Box::new(MysqlSource::new(self.server.config(SCHEMA), task, Options::default()))
    }

    fn schema(&self) -> &str {
        SCHEMA
    }

    async fn make(&self, table: &str, keyed: bool) {
        let key = if keyed { "primary key" } else { "not null" };
        let sql = format!("create table {table} (id bigint {key}, v mediumtext)");
        self.session.lock().await.execute(&sql).await.unwrap();
    }

    async fn commit(&self, changes: &[Write<'_>]) {
        let statement = |change: &Write<'_>| match *change {
            Write::Insert(table, id, value) => format!("insert into {table} values ({id}, {})", text(value)),
            Write::Fill(table, from, count, length) => format!(
                "insert into {table} with recursive n (id) as (select {from} union all select id + 1 from n where id < {}) \
                 select id, repeat('x', {length}) from n",
                from + count as i64 - 1
            ),
            Write::Update(table, id, value) => format!("update {table} set v = {} where id = {id}", text(value)),
            Write::Move(table, from, to) => format!("update {table} set id = {to} where id = {from}"),
            Write::Delete(table, id) => format!("delete from {table} where id = {id}"),
        };
        let mut session = self.session.lock().await;
        session.execute("begin").await.unwrap();
        for change in changes {
            session.execute(&statement(change)).await.unwrap();
        }
        session.execute("commit").await.unwrap();
    }

    async fn rows(&self, table: &str) -> Rows {
        let rows = self.session.lock().await.query(&format!("select id, v from {SCHEMA}.{table}")).await.unwrap();
        rows.into_iter().map(|row| (row[0].as_deref().unwrap().parse().unwrap(), row[1].clone())).collect()
    }

    async fn lose_patience(&self) -> Duration {
        let mut session = self.session.lock().await;
        for setting in ["net_write_timeout", "net_read_timeout", "wait_timeout"] {
            session.execute(&format!("set global {setting} = 2")).await.unwrap();
        }
        Duration::from_secs(2)
    }
}

async fn try_on(flavour: Flavour) {
    let Some(server) = TestServer::start(flavour).await else { return };
    let mut session = server.session("mysql").await;
    session.execute(&format!("create database {SCHEMA} character set utf8mb4")).await.unwrap();
    let session = Mutex::new(server.session(SCHEMA).await);
    millrace_conformance::run(&Mysql { server, session }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_sources_is_kept_with_mariadb() {
    try_on(Flavour::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_sources_is_kept_with_mysql() {
    try_on(Flavour::Mysql).await;
}
