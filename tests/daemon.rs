//! The real binary as a daemon, with the example connector as its source: what systemd, an operator and a scraper see.

use std::{
    cell::RefCell,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
    notified: UnixDatagram,
    heard: RefCell<String>,
}

impl Daemon {
    fn new(tasks: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let notified = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notified.set_nonblocking(true).unwrap();
        let daemon = Self { folder, port, child: None, notified, heard: RefCell::default() };
        daemon.configure(tasks);
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, tasks: &str) {
        let lake = self.path("lake");
        let text = format!(
            "state-dir: state\nlisten: 127.0.0.1:{}\nendpoints:\n  hello: {{ type: hello }}\n  lake: {{ type: file, path: {}, \
             buffer: {{ interval: 200ms }} }}\ntasks:\n{tasks}",
            self.port,
            lake.display()
        );
        fs::write(self.path("millrace.yaml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command.args(arguments).arg("--config").arg(self.path("millrace.yaml")).env_remove("STATE_DIRECTORY");
        command
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ask(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = self.command(&["run"]);
        command.env("NOTIFY_SOCKET", self.path("notify")).env("WATCHDOG_USEC", "3000000").env("RUST_LOG", "info");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        self.heard.borrow_mut().clear();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until systemd would have heard a line that begins so.
    fn hear(&self, line: &str) {
        self.wait(line, |daemon| daemon.heard.borrow().lines().any(|heard| heard.starts_with(line)));
    }

    fn wait(&self, what: &str, mut there: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        loop {
            self.listen();
            if there(self) {
                return;
            }
            let heard = self.heard.borrow();
            assert!(begun.elapsed() < PATIENCE, "{what} did not come, but:\n{heard}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes what systemd is told; a daemon whose words nobody takes would wait for that.
    fn listen(&self) {
        let mut bytes = [0; 4096];
        while let Ok(count) = self.notified.recv(&mut bytes) {
            let mut heard = self.heard.borrow_mut();
            heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
            heard.push('\n');
        }
    }

    fn http(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_string())
    }

    fn rows(&self) -> u64 {
        let files = self.json(&["catalog", "files", "hello.greetings"]);
        files.as_array().into_iter().flatten().map(|file| file["rows"].as_u64().unwrap()).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const ONE: &str = "  greet: { source: hello, target: lake, tables: [hello.greetings] }\n";

#[test]
fn a_daemon_from_start_to_end() {
    let mut daemon = Daemon::new(ONE);
    assert_eq!(daemon.ask(&["check"]).status.code(), Some(0));
    daemon.start();
    daemon.hear("READY=1");
    daemon.hear("WATCHDOG=1");
    daemon.hear("STATUS=1 of 1 tasks run");
    assert_eq!(daemon.http("/healthz"), (200, "ok\n".into()));
    assert_eq!(daemon.http("/readyz").0, 200);
    assert!(daemon.http("/version").1.contains(env!("CARGO_PKG_VERSION")));
    daemon.wait("all ten greetings", |daemon| daemon.rows() == 10);
    daemon.wait("accounts", |daemon| daemon.http("/metrics").1.contains("millrace_unaccounted_rows{task=\"greet\"} 0"));

    let mode = |path: &str| fs::metadata(daemon.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/control.sock")), (0o700, 0o600));
    assert_eq!(daemon.json(&["status", "--running"])["daemon_runs"], true);
    let second = daemon.ask(&["run"]);
    assert_eq!(second.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&second.stderr).contains("DAEMON-RUNS"));

    daemon.signal(rustix::process::Signal::TERM);
    daemon.hear("STOPPING=1");
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert_eq!(daemon.ask(&["status", "--running"]).status.code(), Some(1));
    let left = daemon.json(&["status"]);
    assert_eq!((&left["daemon_runs"], &left["tasks"][0]["task"]), (&Value::Bool(false), &Value::from("greet")));
    assert_eq!(daemon.rows(), 10, "the catalog answers without a daemon");
    assert!(!daemon.log().contains('\u{1b}'), "no colours where there is no terminal");
}

#[test]
fn a_reload_changes_what_changed_and_a_broken_file_nothing() {
    let mut daemon = Daemon::new(ONE);
    daemon.start();
    daemon.hear("READY=1");
    daemon.heard.borrow_mut().clear();
    daemon.configure(&ONE.replace("tables", "tabels"));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.hear("RELOADING=1");
    daemon.hear("READY=1");
    assert!(daemon.log().contains("did you mean \"tables\"?"), "{}", daemon.log());
    assert_eq!(daemon.http("/readyz").0, 200);

    let two = format!(
        "{ONE}  again: {{ source: hello, target: lake, tables: [{{ from: hello.greetings, to: twice.g }}] }}\n"
    );
    daemon.configure(&two);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.hear("STATUS=2 of 2 tasks run");
    let starts = |daemon: &Daemon, task: &str| daemon.log().matches(&format!("task starts task=\"{task}\"")).count();
    assert_eq!((starts(&daemon, "greet"), starts(&daemon, "again")), (1, 1), "{}", daemon.log());
    daemon.configure(&format!("# moved down\n{}", two.replace("twice.g", "thrice.g")));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait("the changed task", |daemon| starts(daemon, "again") == 2);
    assert_eq!(starts(&daemon, "greet"), 1, "a task that did not change is left alone");

    // One SIGHUP on the heels of another, while the task of the first still starts: the last file counts.
    for table in ["four.g", "five.g"] {
        daemon.configure(&two.replace("twice.g", table));
        daemon.signal(rustix::process::Signal::HUP);
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.wait("the last file", |daemon| daemon.path("lake/five/g").exists());

    // A task must not be forgotten: its slot would stay at the source.
    daemon.configure(ONE);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait("a word about it", |daemon| daemon.log().contains("CFG-TASK-VANISHED"));
    assert_eq!(daemon.json(&["status"])["tasks"].as_array().unwrap().len(), 1, "the config in the file has one");
    daemon.configure(&two.replace("tables: [{", "removed: true, tables: [{"));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.wait("its end", |daemon| daemon.log().contains("removed task is deleted"));
    daemon.configure(ONE);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.hear("STATUS=1 of 1 tasks run");
    let events = daemon.json(&["events"]);
    let wrong = events.as_array().unwrap().iter().filter(|event| event["code"] == "CONFIG").count();
    assert_eq!(wrong, 2, "{events}");
    daemon.signal(rustix::process::Signal::INT);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn operators_commands_reach_the_tasks() {
    let mut daemon = Daemon::new(ONE);
    let silent = daemon.ask(&["pause", "greet"]);
    assert_eq!(silent.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&silent.stderr).contains("DAEMON-SILENT"));
    daemon.start();
    daemon.hear("READY=1");
    daemon.wait("the load", |daemon| daemon.json(&["tables"])[0]["state"] == "Table completed");
    assert_eq!(daemon.json(&["pause", "greet"])["done"], true);
    assert_eq!(daemon.json(&["status"])["tasks"][0]["paused"], true);
    assert_eq!(daemon.json(&["resume", "greet"])["done"], true);
    assert!(daemon.ask(&["stop", "greet"]).status.success());
    daemon.wait("the stop", |daemon| daemon.json(&["status"])["tasks"][0]["state"] == "stopped");
    assert!(daemon.ask(&["resume", "greet"]).status.success());
    daemon.wait("the resumption", |daemon| daemon.json(&["status"])["tasks"][0]["state"] == "running");
    assert!(daemon.ask(&["reload", "greet", "hello.greetings"]).status.success());
    for (arguments, word) in [
        (&["reload", "greet", "hello.nobody"][..], "nobody"),
        (&["reload", "greet", "nodot"], "nodot"),
        (&["pause", "nobody"], "nobody"),
        (&["tables", "gret"], "did you mean greet?"),
        (&["catalog", "files", "hello.nobody"], "nobody"),
    ] {
        let failed = daemon.ask(arguments);
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        assert!(String::from_utf8_lossy(&failed.stderr).contains(word), "{failed:?}");
    }
    assert!(daemon.ask(&["delete", "greet"]).status.success());
    assert_eq!(daemon.json(&["tables"]), Value::Array(vec![]));
    let categories: Vec<Value> =
        daemon.json(&["events"]).as_array().unwrap().iter().map(|event| event["category"].clone()).collect();
    assert!(categories.contains(&"deletion".into()) && categories.contains(&"creation".into()), "{categories:?}");
}

#[test]
fn a_first_start_that_comes_to_nothing_exits_with_3() {
    let daemon = Daemon::new("  greet: { source: hello, target: lake, tables: [other.table] }\n");
    let checked = daemon.ask(&["check"]);
    let ran = daemon.ask(&["run"]);
    assert_eq!((checked.status.code(), ran.status.code()), (Some(3), Some(3)));
    let (checked, ran) = (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&ran.stderr));
    let block: Vec<&str> = checked.lines().filter(|line| !line.starts_with("1 error")).collect();
    assert!(block[0].starts_with("error[HELLO-TABLE]"), "{checked}");
    assert!(ran.contains(&block.join("\n")), "run says the same:\n{checked}\n{ran}");
}

#[test]
fn a_forgotten_task_is_an_error_at_start() {
    let mut daemon = Daemon::new(ONE);
    daemon.start();
    daemon.hear("READY=1");
    daemon.signal(rustix::process::Signal::TERM);
    daemon.wait_exit();
    daemon.configure(&ONE.replace("greet:", "other:"));
    for command in ["run", "check"] {
        let refused = daemon.ask(&[command]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("task greet is not in the config"), "{refused:?}");
    }
}

#[test]
fn a_second_signal_stops_at_once_and_nothing_is_lost() {
    let mut daemon = Daemon::new(ONE);
    daemon.start();
    daemon.hear("READY=1");
    daemon.signal(rustix::process::Signal::TERM);
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    daemon.start();
    daemon
        .wait("all ten greetings", |daemon| Path::new(&daemon.path("state/state.db")).exists() && daemon.rows() == 10);
}

#[test]
fn two_tasks_that_would_write_one_table_are_told() {
    let two = format!("{ONE}{}", ONE.replace("greet:", "twin:"));
    let mut daemon = Daemon::new(&two);
    let checked = daemon.ask(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(3));
    assert!(
        said.contains("belongs to task greet") && said.contains("fix: tables: - { from: hello.greetings, to:"),
        "{said}"
    );
    daemon.configure(ONE);
    daemon.start();
    daemon.hear("READY=1");
    daemon.wait("its table", |daemon| daemon.json(&["tables"])[0]["state"] == "Table completed");
    daemon.configure(&two);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.hear("STATUS=1 of 2 tasks run; failed: twin");
    let (status, body) = daemon.http("/readyz");
    assert!(status == 503 && body.contains("\"task\":\"twin\""), "{body}");
}
