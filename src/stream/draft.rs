//! Turns changes into frames that lack only what the writer knows: their place, shape numbers and sequence counters.
//! This is where the work of an append is done, on the caller's task.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use millrace_core::{Change, ChangeBatch, Changes, Columns, Error, Kind as ErrorKind, Reject, Result, TableName};

use super::{
    column_frame::{self, ROWS_MAX},
    frame::{Encoding, Kind},
    json::{DdlText, Shape, Truncate},
    shard::Shards,
};

/// Payloads are compressed from this size on; below it a block saves less than it costs.
const COMPRESS_BYTES_MIN: usize = 4096;
/// Of payloads from this size on samples are compressed first.
const SAMPLED_BYTES_MIN: usize = 128 << 10;
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 4096;
/// So many large payloads of a table are stored as they are, unseen, behind one whose samples did not become shorter.
const UNSEEN_PAYLOADS: u32 = 15;
/// No payload is larger: twice the largest batch of the largest values. Keeps every length far inside 32 bits.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// One frame.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) kind: Kind,
    pub(super) encoding: Encoding,
    pub(super) lz4: bool,
    pub(super) shard_width: u8,
    /// Where the bytes behind its header are in [`Drafts::bytes`].
    pub(super) stored: Range<usize>,
    pub(super) raw_len: u32,
    pub(super) payload_crc: u32,
    pub(super) rows: u32,
    pub(super) shape: Option<Shape>,
    /// Shards and how many of the rows each has, rising by shard.
    pub(super) runs: Vec<(u32, u32)>,
}

/// The frames of one append.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub(super) bytes: Vec<u8>,
    pub(super) frames: Vec<Draft>,
    /// Rows, rejected ones included.
    pub(super) rows: u64,
    /// Bytes of rows before compression.
    pub(super) raw_bytes: u64,
    /// Commit time of the last row, for sources that do not tell the newest one.
    pub(super) newest_commit_us: Option<i64>,
}

/// How to draft.
#[derive(Debug)]
pub(super) struct Drafting {
    shards: Shards,
    compress: bool,
    /// Tables whose large payloads did not shrink, and how many more of theirs are not looked at.
    unseen: Mutex<HashMap<TableName, u32>>,
}

impl Drafting {
    pub(super) fn new(shards: Shards, compress: bool) -> Self {
        Self { shards, compress, unseen: Mutex::default() }
    }

    /// For how many shards.
    pub(super) fn shards(&self) -> Shards {
        self.shards
    }

    /// Drafts all frames, into `bytes` (which is cleared).
    pub(super) fn draft(&self, changes: &Changes, mut bytes: Vec<u8>) -> Result<Drafts> {
        bytes.clear();
        let mut drafts = Drafts { bytes, ..Drafts::default() };
        for change in &changes.items {
            match change {
                Change::Rows(batch) => {
                    check(batch)?;
                    self.rows(batch, &mut drafts)?;
                }
                Change::Rejected(rejects) => self.rejects(rejects, &mut drafts)?,
                Change::Truncate { tables, order } => {
                    let payload = json(&Truncate { tables: tables.clone(), order: *order })?;
                    self.push_json(Kind::Truncate, &payload, None, 0, &mut drafts)?;
                }
                Change::Ddl(ddl) => {
                    let payload = json(&DdlText::from(ddl))?;
                    self.push_json(Kind::Ddl, &payload, None, 0, &mut drafts)?;
                }
            }
        }
        Ok(drafts)
    }

