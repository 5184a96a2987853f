"""The random kills of `make kills` with MariaDB or MySQL as the source; see kills.py. What is durable in the stream is not
told apart: the seconds count until the row is in a file that the catalog lists.

    kills_mysql.py mariadb|mysql [--kills 200] [--seed S] [--json FILE]
"""

import contextlib
import random
import sys
import threading
import time

import kills
import pyarrow.parquet
from daemon import Daemon, Failed
from servers import MariaDB, MySQL, wait_for

ROWS, PLACES = 100_000, 5_000
TABLES = ["orders", "items", "ledger"]


class MariaDBWork:
    """Three tables, and a writer that changes them in transactions, some of which are rolled back."""

    SERVER = MariaDB
    NAME = SERVER.NAME
    RELOADED = ["shop.orders", "shop.items"]

    def __init__(self, server, seed):
        self.server, self.rng, self.committed, self.failure = server, random.Random(seed), 0, None
        self.stopping, self.thread, self.daemon = threading.Event(), None, None
        # Rows of the ledger, and files that have no newer one.
        self.marked, self.seen = 0, set()
        server.create_database("shop")
        server.execute(
            "shop",
            "create table orders (id int primary key auto_increment, customer varchar(40), amount decimal(10,2), "
            "note text)",
            "create table items (sku varchar(20), place int unsigned, price double, primary key (sku, place))",
            "create table ledger (writer int, seq bigint, primary key (writer, seq))",
            f"insert into orders (customer, amount) select concat('c', seq), seq / 7 from {server.numbers(ROWS)}",
            f"insert into items select concat('s', seq), seq, seq / 3 from {server.numbers(PLACES)}",
        )

    @classmethod
    @contextlib.contextmanager
    def open(cls, seed):
        """Everything loaded, and at work."""
        with cls.SERVER() as server:
            work = cls(server, seed)
            with Daemon(server, "shop", ["shop.*"]) as work.daemon:
                work.daemon.start_and_load(seconds=120)
                work.start()
                yield work
                work.stop()

    def commits(self):
        """Acknowledged transactions."""
        return self.committed + self.marked

    def compare(self):
        """Ends the writer, and compares everything; gives how many rows."""
        self.stop()
        self.daemon.wait_states(seconds=90)
        rows = sum(result.lake_rows for result in self.daemon.compare([("shop", table) for table in TABLES]))
        wait_for(lambda: self.daemon.metrics().get(("millrace_unaccounted_rows",)) == 0, 20, "unaccounted = 0")
        return rows

    def recover(self, killed):
        """Commits a row; gives the seconds from the kill until it is in the catalog."""
        self.marked += 1
        self.server.execute("shop", f"insert into ledger values (1, {self.marked})")

        def there():
            kills.must_live(self.daemon)
            return self.listed()

        wait_for(there, 60, "the row is in the catalog", every=0.05)
        return {"catalog": time.monotonic() - killed}

    def listed(self):
        """Whether the newest row of the ledger is in a file that the catalog lists."""
        try:
            files = self.daemon.lake.files("shop", "ledger")
        except Failed:
            return False
        for file in files:
            if file["path"] in self.seen:
                continue
            path = self.daemon.lake.local(file["path"])
            if self.marked in pyarrow.parquet.read_table(path, columns=["seq"])["seq"].to_pylist():
                return True
            self.seen.add(file["path"])
        return False

    def start(self):
        """Begins to write."""
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def stop(self):
        """Ends the writer."""
        self.stopping.set()
        self.thread.join(30)
        self.stopping.clear()
        if self.failure:
            raise self.failure

    def write(self):
        """Until stopped, about thirty transactions a second."""
        try:
            with self.server.connect("shop") as connection, connection.cursor() as cursor:
                while not self.stopping.wait(0.03):
                    number = self.rng.randint(1, ROWS)
                    cursor.execute("begin")
                    cursor.execute("insert into orders (customer, amount) values ('w', %s)", (number,))
                    cursor.execute("update orders set amount = amount + 1, note = 'n' where id = %s", (number,))
                    cursor.execute("delete from orders where id = %s", (self.rng.randint(1, ROWS),))
                    place = self.rng.randint(1, PLACES)
                    cursor.execute("update items set price = price + 1 where place = %s", (place,))
                    cursor.execute("update items set sku = concat('m', %s) where place = %s", (number, place // 2))
                    ends = self.rng.random() < 0.9
                    cursor.execute("commit" if ends else "rollback")
                    self.committed += ends
        except Exception as error:  # noqa: BLE001: told by `stop`
            self.failure = error


class MySQLWork(MariaDBWork):
    """The same in MySQL."""

    SERVER = MySQL
    NAME = SERVER.NAME


if __name__ == "__main__":
    kind = {"mariadb": MariaDBWork, "mysql": MySQLWork}[sys.argv.pop(1)]
    sys.exit(kills.main(kind))
