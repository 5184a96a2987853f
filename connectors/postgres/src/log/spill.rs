//! What the server sends of one transaction before it commits, on our disk: the messages as they came, each with the
//! number of the (sub-)transaction that it belongs to.
//!
//! Written in blocks with a checksum, and read back once, from front to back, when the transaction commits; what rolled
//! back is passed over. Nothing is fsynced: nothing of it was confirmed, and the server sends it again. The file comes in
//! pieces, each of which goes as soon as it has been read, so that a large transaction is not on the disk twice.
//!
//! A block is its length, the CRC-32C of its records, and records: length, transaction, message; all little-endian.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use millrace_core::{Error, Kind, Result};

/// A block is written at this size; it is larger only by one message.
pub const BLOCK_BYTES: usize = 1 << 20;
/// A piece of the file is closed at this size.
const PIECE_BYTES_MAX: u64 = 64 << 20;
/// Length and checksum.
const BLOCK_HEADER: usize = 8;
/// Length and transaction.
const RECORD_HEADER: usize = 8;

/// Messages of one transaction, not written yet.
#[derive(Debug)]
pub struct Block(Vec<u8>);

impl Default for Block {
    fn default() -> Self {
        Self(vec![0; BLOCK_HEADER])
    }
}

impl Block {
    /// Adds a message of a (sub-)transaction, given as its tag and what is behind it; false if it is longer than any
    /// message can be.
    pub fn push(&mut self, xid: u32, tag: u8, body: &[u8]) -> bool {
        let Ok(length) = u32::try_from(body.len() + 1) else { return false };
        self.0.reserve(RECORD_HEADER + body.len() + 1);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(&xid.to_le_bytes());
        self.0.push(tag);
        self.0.extend_from_slice(body);
        true
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.len() == BLOCK_HEADER
    }

    /// Bytes that it takes on the disk.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn seal(&mut self) -> Result<&[u8]> {
        let (header, records) = self.0.split_at_mut(BLOCK_HEADER);
        let length = u32::try_from(records.len())
            .map_err(|e| Error::new(Kind::Internal, "writing rows of an open transaction").with(e))?;
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..].copy_from_slice(&crc32c::crc32c(records).to_le_bytes());
        Ok(&self.0)
    }

    fn clear(&mut self) {
        if self.0.capacity() > 2 * BLOCK_BYTES {
            self.0 = vec![];
        }
        self.0.clear();
        self.0.resize(BLOCK_HEADER, 0);
    }
}

/// The file of one transaction.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    xid: u32,
    /// Bytes of each piece.
    pieces: Vec<u64>,
    /// Sub-transactions that rolled back.
    pub aborted: XidSet,
}

impl Spill {
    /// Nothing is written yet.
    pub fn new(folder: &Path, xid: u32) -> Self {
        Self { folder: folder.to_path_buf(), xid, pieces: vec![], aborted: XidSet::default() }
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().sum()
    }

    /// Writes the block, which is empty afterwards.
    pub fn append(&mut self, block: &mut Block) -> Result<()> {
        let bytes = block.len() as u64;
        if self.pieces.last().is_none_or(|piece| piece + bytes > PIECE_BYTES_MAX) {
            self.pieces.push(0);
        }
        let path = self.path(self.pieces.len() - 1);
        let sealed = block.seal()?;
        // It is not kept open: there may be as many transactions as the server has sessions.
        let written = off_the_runtime(|| {
            fs::create_dir_all(&self.folder)?;
            File::options().create(true).append(true).open(&path)?.write_all(sealed)
        });
        written.map_err(|e| disk_error(e, "writing", &path))?;
        block.clear();
        if let Some(piece) = self.pieces.last_mut() {
            *piece += bytes;
        }
        Ok(())
    }

    /// Removes what is on the disk.
    pub fn remove(&mut self) -> Result<()> {
        for piece in 0..self.pieces.len() {
            self.remove_piece(piece)?;
        }
        Ok(())
    }

    fn remove_piece(&mut self, piece: usize) -> Result<()> {
        let path = self.path(piece);
        let Some(bytes) = self.pieces.get_mut(piece).filter(|bytes| **bytes > 0) else { return Ok(()) };
        off_the_runtime(|| fs::remove_file(&path)).map_err(|e| disk_error(e, "removing", &path))?;
        *bytes = 0;
        Ok(())
    }

    fn path(&self, piece: usize) -> PathBuf {
        self.folder.join(format!("{:08x}.{piece:06}", self.xid))
    }
}

/// Reads a transaction's messages back.
#[derive(Debug)]
pub struct SpillReader {
    spill: Spill,
    piece: usize,
    /// Where the next block begins in the piece.
    offset: u64,
    block: Vec<u8>,
    /// Where the next record begins in the block.
    next: usize,
}

impl SpillReader {
    /// Begins at the front.
    pub fn new(spill: Spill) -> Self {
        Self { spill, piece: 0, offset: 0, block: vec![], next: 0 }
    }

    /// Bytes that are still on the disk.
    pub fn bytes(&self) -> u64 {
        self.spill.bytes()
    }

    /// Reads the next block; false when there is none, and then nothing is left on the disk.
    pub fn read_block(&mut self) -> Result<bool> {
        while self.spill.pieces.get(self.piece).is_some_and(|&bytes| self.offset >= bytes) {
            self.spill.remove_piece(self.piece)?;
            (self.piece, self.offset) = (self.piece + 1, 0);
        }
        let Some(&bytes) = self.spill.pieces.get(self.piece) else { return Ok(false) };
        let path = self.spill.path(self.piece);
        let left = bytes - self.offset;
        let read = off_the_runtime(|| read_block(&path, self.offset, left, &mut self.block));
        self.offset += read.map_err(|e| disk_error(e, "reading", &path))?;
        self.next = 0;
        Ok(true)
    }

