//! Opening what a crash left: finds the last mark, cuts off what is behind it, and tells a torn tail from damage.
//!
//! - A closed segment is whole: it was fsynced before the next one appeared. Whatever is wrong there is damage.
//! - The last segment ends at its first frame that is not whole. What follows is a torn tail, unless a whole frame in it
//!   was written when the log was already fsynced past the broken one: then acknowledged bytes went bad, and nothing
//!   is opened (see [`super::frame`]).
//! - What is kept and was not proven to be fsynced is written once more: after a failed fsync its pages count as clean
//!   though they never reached the disk, and an fsync of ours would not write them.
//! - The payloads of closed segments are checked when they are read: opening costs the reading of their headers.

use std::path::Path;

use millrace_core::{Error, Kind as ErrorKind, Result};

use super::{
    LogPosition, Mark,
    disk::{Disk, write_all_at},
    frame::{self, Header, Kind},
    json::Shape,
    mark::{self, Carry},
    segment::{self, HEADER_LEN, Probe, SegmentHeader, SegmentInfo, SegmentReader, damage, disk_error},
};

/// Bytes that are looked at or written at once.
const STEP: usize = 64 << 10;

/// A stream as it was found, cut at its last mark.
#[derive(Debug)]
pub(super) struct Recovered {
    /// All segments, whole and without gaps; the last one may be empty.
    pub(super) segments: Vec<SegmentInfo>,
    /// The last mark, durable.
    pub(super) mark: Option<Mark>,
    /// The next sequence counter of every shard.
    pub(super) counters: Vec<u64>,
    /// Number of shards.
    pub(super) shards: u32,
    /// When the stream was made (seconds since 1970-01-01 UTC).
    pub(super) born_s: u64,
    /// The newest time that the stream's clock ever showed.
    pub(super) clock_us: i64,
}

impl Recovered {
    /// A stream that is being made.
    pub(super) fn new(disk: &dyn Disk, shards: u32) -> Self {
        let born_s = disk.now_us().max(0) as u64 / 1_000_000;
        let counters = vec![0; shards as usize];
        Self { segments: vec![], mark: None, counters, shards, born_s, clock_us: 0 }
    }
}

/// One segment, read through.
#[derive(Debug)]
struct Scan {
    header: SegmentHeader,
    info: SegmentInfo,
    carry: Carry,
    mark: Option<Mark>,
    /// Up to here the log had been fsynced when its newest frame was written.
    synced: u64,
}

/// Recovers the stream in the folder; `None` if there is none yet.
pub(super) fn recover(disk: &dyn Disk, folder: &Path, epoch: u64) -> Result<Option<Recovered>> {
    let bases = segment::list(disk, folder)?;
    let mut scans = vec![];
    for (index, &base) in bases.iter().enumerate() {
        scans.push(Scan::read(disk, folder, base, bases.get(index + 1).copied(), epoch)?);
    }
    let Some(last) = scans.last() else { return Ok(None) };
    let (shards, born_s) = (last.header.shards, last.header.born_s);
    let clock_us = scans.iter().map(|scan| scan.info.last_arrival_us).max().unwrap_or_default();

    let (kept, mark, cut) = find_last_mark(folder, &scans)?;
    let lost = scans.get(kept).map_or(0, |scan| scan.info.end - cut) + scans.len() as u64 - 1 - kept as u64;
    cut_off(disk, folder, &mut scans, kept, cut)?;
    if lost > 0 {
        tracing::info!(folder = %folder.display(), position = cut, "cut off what was not marked");
    }
    let counters = counters_at(disk, folder, scans.last(), cut)?;
    let segments = scans.into_iter().map(|scan| scan.info).collect();
    Ok(Some(Recovered { segments, mark, counters, shards, born_s, clock_us }))
}

