"""The check that all faults share, and the small workload that it needs: a bank.

`Bank` moves money between accounts. Every transaction changes two accounts (the sum of all stays), counts up a version
in each, notes itself in a ledger, and often writes a text that does not compress; what the server acknowledged is
remembered. `check` ends the writers, commits a marker, waits for it and compares:

1. everything acknowledged is in the lake, nothing else is, nothing is there twice; source and lake are equal row by row
   (compare.py), every listed file opens and has the rows and bytes that the catalog says;
2. the versions of an account in the files are without gap and without twin: no change in between was lost;
3. the sum is constant after every single commit, not only at the end;
4. the folder holds no object that the catalog does not list, but for what is staged;
5. `millrace_unaccounted_rows` is 0, and the source has one slot and the publications of one task;
6. where the process lived, its descriptors and memory are what they were when it had loaded (`Watched`).
"""

import dataclasses
import glob
import os

import duckdb
from compare import data_files
from daemon import Daemon
from servers import wait_for
from workload import noise
from writers import Writers

ACCOUNTS, CENTS = 20, 10_000
PATTERNS = ["bank.*"]
TABLES = [("bank", table) for table in ("account", "ledger", "letter", "visit")]
SCHEMA = """
create schema bank;
create table bank.account (id int primary key, cents bigint not null, version bigint not null default 0);
create table bank.ledger (writer int, seq bigint, primary key (writer, seq));
create table bank.letter (id bigint primary key, body text not null);
create table bank.visit (writer int, seq bigint, at timestamptz default clock_timestamp());
"""


class Bank(Writers):
    """Writers of transfers; `server` is what the writers connect to, without any proxy."""

    def __init__(self, server, database, seed, letter_bytes=(200, 2000)):
        super().__init__(server, database, seed, "bank.ledger")
        self.letter_bytes = letter_bytes
        self.create()

    def create(self):
        """Makes the tables and their first rows."""
        with self.server.connect(self.database) as connection:
            connection.execute(SCHEMA)
            connection.execute(
                "insert into bank.account select i, %s from generate_series(1, %s) i", (CENTS, ACCOUNTS)
            )
            connection.execute("insert into bank.letter select -i, md5(i::text) from generate_series(1, 200) i")

    def add_letters(self, rows, bytes_each=1000):
        """Many rows in one transaction, of text that does not compress much."""
        self.server.execute(
            self.database,
            "insert into bank.letter select 1000000000 + (select count(*) from bank.letter) + i, (select "
            f"string_agg(md5(random()::text || i || j), '') from generate_series(1, {bytes_each // 32}) j) "
            f"from generate_series(1, {rows}) i",
        )

    def transaction(self, connection, rng, number, seq):
        one, two = rng.sample(range(1, ACCOUNTS + 1), 2)
        cents = rng.randint(1, 500)
        for id, change in sorted([(one, -cents), (two, cents)]):
            connection.execute(
                "update bank.account set cents = cents + %s, version = version + 1 where id = %s", (change, id)
            )
        if rng.random() < 0.5:
            connection.execute(
                "insert into bank.letter values (%s, %s)", (number * 10**7 + seq, noise(rng, *self.letter_bytes))
            )
        if rng.random() < 0.3:
            connection.execute("insert into bank.visit (writer, seq) values (%s, %s)", (number, seq))
        return "transfer"

    def problems(self, running):
        """What is wrong with ledger, versions and sums of the lake."""
        duck = duckdb.connect()
        running.lake.relation(duck, data_files(running.lake.files("bank", "ledger")), "ledger")
        found = self.check_ledger(duck.execute("select writer, seq from ledger").fetchall())
        running.lake.relation(duck, data_files(running.lake.files("bank", "account")), "account")
        return found + steps(duck) + sums(duck, "account", "id", "cents", ACCOUNTS * CENTS)


def steps(duck):
    """Versions of an account that are not one more than the one before."""
    wrong = duck.execute(
        "select id, before, version from "
        "(select id, version, lag(version) over (partition by id order by change_order) before from account) "
        "where before is not null and version <> before + 1"
    ).fetchall()
    return [f"gaps or twins in versions (id, before, after): {wrong[:5]} ({len(wrong)})"] if wrong else []


