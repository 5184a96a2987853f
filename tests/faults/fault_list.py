"""The faults that a replication daemon must survive: number, fault, and what is promised of it. The numbers are the
names that the marks of the tests use. What no test springs says here why, and so does what is sprung in part."""

import dataclasses

CONTINUES, STOPS, RECORDS = "continues", "stops safely", "records"
PROMISES = (CONTINUES, STOPS, RECORDS)


@dataclasses.dataclass(frozen=True)
class Row:
    """One fault."""

    number: str
    what: str
    promise: str
    # What the tests leave out.
    left_out: str = ""
    # Why there is no test. A fault with tests has no such reason.
    not_tested: str = ""


ROWS = [
    Row("1", "SIGKILL during a full load", CONTINUES),
    Row("2", "SIGKILL while changes flow", CONTINUES),
    Row(
        "3",
        "SIGKILL at each fsync, rename and send",
        CONTINUES,
        "calls are counted per thread over some seconds; of many, every k-th is tried",
    ),
    Row("4", "SIGKILL between the stream's fsync and the confirmation to the source", CONTINUES),
    Row("5", "SIGKILL between the commit at the target and the checkpoint", CONTINUES),
    Row("6", "SIGKILL where the load hands over to the changes", CONTINUES),
    Row("7", "the machine dies: unsynced bytes vanish", CONTINUES, "simulated, not with a real machine"),
    Row("8", "the last record of a segment is torn, cut short or zeroed", CONTINUES),
    Row("9", "a bit flips in the middle of a segment or of the state", STOPS),
    Row("10", "fsync fails once with EIO", STOPS),
    Row("11", "short writes and interrupted calls", CONTINUES),
    Row("12", "the disk of the buffer is full", CONTINUES),
    Row("13", "the disk of the state is full", STOPS),
    Row("14", "the disk is remounted read-only, or writing is not permitted", STOPS),
    Row(
        "15",
        "no file descriptors are left",
        CONTINUES,
        "without one descriptor new connections to the API wait; only older ones are answered",
    ),
    Row("16", "little memory and a huge transaction", CONTINUES, "530 MiB in a limit of 512 MiB, not 2 GB in 256 MiB"),
    Row("17", "the clock jumps an hour forward and back", CONTINUES),
    Row("18", "the process pauses for long, then goes on", CONTINUES),
    Row("19", "the source resets the connection", CONTINUES),
    Row("20", "the source hangs without a reset", CONTINUES),
    Row("21", "the target's connection is half open during a commit", CONTINUES),
    Row(
        "22",
        "the network flaps, loses and crawls, names do not resolve",
        CONTINUES,
        "packets are not lost at random: the proxy works on connections, not on packets",
    ),
    Row("23", "the source stops at once and starts again", CONTINUES),
    Row("24", "the source fails over to a standby", CONTINUES),
    Row("25", "the source comes back from an older backup", STOPS),
    Row("26", "the server invalidates the slot", STOPS),
    Row("27", "the slot is dropped and made again under its name", STOPS),
    Row("28", "the binary log is purged", STOPS, "with MariaDB and MySQL; PostgreSQL keeps its log for its slot"),
    Row("29", "the history of a change stream is lost", STOPS, not_tested="MongoDB is not there yet"),
    Row("30", "many rows of one log position, and a SIGKILL among them", CONTINUES),
    Row("31", "a transaction of millions of rows", CONTINUES),
    Row("32", "long and short transactions across a restart", CONTINUES),
    Row("33", "captured tables are idle and the database is busy", CONTINUES),
    Row("34", "a column is added, dropped or renamed in the middle of the log", CONTINUES),
    Row("35", "a type is widened or narrowed, the primary key changes", CONTINUES),
    Row("36", "TRUNCATE; a table is dropped and made again", CONTINUES),
    Row("37", "one table fails, the others flow", CONTINUES),
    Row("38", "values that no target can hold", RECORDS),
    Row("39", "large values that an update does not send", CONTINUES),
    Row("40", "S3 answers with 500, 503, slow-down, or not at all", CONTINUES),
    Row("41", "a multipart upload dies half-way", CONTINUES, "objects are one PUT each, there are no parts"),
    Row("42", "S3 stored the object, and the answer was lost", CONTINUES),
    Row("43", "S3 credentials expire or are changed", CONTINUES, "session tokens that expire are not tried"),
    Row(
        "44",
        "somebody changes the target's schema by hand",
        STOPS,
        not_tested="not applicable: the target is files and a catalog of our own; there is no table to alter",
    ),
    Row(
        "45",
        "two writers of one catalog entry; the catalog is away",
        CONTINUES,
        "the catalog is in the state: it cannot be away by itself",
    ),
    Row("46", "two daemons for one task", STOPS),
    Row("47", "SIGTERM under load, and a second one", CONTINUES),
    Row("48", "SIGHUP with a broken config", CONTINUES),
    Row(
        "49",
        "a newer program's state meets an older program",
        STOPS,
        "one program and a format number that is raised by hand; there is no second program to go on to yet",
    ),
    Row("50", "the state folder of yesterday is put back", STOPS),
    Row(
        "51",
        "an HTTP target accepts, and answers with an error",
        CONTINUES,
        not_tested="not applicable: there are no HTTP targets yet",
    ),
    Row(
        "52",
        "shards are split and merged under load",
        CONTINUES,
        not_tested="not applicable: shards cannot be split yet",
    ),
]
NUMBERS = {row.number: row for row in ROWS}