/// Which segment is the last to keep, the last mark, and where to cut.
fn find_last_mark(folder: &Path, scans: &[Scan]) -> Result<(usize, Option<Mark>, u64)> {
    for (index, scan) in scans.iter().enumerate().rev() {
        if let Some(mark) = &scan.mark {
            return Ok((index, Some(mark.clone()), mark.at.0));
        }
        match &scan.carry.mark {
            Some(mark) if mark.at.0 == scan.info.base => return Ok((index, Some(mark.clone()), scan.info.content)),
            // There never was a mark: everything goes but the first segment's beginning.
            None if index == 0 && scan.info.base == 0 => return Ok((0, None, scan.info.content)),
            // The segment begins inside a transaction whose beginning is in the one before.
            _ if index > 0 => {}
            _ => return Err(damage(&segment::path(folder, scan.info.base), 0, "the segment before it is missing")),
        }
    }
    Err(Error::new(ErrorKind::Internal, "recovering a stream without segments"))
}

/// Durably removes the segments behind `kept`, shortens that one to `cut`, and makes sure of what it holds.
fn cut_off(disk: &dyn Disk, folder: &Path, scans: &mut Vec<Scan>, kept: usize, cut: u64) -> Result<()> {
    let synced = scans.iter().map(|scan| scan.synced).max().unwrap_or_default();
    // The newest goes first, so that a crash in between leaves no gap.
    for scan in scans.drain(kept + 1..).rev() {
        segment::remove(disk, folder, scan.info.base)?;
        segment::sync_folder(disk, folder)?;
    }
    let Some(scan) = scans.last_mut() else { return Ok(()) };
    let path = segment::path(folder, scan.info.base);
    let failed = |e| disk_error(e, "cutting the tail of", &path);
    let file = disk.open(&path, true).map_err(failed)?;
    file.set_len(cut - scan.info.base).map_err(failed)?;
    let mut reader = SegmentReader::open(disk, folder, scan.info.base)?;
    let (mut offset, end) = (synced.saturating_sub(scan.info.base), cut - scan.info.base);
    while offset < end {
        let bytes = reader.bytes(offset, STEP.min((end - offset) as usize))?;
        if bytes.is_empty() {
            return Err(damage(&path, offset, "the file became shorter"));
        }
        write_all_at(&*file, bytes, offset).map_err(failed)?;
        offset += bytes.len() as u64;
    }
    // Also where nothing was cut: a process that was killed may have written its last mark and not fsynced it.
    file.sync_all().map_err(failed)?;
    scan.info.end = cut;
    scan.info.shapes.retain(|(position, _)| *position < cut);
    Ok(())
}

/// The sequence counters at `cut`, which is in the segment of `scan`.
fn counters_at(disk: &dyn Disk, folder: &Path, scan: Option<&Scan>, cut: u64) -> Result<Vec<u64>> {
    let Some(scan) = scan else { return Ok(vec![]) };
    let mut counters = scan.carry.counters.clone();
    let mut reader = SegmentReader::open(disk, folder, scan.info.base)?;
    let mut offset = HEADER_LEN;
    while scan.info.base + offset < cut {
        let Probe::Whole(header, next) = reader.probe(offset)? else {
            return Err(damage(&reader.path, offset, "the frame's header is damaged"));
        };
        for run in &header.runs {
            let counter = counters.get_mut(run.shard as usize);
            let counter = counter.ok_or_else(|| damage(&reader.path, offset, "the frame names an unknown shard"))?;
            *counter = run.first.saturating_add(u64::from(run.rows));
        }
        offset = next;
    }
    Ok(counters)
}

