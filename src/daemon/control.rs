//! `state_dir/control.sock` (mode 0600 in a folder of mode 0700): one JSON request per connection, answered by JSON lines.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_core::{Finding, TableName};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::tasks::Tasks;
use crate::telemetry::{metrics::Live, report::Told};

const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Connections that are answered at the same time; more of them wait.
const CONNECTIONS_MAX: usize = 16;

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// Delivery waits, capture goes on.
    Pause {
        /// The task.
        task: String,
    },
    /// Ends a pause or a stop.
    Resume {
        /// The task.
        task: String,
    },
    /// Ends capture and delivery.
    Stop {
        /// The task.
        task: String,
    },
    /// Loads one table, or all, anew.
    Reload {
        /// The task.
        task: String,
        /// The table as the source shows it.
        table: Option<TableName>,
    },
    /// Removes the task and what it made at its source.
    Delete {
        /// The task.
        task: String,
    },
    /// What only the running daemon knows.
    Live,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Text for the operator.
    Line(String),
    /// The answer to [`Request::Live`], by task.
    Live(BTreeMap<String, Live>),
    /// It is done.
    Done,
    /// It failed.
    Failed(Finding),
}

/// The socket of a state folder.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// Makes the socket. The folder's lock is held, so one that is there is left from a daemon that was killed.
pub fn bind(state_dir: &Path) -> Result<UnixListener, Box<Finding>> {
    let path = path(state_dir);
    let cannot = |error: io::Error| {
        let summary = format!("the control socket {} cannot be made", path.display());
        let finding = Finding::error("CONTROL-SOCKET", summary).detail(format!("the system said: {error}"));
        Box::new(finding.fix("choose a shorter path (a socket's may have 107 bytes): state-dir: /path"))
    };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(cannot)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(cannot)?;
    Ok(listener)
}

/// Answers until cancelled; then requests under way are finished.
pub async fn serve(listener: UnixListener, tasks: Arc<Tasks>, cancel: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((socket, _)) = accepted else {
            // Out of file descriptors, most likely: it must not become a busy loop.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (tasks, room) = (tasks.clone(), room.clone());
        connections.spawn(async move {
            let Ok(_place) = room.acquire().await else { return };
            if let Err(error) = answer(socket, &tasks).await {
                warn!(error = %error, "answering on the control socket failed");
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn answer(socket: UnixStream, tasks: &Tasks) -> io::Result<()> {
    let (read, mut write) = socket.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    let replies = match serde_json::from_str(&line) {
        Ok(Request::Live) => vec![Reply::Live(tasks.live().await), Reply::Done],
        Ok(request) => match tasks.obey(&request).await {
            Ok(lines) => lines.into_iter().map(Reply::Line).chain([Reply::Done]).collect(),
            Err(error) => vec![Reply::Failed(Finding::from(&error))],
        },
        Err(error) => {
            let finding = Finding::error("CONTROL-REQUEST", "the request is not understood");
            vec![Reply::Failed(finding.detail(error.to_string()).fix("use the same version of millrace for both"))]
        }
    };
    for reply in &replies {
        let mut text = serde_json::to_string(reply).map_err(io::Error::other)?;
        text.push('\n');
        write.write_all(text.as_bytes()).await?;
    }
    write.shutdown().await
}

/// Asks the daemon of a state folder; blocking, for the command line. Lines are passed on as they come.
pub fn ask(state_dir: &Path, request: &Request, mut take: impl FnMut(Reply)) -> Result<(), Box<Told>> {
    let path = path(state_dir);
    let refused = |error: io::Error| {
        Box::new(Told::of_daemon(
            Finding::error("DAEMON-SILENT", format!("no daemon answers at {}", path.display()))
                .detail(format!("the system said: {error}"))
                .fix("start it: millrace run --config FILE, or systemctl start millrace"),
        ))
    };
    let mut socket = std::os::unix::net::UnixStream::connect(&path).map_err(refused)?;
    let mut text = serde_json::to_string(request).map_err(|error| refused(error.into()))?;
    text.push('\n');
    io::Write::write_all(&mut socket, text.as_bytes()).map_err(refused)?;
    for line in io::BufRead::lines(io::BufReader::new(socket)) {
        let line = line.map_err(refused)?;
        match serde_json::from_str(&line).map_err(|error| refused(error.into()))? {
            Reply::Done => return Ok(()),
            Reply::Failed(finding) => return Err(Box::new(Told::of_daemon(finding))),
            reply => take(reply),
        }
    }
    Err(refused(io::ErrorKind::UnexpectedEof.into()))
}
