//! The files of a stream: `<place of its first byte in hexadecimal>.log`, each beginning with a header and a carry
//! frame, so that each can be opened when those before it are gone.
//!
//! ```text
//!  0  8 bytes  "MILLRACE"
//!  8  u16      format version
//! 10  u16      0
//! 12  u32      number of shards
//! 16  u64      fencing epoch of the daemon that made it
//! 24  u64      its own place in the log
//! 32  i64      when it was made (microseconds since 1970-01-01 UTC, by the stream's clock)
//! 40  u64      when the stream was made (seconds since 1970-01-01 UTC)
//! 48  12 bytes 0
//! 60  u32      CRC32C of the bytes before
//! ```
//! A segment appears whole or not at all: it is written under a temporary name, fsynced and renamed. The file is given
//! its full length at once, which makes the fsyncs of later appends a third cheaper; what is not written yet reads as
//! zeros, takes no space, and is cut off when the segment is closed or found after a crash.

use std::{
    io,
    path::{Path, PathBuf},
};

use millrace_core::{Error, Kind as ErrorKind, Result, error::Context};

use super::{
    cursor::Cursor,
    disk::{Disk, DiskFile, lacks_descriptors, read_up_to, write_all_at},
    frame::{self, Encoding, Header, Kind, Parsed},
    json::Shape,
    mark::Carry,
};

/// The format that is written. Files of every version that ever was are in `tests/fixtures`.
pub(super) const VERSION: u16 = 1;
/// Bytes before the first frame.
pub(super) const HEADER_LEN: u64 = 64;
const MAGIC: &[u8; 8] = b"MILLRACE";
const SUFFIX: &str = ".log";
const TEMPORARY_SUFFIX: &str = ".new";
/// Bytes read at once while frames are small.
const WINDOW_BYTES: usize = 256 << 10;

/// Gives an error of the disk its kind. A full disk is one that can be survived; any other trouble is not.
pub(super) fn disk_error(error: io::Error, doing: &str, path: &Path) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
        _ => ErrorKind::Storage,
    };
    let lacks_descriptors = lacks_descriptors(&error);
    let told = Error::new(kind, format!("{doing} {}", path.display())).with(error);
    match lacks_descriptors {
        true => {
            told.fix("raise the limit of open files (systemd: LimitNOFILE=, shell: ulimit -n), then start the daemon")
        }
        false => told,
    }
}

/// The error for bytes that went bad.
pub(super) fn damage(path: &Path, offset: u64, what: &str) -> Error {
    Error::new(ErrorKind::LogDamaged, format!("reading {} at offset {offset}: {what}", path.display())).fix(
        "check the disk; then millrace delete TASK and start the daemon again, which loads all its tables anew, or stop \
         it and restore the stream's folder from a copy. Nothing behind this place is read, so nothing is skipped",
    )
}

/// Makes changes of names in the folder durable. A full disk that only shows here is no better than any other failure:
/// a new segment may have got its name, so nothing may be written behind the old one any more.
pub(super) fn sync_folder(disk: &dyn Disk, folder: &Path) -> Result<()> {
    let doing = || format!("syncing the folder {}", folder.display());
    disk.sync_folder(folder).context(ErrorKind::Storage, doing)
}

/// Where the segment that begins at `base` is.
pub(super) fn path(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("{base:016x}{SUFFIX}"))
}

/// The beginnings of all segments, rising. What a crash left under a temporary name is removed.
pub(super) fn list(disk: &dyn Disk, folder: &Path) -> Result<Vec<u64>> {
    let mut bases = vec![];
    for name in disk.list(folder).map_err(|e| disk_error(e, "listing", folder))? {
        if name.ends_with(TEMPORARY_SUFFIX) {
            let path = folder.join(&name);
            disk.remove(&path).map_err(|e| disk_error(e, "removing", &path))?;
        }
        let hex = name.strip_suffix(SUFFIX).filter(|hex| hex.len() == 16);
        if let Some(base) = hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            bases.push(base);
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

/// What a segment's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) shards: u32,
    pub(super) epoch: u64,
    pub(super) base: u64,
    pub(super) created_us: i64,
    pub(super) born_s: u64,
}

impl SegmentHeader {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.shards.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&self.created_us.to_le_bytes());
        out.extend_from_slice(&self.born_s.to_le_bytes());
        out.extend_from_slice(&[0; 12]);
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// The format version and the header; no header if the version is another one.
    fn parse(bytes: &[u8]) -> Option<(u16, Option<Self>)> {
        let mut cursor = Cursor::new(bytes);
        if cursor.take(MAGIC.len())? != MAGIC {
            return None;
        }
        let version = cursor.u16()?;
        if version != VERSION {
            return Some((version, None));
        }
        cursor.u16()?;
        let (shards, epoch, base) = (cursor.u32()?, cursor.u64()?, cursor.u64()?);
        let (created_us, born_s) = (cursor.i64()?, cursor.u64()?);
        cursor.take(12)?;
        let crc = cursor.u32()?;
        let covered = bytes.get(..HEADER_LEN as usize - 4)?;
        (crc32c::crc32c(covered) == crc).then_some((version, Some(Self { shards, epoch, base, created_us, born_s })))
    }
}