impl Scan {
    /// Reads a segment through, to where the next one begins (`end`), or, if it is the last, to where it was torn.
    fn read(disk: &dyn Disk, folder: &Path, base: u64, end: Option<u64>, epoch: u64) -> Result<Self> {
        let mut reader = SegmentReader::open(disk, folder, base)?;
        let header = reader.header.clone();
        if header.epoch > epoch {
            let doing = format!(
                "opening {}: a daemon with fencing epoch {} wrote it, ours is {epoch}",
                reader.path.display(),
                header.epoch
            );
            return Err(Error::new(ErrorKind::Storage, doing).fix(
                "another daemon took over this state folder, or state.db is older than the streams: find out which",
            ));
        }
        let last_arrival_us = header.created_us;
        let info = SegmentInfo { base, end: base, content: base, last_arrival_us, shapes: vec![] };
        let mut scan = Self { header, info, carry: Carry::default(), mark: None, synced: base };
        let mut offset = HEADER_LEN;
        let mut scratch = vec![];
        while end != Some(base + offset) {
            let found = match reader.probe(offset)? {
                Probe::Whole(header, next) if end.is_none_or(|end| base + next <= end) => {
                    scan.take(&mut reader, header, next, end.is_none(), &mut scratch)?
                }
                _ => None,
            };
            match found {
                Some(next) => offset = next,
                None if end.is_some() || scan.info.content == base => {
                    return Err(damage(&reader.path, offset, "the frame is damaged or missing"));
                }
                None => {
                    check_tail(&mut reader, offset)?;
                    break;
                }
            }
        }
        scan.info.end = base + offset;
        Ok(scan)
    }

    /// Takes in a frame that ends at `next`; `None` if what is behind its header is damaged. Payloads that are not
    /// needed here are looked at in the last segment only.
    fn take(
        &mut self,
        reader: &mut SegmentReader,
        header: Header,
        next: u64,
        is_last: bool,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<u64>> {
        let is_first = self.info.content == self.info.base;
        if is_first != (header.kind == Kind::Carry) {
            return Ok(None);
        }
        let is_needed = matches!(header.kind, Kind::Shape | Kind::Mark | Kind::Carry);
        if is_needed || is_last {
            let Some(stored) = reader.stored(&header, next)? else { return Ok(None) };
            if is_needed {
                let Some(payload) = header.payload(stored, scratch) else { return Ok(None) };
                if self.take_payload(&header, payload, next).is_none() {
                    return Ok(None);
                }
            }
        }
        self.info.last_arrival_us = self.info.last_arrival_us.max(header.arrival_us);
        self.synced = self.synced.max(header.synced);
        Ok(Some(next))
    }

    fn take_payload(&mut self, header: &Header, payload: &[u8], next: u64) -> Option<()> {
        let end = self.info.base + next;
        match header.kind {
            Kind::Carry => {
                self.carry = Carry::decode(payload).filter(|c| c.counters.len() == self.header.shards as usize)?;
                self.info.content = end;
            }
            Kind::Shape => self.info.shapes.push((header.position, Shape::decode(payload).ok()?)),
            _ => self.mark = Some(mark::decode(payload, LogPosition(end), header.arrival_us)?),
        }
        Some(())
    }
}

/// Refuses if anything behind the broken frame at `offset` proves that it had been fsynced.
fn check_tail(reader: &mut SegmentReader, offset: u64) -> Result<()> {
    let broken = reader.header.base + offset;
    let file_len = reader.file_len()?;
    let magic_at = 4;
    for at in (offset..file_len).step_by(STEP) {
        // One byte more, for a magic that lies across two steps.
        let bytes = reader.bytes(at, STEP + magic_at + 1)?;
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        let starts: Vec<u64> = bytes
            .get(magic_at..)
            .unwrap_or_default()
            .windows(frame::MAGIC.len())
            .enumerate()
            .filter(|(_, pair)| *pair == frame::MAGIC)
            .map(|(index, _)| at + index as u64)
            .collect();
        for start in starts {
            if let Probe::Whole(header, end) = reader.probe(start)?
                && header.synced > broken
                && reader.stored(&header, end)?.is_some()
            {
                let what = format!("the frame is damaged, and whole ones follow at offset {start}");
                return Err(damage(&reader.path, offset, &what));
            }
        }
    }
    Ok(())
}
