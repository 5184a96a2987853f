"""The soak itself: its reader notices what it is there for, and half a minute passes; `make soak` is hours of it."""

import io
import os
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import SEED
from servers import MotoS3, Proxy

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "faults"))

import bank  # noqa: E402
import soak as soaking  # noqa: E402
import soak_record  # noqa: E402


class Catalog:
    """A made-up lake: both tables loaded at position 10."""

    def __init__(self):
        self.through, self.listed, self.objects = {"account": 11, "vault": 11}, {"account": [], "vault": []}, {}
        for table in self.through:
            self.add(table, [("I", id, bank.CENTS, 10, 0) for id in range(1, bank.ACCOUNTS + 1)])

    def add(self, table, rows):
        """A file with rows of (op, id, cents, commit, ordinal)."""
        names = ["Op", "id", "cents", "change_order"]
        columns = list(
            zip(*[(op, id, cents, f"{commit:032x}{ordinal:08x}") for op, id, cents, commit, ordinal in rows])
        )
        held, path = io.BytesIO(), f"{table}/{len(self.objects)}"
        pyarrow.parquet.write_table(pa.table(dict(zip(names, map(list, columns)))), held)
        self.objects[path] = held.getvalue()
        self.listed[table].append({"path": path, "rows": len(rows), "kind": "changes"})

    def __call__(self, what, name):
        if what == "files":
            return self.listed[name.split(".")[1]]
        return [
            {"name": table, "generation": 1, "complete_through": f"0/{through:X}"}
            for table, through in self.through.items()
        ]


@pytest.fixture
def made_up():
    catalog = Catalog()
    reader = bank.Reader(catalog, lambda path: catalog.objects[path])
    assert reader.look() == [] and reader.sums == 1
    return catalog, reader


def transfer(catalog, commit, cents=100):
    """One transaction across both tables."""
    catalog.add("account", [("U", 1, bank.CENTS - cents, commit, 1)])
    catalog.add("vault", [("U", 1, bank.CENTS + cents, commit, 2)])


def test_the_sum_is_the_same_in_every_cut(made_up):
    catalog, reader = made_up
    transfer(catalog, 20)
    # One table is ahead of the other: its rows wait for the cut.
    catalog.through = {"account": 21, "vault": 15}
    assert reader.look() == []
    catalog.through = {"account": 21, "vault": 21}
    assert reader.look() == [] and reader.sums == 3


def test_half_a_transaction_is_noticed(made_up):
    catalog, reader = made_up
    catalog.add("account", [("U", 1, 0, 20, 1)])
    catalog.through = {"account": 21, "vault": 21}
    assert "the accounts hold" in reader.look()[0]


def test_late_rows_twins_and_steps_back_are_noticed(made_up):
    catalog, reader = made_up
    transfer(catalog, 20)
    catalog.through = {"account": 30, "vault": 30}
    assert reader.look() == []
    transfer(catalog, 25, 0)
    assert "after it was told complete" in reader.look()[0]
    catalog.add("vault", [("U", 1, bank.CENTS, 40, 1)] * 2)
    assert any("twice" in wrong for wrong in reader.look())
    catalog.through = {"account": 30, "vault": 29}
    assert any("went back" in wrong for wrong in reader.look())


def test_memory_that_grows_is_noticed():
    def samples(growth):
        return [
            {
                "run": 1,
                "minute": n / 6,
                "rss": (50 << 20) + n * growth,
                "threads": 9,
                "files": 20,
                "stream": 1,
                "retained": 1,
            }
            for n in range(400)
        ]

    assert soak_record.judge(samples(0)) == []
    assert "memory grew" in soak_record.judge(samples(200 << 10))[0]


def test_a_soak_that_saw_too_little_is_noticed():
    kinds, restarts = ["freeze", "kill"], {"kill"}
    record = {
        "minutes": 120.0,
        "commits": 150_000,
        "reader": {"looks": 1400, "sums": 1400},
        "unaccounted": {"looks": 3500},
        "samples": 700,
        "faults": {"freeze": {"count": 18}, "kill": {"count": 35}},
    }
    assert soak_record.blind(record, kinds, restarts) == []
    few = {**record, "commits": 100, "reader": {"looks": 3, "sums": 0}, "unaccounted": {"looks": 0}, "samples": 0}
    assert len(soak_record.blind(few, kinds, restarts)) == 5
    said = soak_record.blind({**record, "faults": {"freeze": {"count": 3}}}, kinds, restarts)
    assert ["3 times 'freeze'" in said[0], "0 times 'kill'" in said[1], len(said)] == [True, True, 2]


@pytest.mark.parametrize("kind", [soaking.PostgresSource, soaking.SOURCES["mariadb"]], ids=lambda kind: kind.NAME)
def test_half_a_minute_of_soak(tmp_path, kind):
    with kind.open() as server, MotoS3() as s3, Proxy(server.port) as source, Proxy(s3.port) as target:
        soak = soaking.Soak(kind, server, s3, source, target, SEED, str(tmp_path))
        try:
            soak.run(0.5)
        finally:
            soak.stopping.set()
            soak.daemon.close(keep=bool(soak.problems))
    assert soak.problems == []
    assert soak.faults and soak.reader.sums > 0 and soak.unaccounted["looks"] > 0