/// Makes a segment durable, replacing an empty one at the same place, and gives it open for writing with the number
/// of bytes in it. `bytes_wanted` is the length it is given at once.
pub(super) fn create(
    disk: &dyn Disk,
    folder: &Path,
    header: &SegmentHeader,
    carry: &Carry,
    bytes_wanted: u64,
) -> Result<(Box<dyn DiskFile>, u64)> {
    let mut bytes = vec![];
    header.encode(&mut bytes);
    let mut payload = vec![];
    carry.encode(&mut payload);
    let frame = Header {
        kind: Kind::Carry,
        encoding: Encoding::Mark,
        lz4: false,
        shard_width: 0,
        stored_len: payload.len() as u32,
        raw_len: payload.len() as u32,
        payload_crc: crc32c::crc32c(&payload),
        rows: 0,
        shape: 0,
        position: header.base + HEADER_LEN,
        synced: header.base,
        arrival_us: header.created_us,
        runs: vec![],
    };
    frame.encode(&mut bytes);
    bytes.extend_from_slice(&payload);

    let final_path = path(folder, header.base);
    let temporary = final_path.with_extension(&TEMPORARY_SUFFIX[1..]);
    let write = || -> io::Result<Box<dyn DiskFile>> {
        let file = disk.create(&temporary)?;
        write_all_at(&*file, &bytes, 0)?;
        file.set_len(bytes_wanted.max(bytes.len() as u64))?;
        file.sync_data()?;
        disk.rename(&temporary, &final_path)?;
        Ok(file)
    };
    let file = write().map_err(|e| disk_error(e, "making the segment", &final_path))?;
    sync_folder(disk, folder)?;
    Ok((file, bytes.len() as u64))
}

/// What is known of a segment without its file: derived from headers, never stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SegmentInfo {
    /// The place of its first byte.
    pub(super) base: u64,
    /// The place behind its last byte so far.
    pub(super) end: u64,
    /// The place behind its carry frame, where its own frames begin.
    pub(super) content: u64,
    /// Arrival of its newest frame.
    pub(super) last_arrival_us: i64,
    /// Its shapes and the places of their frames, rising.
    pub(super) shapes: Vec<(u64, Shape)>,
}

/// What stands at a place of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Probe {
    /// A header with a good checksum, that belongs there; the place behind its frame, relative to the segment.
    Whole(Header, u64),
    /// Nothing: the end of the file.
    End,
    /// Something else.
    Damaged,
}

