"""The traps and the items of the scorecard, in words; traps.py says what is made of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Trap:
    """One trap. `left_out` says which part of it has no test, and why; `no_test` why it has none at all, and stands only
    while that is so; `crash` asks for a test with a kill."""

    number: str
    what: str
    does: str
    left_out: str = ""
    crash: bool = False
    no_test: str = ""


@dataclasses.dataclass(frozen=True)
class Item:
    """One limitation of AWS DMS by its own user guide (`source`: page and, where it has one, section). `why_not` is
    set where Millrace is no better."""

    name: str
    dms: str
    source: str
    does: str
    why_not: str = ""


TRAPS = [
    Trap(
        "1",
        "A commit, the next begin and its rows can have one and the same log position",
        "A position is a boundary between commits and covers what commits before it, so nothing is told apart by the "
        "position of an event",
        crash=True,
    ),
    Trap(
        "2",
        "The rows of one COPY share a position, and a reader dies in the middle of them",
        "A transaction becomes readable with its mark or not at all; what is behind the last mark is read again whole",
        crash=True,
    ),
    Trap(
        "3",
        "A key changes in the last row of a transaction, and a restart falls between the delete and the insert that "
        "it becomes",
        "Both halves are rows of one transaction with consecutive ordinals, and have its mark in common",
        crash=True,
    ),
    Trap(
        "4",
        "Logical messages, in and outside transactions, around rows and a restart",
        "They are read past, and what is around them is neither lost nor doubled",
        crash=True,
    ),
    Trap(
        "5",
        "Transactions overlap: one begins first and commits last",
        "Commits are the order; no position covers rows of a transaction that is still open",
    ),
    Trap(
        "6",
        "A kill between the commit at the target, the record of it, and the confirmation to the source",
        "Intent, object, catalog and checkpoint: what was done is found and not done again; what is confirmed is in the "
        "stream before",
        crash=True,
    ),
    Trap(
        "7",
        "The captured tables are quiet while others write gigabytes of log",
        "A keepalive's position is marked in the stream and confirmed, but never beyond what the stream holds",
    ),
    Trap(
        "8",
        "The server gives up on a reader that is silent while it is busy writing or blocked",
        "Status updates have a task of their own and a timer",
    ),
    Trap(
        "9",
        "The slot is invalidated, dropped, made again, used by somebody else, or belongs to another database",
        "Refused with the remedy; made anew with a reload of everything where the config says so",
    ),
    Trap(
        "10",
        "Failover: the slot is behind, missing or made again; the timeline is another one",
        "System identifier, timeline and positions are compared at each start; on a new timeline our position must be "
        "before the fork",
    ),
    Trap(
        "11",
        "An update does not send large values that it did not change",
        "They come from the old row or by one lookup before the stream; a placeholder is never written",
    ),
    Trap(
        "12",
        "Replica identity default, full, index, nothing, with composite keys and columns in any order",
        "The identity decides what is captured and what tells rows apart; `plan` says so per table",
    ),
    Trap(
        "13",
        "Keys change: of several rows, twice in a transaction, swapped in one statement",
        "A delete and an insert, the deletes of a key before its inserts",
    ),
    Trap(
        "14",
        "Tables without a key, and twins among their rows",
        "Append-only; with full identity an update is told as the row that went and the row that came",
    ),
    Trap(
        "15",
        "TRUNCATE of one table or several, cascading, with rows before and behind it in one transaction",
        "It empties the table in commit order, in the same commit as what follows; by policy passed over, or suspends",
        crash=True,
    ),
    Trap(
        "16",
        "Partitions by root and by leaf, attached, detached, made under load; inheritance",
        "A partitioned table is one table, its partitions are tables where they alone are named; rows that come or go with "
        "a partition make the table load anew",
    ),
    Trap(
        "17",
        "Tables change their shape in the middle of the log, in transactions with rows, several times before a restart",
        "Each shape is a table version at its place; what the log does not tell makes the table load anew",
        "not covered: a table that somebody takes out of our publication and puts back between two looks for tables",
    ),
    Trap(
        "18",
        "numeric: NaN, infinities, 131,072 digits, a scale above the precision or below zero, no bound at all",
        "Decimals where they fit, exact text where they do not; by rule another type per column",
    ),
    Trap(
        "19",
        "Dates at infinity, BC, in year 294276; 24:00:00; offsets with seconds; the session's own formats",
        "The session's formats are pinned; a value that Parquet cannot hold stands exactly beside a null",
    ),
    Trap(
        "20",
        "Mixed signs in intervals, money, -0 and NaN, padding, \"char\", citext, oid above 2^31, bits",
        "Each value is what the server prints, the same by COPY and by the log",
    ),
    Trap(
        "21",
        "Arrays with nulls, odd bounds, dimensions; ranges; json that no parser likes; domains over domains",
        "Lists where Parquet has them, exact text where not; json as it was written",
        "not covered: PostGIS and pgvector, whose values pass as text like those of any type that is not known",
    ),
    Trap(
        "22",
        "Generated, identity and dropped columns; tables with 1,600 columns or none; names with quotes, dots, Unicode",
        "Columns are their attribute numbers; names are escaped and never leave their folder",
    ),
    Trap(
        "23",
        "Transactions of any size, streamed before they commit, with parts of them rolled back",
        "Their rows wait on our disk, within the stream's bound, until they commit; then they are read in pieces within "
        "bounded memory, without what rolled back",
        crash=True,
    ),
    Trap(
        "24",
        "A load by several connections while rows move, the table is rewritten, grows, or hides rows from our role",
        "All read one exported snapshot under a lock; another file node makes the load begin again; row security is an "
        "error of `check`",
        "not covered: a load from a standby that is cancelled by a conflict with recovery, which is tried again like "
        "every error of a load",
    ),
    Trap(
        "25",
        "Changes that came by replication themselves, and go around in a loop",
        "Captured like all others, or left out where the config says so",
    ),
    Trap(
        "26",
        "MySQL and MariaDB: a restart inside a transaction of many events, or behind one that a crash cut off",
        "A position is a place between two transactions, so tables are named again before their rows; what has no end is "
        "passed over",
        crash=True,
    ),
    Trap(
        "27",
        "GTIDs with gaps and tags; failover to a server with less, with more, or with another order of domains; a log that "
        "began anew; file 1000000 behind 999999",
        "The mark keeps what is behind it by GTID; another server is followed if it has all of that and still holds the "
        "rest, in a later generation of the order; else refused",
        "not covered: gtid_mode switched off and on again while a task stands still, which no other server can tell",
        crash=True,
    ),
    Trap(
        "28",
        "The binary log is purged while the task stands still",
        "Refused with the remedy; a second reader of one number is told, too",
    ),
    Trap(
        "29",
        "Partial rows and parts of JSON, statements instead of rows, cascades, TRUNCATE, XA, compressed transactions and "
        "events, incidents",
        "Rows are made whole by their key, what is compressed is unpacked, XA counts where it is committed; what cannot be read "
        "exactly is refused",
        "not covered: a real incident (no server can be made to have one), an encrypted log of MySQL",
    ),
    Trap(
        "30",
        "Every type by load and by log: unsigned, BIT, DECIMAL(65,30), TIME, zero dates, ENUM, SET, character sets, JSON, "
        "geometry, VECTOR, UUID, INET6",
        "The same value both ways; what Parquet cannot hold stands exactly beside a null",
    ),
    Trap(
        "31",
        "ALTER with FIRST and AFTER, renamed columns, CONVERT, online schema change by renames, executable comments, other "
        "databases, statements that are not understood",
        "Columns that are added, dropped, renamed or made longer are followed, also where the catalog is ahead of the log; where "
        "values may have changed the table is loaded anew; what does not concern a captured table stops nothing",
        crash=True,
    ),
    Trap(
        "32",
        "Keys with gaps, without sign, of text with any collation; the lock of all tables refused",
        "Parts are ranges that the server compares; without the lock, tables with a key are loaded from a lower bound, and "
        "the others are refused",
        crash=True,
    ),
    Trap(
        "39",
        "Rows change, go and come while the load reads their part of the table",
        "The load has an exact position: what is before is in it, what is behind is delivered after it",
        crash=True,
    ),
    Trap(
        "40",
        "A crash at each step from making the slot to the first delivered change",
        "Every step's intent is stored before it is taken",
        crash=True,
    ),
    Trap(
        "41",
        "A table is loaded anew, dropped while that goes on, or joins, while the others stream",
        "A load is a generation of its table, replaced in one commit; the other tables' delivery goes on",
        crash=True,
    ),
    Trap(
        "42",
        "Several changes of one key in one batch, and a batch that fails halfway",
        "All versions are in the files with their order; objects are published one by one and registered in one commit",
        "not applicable: order of foreign keys, lengths and NOT NULL of a target database: the target is a lake",
        crash=True,
    ),
    Trap(
        "43",
        "Files of a table format: a commit that is tried again, orphans, schema changes under an open writer",
        "Objects are create-only and registered once; a new shape begins a new object; times are in microseconds",
        "not applicable: deletes, snapshots and type promotion of Iceberg, which is no target yet",
        crash=True,
    ),
    Trap(
        "44",
        "Two daemons with one slot, one state or one table",
        "The folder is locked and each start has an epoch; a slot that is read or owned by somebody else is left alone; a "
        "table belongs to one task",
        crash=True,
    ),
    Trap(
        "45",
        "Torn writes, a full disk, a clock that goes back, an older program on newer files",
        "Torn tails are cut, damage is told, nothing is acknowledged that is not on disk, newer formats are refused",
    ),
    Trap(
        "46",
        "The target is away for an hour",
        "The stream takes the changes up to its bound, memory stays flat, the lag is a metric, the guardian watches the "
        "source's log",
    ),
    Trap(
        "47",
        "A row moves into or out of a row filter",
        "There are no row filters yet",
        no_test="not applicable: row filters do not exist",
    ),
    Trap(
        "48",
        "Start and stop at a given time or position",
        "A task begins with its load or, in mode `cdc`, at its first start, and ends when it is told to",
        no_test="not applicable: there are no options for it",
    ),
    Trap(
        "49",
        "A lag that grows while there is nothing to do",
        "Both lags are 0 when everything that is known is captured or delivered",
    ),
    Trap(
        "50",
        "A comparison that takes a row under change for a difference",
        "There is no validation of a running task yet; the tests compare at a standstill, with another program's reader",
        no_test="not applicable: validation does not exist",
    ),
]

LIMITS_OF_MYSQL = "CHAP_Source.MySQL, Limitations on using a MySQL database as a DMS source"
LIMITS = "CHAP_Source.PostgreSQL, Limitations on using a PostgreSQL database as a DMS source"
SCORECARD = [
    Item(
        "TRUNCATE",
        "TRUNCATE is no change that is processed",
        LIMITS,
        "the table is emptied in commit order, by policy",
    ),
    Item(
        "PK update",
        "an update of a primary key's column is ignored, and not recorded as an exception either",
        LIMITS,
        "a delete and an insert in one transaction",
    ),
    Item(
        "no PK",
        "UPDATE and DELETE of a table without a primary key are ignored",
        LIMITS,
        "with REPLICA IDENTITY FULL both are told, twins included; without, inserts are, and `plan` says what is missing",
    ),
    Item(
        "partitions",
        "partitioned tables are not supported; parent and child with one key are a duplicate key error",
        LIMITS,
        "loaded and followed, rows that move between partitions included",
    ),
    Item(
        "numeric unconstrained",
        "becomes NUMERIC(28,6): 0.611111104488373 arrives as 0.611111",
        LIMITS,
        "every digit, as text or, by rule, as a decimal that says what it cannot hold",
    ),
    Item(
        "ARRAY without PK",
        "a table with an array and without a primary key is suspended during the full load",
        LIMITS,
        "loaded and followed",
    ),
    Item(
        "same name, different case",
        "tables whose names differ in case only are unpredictable and not supported",
        LIMITS,
        "each is a table of its own in the lake; names that meet in the catalog are an error of `check`, with the rule "
        "that renames one",
    ),
    Item(
        "SET DEFAULT, NOT NULL",
        "neither ALTER COLUMN SET DEFAULT nor SET or DROP NOT NULL is processed",
        LIMITS,
        "both pass without a reload: rows arrive with their defaults, nulls as nulls",
    ),
    Item(
        "deletes under a filter",
        "filters are for columns that never change; a row that moves in or out is replicated wrongly",
        "CHAP_Tasks.CustomizingTasks.Filters, Using source filters",
        "has no row filters yet",
        "row filters do not exist yet; deletes of every captured table are delivered",
    ),
    Item(
        "DDL in functions",
        "DDL in the body of a function or a nested construct is not captured",
        LIMITS,
        "the log shows the new shape whoever made it",
    ),
    Item(
        "boolean",
        "a boolean is CHAR(5), and at SQL Server a bit with inconsistent values",
        LIMITS + "; Source data types for PostgreSQL",
        "a boolean of Parquet, in loads, changes, arrays and keys",
    ),
    Item(
        "MySQL: GTID",
        "GTIDs are not supported",
        LIMITS_OF_MYSQL,
        "a failover to another server is followed by GTID, every change once; what was lost, purged or written to the "
        "replica alone is refused",
    ),
    Item(
        "MySQL: compressed binlog",
        "compression of transactions in the binary log has to be off",
        LIMITS_OF_MYSQL + "; CHAP_Tasks.AssessmentReport.MySQL",
        "compressed transactions of MySQL and compressed events of MariaDB are read",
    ),
    Item(
        "MySQL: FIRST, AFTER",
        "ADD COLUMN with FIRST or AFTER is not supported: the column comes last",
        LIMITS_OF_MYSQL,
        "the column stands where it is, and no row is read again for it",
    ),
    Item(
        "MySQL: stopped in a full load",
        "a source that is shut down during a full load ends the task as if it were done, with the target out of step",
        LIMITS_OF_MYSQL,
        "the load goes on with a new snapshot when the server is back",
    ),
    Item(
        "MySQL: AUTO_INCREMENT",
        "the attribute is not migrated",
        LIMITS_OF_MYSQL,
        "nor here: a Parquet file has no such thing",
        why_not="files and the catalog know no default and no sequence",
    ),
    Item(
        "MySQL: partition DDL",
        "statements that change the partitions of a table are not supported",
        LIMITS_OF_MYSQL,
        "DROP, COALESCE and EXCHANGE PARTITION make the table load anew by itself",
    ),
    Item(
        "MySQL: MEDIUMTEXT",
        "where LOBs are switched off, MEDIUMBLOB, LONGBLOB, MEDIUMTEXT and LONGTEXT are left out",
        LIMITS_OF_MYSQL,
        "they are values like all others, whole",
    ),
    Item(
        "MySQL: RENAME TABLE, DROP TABLE",
        "neither is supported",
        LIMITS_OF_MYSQL,
        "a table that takes the name of another one is loaded in its place, as online schema changes do it",
    ),
]