def sums(duck, table, key, amount, total):
    """Commits after which the sum of all accounts is another one. `change_order` begins with the commit, in 32 digits;
    loaded rows have the load's position."""
    wrong = duck.execute(
        f"with step as (select left(change_order, 32) as place, {amount} - "
        f"coalesce(lag({amount}) over (partition by {key} order by change_order), 0) as change from {table} "
        "where \"Op\" <> 'D'), "
        "total as (select place, sum(sum(change)) over (order by place) as total from step group by place) "
        f"select place, total from total where total <> {total} order by place"
    ).fetchall()
    return [f"the sum is wrong behind {len(wrong)} commits, first (commit, sum): {wrong[:3]}"] if wrong else []


def orphans(running):
    """Objects in a local lake that the catalog does not list; what is staged is left out. A table of the catalog stands
    for the folder of its files."""
    listed = set()
    for record in rows(running.json("catalog", "databases")):
        schema = record if isinstance(record, str) else record["name"]
        for table in running.catalog_tables(schema):
            listed |= {running.lake.local(file["path"]) for file in running.lake.files(schema, table["name"])}
    there = {
        path
        for path in glob.glob(f"{running.lake_folder}/**/*", recursive=True)
        if os.path.isfile(path) and "/_staging/" not in path
    }
    return sorted(there - listed)


def rows(value):
    """A command's rows, whether it prints an array or an object that holds it."""
    return value if isinstance(value, list) else next(iter(value.values()))


@dataclasses.dataclass
class Baseline:
    """A process as it was before the fault."""

    descriptors: int
    rss: int

    # Connections that come and go, files of a round under way.
    DESCRIPTORS_MORE = 16
    RSS_MORE = 96 << 20

    @classmethod
    def of(cls, running):
        return cls(len(os.listdir(f"/proc/{running.process.pid}/fd")), running.rss())

    def problems(self, running):
        now = Baseline.of(running)
        found = []
        if now.descriptors > self.descriptors + self.DESCRIPTORS_MORE:
            found.append(f"{now.descriptors} descriptors are open, {self.descriptors} were")
        if now.rss > self.rss + self.RSS_MORE:
            found.append(f"{now.rss >> 20} MiB resident, {self.rss >> 20} were")
        return found


class Watched(Daemon):
    """A daemon that remembers what its process was when the tables were loaded, before any fault."""

    before = None

    def wait_states(self, *arguments, **options):
        super().wait_states(*arguments, **options)
        self.before = (self.process.pid, Baseline.of(self))

    def grown(self):
        """What is more than it was, if it is the same process."""
        if self.before is None or self.before[0] != self.process.pid:
            return []
        return self.before[1].problems(self)


def source_problems(running):
    """Whatever is at the source besides one slot and the task's publications. Other servers keep nothing for a reader."""
    if running.server.TYPE != "postgres":
        return []
    slots = running.server.execute(
        running.database,
        "select slot_name from pg_replication_slots where slot_name like 'millrace%' and not temporary "
        "and database = current_database()",
    )
    publications = running.server.execute(
        running.database, "select pubname from pg_publication where pubname like 'millrace%' order by 1"
    )
    found = [f"slots: {slots}"] if len(slots) != 1 else []
    # One for tables with all their changes, and one for those that can only be published for inserts.
    if not 1 <= len(publications) <= 2:
        found.append(f"publications: {publications}")
    return found


def check(running, bank, seconds=90, restart=False):
    """All of it, also that the process did not end by itself; with `restart` it is started where it ended. Gives how
    many rows were compared."""
    if restart and running.ended():
        running.start()
    assert not running.ended(), f"the daemon ended with {running.process.returncode}:\n{running.log()}"
    bank.stop()
    bank.mark()
    results = running.compare(TABLES, seconds=seconds)
    found = bank.problems(running) + finish(running)
    assert not found, "\n".join(found) + f"\n{running.log()}"
    return sum(result.lake_rows for result in results)


def finish(running):
    """What is left of the check when rows and sums are right."""
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")
    found = source_problems(running) + running.grown()
    if running.s3 is None:
        left = orphans(running)
        found += [f"in the folder and not in the catalog: {left[:5]} ({len(left)})"] if left else []
    return found


def arrival(running, bank, seconds=60):
    """Waits until a row that is written now is in the catalog."""
    wanted = bank.mark()

    def there():
        assert not running.ended(), f"the daemon ended with {running.process.returncode}:\n{running.log()}"
        duck = duckdb.connect()
        try:
            running.lake.relation(duck, data_files(running.lake.files("bank", "ledger")), "ledger")
        except Exception:  # noqa: BLE001: nobody answers yet, or there is no file yet
            return False
        return duck.execute("select count(*) from ledger where (writer, seq) = (?, ?)", wanted).fetchone()[0] == 1

    wait_for(there, seconds, "the first row that was changed afterwards in the catalog", every=0.05)
