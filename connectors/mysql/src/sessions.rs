//! Sessions in one and the same snapshot, and who reads in which: a server gives a snapshot to no session but the one that
//! took it, so as many are opened at one moment as pieces of tables are read at the same time.

use millrace_core::{Error, Kind, Result};
use tokio::sync::{
    Mutex,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::wire::Connection;

/// Locks of tables that are read behind it are let go of by going back to it, and the snapshot stays (manual, "SAVEPOINT";
/// `mysqldump --single-transaction` does the same).
const BEFORE_READING: &str = "SAVEPOINT before_reading";
const LET_GO: &str = "ROLLBACK TO SAVEPOINT before_reading";

/// The sessions that nobody reads in.
#[derive(Debug)]
pub struct Sessions {
    free: Mutex<UnboundedReceiver<Session>>,
    count: usize,
}

/// A session that somebody reads in. Dropped, it is gone, as its connection is when rows are left in it.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    back: UnboundedSender<Session>,
}

impl Sessions {
    /// Of connections whose transactions were begun in one and the same snapshot.
    pub async fn new(connections: Vec<Connection>) -> Result<Self> {
        let (back, free) = unbounded_channel();
        let count = connections.len();
        for mut connection in connections {
            connection.execute(BEFORE_READING).await?;
            // The other end is held here.
            let _ = back.send(Session { connection, back: back.clone() });
        }
        Ok(Self { free: Mutex::new(free), count })
    }

    /// How many there were at first.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Waits for one that is free.
    pub async fn take(&self) -> Result<Session> {
        let free = self.free.lock().await.recv().await;
        free.ok_or_else(|| Error::new(Kind::Connection, "reading in a snapshot").with("all of its sessions are gone"))
    }
}

impl Session {
    /// To read with.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Lets go of the tables that were read, and has the next one read. The last statement has to be at its end.
    pub async fn give_back(mut self) {
        if self.connection.execute(LET_GO).await.is_ok() {
            let back = self.back.clone();
            let _ = back.send(self);
        }
    }
}
