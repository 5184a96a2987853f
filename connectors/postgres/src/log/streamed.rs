//! Transactions that the server sends before they commit (manual, "Streaming of Large Transactions for Logical Decoding").
//!
//! Their messages are kept on our disk ([`super::spill`]) until they commit; then they go to the decoder between a Begin
//! and a Commit, as if they had come then, so that nothing behind the decoder knows the difference: not ordinals, not
//! shapes (a Relation holds for its own transaction until that commits, and for everybody from there on: the server sends
//! it anew where it did not commit), not positions. A position may be confirmed while such a transaction is open: what
//! commits behind it the server sends again, whole.

use std::{collections::HashMap, sync::Arc};

use millrace_core::{Error, Kind, Result, error::Context, source::SpillRoom};

use super::{
    decoder::Decoder,
    spill::{self, BLOCK_BYTES, Block, Spill, SpillReader},
};
use crate::wire::{
    begin::Begin,
    commit::Commit,
    pgoutput::{Message, StreamMessage},
    reader::{Malformed, Reader},
    stream_abort::StreamAbort,
    stream_commit::StreamCommit,
    stream_start::StreamStart,
    xlog_data,
};

/// The open transactions, and the one that has committed and is being replayed.
#[derive(Debug)]
pub struct Streamed {
    room: Arc<dyn SpillRoom>,
    open: HashMap<u32, Spill>,
    /// The transaction of which a part is being received.
    receiving: Option<u32>,
    /// What was received and is not on the disk yet, and whose it is.
    block: Block,
    block_xid: u32,
    replay: Option<Replay>,
    /// Something was written, so that there is a folder to remove.
    used: bool,
}

#[derive(Debug)]
struct Replay {
    commit: StreamCommit,
    reader: SpillReader,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    /// There may be more messages in the block.
    Messages,
    /// The block is used up.
    Block,
    Commit,
}

impl Streamed {
    /// Removes what an earlier log left.
    pub fn open(room: Arc<dyn SpillRoom>) -> Result<Self> {
        spill::sweep(room.folder())?;
        room.hold(0);
        Ok(Self {
            room,
            open: HashMap::new(),
            receiving: None,
            block: Block::default(),
            block_xid: 0,
            replay: None,
            used: false,
        })
    }

    /// Takes one CopyData, if it belongs to a transaction that was or is sent ahead; gives where the server's log ends, and its
    /// clock. Not to be called while a block is due or something is replayed.
    #[inline]
    pub fn take(&mut self, payload: &[u8]) -> Result<Option<(u64, i64)>> {
        let Some((source, message)) = xlog_data::open(payload) else { return Ok(None) };
        let stream = StreamMessage::parse(Reader::new(message)).context(Kind::Protocol, || "decoding the log")?;
        match (stream, self.receiving) {
            (None, None) => return Ok(None),
            (None, Some(xid)) => self.keep(xid, message)?,
            (Some(StreamMessage::Start(start)), None) => self.start(start)?,
            (Some(StreamMessage::Stop), Some(_)) => self.receiving = None,
            (Some(StreamMessage::Abort(abort)), None) => self.abort(abort)?,
            (Some(StreamMessage::Commit(commit)), None) => self.commit(commit)?,
            (Some(StreamMessage::Stop), None) => {
                return Err(protocol("a part of an open transaction ends that did not begin"));
            }
            (Some(_), Some(_)) => {
                return Err(protocol("a part of an open transaction has not ended when something else begins"));
            }
        }
        Ok(Some(source))
    }

    fn start(&mut self, start: StreamStart) -> Result<()> {
        assert!(!self.is_due(), "what was received goes to the disk first");
        match (start.is_first, self.open.contains_key(&start.xid)) {
            (true, true) => return Err(protocol("an open transaction begins twice")),
            (false, false) => return Err(protocol("an open transaction goes on that did not begin")),
            (true, false) => {
                self.open.insert(start.xid, Spill::new(self.room.folder(), start.xid));
            }
            (false, true) => {}
        }
        (self.receiving, self.block_xid) = (Some(start.xid), start.xid);
        Ok(())
    }

