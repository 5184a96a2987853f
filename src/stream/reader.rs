//! Reads a range of the log, from one mark to another, in log order.

use std::{collections::VecDeque, fmt, sync::Arc};

use millrace_core::{ChangeBatch, Ddl, Error, Kind as ErrorKind, Reject, Result, Table, TableName};

use super::{
    Entry, LogPosition, column_frame,
    frame::{Header, Kind},
    json::{DdlText, Shape, Truncate},
    mark,
    segment::{Probe, SegmentReader, damage},
    shared::Shared,
};

/// Whether the rows of a table in the frame at a place are wanted.
pub type Wanted = Box<dyn Fn(&TableName, LogPosition) -> bool + Send>;

/// Reads a range of a stream in log order.
pub struct Reader {
    shared: Arc<Shared>,
    wanted: Wanted,
    /// Where the next frame begins.
    at: u64,
    to: u64,
    /// Begin, begin of the frames and end of the segments that are still to be read; the first one is open.
    segments: VecDeque<(u64, u64, u64)>,
    open: Option<SegmentReader>,
    /// What the shape numbers of the open segment stand for.
    shapes: Vec<Shape>,
    scratch: Vec<u8>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("at", &self.at).field("to", &self.to).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: LogPosition, to: LogPosition, wanted: Wanted) -> Result<Self> {
        let refuse = |why: String| {
            Err(Error::new(ErrorKind::Internal, format!("reading the stream from {from} to {to}: {why}")))
        };
        let durable = shared.durable_at();
        if to > durable || from > to {
            return refuse(format!("it is durable up to {durable}"));
        }
        let mut shapes = vec![];
        let mut segments = VecDeque::new();
        {
            let all = shared.segments();
            // The last one that begins at or before `from`; where one ends the next begins.
            let Some(first) = all.iter().rposition(|segment| segment.base <= from.0) else {
                let oldest = all.first().map_or(LogPosition(0), |oldest| LogPosition(oldest.base));
                return refuse(format!("retention has taken what is before {oldest}"));
            };
            for segment in all.iter().skip(first).take_while(|segment| segment.base < to.0) {
                if segments.is_empty() {
                    let earlier = segment.shapes.iter().take_while(|(position, _)| *position < from.0);
                    shapes.extend(earlier.map(|(_, shape)| shape.clone()));
                }
                segments.push_back((segment.base, segment.content, segment.end));
            }
        }
        let at = segments.front().map_or(from.0, |&(_, content, _)| content.max(from.0));
        Ok(Self { shared, wanted, at, to: to.0, segments, open: None, shapes, scratch: vec![] })
    }

    /// The next entry, or `None` at the end of the range. Blocking.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        while let Some(&(base, _, end)) = self.segments.front() {
            if self.at >= self.to {
                return Ok(None);
            }
            if self.at >= end {
                self.segments.pop_front();
                self.at = self.segments.front().map_or(self.at, |&(_, content, _)| content);
                self.open = None;
                self.shapes.clear();
                continue;
            }
            if let Some(entry) = self.read_frame(base)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Reads the frame at `self.at`; `None` if it is nothing for the caller.
    fn read_frame(&mut self, base: u64) -> Result<Option<Entry>> {
        let mut segment = match self.open.take() {
            Some(segment) => segment,
            None => self.open_segment(base)?,
        };
        let offset = self.at - base;
        let (header, next) = match segment.probe(offset)? {
            Probe::Whole(header, next) if base + next <= self.to => (header, next),
            Probe::Whole(..) => return Err(no_mark(self.to)),
            _ => return Err(self.explain(&mut segment, offset)),
        };
        let at = LogPosition(self.at);
        let rows = u64::from(header.rows);
        let entry = match header.kind {
            Kind::Rows | Kind::Rejects => {
                let Some(shape) = self.shapes.get(header.shape as usize).cloned() else {
                    return Err(damage(&segment.path, offset, "the frame's table is not known in its segment"));
                };
                if (self.wanted)(shape.name(), at) {
                    Some(self.decode(&mut segment, &header, next, Some(&shape))?)
                } else {
                    Some(Found::Entry(Entry::Skipped { at, table: shape.name().clone(), rows }))
                }
            }
            Kind::Carry => None,
            Kind::Truncate | Kind::Ddl | Kind::Shape | Kind::Mark => {
                Some(self.decode(&mut segment, &header, next, None)?)
            }
        };
        self.at = base + next;
        self.open = Some(segment);
        Ok(match entry {
            Some(Found::Entry(entry)) => Some(entry),
            Some(Found::Shape(shape)) => {
                self.shapes.push(shape);
                None
            }
            None => None,
        })
    }

    /// A segment that retention took meanwhile is not a damaged one.
    fn open_segment(&self, base: u64) -> Result<SegmentReader> {
        SegmentReader::open(&*self.shared.disk, &self.shared.options.folder, base).map_err(|error| {
            let is_gone = self.shared.segments().first().is_none_or(|oldest| base < oldest.base);
            let doing = "reading a range of the stream that retention took meanwhile";
            if is_gone { Error::new(ErrorKind::Internal, doing).with(error) } else { error }
        })
    }

    /// The error for a place without a frame: damage, unless it is the caller who is wrong about it.
    fn explain(&self, segment: &mut SegmentReader, offset: u64) -> Error {
        let mut at = self.segments.front().map_or(0, |&(base, content, _)| content - base);
        while at < offset {
            match segment.probe(at) {
                Ok(Probe::Whole(_, next)) => at = next,
                Ok(_) => break,
                Err(error) => return error,
            }
        }
        if at > offset { no_mark(self.at) } else { damage(&segment.path, at, "the frame's header is damaged") }
    }

    /// Checks and decodes what is behind a header.
    fn decode(
        &mut self,
        segment: &mut SegmentReader,
        header: &Header,
        next: u64,
        shape: Option<&Shape>,
    ) -> Result<Found> {
        let end = LogPosition(segment.header.base + next);
        let found = segment.stored(header, next)?.and_then(|stored| {
            let payload = header.payload(stored, &mut self.scratch)?;
            decode_payload(header, payload, end, shape)
        });
        let offset = header.position - segment.header.base;
        found.ok_or_else(|| damage(&segment.path, offset, "the frame is damaged"))
    }
}