    /// The next message of the block that did not roll back, from its tag on; `None` at the end of the block.
    pub fn message(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let rest = self.block.get(self.next..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(None);
            }
            let record = || {
                let (length, rest) = rest.split_first_chunk::<4>()?;
                let (xid, rest) = rest.split_first_chunk::<4>()?;
                let length = u32::from_le_bytes(*length) as usize;
                rest.get(..length).map(|_| (length, u32::from_le_bytes(*xid)))
            };
            let Some((length, xid)) = record() else {
                // The checksum was right, so we wrote it like this.
                return Err(Error::new(Kind::Internal, "reading rows of a transaction: a record has no end"));
            };
            let begin = self.next + RECORD_HEADER;
            self.next = begin + length;
            if !self.spill.aborted.contains(xid) {
                return Ok(self.block.get(begin..begin + length));
            }
        }
    }
}

/// Reads one block of a file into `block`; gives its bytes on the disk.
fn read_block(path: &Path, offset: u64, left: u64, block: &mut Vec<u8>) -> io::Result<u64> {
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = File::open(path)?;
    let mut header = [0; BLOCK_HEADER];
    file.read_exact_at(&mut header, offset)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |number, &byte| number << 8 | u32::from(byte));
    let (length, checksum) = (number(&header[..4]), number(&header[4..]));
    let bytes = u64::from(length) + BLOCK_HEADER as u64;
    if bytes > left {
        return Err(damaged("a block is longer than its file"));
    }
    block.clear();
    block.shrink_to(2 * BLOCK_BYTES);
    block.resize(length as usize, 0);
    file.read_exact_at(block, offset + BLOCK_HEADER as u64)?;
    if crc32c::crc32c(block) != checksum {
        return Err(damaged("the checksum of a block is wrong"));
    }
    Ok(bytes)
}

/// Removes the folder with all that an earlier log left there.
pub fn sweep(folder: &Path) -> Result<()> {
    match off_the_runtime(|| fs::remove_dir_all(folder)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk_error(error, "removing", folder)),
        _ => Ok(()),
    }
}

/// Numbers of transactions: 8 KiB for 65,536 neighbours, because a loop with savepoints uses up millions of them.
#[derive(Default)]
pub struct XidSet(BTreeMap<u16, Box<[u64; 1024]>>);

impl XidSet {
    /// Adds one.
    pub fn insert(&mut self, xid: u32) {
        let words = self.0.entry((xid >> 16) as u16).or_insert_with(|| Box::new([0; 1024]));
        words[(xid as u16 >> 6) as usize] |= 1 << (xid & 63);
    }

    /// Whether it is there.
    pub fn contains(&self, xid: u32) -> bool {
        let words = self.0.get(&((xid >> 16) as u16));
        words.is_some_and(|words| words[(xid as u16 >> 6) as usize] >> (xid & 63) & 1 == 1)
    }
}

impl fmt::Debug for XidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: u32 = self.0.values().flat_map(|words| words.iter()).map(|word| word.count_ones()).sum();
        write!(f, "XidSet({count})")
    }
}

/// Runs what may wait for the disk; other tasks go on where the runtime has other threads.
fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn disk_error(error: io::Error, doing: &str, path: &Path) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::DiskFull,
        _ => Kind::Storage,
    };
    Error::new(kind, format!("{doing} {}, which holds rows of an open transaction", path.display())).with(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(reader: &mut SpillReader) -> Vec<Vec<u8>> {
        let mut all = vec![];
        while reader.read_block().unwrap() {
            while let Some(message) = reader.message().unwrap() {
                all.push(message.to_vec());
            }
        }
        all
    }

    #[test]
    fn what_rolled_back_is_left_out_and_the_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("spill");
        let (mut spill, mut block) = (Spill::new(&folder, 7), Block::default());
        // Two pieces: messages as large as half of one.
        let large = vec![b'x'; PIECE_BYTES_MAX as usize / 2];
        for (xid, body) in [(7, b"a".as_slice()), (8, b"b"), (7, &large), (8, b"c"), (9, &large), (7, b"d")] {
            assert!(block.push(xid, b'I', body));
            spill.append(&mut block).unwrap();
            assert!(block.is_empty());
        }
        assert_eq!(spill.pieces.len(), 2);
        let on_disk: u64 = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(on_disk, spill.bytes());
        spill.aborted.insert(8);
        let mut reader = SpillReader::new(spill);
        let read = messages(&mut reader);
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1 + large.len(), 1 + large.len(), 2]);
        assert_eq!((&read[0][..], &read[3][..]), (b"Ia".as_slice(), b"Id".as_slice()));
        assert_eq!((reader.bytes(), fs::read_dir(&folder).unwrap().count()), (0, 0));
    }

    #[test]
    fn damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spill, mut block) = (Spill::new(folder.path(), 7), Block::default());
        block.push(7, b'I', b"abcdef");
        spill.append(&mut block).unwrap();
        let path = spill.path(0);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(&path, &bytes).unwrap();
            let mut again = Spill::new(folder.path(), 7);
            again.pieces = spill.pieces.clone();
            let error = SpillReader::new(again).read_block().unwrap_err();
            assert_eq!(error.kind, Kind::Storage, "byte {at}");
        }
    }

    #[test]
    fn a_set_of_transactions() {
        let mut set = XidSet::default();
        for xid in [0, 63, 64, 65_535, 65_536, u32::MAX] {
            assert!(!set.contains(xid));
            set.insert(xid);
            assert!(set.contains(xid));
        }
        assert!(!set.contains(1) && !set.contains(65_537) && !set.contains(u32::MAX - 1));
        assert_eq!(format!("{set:?}"), "XidSet(6)");
    }
}
