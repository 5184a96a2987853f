//! An ErrorResponse: what the server says when it refuses (manual, "Error and Notice Message Fields").

use std::fmt;

use millrace_core::{Error, Kind};

use super::reader::{Malformed, Reader};

/// The fields of an ErrorResponse that people need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Five letters or digits (manual, appendix "PostgreSQL Error Codes").
    pub code: String,
    /// The primary message.
    pub message: String,
    /// More about it; may be empty.
    pub detail: String,
    /// The server's advice; may be empty.
    pub hint: String,
}

impl ServerError {
    /// Reads the message's body.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let mut error = Self::default();
        loop {
            let field = reader.u8()?;
            if field == 0 {
                return Ok(error);
            }
            // Before authentication the server may answer in its own encoding; a message is better damaged than lost.
            let rest = reader.rest();
            let end = rest.iter().position(|&byte| byte == 0).ok_or(Malformed("a field of an error has no end"))?;
            let text = String::from_utf8_lossy(reader.bytes(end)?).into_owned();
            reader.bytes(1)?;
            match field {
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
        }
    }

    /// What kind of trouble the code stands for, where the statement does not tell more.
    pub fn kind(&self) -> Kind {
        match self.code.as_str() {
            "42501" => Kind::Permission,
            // configuration_limit_exceeded: no free slot; invalid_catalog_name: no such database.
            "53400" | "3D000" => Kind::SourceSetup,
            "55006" => Kind::LogBusy,
            "55P03" => Kind::Connection,
            "42P01" | "3F000" => Kind::TableMissing,
            "08P01" => Kind::Protocol,
            code => match code.get(..2).unwrap_or_default() {
                "28" => Kind::Authentication,
                // Connection, rollback, resources, operator (shutdown, cancel), system, internal: all may pass.
                "08" | "40" | "53" | "57" | "58" | "XX" => Kind::Connection,
                "42" | "55" | "0A" | "22" | "25" => Kind::SourceSetup,
                _ => Kind::Protocol,
            },
        }
    }

    /// The error with what was being done.
    pub fn into_error(self, doing: impl Into<String>) -> Error {
        let fix = self.fix();
        Error::new(self.kind(), doing).with(self).fix(fix)
    }

    /// What to do, where the kind's own sentence would mislead.
    fn fix(&self) -> &'static str {
        match self.code.as_str() {
            "53300" => {
                "end sessions that nobody needs, or raise max_connections (for the log: max_wal_senders) and restart the \
                 server; it is tried again"
            }
            "57P03" => "nothing: the server starts, recovers or shuts down; it is tried again",
            _ => "",
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        for more in [&self.detail, &self.hint] {
            if !more.is_empty() {
                write!(f, "; {more}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// The server's SQLSTATE, if the error is one that the server reported.
pub fn sqlstate(error: &Error) -> Option<&str> {
    error.source.as_ref()?.downcast_ref::<ServerError>().map(|said| said.code.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_people_need() {
        let body = b"SFATAL\0C28P01\0Mpassword authentication failed for user \"x\"\0Fauth.c\0\0";
        let error = ServerError::parse(body).unwrap();
        assert_eq!(error.to_string(), "password authentication failed for user \"x\" (28P01)");
        assert_eq!(error.kind(), Kind::Authentication);
        let error = error.into_error("connecting");
        assert_eq!(sqlstate(&error), Some("28P01"));
        assert!(ServerError::parse(b"Mno end").is_err());
        let full =
            ServerError::parse(b"C53300\0Msorry, too many clients already\0\0").unwrap().into_error("connecting");
        assert!(full.kind == Kind::Connection && full.fix.contains("max_connections"));
    }
}
