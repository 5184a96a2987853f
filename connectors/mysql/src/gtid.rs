//! Which transactions are behind a place in the log, in words that hold on every server of a replication: GTIDs.
//!
//! MySQL counts by the server that a transaction was written at first, and a tag; a set may have gaps (manual, "GTID Format
//! and Storage"). MariaDB counts within a domain, and what stands in a domain's log before a GTID is behind it (Knowledge
//! Base, "Global Transaction ID"): the newest one of each domain tells everything. The newest of the other servers that wrote
//! into the domain tell only whether a transaction stood in that log at all.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

use std::{collections::BTreeMap, fmt, ops::Range};

use crate::wire::{Malformed, Reader};

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gtid {
    /// MySQL's.
    Mysql(Origin, u64),
    /// MariaDB's.
    Mariadb(u32, Newest),
}

/// Who numbers MySQL's transactions: a server's UUID, and a tag, which is mostly empty.
pub type Origin = (u128, String);

/// The newest transaction of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The server that wrote it first.
    pub server: u32,
    /// Its number in the domain.
    pub number: u64,
}

/// Transactions that were executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Executed {
    /// MySQL's numbers of each origin: ranges that neither overlap nor touch, rising.
    Mysql(BTreeMap<Origin, Vec<Range<u64>>>),
    /// MariaDB's domains: the newest transaction of each server, that of the domain last.
    Mariadb(BTreeMap<u32, Vec<Newest>>),
}

