//! What a server says when it refuses (manual, "ERR_Packet"), and what kind of trouble it is.

use millrace_core::{Error, Kind};

use super::reader::{Malformed, Reader};

/// The words of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ServerError {
    /// Its number, such as 1142.
    pub code: u16,
    /// In the server's words.
    pub message: String,
}

impl ServerError {
    /// Reads the body behind the packet's mark.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let code = reader.u16()?;
        let rest = reader.rest();
        // '#' and five characters of SQLSTATE, which is left out before the log-in.
        let text = if rest.first() == Some(&b'#') { rest.get(6..).unwrap_or_default() } else { rest };
        Ok(Self { code, message: String::from_utf8_lossy(text).into_owned() })
    }

    /// What kind of trouble it is (manual, "Server Error Message Reference").
    pub fn kind(&self) -> Kind {
        match self.code {
            // Access denied for the user, to the database, without a password; the account is locked; the password expired.
            1045 | 1698 | 1862 | 3118 | 1251 | 2059 | 4151 => Kind::Authentication,
            // Rights on databases, tables, columns, and for administration.
            1044 | 1142 | 1143 | 1227 | 1370 | 1410 | 3879 => Kind::Permission,
            1146 | 1051 => Kind::TableMissing,
            // The binary log cannot be read from there.
            1236 => Kind::LogLost,
            // Lock wait timeout, deadlock, "table definition has changed, please retry transaction".
            1205 | 1213 | 1412 => Kind::SnapshotStale,
            // Too many connections, shutdown, killed, quota of connections, interrupted by a limit of time.
            1040 | 1053 | 1077 | 1079 | 1184 | 1203 | 1226 | 1317 | 1927 | 1969 | 3024 | 3169 => Kind::Connection,
            1049 => Kind::SourceSetup,
            _ => Kind::Protocol,
        }
    }
}

/// The server's number of an error, if the server said it.
pub fn code(error: &Error) -> Option<u16> {
    let source = error.source.as_ref()?;
    source.downcast_ref::<ServerError>().map(|error| error.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_with_and_without_a_state() {
        let error = ServerError::parse(b"\x7a\x04#42S02Table 'a.b' doesn't exist").unwrap();
        assert_eq!((error.code, error.kind()), (1146, Kind::TableMissing));
        assert_eq!(error.to_string(), "Table 'a.b' doesn't exist (1146)");
        assert_eq!(ServerError::parse(b"\x10\x04Too many connections").unwrap().kind(), Kind::Connection);
        assert!(ServerError::parse(b"\x10").is_err());
    }
}
