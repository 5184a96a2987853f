//! An event trigger that says in the log, at its place, that a table was altered (manual, "Event Triggers";
//! `pg_logical_emit_message`). Only a superuser can make one, so it is offered, never required: without it the next row
//! of the table shows its new shape, and a table that rests is looked at as often as `on-change.discover` says.
//!
//! The message names the table and a fingerprint of its columns. The rest is read from the catalog, if the fingerprint is
//! the same there; otherwise the catalog is ahead of the log, and the next row or the next message tells. So nobody who
//! can write such a message, which every role can, makes us believe anything about a table.

use crate::discover::quote_literal;

/// The prefix of the messages.
pub const PREFIX: &str = "millrace.ddl";

/// Its name.
pub const EVENT_TRIGGER: &str = "millrace_announce_ddl";

/// Over the table with the OID in `oid`; dropped columns do not count.
pub fn fingerprint(oid: &str) -> String {
    format!(
        "(SELECT md5(string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attname), ',' ORDER BY attnum)) \
         FROM pg_catalog.pg_attribute WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped)"
    )
}

/// The statements that make it, for a superuser in the task's database. All tasks of a database share it.
pub fn statements() -> Vec<String> {
    // A failure of ours must never be one of the statement that alters the table.
    let body = format!(
        "DECLARE altered oid; BEGIN \
         FOR altered IN SELECT DISTINCT objid FROM pg_event_trigger_ddl_commands() WHERE classid = 'pg_class'::regclass \
         LOOP PERFORM pg_logical_emit_message(true, {}, concat_ws(' ', altered, {})); END LOOP; \
         EXCEPTION WHEN OTHERS THEN RAISE WARNING 'millrace.announce_ddl: %', SQLERRM; END",
        quote_literal(PREFIX).trim_start(),
        fingerprint("altered"),
    );
    vec![
        "-- says in the log when a table is altered; to take it away: DROP SCHEMA millrace CASCADE;".into(),
        "CREATE SCHEMA IF NOT EXISTS millrace;".into(),
        format!(
            "CREATE OR REPLACE FUNCTION millrace.announce_ddl() RETURNS event_trigger LANGUAGE plpgsql \
             SET search_path = pg_catalog, pg_temp AS {};",
            quote_literal(&body).trim_start()
        ),
        format!("DROP EVENT TRIGGER IF EXISTS {EVENT_TRIGGER};"),
        format!(
            "CREATE EVENT TRIGGER {EVENT_TRIGGER} ON ddl_command_end WHEN TAG IN ('ALTER TABLE') \
             EXECUTE FUNCTION millrace.announce_ddl();"
        ),
        format!("ALTER EVENT TRIGGER {EVENT_TRIGGER} ENABLE ALWAYS;"),
    ]
}

/// A table that was altered, as a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its OID.
    pub oid: u32,
    /// Of its columns at this place of the log.
    pub fingerprint: String,
}

impl Announced {
    /// Reads the content of a message; `None` if it is not of this form.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let (oid, fingerprint) = std::str::from_utf8(content).ok()?.split_once(' ')?;
        let is_hex = fingerprint.len() == 32 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then_some(())?;
        Some(Self { oid: oid.parse().ok()?, fingerprint: fingerprint.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_an_oid_and_a_fingerprint() {
        let fingerprint = "0123456789abcdef0123456789abcdef";
        let announced = Announced::parse(format!("16390 {fingerprint}").as_bytes());
        assert_eq!(announced, Some(Announced { oid: 16390, fingerprint: fingerprint.into() }));
        for other in [
            "",
            "16390",
            "x 0123456789abcdef0123456789abcdef",
            "1 0123",
            "99999999999 0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(Announced::parse(other.as_bytes()), None, "{other}");
        }
        assert_eq!(Announced::parse(b"\xff 1"), None);
    }
}