impl Executed {
    /// Reads `gtid_executed`, or what [`fmt::Display`] printed.
    pub fn parse_mysql(text: &str) -> Option<Self> {
        let mut set = Self::Mysql(BTreeMap::new());
        for of_server in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let mut parts = of_server.split(':').map(str::trim);
            let uuid = u128::from_str_radix(&parts.next()?.replace('-', ""), 16).ok()?;
            let mut tag = String::new();
            for part in parts {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                match (first.parse::<u64>(), last.parse::<u64>()) {
                    (Ok(first), Ok(last)) if first <= last => {
                        set.insert((uuid, tag.clone()), first..last.checked_add(1)?);
                    }
                    (Err(_), Err(_)) => tag = part.to_string(),
                    _ => return None,
                }
            }
        }
        Some(set)
    }

    /// Reads a list of GTIDs, the newest of each domain last, as `BINLOG_GTID_POS` gives it, or what [`fmt::Display`] printed.
    pub fn parse_mariadb(text: &str) -> Option<Self> {
        let mut set = Self::Mariadb(BTreeMap::new());
        mariadb_list(text)?.into_iter().for_each(|(domain, newest)| set.add(Gtid::Mariadb(domain, newest)));
        Some(set)
    }

    /// The newest transaction of each of MariaDB's domains.
    pub fn newest(&self) -> BTreeMap<u32, Newest> {
        let Self::Mariadb(domains) = self else { return BTreeMap::new() };
        domains.iter().filter_map(|(domain, servers)| Some((*domain, *servers.last()?))).collect()
    }

    /// The same, as a replica of MariaDB tells its source where it stands.
    pub fn connect_state(&self) -> String {
        let one = |(domain, Newest { server, number })| format!("{domain}-{server}-{number}");
        self.newest().into_iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Notes that a transaction of MariaDB stands in the same log; it need not be behind the place.
    pub fn note_seen(&mut self, domain: u32, seen: Newest) {
        let Self::Mariadb(domains) = self else { return };
        let Some(servers) = domains.get_mut(&domain) else { return };
        let last = servers.len().saturating_sub(1);
        match servers.iter_mut().position(|known| known.server == seen.server) {
            None => servers.insert(0, seen),
            Some(index) if index < last => {
                servers.iter_mut().filter(|known| known.server == seen.server).for_each(|known| {
                    known.number = known.number.max(seen.number);
                })
            }
            Some(_) => {}
        }
    }

    /// Whether a transaction of MariaDB stood in the log that was read.
    pub fn has_seen(&self, domain: u32, other: Newest) -> bool {
        let Self::Mariadb(domains) = self else { return false };
        let servers = domains.get(&domain).into_iter().flatten();
        servers.into_iter().any(|known| known.server == other.server && known.number >= other.number)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Mysql(set) => set.is_empty(),
            Self::Mariadb(domains) => domains.is_empty(),
        }
    }

    /// One more.
    pub fn add(&mut self, gtid: Gtid) {
        match (self, gtid) {
            (Self::Mariadb(domains), Gtid::Mariadb(domain, newest)) => {
                let servers = domains.entry(domain).or_default();
                servers.retain(|known| known.server != newest.server);
                servers.push(newest);
            }
            (set @ Self::Mysql(_), Gtid::Mysql(origin, number)) => set.insert(origin, number..number.saturating_add(1)),
            _ => {}
        }
    }

    /// All of another set of MySQL.
    pub fn unite(&mut self, other: Self) {
        let Self::Mysql(other) = other else { return };
        for (origin, ranges) in other {
            ranges.into_iter().for_each(|range| self.insert(origin.clone(), range));
        }
    }

    fn insert(&mut self, origin: Origin, new: Range<u64>) {
        let Self::Mysql(set) = self else { return };
        let ranges = set.entry(origin).or_default();
        // Mostly the next number.
        match ranges.last_mut() {
            Some(last) if last.end == new.start => last.end = new.end,
            Some(last) if last.end > new.start => {
                ranges.push(new);
                ranges.sort_unstable_by_key(|range| range.start);
                ranges.dedup_by(|next, before| {
                    let touches = next.start <= before.end;
                    if touches {
                        before.end = before.end.max(next.end);
                    }
                    touches
                });
            }
            _ => ranges.push(new),
        }
    }

    /// As COM_BINLOG_DUMP_GTID takes it, and PREVIOUS_GTIDS_EVENT has it. In the older of its two forms there are no tags; in
    /// the newer one the number of origins stands between two bytes of 1 (`Gtid_set::encode` of `rpl_gtid_set.cc`).
    pub fn encode(&self) -> Vec<u8> {
        let Self::Mysql(set) = self else { return vec![] };
        let is_tagged = set.keys().any(|(_, tag)| !tag.is_empty());
        let count = set.len() as u64;
        let mut out = if is_tagged { count << 8 | 1 << 56 | 1 } else { count }.to_le_bytes().to_vec();
        for ((uuid, tag), ranges) in set {
            out.extend(uuid.to_be_bytes());
            if is_tagged {
                // An integer of the serialization library: what is below 128 has one byte, shifted by one.
                out.push((tag.len() as u8) << 1);
                out.extend(tag.as_bytes());
            }
            out.extend((ranges.len() as u64).to_le_bytes());
            ranges.iter().for_each(|range| out.extend([range.start.to_le_bytes(), range.end.to_le_bytes()].concat()));
        }
        out
    }

    /// Reads what [`Self::encode`] writes.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let head = reader.u64()?;
        let is_tagged = head & 0xff == 1 && head >> 56 == 1;
        let count = if is_tagged { head << 8 >> 16 } else { head };
        let mut set = Self::Mysql(BTreeMap::new());
        for _ in 0..count {
            let uuid = u128::from(reader.big(8)?) << 64 | u128::from(reader.big(8)?);
            let tag = if is_tagged { tag(&mut reader)? } else { String::new() };
            for _ in 0..reader.u64()? {
                let (start, end) = (reader.u64()?, reader.u64()?);
                if start == 0 || start >= end {
                    return Err(Malformed("a range of transactions is none"));
                }
                set.insert((uuid, tag.clone()), start..end);
            }
        }
        Ok(set)
    }
}

fn tag(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let length = reader.u8()?;
    let text = reader.bytes(usize::from(length >> 1))?;
    let is_tag = length & 1 == 0 && text.len() <= TAG_BYTES_MAX;
    let text = std::str::from_utf8(text).ok().filter(|_| is_tag);
    text.map(String::from).ok_or(Malformed("a tag is none"))
}

/// Longest tag of a GTID (manual, "GTID Format").
const TAG_BYTES_MAX: usize = 32;

/// `domain-server-number`, separated by commas.
pub fn mariadb_list(text: &str) -> Option<Vec<(u32, Newest)>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let item = |item: &str| {
        let mut parts = item.split('-');
        let (domain, server, number) = (parts.next()?, parts.next()?, parts.next()?);
        let newest = Newest { server: server.parse().ok()?, number: number.parse().ok()? };
        Some((domain.parse().ok()?, newest)).filter(|_| parts.next().is_none())
    };
    items.map(item).collect()
}