    fn rows(&self, batch: &ChangeBatch, drafts: &mut Drafts) -> Result<()> {
        if batch.rows() > ROWS_MAX {
            for from in (0..batch.rows()).step_by(ROWS_MAX) {
                self.rows(&slice(batch, from, ROWS_MAX.min(batch.rows() - from)), drafts)?;
            }
            return Ok(());
        }
        if batch.rows() == 0 {
            return Ok(());
        }
        let start = drafts.bytes.len();
        let (shard_width, runs) = self.put_shards(batch, &mut drafts.bytes);
        let payload_at = drafts.bytes.len();
        column_frame::encode(batch, &mut drafts.bytes);
        let raw_len = raw_len(drafts, payload_at)?;
        let lz4 = self.compress_from(payload_at, Some(&batch.table.name), &mut drafts.bytes);
        drafts.raw_bytes += u64::from(raw_len);
        drafts.rows += batch.rows() as u64;
        drafts.newest_commit_us = batch.commit_time_us.last().copied().max(drafts.newest_commit_us);
        let shape = Some(Shape::Table(batch.table.clone()));
        let stored = start..drafts.bytes.len();
        let payload_crc = crc32c::crc32c(&drafts.bytes[stored.clone()]);
        let rows = batch.rows() as u32;
        let (kind, encoding) = (Kind::Rows, Encoding::Columns);
        drafts.frames.push(Draft { kind, encoding, lz4, shard_width, stored, raw_len, payload_crc, rows, shape, runs });
        Ok(())
    }

    /// Writes the column of shard numbers if the rows are in more than one shard.
    fn put_shards(&self, batch: &ChangeBatch, out: &mut Vec<u8>) -> (u8, Vec<(u32, u32)>) {
        if self.shards.count() == 1 {
            return (0, vec![(0, batch.rows() as u32)]);
        }
        let shards = self.shards.of_rows(batch);
        let mut counts = vec![0u32; self.shards.count() as usize];
        shards.iter().for_each(|shard| counts[usize::from(*shard)] += 1);
        let runs: Vec<(u32, u32)> = (0u32..).zip(counts).filter(|(_, rows)| *rows > 0).collect();
        let width = match (runs.len(), self.shards.count()) {
            (1, _) => 0,
            (_, ..=256) => 1,
            _ => 2,
        };
        match width {
            0 => {}
            1 => out.extend(shards.iter().map(|shard| *shard as u8)),
            _ => shards.iter().for_each(|shard| out.extend_from_slice(&shard.to_le_bytes())),
        }
        (width, runs)
    }

    /// A frame per run of rejects of one table.
    fn rejects(&self, rejects: &[Reject], drafts: &mut Drafts) -> Result<()> {
        for run in rejects.chunk_by(|a, b| a.table == b.table) {
            let Some(first) = run.first() else { continue };
            let payload = json(run)?;
            drafts.rows += run.len() as u64;
            drafts.raw_bytes += payload.len() as u64;
            drafts.newest_commit_us =
                run.iter().filter_map(|reject| reject.commit_time_us).max().max(drafts.newest_commit_us);
            self.push_json(Kind::Rejects, &payload, Some(first.table.clone()), run.len() as u32, drafts)?;
        }
        Ok(())
    }

    fn push_json(
        &self,
        kind: Kind,
        payload: &[u8],
        table: Option<TableName>,
        rows: u32,
        drafts: &mut Drafts,
    ) -> Result<()> {
        let start = drafts.bytes.len();
        drafts.bytes.extend_from_slice(payload);
        let raw_len = raw_len(drafts, start)?;
        let lz4 = self.compress_from(start, None, &mut drafts.bytes);
        let stored = start..drafts.bytes.len();
        let payload_crc = crc32c::crc32c(&drafts.bytes[stored.clone()]);
        let shape = table.map(Shape::Name);
        let encoding = Encoding::Json;
        let (shard_width, runs) = (0, vec![]);
        drafts.frames.push(Draft { kind, encoding, lz4, shard_width, stored, raw_len, payload_crc, rows, shape, runs });
        Ok(())
    }

    /// Replaces what stands from `start` on by one LZ4 block, if that is asked for and shorter.
    fn compress_from(&self, start: usize, table: Option<&TableName>, bytes: &mut Vec<u8>) -> bool {
        let (raw, end) = (bytes.len() - start, bytes.len());
        if !self.compress || raw < COMPRESS_BYTES_MIN || !self.seems_to_shrink(table, &bytes[start..]) {
            return false;
        }
        // The block is made behind the payload, in a buffer that is kept, and takes its place.
        bytes.resize(end + lz4_flex::block::get_maximum_output_size(raw), 0);
        let (payload, block) = bytes.split_at_mut(end);
        let len = lz4_flex::block::compress_into(&payload[start..], block).unwrap_or(raw);
        let shorter = len < raw;
        if shorter {
            bytes.copy_within(end..end + len, start);
        }
        bytes.truncate(if shorter { start + len } else { end });
        shorter
    }

