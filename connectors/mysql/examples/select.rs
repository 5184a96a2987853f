//! Reads a table by one unbuffered `SELECT *` of the text protocol and does nothing with it: what a full load is measured
//! against. Prints one line of JSON.
//!
//! `MYSQL_PWD=… cargo run --release -p millrace-mysql --example select -- HOST PORT DATABASE USER TABLE`. No TLS.

use std::time::{Duration, Instant};

use millrace_core::{Result, Secret, SecretSource, Tls, TlsMode};
use millrace_mysql::{MysqlConfig, config::Service, wire::Connection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, database, user, table] = arguments.as_slice() else {
        eprintln!("usage: select HOST PORT DATABASE USER TABLE");
        std::process::exit(2);
    };
    let Ok(port) = port.parse() else {
        eprintln!("PORT is a number");
        std::process::exit(2);
    };
    let config = MysqlConfig {
        host: host.clone(),
        port,
        database: database.clone(),
        user: user.clone(),
        password: std::env::var("MYSQL_PWD").ok().map(|password| SecretSource::Value(Secret::new(password))),
        tls: Tls { mode: TlsMode::Disable, ca_file: None },
        connect_timeout: Duration::from_secs(10),
        service: Service::Own,
        server_id: None,
    };
    let mut connection = Connection::connect(&config).await?;
    let begin = Instant::now();
    connection.rows(&format!("SELECT * FROM `{}`.`{table}`", config.database)).await?;
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    while let Some(row) = connection.next_row().await? {
        (rows, bytes) = (rows + 1, bytes + row.len() as u64);
    }
    println!(r#"{{"rows": {rows}, "bytes": {bytes}, "wall_s": {:.3}}}"#, begin.elapsed().as_secs_f64());
    Ok(())
}