/// Reads the frames of one segment. Offsets are relative to the file.
#[derive(Debug)]
pub(super) struct SegmentReader {
    file: Box<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl SegmentReader {
    /// Opens the segment at `base` and checks its header.
    pub(super) fn open(disk: &dyn Disk, folder: &Path, base: u64) -> Result<Self> {
        let path = path(folder, base);
        let file = disk.open(&path, false).map_err(|e| disk_error(e, "opening", &path))?;
        let mut head = [0u8; HEADER_LEN as usize];
        // Of a file that is too short for it nothing can be made either.
        read_up_to(&*file, &mut head, 0).map_err(|e| disk_error(e, "reading the header of", &path))?;
        let header = match SegmentHeader::parse(&head) {
            Some((_, Some(header))) if header.base == base => header,
            Some((version, None)) => {
                let doing = format!("opening {}: it has format version {version}", path.display());
                return Err(Error::new(ErrorKind::Storage, doing)
                    .fix(format!("this Millrace reads version {VERSION}; run the one that wrote the file")));
            }
            _ => return Err(damage(&path, 0, "the segment's header is damaged")),
        };
        Ok(Self { file, path, header, buffer: vec![], buffer_at: 0 })
    }

    /// Bytes in the file, zeros that were never written included.
    pub(super) fn file_len(&self) -> Result<u64> {
        self.file.len().map_err(|e| disk_error(e, "reading the length of", &self.path))
    }

    /// The frame header at `offset`.
    pub(super) fn probe(&mut self, offset: u64) -> Result<Probe> {
        let position = self.header.base + offset;
        let mut len = frame::FIXED_LEN;
        loop {
            let bytes = self.bytes(offset, len)?;
            let enough = bytes.len() >= len;
            match Header::parse(bytes) {
                Parsed::Whole(header, len) if header.position == position => {
                    let end = offset + len as u64 + u64::from(header.stored_len);
                    return Ok(Probe::Whole(header, end));
                }
                Parsed::Needs(more) if enough => len = more,
                Parsed::Needs(_) if bytes.is_empty() => return Ok(Probe::End),
                _ => return Ok(Probe::Damaged),
            }
        }
    }

    /// The bytes behind the header of a frame that ends at `end`; `None` if they are not those that were written.
    pub(super) fn stored(&mut self, header: &Header, end: u64) -> Result<Option<&[u8]>> {
        let len = header.stored_len as usize;
        let stored = self.bytes(end - len as u64, len)?;
        Ok(header.fits(stored).then_some(stored))
    }

    /// The bytes at `offset`: `len` of them, fewer at the end of the file.
    pub(super) fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let covered = |at: u64, buffer: &[u8]| offset >= at && offset + len as u64 <= at + buffer.len() as u64;
        if !covered(self.buffer_at, &self.buffer) {
            // No more is reserved than the file holds, whatever a damaged length says.
            let left = self.file_len()?.saturating_sub(offset);
            let wanted = (len.max(WINDOW_BYTES) as u64).min(left) as usize;
            self.buffer.resize(wanted, 0);
            self.buffer_at = offset;
            let read = read_up_to(&*self.file, &mut self.buffer, offset);
            let read = read.map_err(|e| disk_error(e, "reading", &self.path))?;
            self.buffer.truncate(read);
        }
        let start = (offset - self.buffer_at) as usize;
        let end = self.buffer.len().min(start + len);
        Ok(self.buffer.get(start..end).unwrap_or_default())
    }
}

/// Removes a segment; the caller syncs the folder.
pub(super) fn remove(disk: &dyn Disk, folder: &Path, base: u64) -> Result<()> {
    let path = path(folder, base);
    match disk.remove(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // It is still there, whole: nothing is in doubt.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Error::new(ErrorKind::Permission, format!("removing {}", path.display())).with(error))
        }
        removed => removed.map_err(|error| disk_error(error, "removing", &path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::disk::RealDisk, *};

    #[test]
    fn a_segment_can_be_read_back_and_its_header_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let header = SegmentHeader { shards: 3, epoch: 7, base: 0x1234, created_us: 5, born_s: 6 };
        let carry = Carry { mark: None, counters: vec![1, 2, 3] };
        let (file, len) = create(&RealDisk, folder.path(), &header, &carry, 4096).unwrap();
        assert_eq!(file.len().unwrap(), 4096);
        fs::write(folder.path().join("0000000000009999.new"), b"left by a crash").unwrap();
        assert_eq!(list(&RealDisk, folder.path()).unwrap(), [0x1234]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let mut reader = SegmentReader::open(&RealDisk, folder.path(), 0x1234).unwrap();
        assert_eq!(reader.header, header);
        let Probe::Whole(frame, end) = reader.probe(HEADER_LEN).unwrap() else { panic!("no carry frame") };
        assert_eq!((frame.kind, end), (Kind::Carry, len));
        let mut scratch = vec![];
        let stored = reader.stored(&frame, end).unwrap().unwrap();
        assert_eq!(frame.payload(stored, &mut scratch).and_then(Carry::decode), Some(carry));
        assert_eq!(reader.probe(len).unwrap(), Probe::Damaged);
        assert_eq!(reader.probe(4096).unwrap(), Probe::End);

        let path = path(folder.path(), 0x1234);
        for (offset, expected) in [(20, "header is damaged"), (8, "format version 2")] {
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            bytes[offset] = if offset == 8 { 2 } else { 0xff };
            fs::write(&path, &bytes).unwrap();
            let error = SegmentReader::open(&RealDisk, folder.path(), 0x1234).unwrap_err();
            assert_eq!(error.kind, if offset == 8 { ErrorKind::Storage } else { ErrorKind::LogDamaged });
            assert!(error.to_string().contains(expected), "{error}");
            fs::write(&path, whole).unwrap();
        }
    }
}
