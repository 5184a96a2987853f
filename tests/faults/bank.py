"""Money that only moves: accounts in two tables whose sum never changes, and a reader who sees it in the lake.

`VaultShop` is the busy shop of the other tests with a second table of accounts; transfers go within a table and across
both.
`Reader` reads the files that the catalog lists, as they come, and gives the sum in the view that is cut at the smallest
`complete_through` of the two tables. It also notices what no reader may ever see: a row that arrives behind a
`complete_through` that was told before, a row that is there twice, a `complete_through` that goes back.
"""

import io
import json
import os
import sys

import pyarrow.parquet

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))

from compare import position  # noqa: E402
from workload import ACCOUNTS, CENTS, TABLES, Shop  # noqa: E402

BANK_TABLES = TABLES + [("shop", "vault", None)]


class VaultShop(Shop):
    """The shop with `shop.vault` beside `shop.account`, and small transactions, most of them transfers."""

    def __init__(self, server, database, seed, **options):
        super().__init__(server, database, seed, large=(500, 4000), kinds=KINDS, **options)

    def create(self):
        """Makes the schema and its first rows."""
        super().create()
        self.server.execute(
            self.database,
            "create table shop.vault (id int primary key, owner text, cents bigint not null)",
            f"insert into shop.vault select i, 'vault ' || i, {CENTS} from generate_series(1, {ACCOUNTS}) i",
        )

    def _across(self, connection, rng):
        """From accounts to vaults and back, several in one transaction; at times a part of it is taken back."""
        for _ in range(rng.randint(1, 3)):
            account, vault, cents = rng.randint(1, ACCOUNTS), rng.randint(1, ACCOUNTS), rng.randint(-900, 900)
            connection.execute("savepoint one")
            connection.execute("update shop.account set cents = cents - %s where id = %s", (cents, account))
            connection.execute("update shop.vault set cents = cents + %s where id = %s", (cents, vault))
            connection.execute("rollback to savepoint one" if rng.random() < 0.1 else "release savepoint one")


KINDS = [
    (VaultShop._across, 16),
    (Shop._transfer, 4),
    (Shop._product, 1),
    (Shop._order, 4),
    (Shop._update_without_text, 4),
    (Shop._update_text, 2),
    (Shop._change_key, 2),
    (Shop._swap_seats, 2),
    (Shop._savepoints, 2),
    (Shop._delete, 3),
    (Shop._no_key, 2),
    (Shop._sensor, 2),
    (Shop._names, 2),
    (Shop._customer, 1),
    (Shop._empty, 1),
]


class TableView:
    """What a reader knows of one table of accounts."""

    def __init__(self, table):
        self.table, self.through = table, 0
        self.forget(None)

    def forget(self, generation):
        """A reload replaced the files."""
        self.generation, self.files, self.seen = generation, set(), set()
        self.waiting, self.cents, self.loaded_at = [], {}, 0

    def take(self, rows):
        """Adds the rows of a file: (op, id, cents, change_order). Gives what is wrong with them."""
        wrong = []
        for row in rows:
            commit, ordinal = int(row[3][:32], 16), int(row[3][32:], 16)
            if (row[1], row[3]) in self.seen:
                wrong.append(f"{self.table} has the row {row} twice")
            if ordinal == 0:
                self.loaded_at = max(self.loaded_at, commit)
            elif commit < self.through:
                wrong.append(f"{self.table} got the row {row} after it was told complete through {self.through:X}")
            self.seen.add((row[1], row[3]))
            self.waiting.append((commit, ordinal, row[1], row[0], row[2]))
        return wrong

    def cut(self, at):
        """The sum and the number of the accounts as they were before this position."""
        self.waiting.sort()
        ready = [row for row in self.waiting if row[0] < at]
        self.waiting = self.waiting[len(ready) :]
        for _, _, account, op, cents in ready:
            self.cents[account] = 0 if op == "D" else cents
        return sum(self.cents.values()), len(self.cents)


class Reader:
    """Reads both tables again and again. `catalog` runs `millrace catalog …` and gives its JSON, `fetch` gives the bytes
    of an object by its path. Each table has as many accounts, and each of them held as many cents at first."""

    def __init__(self, catalog, fetch, schema="shop", accounts=ACCOUNTS, cents=CENTS):
        self.catalog, self.fetch, self.schema = catalog, fetch, schema
        # What both tables hold together, at every moment.
        self.accounts, self.total = accounts, 2 * accounts * cents
        self.views = [TableView("account"), TableView("vault")]
        self.looks = self.sums = self.files = self.rows = 0

    def tables(self):
        """The catalog's tables by name."""
        return {table["name"]: table for table in self.catalog("tables", self.schema)}

    def look(self):
        """Reads what is new and gives what is wrong, as a list of sentences."""
        before, wrong, told = self.tables(), [], []
        if any(view.table not in before for view in self.views):
            return []
        for view in self.views:
            shown = before[view.table]
            if shown["generation"] != view.generation:
                view.forget(shown["generation"])
            through = position(shown["complete_through"])
            if through < view.through:
                wrong.append(f"{view.table}: complete_through went back from {view.through:X} to {through:X}")
            new = [
                file
                for file in self.catalog("files", f"{self.schema}.{view.table}")
                if "letter" not in str(file.get("kind")) and file["path"] not in view.files
            ]
            for file in new:
                wrong += view.take(self.read(file))
                view.files.add(file["path"])
            told.append(through)
        after = self.tables()
        if any(after[view.table]["generation"] != view.generation for view in self.views):
            # What was read is a mixture of two generations: read again from the start.
            for view in self.views:
                view.forget(None)
            return []
        for view, through in zip(self.views, told):
            view.through = max(view.through, through)
        self.looks += 1
        at = min(told)
        # A table that is loaded anew is readable from its load on.
        if at > max(view.loaded_at for view in self.views):
            (one, accounts), (two, vaults) = (view.cut(at) for view in self.views)
            self.sums += 1
            if (one + two, accounts, vaults) != (self.total, self.accounts, self.accounts):
                wrong.append(
                    f"at {at:X} the accounts hold {one} + {two} instead of {self.total} ({accounts}, {vaults} rows)"
                )
        return wrong

    def read(self, file):
        """The rows of a file."""
        table = pyarrow.parquet.read_table(
            io.BytesIO(self.fetch(file["path"])), columns=["Op", "id", "cents", "change_order"]
        )
        if table.num_rows != file["rows"]:
            raise AssertionError(f"{file['path']} has {table.num_rows} rows, the catalog says {file['rows']}")
        self.files += 1
        self.rows += table.num_rows
        return list(zip(*(column.to_pylist() for column in table.columns)))


def catalog_of(daemon):
    """`Reader`'s `catalog` of a daemon."""
    return lambda *arguments: json.loads(daemon.run("catalog", *arguments, "--json"))
