//! A private PostgreSQL for tests: its own data folder and port, gone when it is dropped.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use millrace_core::{Tls, TlsMode};

use crate::{
    PostgresConfig,
    wire::{Connection, Mode},
};

/// The unprivileged user that runs the server when the tests run as root, which PostgreSQL refuses to be.
const NOBODY: u32 = 65534;

/// A running server.
pub struct TestServer {
    folder: PathBuf,
    binaries: PathBuf,
    port: u16,
}

impl TestServer {
    /// Starts a server with these settings besides `wal_level=logical`; `None`, with the reason printed, where
    /// PostgreSQL is not installed. `MILLRACE_PG_BIN` names the folder of other binaries.
    pub fn start(settings: &[&str]) -> Option<Self> {
        let Some(binaries) = find_binaries() else {
            eprintln!("skipped: no PostgreSQL server binaries were found (MILLRACE_PG_BIN may name their folder)");
            return None;
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("millrace-pg-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
        if is_root() {
            chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let server = Self { folder, binaries, port };
        let data = server.data();
        server.run("initdb", &["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", &data]);
        let mut conf = format!(
            "port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{}'\nwal_level=logical\nfsync=off\n\
             shared_buffers=32MB\nmax_wal_senders=20\nmax_replication_slots=20\n",
            server.folder.display()
        );
        settings.iter().for_each(|setting| conf.push_str(&format!("{setting}\n")));
        let file = Path::new(&data).join("millrace.conf");
        fs::write(&file, conf).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(Path::new(&data).join("postgresql.conf"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"include 'millrace.conf'\n"))
            .unwrap();
        server.begin();
        Some(server)
    }

    /// Starts the server, and waits until it answers.
    pub fn begin(&self) {
        let log = self.folder.join("log").display().to_string();
        self.run("pg_ctl", &["-D", &self.data(), "-l", &log, "-w", "-t", "30", "start"]);
    }

    /// Stops the server; `mode` is pg_ctl's.
    pub fn stop(&self, mode: &str) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", mode, "-w", "stop"]);
    }

    /// Restarts the server as a standby of nobody and promotes it: it is on a new timeline then.
    pub fn fork_timeline(&self) {
        self.stop("fast");
        fs::write(Path::new(&self.data()).join("standby.signal"), "").unwrap();
        self.begin();
        self.run("pg_ctl", &["-D", &self.data(), "-w", "promote"]);
    }

    /// The data folder.
    pub fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }

    /// How to reach a database of it over TCP.
    pub fn config(&self, database: &str) -> PostgresConfig {
        PostgresConfig {
            host: "127.0.0.1".into(),
            port: self.port,
            database: database.into(),
            user: "postgres".into(),
            password: None,
            tls: Tls { mode: TlsMode::Disable, ca_file: None },
            connect_timeout: Duration::from_secs(10),
        }
    }

    /// The folder of its Unix socket.
    pub fn socket_folder(&self) -> String {
        self.folder.display().to_string()
    }

    /// A session in the database `postgres`, in the schema `public`.
    pub async fn session(&self) -> Connection {
        let mut session = Connection::connect(&self.config("postgres"), Mode::Plain, "test").await.unwrap();
        session.execute("set search_path = public").await.unwrap();
        session
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(self.binaries.join(program));
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        // Its output must not be a pipe: the server would inherit it, and keep the reader waiting.
        let out = self.folder.join(format!("{program}.out"));
        let file = fs::File::create(&out).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let begin = Instant::now();
        let status = command.status().unwrap();
        assert!(
            status.success(),
            "{program} failed after {:?}: {}",
            begin.elapsed(),
            fs::read_to_string(out).unwrap_or_default()
        );
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let mut command = Command::new(self.binaries.join("pg_ctl"));
        command.args(["-D", &self.data(), "-m", "immediate", "-w", "stop"]).current_dir("/");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let _ = command.status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn find_binaries() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("MILLRACE_PG_BIN") {
        return Some(folder.into());
    }
    // Debian keeps every version in a folder of its own.
    let debian = ["15", "18", "17", "16", "14"].iter().map(|v| PathBuf::from(format!("/usr/lib/postgresql/{v}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian.chain(std::env::split_paths(&path)).find(|folder| folder.join("initdb").exists())
}