    /// Whether a large payload promises to become shorter by an eighth: finding that out by the whole of what does not
    /// costs as much as writing it, and its samples still a tenth of that. The rows of a table are alike.
    fn seems_to_shrink(&self, table: Option<&TableName>, payload: &[u8]) -> bool {
        if payload.len() < SAMPLED_BYTES_MIN {
            return true;
        }
        let Some(table) = table else { return samples_shrink(payload) };
        let unseen = || self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = unseen().get_mut(table).filter(|left| **left > 0) {
            *left -= 1;
            return false;
        }
        let shrinks = samples_shrink(payload);
        if shrinks {
            unseen().remove(table);
        } else {
            unseen().insert(table.clone(), UNSEEN_PAYLOADS);
        }
        shrinks
    }
}

/// Whether samples of the payload become shorter by an eighth.
fn samples_shrink(payload: &[u8]) -> bool {
    let mut block = [0; lz4_flex::block::get_maximum_output_size(SAMPLE_BYTES)];
    let shortened = |sample| lz4_flex::block::compress_into(sample, &mut block).unwrap_or(SAMPLE_BYTES);
    let samples = payload.chunks_exact(payload.len() / SAMPLES).filter_map(|part| part.get(..SAMPLE_BYTES));
    samples.map(shortened).sum::<usize>() < SAMPLES * SAMPLE_BYTES / 8 * 7
}

fn raw_len(drafts: &Drafts, start: usize) -> Result<u32> {
    let len = drafts.bytes.len() - start;
    if len > PAYLOAD_BYTES_MAX {
        let doing = format!("writing {len} bytes as one frame of the stream: at most {PAYLOAD_BYTES_MAX} fit");
        return Err(Error::new(ErrorKind::Internal, doing));
    }
    Ok(len as u32)
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(ErrorKind::Internal, "writing a frame of the stream").with(e))
}

/// What is written must be readable: a batch that does not agree with its table is refused before anything is lost.
fn check(batch: &ChangeBatch) -> Result<()> {
    let rows = batch.rows();
    let types = batch.table.columns.iter().map(|column| &column.ty);
    let wrong = if batch.absent.is_some() {
        "has cells that were not filled"
    } else if [batch.order.len(), batch.commit_time_us.len(), batch.after.rows()] != [rows; 3] {
        "has parts of different lengths"
    } else if !batch.after.columns().iter().map(|column| column.ty()).eq(types) {
        "has other columns than its table"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Internal, format!("appending a batch of {} that {wrong}", batch.table.name)))
}

fn slice(batch: &ChangeBatch, from: usize, count: usize) -> ChangeBatch {
    let mut after = Columns::new(batch.table.columns.iter().map(|column| &column.ty));
    after.append_range(&batch.after, from, count);
    let rows = from..from + count;
    ChangeBatch {
        table: batch.table.clone(),
        ops: batch.ops[rows.clone()].to_vec(),
        order: batch.order[rows.clone()].to_vec(),
        commit_time_us: batch.commit_time_us[rows].to_vec(),
        after,
        absent: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_payloads_do_not_shrink_is_asked_again_after_some() {
        let drafting = Drafting::new(Shards::new(1).unwrap(), true);
        let (one, other) = (TableName::new("s", "one"), TableName::new("s", "other"));
        let mut state = 1_u64;
        let mut noise = vec![0_u8; SAMPLED_BYTES_MIN];
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        let zeros = vec![0_u8; SAMPLED_BYTES_MIN];
        assert!(!drafting.seems_to_shrink(Some(&one), &noise));
        assert!(drafting.seems_to_shrink(Some(&other), &zeros), "each table has its own");
        assert!((0..UNSEEN_PAYLOADS).all(|_| !drafting.seems_to_shrink(Some(&one), &zeros)));
        assert!((0..3).all(|_| drafting.seems_to_shrink(Some(&one), &zeros)));
        assert!(drafting.seems_to_shrink(Some(&one), &noise[1..]), "small ones are always tried");
    }
}
