//! What stands where: the files of the log, their and what their heads say.

use millrace_core::{Error, Kind, Result};

use super::{Reader, other_file, refused};
use crate::{
    gtid::Executed,
    log::events::{self, kind},
    server::{LogFile, Place},
    wire::{Malformed, binlog_dump::EventHeader},
};

impl Reader {
    /// The head of a file names everything that stands before it.
    pub(super) fn executed_before(&mut self, number: u8, body: &[u8]) -> Result<(), Malformed> {
        if self.lineage.executed.is_some() || self.transaction.is_some() {
            return Ok(());
        }
        self.lineage.executed = Some(match number {
            kind::PREVIOUS_GTIDS => Executed::decode(body)?,
            _ => {
                let mut executed = Executed::Mariadb(Default::default());
                events::gtid_list(body)?.into_iter().for_each(|gtid| executed.add(gtid));
                executed
            }
        });
        Ok(())
    }

    /// The next event begins there; the log has the lower 32 bits of it only.
    pub(super) fn advance(&mut self, next: u32) -> Result<()> {
        let upper = self.place.offset & !u64::from(u32::MAX);
        let mut offset = upper | u64::from(next);
        if offset < self.place.offset {
            offset += 1 << 32;
        }
        if offset - self.place.offset > 1 << 31 && !self.skips {
            return Err(refused("it goes back"));
        }
        self.place.offset = offset;
        Ok(())
    }

    pub(super) fn file_begins(&mut self, header: &EventHeader, body: &[u8]) -> Result<()> {
        self.has_checksum = events::has_checksum(body);
        if self.between_files {
            self.end_taken_back()?;
            self.place.begun = header.timestamp;
            self.between_files = false;
        } else if self.place.begun != header.timestamp {
            return Err(other_file());
        }
        Ok(())
    }

    pub(super) fn file_ends(&mut self, body: &[u8]) -> Result<()> {
        let malformed = |error: Malformed| Error::new(Kind::Protocol, "reading the binary log").with(error);
        let (offset, name) = events::rotate(body).map_err(malformed)?;
        let number = LogFile::number_of(name).ok_or_else(|| malformed(Malformed("a file has no number")))?;
        if number != self.place.file {
            self.place = Place { file: number, offset, begun: 0 };
            self.between_files = true;
        }
        Ok(())
    }
}
