//! A private MariaDB or MySQL for tests: its own data folder and port, gone when it is dropped.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use millrace_core::{Tls, TlsMode};
use millrace_mysql::{MysqlConfig, config::Service, wire::Connection};

/// The unprivileged user that runs the server when the tests run as root, which it refuses to be.
const NOBODY: u32 = 65534;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// MariaDB, from the machine's packages.
    Mariadb,
    /// MySQL 9, from what `make mysql-server` unpacked.
    Mysql,
}

/// A running server.
pub struct TestServer {
    folder: PathBuf,
    port: u16,
    process: Child,
}

impl TestServer {
    /// Starts a server; `None`, with the reason printed, where it is not installed.
    pub async fn start(flavour: Flavour) -> Option<Self> {
        let Some(program) = program(flavour) else {
            eprintln!("skipped: there is no {flavour:?} here (tests/setup.sh mariadb, make mysql-server)");
            return None;
        };
        let folder = std::env::temp_dir().join(format!("millrace-{flavour:?}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
        if is_root() {
            chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = format!("--datadir={}", folder.join("data").display());
        let mut initialize = match flavour {
            Flavour::Mariadb => command(&folder, &["mariadb-install-db".into(), "--no-defaults".into()]),
            Flavour::Mysql => command(&folder, &program),
        };
        match flavour {
            Flavour::Mariadb => initialize.args(["--auth-root-authentication-method=normal", "--skip-test-db"]),
            Flavour::Mysql => initialize.args(["--initialize-insecure", "--innodb-redo-log-capacity=32M"]),
        };
        let made = initialize.arg(&data).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut serve = command(&folder, &program);
        serve.arg(data).arg(format!("--port={port}")).args(["--bind-address=127.0.0.1", "--server-id=1"]);
        for name in ["socket", "pid-file", "tmpdir"] {
            let place = if name == "tmpdir" { folder.clone() } else { folder.join(name) };
            serve.arg(format!("--{name}={}", place.display()));
        }
        serve.args([
            "--log-bin=binlog",
            "--binlog-format=ROW",
            "--binlog-row-image=FULL",
            "--binlog-row-metadata=FULL",
        ]);
        serve.args(["--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0", "--innodb-buffer-pool-size=64M"]);
        if flavour == Flavour::Mysql {
            serve.args(["--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--innodb-redo-log-capacity=32M"]);
            serve.args(["--mysqlx=OFF", "--secure-file-priv=NULL", "--cte-max-recursion-depth=4294967295"]);
        } else {
            serve.arg("--max-recursive-iterations=4294967295");
        }
        let log = fs::File::create(folder.join("log")).unwrap();
        let process = serve.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut server = Self { folder, port, process };
        server.wait().await;
        Some(server)
    }

    async fn wait(&mut self) {
        let began = Instant::now();
        while Connection::connect(&self.config("mysql")).await.is_err() {
            let ended = self.process.try_wait().unwrap();
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(ended.is_none() && began.elapsed() < Duration::from_secs(60), "no server: {}", log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How to reach a database of it, as the user who may do everything.
    pub fn config(&self, database: &str) -> MysqlConfig {
        MysqlConfig {
            host: "127.0.0.1".into(),
            port: self.port,
            database: database.into(),
            user: "root".into(),
            password: None,
            tls: Tls { mode: TlsMode::Disable, ca_file: None },
            connect_timeout: Duration::from_secs(10),
            service: Service::Own,
            server_id: None,
        }
    }

    /// A session in a database.
    pub async fn session(&self, database: &str) -> Connection {
        let mut session = Connection::connect(&self.config(database)).await.unwrap();
        session.execute(&format!("use {database}")).await.unwrap();
        session
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A command of the server, without the machine's own settings.
fn command(folder: &Path, program: &[String]) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).current_dir(folder).stdin(Stdio::null()).env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", folder).env("TMPDIR", folder).env("LC_ALL", "C");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// The server's program and what it is called with.
fn program(flavour: Flavour) -> Option<Vec<String>> {
    if flavour == Flavour::Mariadb {
        let paths = ["/usr/sbin/mariadbd", "/usr/bin/mariadbd", "/usr/local/bin/mariadbd"];
        let found = paths.into_iter().find(|path| Path::new(path).exists())?;
        return Some(vec![found.into(), "--no-defaults".into()]);
    }
    let user = fs::metadata("/proc/self").map(|meta| meta.uid()).unwrap_or_default();
    let tools = std::env::var("MILLRACE_TEST_TOOLS").unwrap_or(format!("/var/tmp/millrace-test-tools-{user}"));
    let home = format!("{tools}/mysql-9");
    let said = fs::read_to_string(format!("{home}/program")).ok()?;
    let (loader, libraries) = said.split_once('\n')?;
    let base = Path::new(&home).join("root").join("usr").display().to_string();
    Some(vec![
        format!("{home}/{loader}"),
        "--library-path".into(),
        format!("{home}/{}", libraries.trim_end()),
        format!("{base}/sbin/mysqld"),
        "--no-defaults".into(),
        format!("--basedir={base}"),
    ])
}
