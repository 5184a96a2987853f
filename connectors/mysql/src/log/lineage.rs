//! What the stream keeps with a position, so that the log can be resumed on another server.
//!
//! A position is a file and a byte of one server. Beside it, in the same mark and so in the same fsync, stand the server that
//! it is of and the GTIDs of everything behind it: the set never claims more than what is durable, nor less.
//!
//! - The same server: the log goes on at the file and the byte. That is exact, whatever has a GTID and what has none.
//! - Another server: it must have executed everything that we have, and hold in its files everything that we do not have;
//!   else it is refused. What it sends then has positions of its own, which a new history's number puts behind all others.
//!   It leaves out by GTID what we have, wherever that stands in its own files.
//! - So in the files that a server had when it took over, what we have may stand behind a place that we have read to: as
//!   long as the place is in one of them, the log is resumed by GTID there too.

use std::fmt;

use crate::gtid::Executed;

/// See the module's doc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The server whose files positions are of.
    pub system: String,
    /// What is behind the position; `None` where not everything has a GTID.
    pub executed: Option<Executed>,
    /// Up to this file what we have may stand behind what we have not.
    pub overlap: Option<u32>,
}

impl Lineage {
    /// Nothing is known but the server.
    pub fn new(system: &str) -> Self {
        Self { system: system.into(), executed: None, overlap: None }
    }

    /// Reads what [`fmt::Display`] printed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (product, system, executed) = (words.next()?, words.next()?, words.next()?);
        let executed = match (product, executed) {
            (_, "-") => None,
            ("mariadb", executed) => Some(Executed::parse_mariadb(executed)?),
            ("mysql", executed) => Some(Executed::parse_mysql(executed)?),
            _ => return None,
        };
        let overlap = match words.next() {
            None => None,
            Some(word) => Some(word.strip_prefix("overlap:")?.parse().ok()?),
        };
        words.next().is_none().then(|| Self { system: system.into(), executed, overlap })
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let product = if matches!(self.executed, Some(Executed::Mariadb(_))) { "mariadb" } else { "mysql" };
        write!(f, "{product} {} ", self.system)?;
        match &self.executed {
            Some(executed) if !executed.is_empty() => write!(f, "{executed}")?,
            _ => write!(f, "-")?,
        }
        match self.overlap {
            Some(file) => write!(f, " overlap:{file}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lineages_round_trip(
            system in "[a-zA-Z0-9/+=.-]{1,40}",
            executed in prop_oneof![
                Just(None),
                (1..9_u32, 1..9_u32, 1..99_u64).prop_map(|(d, s, n)| Executed::parse_mariadb(&format!("{d}-{s}-{n}"))),
                (any::<u128>(), 1..99_u64).prop_map(|(u, n)| Executed::parse_mysql(&format!("{u:032x}:1-{n}"))),
            ],
            overlap in prop::option::of(any::<u32>()),
        ) {
            let lineage = Lineage { system, executed, overlap };
            prop_assert_eq!(Lineage::parse(&lineage.to_string()), Some(lineage));
        }

        #[test]
        fn any_text_is_a_lineage_or_none(text in ".{0,60}") {
            let _ = Lineage::parse(&text);
        }
    }
}
