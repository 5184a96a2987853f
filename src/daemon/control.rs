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
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf as Answers},
    },
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::tasks::Tasks;
use crate::{
    stream::Mark,
    telemetry::{metrics::Live, report::Told},
};

const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Connections that are answered at the same time; more of them wait.
const CONNECTIONS_MAX: usize = 16;
/// So many may follow streams, which keeps no other from being answered; more are refused.
const FOLLOWERS_MAX: usize = 64;

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
    /// A line whenever the head of the task's stream moves.
    Follow {
        /// The task.
        task: String,
    },
}

/// Up to where a stream is durable and readable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The source's position, in its own notation.
    pub position: String,
    /// Row changes up to there, since the stream's birth.
    pub captured: u64,
    /// Commit time of the newest transaction (microseconds since 1970-01-01 UTC); 0 if there is none.
    pub newest_commit_us: i64,
    /// When it was written (microseconds since 1970-01-01 UTC).
    pub arrival_us: i64,
}

impl From<Mark> for Head {
    fn from(mark: Mark) -> Self {
        Self {
            position: mark.source.to_string(),
            captured: mark.totals.captured,
            newest_commit_us: mark.newest_commit_us,
            arrival_us: mark.arrival_us,
        }
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Text for the operator.
    Line(String),
    /// The answer to [`Request::Live`], by task.
    Live(BTreeMap<String, Live>),
    /// Part of the answer to [`Request::Follow`].
    Head(Head),
    /// It is done.
    Done,
    /// It failed.
    Failed(Finding),
}

/// The socket of a state folder.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// Whether a daemon listens there.
pub fn answers(state_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path(state_dir)).is_ok()
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
    let seats = Arc::new(Semaphore::new(FOLLOWERS_MAX));
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
        let (tasks, room, seats, cancel) = (tasks.clone(), room.clone(), seats.clone(), cancel.clone());
        connections.spawn(async move {
            let Ok(place) = room.acquire().await else { return };
            let done = match answer(socket, &tasks).await {
                Ok(Some((task, socket))) => {
                    drop(place);
                    follow(socket, &tasks, &task, &seats, &cancel).await
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                warn!(error = %error, "answering on the control socket failed");
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

/// Answers a request; gives the task and the socket back where the request is to follow it.
async fn answer(socket: UnixStream, tasks: &Tasks) -> io::Result<Option<(String, (OwnedReadHalf, Answers))>> {
    let (read, mut write) = socket.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(REQUEST_BYTES_MAX));
    read.read_line(&mut line).await?;
    let replies = match serde_json::from_str(&line) {
        Ok(Request::Follow { task }) => {
            return Ok(Some((task, (read.into_inner().into_inner(), write))));
        }
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
        write_line(&mut write, reply).await?;
    }
    write.shutdown().await?;
    Ok(None)
}

/// Tells of every move of the stream's head until the task or the daemon ends, or nobody listens.
async fn follow(
    (mut read, mut write): (OwnedReadHalf, Answers),
    tasks: &Tasks,
    task: &str,
    seats: &Semaphore,
    cancel: &CancellationToken,
) -> io::Result<()> {
    let Ok(_seat) = seats.try_acquire() else {
        let finding = Finding::error("FOLLOWERS", format!("{FOLLOWERS_MAX} follow streams already"));
        return write_line(&mut write, &Reply::Failed(finding.fix("end one of them"))).await;
    };
    let mut follower = match tasks.follow(task).await {
        Ok(follower) => follower,
        Err(error) => return write_line(&mut write, &Reply::Failed(Finding::from(&error))).await,
    };
    loop {
        let mark = tokio::select! {
            () = cancel.cancelled() => None,
            mark = follower.next() => mark,
            // It says nothing more: this is its end.
            _ = read.read_u8() => return Ok(()),
        };
        let Some(mark) = mark else { return write_line(&mut write, &Reply::Done).await };
        if write_line(&mut write, &Reply::Head(Head::from(mark))).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_line(write: &mut Answers, reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_string(reply).map_err(io::Error::other)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await
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