    /// Keeps a message of the transaction `top`. All but Origin have the number of their own (sub-)transaction behind the
    /// tag, which a message of a transaction that has committed does not have.
    fn keep(&mut self, top: u32, message: &[u8]) -> Result<()> {
        let kept = match message.split_first() {
            Some((&tag @ b'O', body)) => self.block.push(top, tag, body),
            Some((&tag @ (b'R' | b'Y' | b'I' | b'U' | b'D' | b'T' | b'M'), rest)) => {
                let mut reader = Reader::new(rest);
                let xid = reader.u32().context(Kind::Protocol, || "decoding the log")?;
                self.block.push(xid, tag, reader.rest())
            }
            _ => return Err(protocol("a message that cannot stand within an open transaction")),
        };
        if kept { Ok(()) } else { Err(protocol("a message is too long")) }
    }

    fn abort(&mut self, abort: StreamAbort) -> Result<()> {
        if abort.xid != abort.subxid {
            // Of one that we do not know there is nothing to leave out.
            if let Some(spill) = self.open.get_mut(&abort.xid) {
                spill.aborted.insert(abort.subxid);
            }
            return Ok(());
        }
        if let Some(mut spill) = self.open.remove(&abort.xid) {
            spill.remove()?;
            self.hold();
        }
        Ok(())
    }

    fn commit(&mut self, commit: StreamCommit) -> Result<()> {
        assert!(!self.is_due() && self.replay.is_none(), "what came before it goes first");
        let spill = self.open.remove(&commit.xid);
        let spill = spill.ok_or_else(|| protocol("an open transaction commits that did not begin"))?;
        fail::fail_point!("pg-spill-before-replay");
        tracing::debug!(xid = commit.xid, bytes = spill.bytes(), "a transaction that was sent ahead has committed");
        self.replay = Some(Replay { commit, reader: SpillReader::new(spill), stage: Stage::Begin });
        Ok(())
    }

    /// Whether what was received must go to the disk before more is taken.
    #[inline]
    pub fn is_due(&self) -> bool {
        self.block.len() >= BLOCK_BYTES || (self.receiving.is_none() && !self.block.is_empty())
    }

    /// Writes what was received; false if there is no room for it yet.
    pub fn write(&mut self) -> Result<bool> {
        if !self.room.admits(self.block.len() as u64) {
            return Ok(false);
        }
        let Some(spill) = self.open.get_mut(&self.block_xid) else {
            return Err(Error::new(Kind::Internal, "writing rows of an open transaction that is gone"));
        };
        self.used = true;
        spill.append(&mut self.block)?;
        fail::fail_point!("pg-spill-after-write");
        self.hold();
        Ok(true)
    }

    /// Whether a transaction that has committed is being replayed: that comes before anything newer.
    #[inline]
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Gives the decoder the next message of the transaction that has committed; true where instead the disk was read.
    pub fn replay(&mut self, decoder: &mut Decoder) -> Result<bool> {
        let Some(replay) = &mut self.replay else { return Ok(false) };
        let StreamCommit { xid, commit_lsn, end_lsn, commit_time } = replay.commit;
        match replay.stage {
            Stage::Begin => {
                replay.stage = Stage::Block;
                decoder.message(Message::Begin(Begin { final_lsn: commit_lsn, commit_time, xid }))?;
            }
            Stage::Messages => match replay.reader.message()? {
                Some(message) => {
                    let parsed = Message::parse(Reader::new(message));
                    decoder.message(parsed.context(Kind::Protocol, || "decoding the log")?)?;
                }
                None => replay.stage = Stage::Block,
            },
            Stage::Block => {
                fail::fail_point!("pg-spill-inside-replay");
                replay.stage = if replay.reader.read_block()? { Stage::Messages } else { Stage::Commit };
                self.hold();
                return Ok(true);
            }
            Stage::Commit => {
                self.replay = None;
                decoder.message(Message::Commit(Commit { commit_lsn, end_lsn, commit_time }))?;
            }
        }
        Ok(false)
    }

    fn hold(&self) {
        let replayed = self.replay.as_ref().map_or(0, |replay| replay.reader.bytes());
        self.room.hold(self.open.values().map(Spill::bytes).sum::<u64>() + replayed);
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // What cannot be removed now, the next log removes.
        if self.used && spill::sweep(self.room.folder()).is_ok() {
            self.room.hold(0);
        }
    }
}

fn protocol(what: &'static str) -> Error {
    Error::new(Kind::Protocol, "decoding the log").with(Malformed(what))
}

