"""Rows that their Parquet columns cannot hold, by the policy `dead-letter`: kept whole beside the lake, counted, listed; everything else goes on."""

import json

import pytest
from servers import wait_for

# (column type, literal, word that the reason should hold)
POISON = [
    ("date", "'infinity'", "infin"),
    ("date", "'-infinity'", "infin"),
    ("date", "'0044-03-15 BC'", None),
    ("timestamp", "'infinity'", "infin"),
    ("timestamp", "'0001-12-31 23:59:59 BC'", None),
    ("timestamptz", "'-infinity'", "infin"),
    ("timestamptz", "'4713-01-01 00:00:00+00 BC'", None),
    ("time", "'24:00:00'", "24:00"),
    ("numeric(9,2)", "'NaN'", "NaN"),
    ("int[]", "'{{1,2},{3,4}}'", None),
    ("int[]", "'[0:1]={1,2}'", None),
    ("date[]", "'{infinity}'", "infin"),
    ("numeric(9,2)[]", "'{NaN}'", "NaN"),
]


@pytest.mark.trap("18", "19", "21")
@pytest.mark.fault("38", "values that no target can hold", promise="records")
def test_poison_in_a_load_and_in_changes(daemon, sql):
    for number, (kind, literal, _) in enumerate(POISON):
        sql(
            f"create table t{number} (id int primary key, v {kind}, note text)",
            f"insert into t{number} values (1, null, 'good'), (2, {literal}, 'bad in the load'), (3, null, 'good')",
        )
    running = daemon(["public.*"], options={"values": {"unfit": "dead-letter"}}).start_and_load()
    for number, (kind, literal, _) in enumerate(POISON):
        sql(
            f"insert into t{number} values (4, {literal}, 'bad insert'), (5, null, 'good')",
            f"update t{number} set v = {literal}, note = 'bad update' where id = 3",
        )
    # Rows 2, 3 and 4 are stale or missing in the lake; the others are there.
    wait_for(lambda: len(running.dead_letters()) == 3 * len(POISON), 30, "the dead letters")
    letters = running.dead_letters()
    by_table = {}
    for letter in letters:
        by_table.setdefault(str(letter["table"]), []).append(letter)
    assert len(by_table) == len(POISON)
    text = json.dumps(letters, ensure_ascii=False)
    for note in ("bad in the load", "bad insert", "bad update"):
        assert text.count(note) >= len(POISON), f"the source's bytes of {note!r} are kept"
    for number, (_, _, word) in enumerate(POISON):
        reasons = " ".join(
            letter["reason"]
            for letters in [by_table[t] for t in by_table if t.endswith(f"t{number}") or f"'t{number}'" in t]
            for letter in letters
        )
        assert reasons and (word is None or word.lower() in reasons.lower()), (number, reasons)
    for number in range(len(POISON)):
        record = running.tables()[("public", f"t{number}")]
        assert record["state"] == "Table completed"
        assert record["dead_letters"] == 3, record
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
    # What is good again is delivered, and wins.
    for number in range(len(POISON)):
        sql(f"update t{number} set v = null, note = 'healed'")
    running.compare([("public", f"t{number}") for number in range(len(POISON))])


@pytest.mark.fault("38", "the same across kills", promise="records")
def test_dead_letters_survive_kills_and_are_not_doubled(daemon, sql):
    sql("create table t (id int primary key, d date)")
    running = daemon(["public.t"], options={"values": {"unfit": "dead-letter"}}).start_and_load()
    for round in range(3):
        sql(f"insert into t values ({round * 2}, 'infinity'), ({round * 2 + 1}, '2024-01-01')")
        running.kill()
        running.start()
    wait_for(lambda: len(running.dead_letters()) >= 3, 30, "the dead letters")
    sql("insert into t values (100, '2024-01-01')")
    wait_for(lambda: len(running.lake.files("public", "t")) > 0, 20, "files")
    orders = [json.dumps(letter.get("order") or letter.get("change_order")) for letter in running.dead_letters()]
    assert len(orders) == len(set(orders)) == 3


def test_a_value_above_max_value(daemon, sql):
    sql("create table t (id int primary key, v text)", "insert into t values (1, repeat('x', 300000)), (2, 'small')")
    running = daemon(["public.t"], options={"max-value": "200KB"}).start_and_load()
    sql("insert into t values (3, repeat('y', 250000)), (4, 'small')")
    wait_for(lambda: len(running.dead_letters()) == 2, 20, "two dead letters")
    sql("update t set v = 'healed' where id in (1, 3)")
    running.compare([("public", "t")])
