"""The sources of a soak: a server with its workload, the faults that only it can do, and what it holds for us."""

import contextlib
import signal

import bank
import kills
import psycopg
import pymysql
import verify
from mysql_bank import MysqlVaultBank
from servers import MariaDB, MySQL, Postgres
from workload import PATTERNS


class PostgresSource:
    """The busy shop with its vault."""

    NAME, SERVER, SCHEMA, PATTERNS, TABLES = "PostgreSQL", Postgres, "shop", PATTERNS, bank.BANK_TABLES
    AWAY = (psycopg.Error,)
    RESTARTED, CRASHED = signal.SIGINT, signal.SIGQUIT
    RELOADABLE = ["account", "vault", "orders", "document", "product", "page_view", "customer", "order_line"]
    WIDENED = ["customer", "orders", "page_view", "vault"]
    # As `bank.Reader` takes them.
    ACCOUNTS = {}
    # Faults that other sources do not have.
    FAULTS = {}

    @classmethod
    def open(cls):
        """A server with what it needs, as a context."""
        return cls.SERVER()

    def __init__(self, server, seed):
        self.server = server
        server.create_database("shop")
        server.execute("shop", "alter database shop set logical_decoding_work_mem = '64kB'", user="postgres")
        self.bank = bank.VaultShop(server, "shop", seed, scale=120)
        self.bank.create()

    def load_is_over(self):
        """Rows of a table without a key are told apart from those of its load by when they were written."""
        self.bank.sensor_open.set()

    def held(self):
        """What the server holds for us, and what is wrong with it, as sentences."""
        slots, retained, unconfirmed = self.server.execute(
            "shop",
            "select count(*), max(pg_current_wal_lsn() - restart_lsn), "
            "max(pg_current_wal_lsn() - confirmed_flush_lsn) from pg_replication_slots "
            "where slot_name like 'millrace_%' and not temporary",
        )[0]
        found = {"slots": int(slots), "retained": int(retained or 0), "unconfirmed": int(unconfirmed or 0)}
        return found, [f"{slots} slots"] if slots != 1 else []

    @contextlib.contextmanager
    def marked(self):
        """Commits a row; gives two functions that say whether it is durable in the stream, and whether the catalog of
        a daemon has it."""
        self.bank.mark()
        marked = int(self.server.execute("shop", "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")[0][0])
        query = "select confirmed_flush_lsn - '0/0'::pg_lsn from pg_replication_slots where slot_name like 'millrace_%'"
        with self.server.connect("shop", autocommit=True) as connection:

            def durable():
                row = connection.execute(query).fetchone()
                return row and row[0] is not None and row[0] >= marked

            yield durable, lambda daemon: kills.complete(daemon, marked)

    def end_sessions(self):
        """All of ours."""
        self.server.execute(
            "postgres", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cdc'", user="postgres"
        )

    def add_table(self, name):
        """A new table with rows that were changed."""
        self.server.execute(
            "shop",
            f"create table shop.{name} (id int primary key, v text)",
            f"insert into shop.{name} select i, 'v' || i from generate_series(1, 500) i",
            f"update shop.{name} set v = 'w' where id % 3 = 0",
        )

    def large_transaction(self, first, rows):
        """Rows that come, of which some go, and a part that is taken back."""
        with self.server.connect("shop") as connection:
            connection.execute(
                "insert into shop.orders (id, customer_id, status) select i, 1, 'bulk' from generate_series(%s, %s) i",
                (first, first + rows - 1),
            )
            connection.execute("savepoint a")
            connection.execute("update shop.orders set paid = true where id between %s and %s", (first, first + rows))
            connection.execute("rollback to savepoint a")
            connection.execute("delete from shop.orders where id between %s and %s", (first + 50, first + rows))


class MariaDBSource:
    """Accounts and vaults. A server of this kind holds nothing for a reader; its log files go when it says so."""

    SERVER, SCHEMA, PATTERNS = MariaDB, "bank", ["bank.*"]
    NAME = SERVER.NAME
    TABLES = [("bank", table) for table in ("account", "vault", "ledger", "letter", "visit")]
    AWAY = (pymysql.err.Error,)
    RESTARTED, CRASHED = signal.SIGTERM, signal.SIGKILL
    RELOADABLE = WIDENED = ["account", "vault", "letter", "visit"]
    ACCOUNTS = {"accounts": verify.ACCOUNTS, "cents": verify.CENTS}
    # What the server acknowledged survives its crash.
    DURABLE = {"innodb-flush-log-at-trx-commit": 1, "sync-binlog": 1, "max-binlog-size": 1 << 20}

    @classmethod
    def open(cls):
        return cls.SERVER(cls.DURABLE)

    def __init__(self, server, seed):
        self.server, self.bank = server, MysqlVaultBank(server, "bank", seed)

    def load_is_over(self):
        """Nothing waits for it."""

    def held(self):
        return {}, []

    @contextlib.contextmanager
    def marked(self):
        """The row is found by the position behind it."""
        self.bank.mark()
        marked = self.end_of_log()
        yield None, lambda daemon: kills.complete(daemon, marked, "bank")

    def end_of_log(self):
        """Where the server's log ends, as the least position of ours there: the number of the file and the place in it
        (`connectors/mysql/src/server.rs`)."""
        file, place = self.server.execute("mysql", self.server.STATUS, user="root")[0][:2]
        return int(file.rsplit(".", 1)[1]) << 72 | place << 32

    def end_sessions(self):
        query = "select id from information_schema.processlist where user = 'cdc'"
        with self.server.connect("mysql", "root") as connection, connection.cursor() as cursor:
            cursor.execute(query)
            for (session,) in cursor.fetchall():
                # It may have ended by itself meanwhile.
                with contextlib.suppress(pymysql.err.OperationalError):
                    cursor.execute(f"kill {session}")

    def begin_file(self):
        """The log goes on in another file."""
        self.server.execute("mysql", "flush binary logs", user="root")

    def add_table(self, name):
        self.server.execute(
            "bank",
            f"create table {name} (id int primary key, v text)",
            f"insert into {name} select seq, concat('v', seq) from {self.server.numbers(500)}",
            f"update {name} set v = 'w' where id % 3 = 0",
        )

    def large_transaction(self, first, rows):
        with self.server.connect("bank", autocommit=False) as connection, connection.cursor() as cursor:
            numbers = self.server.numbers(rows)
            cursor.execute(f"insert into letter (id, body) select {first} + seq, 'bulk' from {numbers}")
            cursor.execute("savepoint a")
            cursor.execute("update letter set body = 'changed' where id > %s", (first,))
            cursor.execute("rollback to savepoint a")
            cursor.execute("delete from letter where id between %s and %s", (first + 50, first + rows))
            connection.commit()

    FAULTS = {"log goes on in another file": begin_file}


class MySQLSource(MariaDBSource):
    """The same in MySQL."""

    SERVER = MySQL
    NAME = SERVER.NAME
    DURABLE = {**MariaDBSource.DURABLE, "innodb-flush-method": "O_DIRECT"}


SOURCES = {kind.NAME.lower(): kind for kind in (PostgresSource, MariaDBSource, MySQLSource)}