#[cfg(test)]
impl Streamed {
    /// What the log does with a CopyData, up to a table whose shape must be looked up.
    pub fn feed(&mut self, decoder: &mut Decoder, payload: &[u8]) -> Result<()> {
        if self.take(payload)?.is_none() {
            decoder.apply(payload)?;
        }
        if self.is_due() {
            assert!(self.write()?);
        }
        while self.is_replaying() && decoder.unresolved().is_none() {
            self.replay(decoder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::atomic::{AtomicU64, Ordering},
    };

    use millrace_core::{Change, Changes, Position, source::UnboundedRoom};
    use proptest::prelude::*;

    use super::{super::fuzz, *};

    /// A server that writes what it is told.
    #[derive(Default)]
    struct Server {
        sent: Vec<Vec<u8>>,
        lsn: u64,
    }

    impl Server {
        fn send(&mut self, message: &[u8]) {
            self.sent.push([b"w".as_slice(), &[0; 16], &[0; 8], message].concat());
        }

        fn start(&mut self, xid: u32, first: bool) {
            self.send(&[b"S".as_slice(), &xid.to_be_bytes(), &[u8::from(first)]].concat());
        }

        fn stop(&mut self) {
            self.send(b"E");
        }

        fn abort(&mut self, xid: u32, subxid: u32) {
            self.send(&[b"A".as_slice(), &xid.to_be_bytes(), &subxid.to_be_bytes()].concat());
        }

        fn commit(&mut self, xid: u32) {
            self.lsn += 100;
            let (from, to) = (self.lsn.to_be_bytes(), (self.lsn + 8).to_be_bytes());
            self.send(&[b"c".as_slice(), &xid.to_be_bytes(), b"\0", &from, &to, &5_i64.to_be_bytes()].concat());
        }

        /// The same transaction as one that is sent when it commits.
        fn plain(&mut self, xid: u32, messages: &[Vec<u8>]) {
            self.lsn += 100;
            let (from, to) = (self.lsn.to_be_bytes(), (self.lsn + 8).to_be_bytes());
            self.send(&[b"B".as_slice(), &from, &5_i64.to_be_bytes(), &xid.to_be_bytes()].concat());
            messages.iter().for_each(|message| self.send(message));
            self.send(&[b"C\0".as_slice(), &from, &to, &5_i64.to_be_bytes()].concat());
        }
    }

    /// The message as it stands in a part of an open transaction.
    fn within(xid: u32, message: &[u8]) -> Vec<u8> {
        [&message[..1], &xid.to_be_bytes(), &message[1..]].concat()
    }

    /// Table 2 has no key and its full identity, with `columns` of `id`, `v`, `n`, `x`.
    fn relation(oid: u8, columns: usize) -> Vec<u8> {
        let identity = if oid == 2 { b'f' } else { b'd' };
        let mut message =
            [b"R\0\0\0".as_slice(), &[oid], b"s\0t", &[b'0' + oid, 0, identity, 0, columns as u8]].concat();
        for (name, ty) in [("id", 23_u8), ("v", 25), ("n", 23), ("x", 25)].into_iter().take(columns) {
            message.push(u8::from(name == "id" && oid == 1));
            message.extend([name.as_bytes(), &[0, 0, 0, 0, ty], &[0xff; 4]].concat());
        }
        message
    }

    fn row(id: u8, value: &[u8]) -> Vec<u8> {
        let id = id.to_string();
        [b"\0\x03t\0\0\0", [id.len() as u8].as_slice(), id.as_bytes(), value, b"n"].concat()
    }

    fn insert(oid: u8, id: u8) -> Vec<u8> {
        [b"I\0\0\0".as_slice(), &[oid], b"N", &row(id, b"t\0\0\0\x02hi")].concat()
    }

    fn play(sent: &[Vec<u8>]) -> Result<Changes> {
        let folder = tempfile::tempdir().unwrap();
        let mut streamed = Streamed::open(room(folder.path())).unwrap();
        let mut decoder = fuzz::decoder();
        for payload in sent {
            streamed.feed(&mut decoder, payload)?;
        }
        let left = streamed.open.len();
        drop(streamed);
        assert!(left > 0 || !folder.path().join("spill").exists(), "the files go with the log");
        Ok(decoder.take())
    }

    fn room(folder: &Path) -> Arc<dyn SpillRoom> {
        Arc::new(UnboundedRoom(folder.join("spill")))
    }

    fn ids(changes: &Changes) -> Vec<(u32, i32)> {
        let ids = changes.items.iter().flat_map(|item| match item {
            Change::Rows(batch) => (0..batch.rows())
                .map(|row| {
                    (batch.order[row].ordinal, batch.after.columns()[0].cell_text(row).unwrap().parse().unwrap())
                })
                .collect(),
            _ => vec![],
        });
        ids.collect()
    }

    // trap: 23
    #[test]
    fn interleaved_transactions_with_nested_rollbacks() {
        let mut server = Server::default();
        // 10 with sub-transactions 11 and, within it, 12; and 20 between its parts.
        server.start(10, true);
        server.send(&within(10, &relation(1, 3)));
        server.send(&within(10, &insert(1, 1)));
        server.send(&within(11, &insert(1, 2)));
        server.send(&within(12, &insert(1, 3)));
        server.stop();
        server.start(20, true);
        server.send(&within(20, &relation(1, 3)));
        server.send(&within(21, &insert(1, 50)));
        server.stop();
        server.abort(10, 12);
        server.start(10, false);
        server.send(&within(11, &relation(1, 3)));
        server.send(&within(11, &insert(1, 4)));
        server.stop();
        server.commit(20);
        server.abort(10, 11);
        // Of one whose rows are not published.
        server.abort(10, 13);
        server.start(10, false);
        server.send(b"O\0\0\0\0\0\0\0\x01elsewhere\0");
        server.send(&within(10, &relation(1, 3)));
        server.send(&within(10, b"Y\0\0\0\x07s\0mood\0"));
        server.send(&within(10, b"M\x01\0\0\0\0\0\0\0\x01p\0\0\0\0\x02hi"));
        server.send(&within(10, &insert(1, 5)));
        server.stop();
        server.plain(30, &[relation(1, 3), insert(1, 70)]);
        server.start(40, true);
        server.send(&within(40, &insert(1, 80)));
        server.stop();
        server.abort(40, 40);
        server.commit(10);
        let changes = play(&server.sent).unwrap();
        assert_eq!(ids(&changes), [(1, 50), (1, 70), (1, 1), (2, 5)]);
        assert_eq!(changes.upto, Some(Position(308)));
        let Change::Rows(batch) = &changes.items[0] else { panic!("rows come first") };
        assert_eq!(batch.order.iter().map(|order| order.commit).collect::<Vec<_>>(), [100, 200, 300, 300]);
    }

    #[test]
    fn a_shape_is_nobody_elses_before_its_transaction_commits() {
        let folder = tempfile::tempdir().unwrap();
        let (mut streamed, mut decoder) = (Streamed::open(room(folder.path())).unwrap(), fuzz::decoder());
        let mut server = Server::default();
        let mut feed = |server: &mut Server| -> Option<u32> {
            for payload in server.sent.drain(..) {
                streamed.feed(&mut decoder, &payload).unwrap();
            }
            decoder.unresolved().map(|(oid, _)| oid)
        };
        server.plain(5, &[relation(1, 3), insert(1, 1)]);
        for (xid, ends) in [(10, "aborts"), (11, "commits")] {
            server.start(xid, true);
            server.send(&within(xid, &relation(1, 4)));
            server.send(&within(xid, b"I\0\0\0\x01N\0\x04t\0\0\0\x019nnn"));
            server.stop();
            server.plain(xid + 10, &[insert(1, 2)]);
            assert_eq!(feed(&mut server), None);
            if ends == "aborts" {
                server.abort(xid, xid)
            } else {
                server.commit(xid)
            }
            let asked = (ends == "commits").then_some(1);
            assert_eq!(feed(&mut server), asked, "the shape is asked for when its transaction {ends}");
        }
    }

    #[test]
    fn positions_move_on_while_a_transaction_is_open() {
        let mut server = Server::default();
        server.start(10, true);
        server.stop();
        server.sent.push([b"k".as_slice(), &70_u64.to_be_bytes(), &[0; 9]].concat());
        assert_eq!(play(&server.sent).unwrap().upto, Some(Position(70)));
        server.commit(10);
        let changes = play(&server.sent).unwrap();
        assert_eq!((changes.upto, changes.newest_commit_us.is_some()), (Some(Position(108)), true));
        assert_eq!(changes.items, [], "an empty one is as good as any");
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let start = |xid: u8, first: u8| vec![b'S', 0, 0, 0, xid, first];
        let commit = |xid: u8| [b"c\0\0\0".as_slice(), &[xid, 0], &[1; 24]].concat();
        let abort = |xid: u8| vec![b'A', 0, 0, 0, xid, 0, 0, 0, xid];
        let stop = || b"E".to_vec();
        let cases = [
            (vec![stop()], "a part of an open transaction ends that did not begin"),
            (vec![commit(7)], "an open transaction commits that did not begin"),
            (vec![start(7, 1), stop(), abort(7), commit(7)], "an open transaction commits that did not begin"),
            (vec![start(7, 0)], "an open transaction goes on that did not begin"),
            (vec![start(7, 1), stop(), start(7, 1)], "an open transaction begins twice"),
            (vec![start(7, 1), start(8, 1)], "has not ended when something else begins"),
            (vec![start(7, 1), commit(7)], "has not ended when something else begins"),
            (vec![start(7, 1), abort(7)], "has not ended when something else begins"),
            (vec![start(7, 1), [b"B".as_slice(), &[0; 20]].concat()], "cannot stand within an open transaction"),
            (vec![start(7, 1), b"I\0\0".to_vec()], "it ends too early"),
            (vec![start(7, 1), b"?\0\0\0\x07".to_vec()], "cannot stand within an open transaction"),
            (vec![start(7, 1), b"I\0\0\0\x07".to_vec(), stop(), commit(7)], "it ends too early"),
            (vec![start(7, 1), within(7, &insert(1, 1)), stop(), commit(7)], "a row comes before the shape"),
            (vec![vec![b'S', 0, 0, 0, 7, 1, 1]], "longer than it should be"),
            (vec![vec![b'E', 0]], "longer than it should be"),
            (vec![vec![b'A', 0, 0, 0, 7, 0, 0, 0, 7, 0]], "it ends too early"),
            (vec![vec![]], "it ends too early"),
        ];
        for (messages, expected) in cases {
            let mut server = Server::default();
            messages.iter().for_each(|message| server.send(message));
            let error = play(&server.sent).expect_err(expected);
            assert_eq!(error.kind, Kind::Protocol);
            assert!(error.to_string().contains(expected), "{error} instead of {expected}");
        }
        let mut server = Server::default();
        server.abort(7, 7);
        server.abort(7, 8);
        assert_eq!(play(&server.sent).unwrap().items, [], "of an unknown one nothing is to be left out");
    }

    /// Counts, and admits nothing while it is closed.
    #[derive(Debug)]
    struct Counted(std::path::PathBuf, AtomicU64, AtomicU64);

    impl SpillRoom for Counted {
        fn folder(&self) -> &Path {
            &self.0
        }

        fn hold(&self, bytes: u64) {
            self.1.store(bytes, Ordering::Relaxed);
        }

        fn admits(&self, bytes: u64) -> bool {
            self.1.load(Ordering::Relaxed) + bytes <= self.2.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn what_is_on_the_disk_is_counted_and_waits_for_room() {
        let folder = tempfile::tempdir().unwrap();
        let room = Arc::new(Counted(folder.path().join("spill"), AtomicU64::new(9), AtomicU64::new(0)));
        std::fs::create_dir_all(&room.0).unwrap();
        std::fs::write(room.0.join("00000007.000000"), b"of an earlier log").unwrap();
        let (mut streamed, mut decoder) = (Streamed::open(room.clone()).unwrap(), fuzz::decoder());
        assert!(!room.0.exists() && room.1.load(Ordering::Relaxed) == 0);
        let mut server = Server::default();
        server.start(7, true);
        server.send(&within(7, &relation(1, 3)));
        server.send(&within(7, &insert(1, 1)));
        server.stop();
        for payload in &server.sent {
            streamed.take(payload).unwrap();
        }
        assert!(streamed.is_due() && !streamed.write().unwrap() && streamed.is_due());
        assert_eq!(room.1.load(Ordering::Relaxed), 0);
        room.2.store(1 << 20, Ordering::Relaxed);
        assert!(streamed.write().unwrap() && !streamed.is_due());
        assert!(room.1.load(Ordering::Relaxed) > 50);
        server.sent.clear();
        server.commit(7);
        streamed.feed(&mut decoder, &server.sent[0]).unwrap();
        assert_eq!((ids(&decoder.take()), room.1.load(Ordering::Relaxed)), (vec![(1, 1)], 0));
    }

    /// What a session does: to which of three transactions, in which of its sub-transactions, and what.
    fn steps() -> impl Strategy<Value = Vec<(usize, usize, u8, u8)>> {
        prop::collection::vec((0..3_usize, 0..4_usize, 0..12_u8, 0..5_u8), 0..80)
    }

    fn change(kind: u8, id: u8) -> (u8, Vec<u8>) {
        let oid = kind % 3 + 1;
        let (hi, unchanged) = (b"t\0\0\0\x02hi".as_slice(), b"u".as_slice());
        let head = |tag: u8| vec![tag, 0, 0, 0, oid];
        let message = match (kind / 3, oid) {
            (0, _) | (_, 3) => insert(oid, id),
            (1, 1) => [head(b'U').as_slice(), b"N", &row(id, unchanged)].concat(),
            (1, _) => [head(b'U').as_slice(), b"O", &row(id, hi), b"N", &row(id + 1, unchanged)].concat(),
            (2, 1) => [head(b'U').as_slice(), b"K", &row(id, b"n"), b"N", &row(id + 1, unchanged)].concat(),
            (2, _) => [head(b'D').as_slice(), b"O", &row(id, hi)].concat(),
            _ => [b"T\0\0\0\x01\0\0\0\0".as_slice(), &[oid]].concat(),
        };
        (oid, message)
    }

    /// One open transaction, as the server sees it.
    #[derive(Default)]
    struct Open {
        begun: bool,
        shown: Vec<u8>,
        /// How often a sub-transaction was begun.
        begins: u32,
        /// Its savepoints: who writes there now, and who wrote there and was released.
        levels: [Vec<u32>; 4],
        /// The messages that were sent, and whose they are.
        messages: Vec<(u32, Vec<u8>)>,
        aborted: Vec<u32>,
    }

    impl Open {
        /// Who writes at this level; what is within it is released, and ends with it from now on.
        fn write(&mut self, top: u32, level: usize) -> u32 {
            for inner in (level + 1..4).rev() {
                let released = std::mem::take(&mut self.levels[inner]);
                self.levels[level].extend(released);
            }
            let writes = self.levels[level].iter().find(|&&xid| (xid % 1000 % 4) as usize == level);
            if level == 0 {
                return top;
            }
            if let Some(&xid) = writes {
                return xid;
            }
            self.begins += 1;
            let xid = top + self.begins * 4 + level as u32;
            self.levels[level].push(xid);
            xid
        }

        /// Rolls back to before this level; gives who is aborted.
        fn roll_back(&mut self, level: usize) -> Vec<u32> {
            let gone: Vec<u32> = self.levels[level..].iter_mut().rev().flat_map(std::mem::take).collect();
            self.aborted.extend(&gone);
            if !gone.is_empty() {
                // The server shows all shapes anew behind a rollback.
                self.shown.clear();
            }
            gone
        }
    }

    proptest! {
        /// Sent ahead in parts or when it commits: the changes are the very same.
        // trap: 23
        #[test]
        fn a_replay_is_the_transaction(steps in steps(), ends in prop::array::uniform3(any::<bool>())) {
            let (mut ahead, mut plain) = (Server::default(), Server::default());
            let mut open: [Open; 3] = Default::default();
            let mut receiving = None;
            for (top, sub, kind, id) in steps {
                let (transaction, number) = (&mut open[top], 1000 * (top as u32 + 1));
                if kind == 11 {
                    if receiving.take().is_some() {
                        ahead.stop();
                    }
                    transaction.roll_back(sub.max(1)).into_iter().for_each(|xid| ahead.abort(number, xid));
                    continue;
                }
                let xid = transaction.write(number, sub);
                if receiving != Some(top) {
                    if receiving.is_some() {
                        ahead.stop();
                    }
                    ahead.start(number, !std::mem::replace(&mut transaction.begun, true));
                    receiving = Some(top);
                }
                let (oid, message) = change(kind, id);
                if !transaction.shown.contains(&oid) {
                    transaction.shown.push(oid);
                    ahead.send(&within(xid, &relation(oid, 3)));
                    transaction.messages.push((xid, relation(oid, 3)));
                }
                ahead.send(&within(xid, &message));
                transaction.messages.push((xid, message));
            }
            if receiving.is_some() {
                ahead.stop();
            }
            for (top, commits) in ends.into_iter().enumerate().filter(|&(top, _)| open[top].begun) {
                let Open { messages, aborted, .. } = &open[top];
                let xid = 1000 * (top as u32 + 1);
                if !commits {
                    ahead.abort(xid, xid);
                    continue;
                }
                ahead.commit(xid);
                let kept = messages.iter().filter(|(xid, _)| !aborted.contains(xid)).map(|(_, message)| message.clone());
                plain.plain(xid, &kept.collect::<Vec<_>>());
            }
            let (ahead, plain) = (play(&ahead.sent).unwrap(), play(&plain.sent).unwrap());
            prop_assert_eq!(ahead, plain);
        }
    }
}