impl fmt::Display for Executed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(set) => {
                for (index, ((uuid, tag), ranges)) in set.iter().enumerate() {
                    let hex = format!("{uuid:032x}");
                    let part = |range: Range<usize>| hex.get(range).unwrap_or_default();
                    let comma = if index > 0 { "," } else { "" };
                    write!(
                        f,
                        "{comma}{}-{}-{}-{}-{}",
                        part(0..8),
                        part(8..12),
                        part(12..16),
                        part(16..20),
                        part(20..32)
                    )?;
                    if !tag.is_empty() {
                        write!(f, ":{tag}")?;
                    }
                    for range in ranges {
                        match range.end - range.start {
                            1 => write!(f, ":{}", range.start)?,
                            _ => write!(f, ":{}-{}", range.start, range.end - 1)?,
                        }
                    }
                }
                Ok(())
            }
            Self::Mariadb(domains) => {
                let all = domains.iter().flat_map(|(domain, servers)| servers.iter().map(move |one| (domain, one)));
                for (index, (domain, Newest { server, number })) in all.enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma}{domain}-{server}-{number}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // trap: 27
    #[test]
    fn sets_are_read_and_printed_as_the_server_does() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        for (text, printed) in [
            (format!("{uuid}:1-5"), format!("{uuid}:1-5")),
            (format!("{uuid}:1-3:11:47-49"), format!("{uuid}:1-3:11:47-49")),
            (format!("{uuid}:7:1-3:4-6,\n{uuid}:9"), format!("{uuid}:1-7:9")),
            (format!("{uuid}:1-3:red:1-2:4"), format!("{uuid}:1-3,{uuid}:red:1-2:4")),
            (String::new(), String::new()),
        ] {
            assert_eq!(Executed::parse_mysql(&text).unwrap().to_string(), printed);
        }
        assert_eq!(Executed::parse_mysql("nothing:1-2"), None);
        assert_eq!(Executed::parse_mysql(&format!("{uuid}:5-1")), None);
        let mut set = Executed::parse_mariadb("0-1-7,1-2-3,0-3-8").unwrap();
        assert_eq!((set.to_string().as_str(), set.connect_state().as_str()), ("0-1-7,0-3-8,1-2-3", "0-3-8,1-2-3"));
        for (domain, server, number) in [(0, 1, 9), (0, 3, 12), (0, 4, 2), (5, 5, 5)] {
            set.note_seen(domain, Newest { server, number });
        }
        assert_eq!(set.to_string(), "0-4-2,0-1-9,0-3-8,1-2-3");
        assert!(set.has_seen(0, Newest { server: 1, number: 8 }) && !set.has_seen(0, Newest { server: 3, number: 9 }));
        set.add(Gtid::Mariadb(0, Newest { server: 4, number: 13 }));
        assert_eq!(set.to_string(), "0-1-9,0-3-8,0-4-13,1-2-3");
        assert_eq!(Executed::parse_mariadb("0-1"), None);
    }

    fn any_set() -> impl Strategy<Value = Executed> {
        let numbers = prop::collection::vec((any::<u128>(), "[a-z]{0,2}", 1..60_u64), 0..40);
        numbers.prop_map(|numbers| {
            let mut set = Executed::Mysql(BTreeMap::new());
            numbers.into_iter().for_each(|(uuid, tag, number)| set.add(Gtid::Mysql((uuid & 3, tag), number)));
            set
        })
    }

    proptest! {
        #[test]
        fn sets_round_trip(set in any_set()) {
            prop_assert_eq!(Executed::decode(&set.encode()).unwrap(), set.clone());
            prop_assert_eq!(Executed::parse_mysql(&set.to_string()), Some(set));
        }

        #[test]
        fn a_set_is_its_numbers(numbers in prop::collection::vec(1..60_u64, 0..40)) {
            let mut set = Executed::Mysql(BTreeMap::new());
            numbers.iter().for_each(|&number| set.add(Gtid::Mysql((1, String::new()), number)));
            let Executed::Mysql(set) = set else { unreachable!() };
            let ranges = set.into_values().next().unwrap_or_default();
            let inside: Vec<u64> = ranges.iter().cloned().flatten().collect();
            let mut expected = numbers;
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(inside, expected);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn united_sets_have_the_numbers_of_both(a in any_set(), b in any_set()) {
            let mut united = a.clone();
            united.unite(b.clone());
            let text = format!("{a},{b}");
            prop_assert_eq!(Executed::parse_mysql(&text), Some(united));
        }

        #[test]
        fn any_bytes_are_a_set_or_an_error(body in prop::collection::vec(any::<u8>(), 0..80), text in ".{0,40}") {
            let _ = (Executed::decode(&body), Executed::parse_mysql(&text), Executed::parse_mariadb(&text));
        }
    }
}
