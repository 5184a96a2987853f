//! Millrace is one daemon that replicates databases and keeps on replicating them. It loads what is there, follows what
//! changes, keeps the changes in its own durable stream, delivers them as Parquet, and registers the result in its own
//! catalog. It does in one binary what Amazon spreads over DMS, Kinesis, Data Firehose and Glue, and uses their nouns.
//!
//! # The way of a change
//!
//! ```text
//! source database
//!   → connectors/<db>      wire bytes → typed columns → ChangeBatch              (decoded once, never again)
//!   → replication/         fill what was not sent, then rules: select, rename, drop
//!   → stream/              frames and a commit mark → log → one fsync             ← only now may the source forget
//!   → delivery/            a range of the log, until size or interval
//!   → connectors/<target>  Parquet objects, never half visible
//!   → catalog/             manifests, table versions and the checkpoint of a whole round, in one commit
//! ```
//!
//! A full load takes the same road without the stream: segments of a table are read in parallel from one exact snapshot
//! and go straight to the target; they enter the catalog when the table is complete. Changes that happen meanwhile flow
//! into the stream from the first second on. Because the stream is durable and ours, a stalled target never makes the
//! source's log grow.
//!
//! # Where to begin
//!
//! - `main.rs` → [`cli`] → [`daemon::Daemon`] → [`replication::start`]: how a task comes to run
//! - [`replication::capture`]: the loop from source to stream
//! - [`stream::Stream`]: append, mark, read
//! - [`delivery::Delivery`]: a round, from range to commit
//! - `connectors/core`: [`millrace_core::source::Source`] and [`millrace_core::destination::Destination`]
//!
//! # Code map
//!
//! Imports point downward only (`tests/tidy.rs` holds that):
//!
//! ```text
//! main, daemon, cli
//!   api                       HTTP: health, metrics
//!   replication               DMS: task, session, capture, full load, rules
//!   delivery                  Firehose: buffer, round, intent, dead letters
//!   stream   catalog          Kinesis: log, shards, retention   Glue: databases, tables, versions, manifests
//!   state config telemetry registry
//!   connectors/*              one crate each, with the same files
//!   connectors/core           the floor; conformance/: what every source must keep, as tests
//! ```
//!
//! # Invariants
//!
//! 1. `confirmed to the source <= fsynced in the stream`. `Log::confirm` takes a `Durable<Position>`, and only the
//!    stream's fsync path makes one.
//! 2. A position is a boundary between commits, and covers a transaction when `commit < position`. It is never the place
//!    of an event: all rows of one COPY share an LSN.
//! 3. Readers see only what is durable; everything behind the last mark is cut off before the log is opened anew.
//! 4. After a failed append every later one fails until the log is cut back: a later mark would cover what is missing.
//! 5. At every connect the source is who it was, and its own confirmed position is not ahead of our last mark. Where it is
//!    behind, what PostgreSQL sends again is compared with what was read, which stands in the mark, before anything is
//!    confirmed: a server that was put back and has written on since has another log at the same places.
//! 6. A load has an exact position, from a temporary slot's exported snapshot: every transaction before it is in the
//!    snapshot, none behind it is.
//! 7. Before a load's snapshot is taken the table's delivery waits, and the capture has taken the table up: no change
//!    behind the load's position can be missed or thrown away.
//! 8. An object's intent (key, range) is stored before it is published; publishing is create-only; manifest and checkpoint
//!    are one commit. So an object is in the catalog once, whatever is killed when.
//! 9. Retention takes only what is both old and delivered.
//! 10. `captured = delivered + filtered{reason} + dead-lettered + in flight`, row for row, and a metric says so.
//! 11. One table's trouble suspends that table and nothing else; so do rules that do not fit it any more, and then nothing of
//!     it is delivered that they may have meant to leave out.
//! 12. A value that its column cannot hold stands exactly as the source prints it beside a null, in the column's companion,
//!     or follows the policy that the config names; it is never lost, and never changed unasked.
//! 13. A column is its identity, not its name: files carry it as `field_id`, and readers find columns by it.
//!     A shape that a table is given goes into its record before it goes into the stream, and counts from the mark that is
//!     behind it on; so the two agree whatever is killed when (`state/keys/table.rs`).
//! 14. A failed write or fsync of our own disk ends the process; a full disk stops appends, and nothing is acknowledged.
//! 15. Rows of a transaction that has not committed never enter the stream. A source that sends them ahead keeps them in
//!     files beside the segments (`streams/<task>/spill`), counted in the stream's disk bound, never fsynced, and worth
//!     nothing to the next session, which begins by removing them: no confirmed position covers them, so the source sends
//!     them again. At the commit they enter the stream as if they had been sent then.
//!
//! # Where this differs from the first design
//!
//! - A position covers `commit < position`, for marks as for loads. The design said `commit <= mark`, which needs the mark
//!   to be the *start* of a commit record. Ours is its end, which is what the source wants confirmed; records do not
//!   overlap, so for the record `[c, e)` and a boundary `p`, `e <= p` exactly when `c < p`. With `<=` against an end, a
//!   commit record that begins where the last one ends would be skipped. (`connectors/core/src/position.rs`;
//!   the crash loop restarts between touching commits.)
//! - A batch carries each row's commit time, because the files show it. It has no separate old image: deletes carry the
//!   old row in `after`, a key change is a delete and an insert, and nothing else needs one yet.
//! - A truncate needs no floor: a table's rows are in commit order in the log, so nothing older comes behind it. Objects of
//!   the same round from before it are not published at all.
//! - A table whose rows changed without row events is suspended at that place and loaded anew by the task, not by the
//!   connector: that is the same as what an operator would do, with a pause that grows.
//! - A shape change that is not applied is passed on by the connector with the rows behind it; the task decides. A table
//!   that is being loaded must not be suspended by something that lies before its load's position.
//! - An event trigger is offered and not required. What it says is a hint to look, with a fingerprint of the columns: every
//!   role can write such a message, so nothing else is believed of it. Without it, columns are told apart by their numbers
//!   in the catalog, and rewritten rows by the storage and the definition of the table; where a catalog that is ahead of
//!   the log cannot tell, the table is loaded anew.
//! - MySQL has no numbers for columns. A statement in its log says which column is which, and what a new one is declared as;
//!   the catalog, which may be ahead, is believed only where it shows exactly that (`connectors/mysql/src/log/alter.rs`).
//! - The shared tests of sources are a crate of their own (`connectors/core/conformance`), not a feature of the floor: with a
//!   feature everything would be built twice, for the tests and for the binary.
//! - pgoutput is read in text, COPY in binary: text is what the server prints, so every type we do not know passes
//!   exactly, and binary was measured not to be cheaper for the walsender.
//! - A batch's columns carry the exact texts of values that do not fit them (`millrace_core::Columns::push_exact`): whatever
//!   moves rows moves those too, and a companion becomes a column only in the file.
//! - The disk bound is passed where waiting would be for ever: by the one transaction that is being written to the stream,
//!   and by open ones that the source sends ahead when nothing delivered is left to take. An eighth of the bound is always
//!   the log's, because only commits free what open transactions hold (`stream/spill.rs`).
//! - Numbers and texts are encoded into Parquet's column chunks by code of ours (`connectors/object_store/src/chunk`), which
//!   takes 0.6 of the library's CPU time; the schema, all other types, statistics' format and the footer are the
//!   library's, and a property test holds that what it reads back, and its statistics, are the same.
//! - The size of a delivery's buffer counts bytes before compression, over all tables of the task; a round takes all
//!   tables to the same mark, so readers that cut there see whole transactions without being asked.
//!
//! # Deliberately absent
//!
//! Nothing distributed: one daemon owns its state folder (`flock`, and an epoch in every segment). No transformation
//! language. No exactly-once to anything but the catalog: a reader that lists a bucket instead of asking the catalog may
//! see files of a load that is not complete. No acknowledgement objects, no callbacks into connectors: everything is
//! pulled.
//!
//! # Glossary
//!
//! - **task** (DMS: replication task): tables of one source to one target. **full load**, **CDC**: its two halves.
//! - **history**: what a source's positions belong to; a new one begins when a source that went back in time, or another
//!   one, is loaded anew, with positions above all earlier ones (`replication/history.rs`).
//! - **position**: a commit boundary in the source's log. **log position**: a place in our own log.
//! - **mark**: the frame that makes everything before it readable, with the source's position.
//! - **segment**: of a table, a part that is loaded by itself; of a stream, one file of the log.
//! - **round**: one delivery: a range of the log to objects and one commit. **generation**: all files of one load.
//! - **companion**: the text column `<column>__exact` for the values that its column cannot hold.
//! - **dead letters**: rows that cannot be delivered, kept whole.

pub mod api;
mod blocking;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod delivery;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod registry;
pub mod replication;
#[cfg(test)]
mod simulation;
pub mod state;
pub mod stream;
pub mod telemetry;