fn no_mark(position: u64) -> Error {
    let position = LogPosition(position);
    Error::new(ErrorKind::Internal, format!("reading the stream from or to {position}, which is no mark's place"))
}

/// What a frame holds.
#[derive(Debug)]
enum Found {
    /// Something for the caller.
    Entry(Entry),
    /// Something for the reader.
    Shape(Shape),
}

fn decode_payload(header: &Header, payload: &[u8], end: LogPosition, shape: Option<&Shape>) -> Option<Found> {
    let at = LogPosition(header.position);
    Some(Found::Entry(match header.kind {
        Kind::Rows => {
            let batch = decode_rows(header, payload, shape)?;
            Entry::Rows { at, batch, bytes: u64::from(header.raw_len) }
        }
        Kind::Rejects => {
            let rejects: Vec<Reject> = serde_json::from_slice(payload).ok()?;
            Entry::Rejected { at, rejects }
        }
        Kind::Truncate => {
            let Truncate { tables, order } = serde_json::from_slice(payload).ok()?;
            Entry::Truncate { at, tables, order }
        }
        Kind::Ddl => {
            let ddl: DdlText = serde_json::from_slice(payload).ok()?;
            Entry::Ddl { at, ddl: Ddl::from(ddl) }
        }
        Kind::Mark => Entry::Mark(mark::decode(payload, end, header.arrival_us)?),
        Kind::Shape => return Some(Found::Shape(Shape::decode(payload).ok()?)),
        Kind::Carry => return None,
    }))
}

fn decode_rows(header: &Header, payload: &[u8], shape: Option<&Shape>) -> Option<ChangeBatch> {
    let Some(Shape::Table(table)) = shape else { return None };
    let table: &Arc<Table> = table;
    column_frame::decode(payload, header.rows as usize, table)
}
