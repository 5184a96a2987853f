//! Rejected rows as JSON lines: one line per row with its table, key, order, reason and the source's own text.

use std::collections::BTreeMap;

use millrace_core::{
    Kind, Reject, Result, TableName,
    destination::{Destination, Published},
    error::Context,
};

use super::{
    layout,
    objects::{Finished, StagedObject},
};
use crate::{
    catalog::{DataFile, FileKind},
    stream::LogPosition,
};

/// An object is closed at this size. A change of this figure must not meet an unfinished round of an older daemon: its
/// objects would not be found again.
const OBJECT_BYTES_MAX: usize = 16 << 20;
/// All objects that are being collected are held in memory; at this size the largest is closed.
const HELD_BYTES_MAX: usize = 48 << 20;

/// Collects the rejected rows of one round, one object per table.
#[derive(Debug)]
pub struct DeadLetters {
    time_us: i64,
    open: BTreeMap<TableName, Letters>,
    held: usize,
}

#[derive(Debug)]
struct Letters {
    first: LogPosition,
    rows: u64,
    text: Vec<u8>,
}

impl DeadLetters {
    /// Of a round that began at this time.
    pub fn new(time_us: i64) -> Self {
        Self { time_us, open: BTreeMap::new(), held: 0 }
    }

    /// Adds the rejects of one frame, all of one table.
    pub fn add(
        &mut self,
        destination: &dyn Destination,
        at: LogPosition,
        rejects: &[Reject],
        finished: &mut Finished,
    ) -> Result<()> {
        let Some(table) = rejects.first().map(|reject| reject.table.clone()) else { return Ok(()) };
        let letters = self.open.entry(table.clone()).or_insert_with(|| Letters { first: at, rows: 0, text: vec![] });
        let before = letters.text.len();
        write_lines(&mut letters.text, rejects)?;
        letters.rows += rejects.len() as u64;
        self.held += letters.text.len() - before;
        if letters.text.len() >= OBJECT_BYTES_MAX {
            self.close(destination, &table, finished)?;
        }
        while self.held >= HELD_BYTES_MAX {
            let largest = self.open.iter().max_by_key(|(_, letters)| letters.text.len());
            let Some(table) = largest.map(|(table, _)| table.clone()) else { break };
            self.close(destination, &table, finished)?;
        }
        Ok(())
    }

    fn close(&mut self, destination: &dyn Destination, table: &TableName, finished: &mut Finished) -> Result<()> {
        let Some(letters) = self.open.remove(table) else { return Ok(()) };
        self.held -= letters.text.len();
        let key = layout::dead_letters_key(table, self.time_us, &letters.first.to_string());
        let staged = destination.stage_bytes(&key, &letters.text)?;
        finished.push(StagedObject::dead_letters(table, letters.first, letters.rows, staged));
        Ok(())
    }

    /// Stages what is left.
    pub fn finish(mut self, destination: &dyn Destination, finished: &mut Finished) -> Result<()> {
        while let Some(table) = self.open.keys().next().cloned() {
            self.close(destination, &table, finished)?;
        }
        Ok(())
    }
}

/// Publishes the rejected rows of a load, to be registered with the load's own files; gives nothing for no rows.
/// `started_us` and `first_file` are the load's: with them a second try after a crash writes the same object.
pub async fn publish(
    destination: &dyn Destination,
    target: &TableName,
    started_us: i64,
    first_file: u32,
    rejects: &[Reject],
) -> Result<Option<DataFile>> {
    if rejects.is_empty() {
        return Ok(None);
    }
    let mut text = vec![];
    write_lines(&mut text, rejects)?;
    let key = layout::dead_letters_key(target, started_us, &format!("LOAD{first_file:08X}"));
    let staged = destination.stage_bytes(&key, &text)?;
    let Published { key, location, bytes, .. } = destination.publish(staged).await?;
    let rows = rejects.len() as u64;
    Ok(Some(DataFile { key, path: location, rows, bytes, kind: FileKind::DeadLetters }))
}

fn write_lines(text: &mut Vec<u8>, rejects: &[Reject]) -> Result<()> {
    for reject in rejects {
        let line = Line { change_order: reject.order.to_string(), reject };
        serde_json::to_writer(&mut *text, &line).context(Kind::Internal, || "writing a dead letter")?;
        text.push(b'\n');
    }
    Ok(())
}

#[derive(serde::Serialize)]
struct Line<'a> {
    /// As in the files.
    change_order: String,
    #[serde(flatten)]
    reject: &'a Reject,
}
