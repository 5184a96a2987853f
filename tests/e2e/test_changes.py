"""Changes that need a second thought: values that the log leaves out, keys that move, transactions that are prepared,
replicated or no row changes at all, and the names and encodings that tables may have."""

import time

import duckdb
import pytest
from daemon import Daemon
from servers import wait_for

# Values of columns that are stored out of line, by row `i`: nothing in them can be compressed away.
NOISE = "(select string_agg(md5(random()::text || i || j), '') from generate_series(1, {0}) j)"
LARGE = {
    "text": NOISE.format(100),
    "bytea": f"decode({NOISE.format(200)}, 'hex')",
    "jsonb": f"jsonb_build_object('a', {NOISE.format(100)}, 'b', null)",
    "text[]": f"array[{NOISE.format(100)}, null, '', 'NULL', '\"\\N']",
    "bytea[]": f"array[decode({NOISE.format(200)}, 'hex'), null]",
    "jsonb[]": f"array[to_jsonb({NOISE.format(100)}), 'null', null]",
    "numeric": "(select string_agg((1000 + (random() * 8999)::int)::text, '') from generate_series(1, 2500) j "
    "where i > 0)::numeric",
    "long": NOISE.format(90),
    "hstore": f"hstore('k', {NOISE.format(100)}) || 'n => NULL'",
}
# Identities: the column definitions of the key, and what makes the identity.
IDENTITIES = {
    "by_default": ("id int, part text, primary key (part, id)", ""),
    "by_full": ("id int, part text, primary key (id, part)", "alter table {0} replica identity full"),
    "by_index": (
        "id int not null, part text not null, primary key (id)",
        "create unique index {0}_i on {0} (part, id); alter table {0} replica identity using index {0}_i",
    ),
}


@pytest.mark.trap("11", "12", "13", "42", crash=True)
@pytest.mark.fault("39", "the same for every type and identity", promise="continues")
def test_unchanged_large_values_of_every_type_under_every_identity(daemon, sql, server, database):
    """Never a placeholder: by the old image, by an earlier row of the batch, or by a lookup; also when the key moves, when
    the value changed in between, and across a kill. Texts that look like placeholders stay what they are."""
    kinds = dict(LARGE)
    try:
        server.execute(database, "create extension hstore", user="postgres")
    except Exception:  # noqa: BLE001: this build of the server has no extensions
        del kinds["hstore"]
    sql("create domain long as text check (length(value) > 3)")
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(kinds))
    values = ", ".join(kinds.values())
    for table, (key, identity) in IDENTITIES.items():
        sql(
            f"create table {table} (n int, {columns}, {key}, small text)",
            *(f"alter table {table} alter c{number} set storage external" for number in range(len(kinds))),
            *filter(None, identity.format(table).split("; ")),
            f"insert into {table} (n, id, part, small, {', '.join(f'c{n}' for n in range(len(kinds)))}) "
            f"select 0, i, 'p', E'\\\\N', {values} from generate_series(1, 24) i",
        )
    running = daemon(["public.*"]).start_and_load()

    def change(table, first):
        few = f"id between {first} and {first + 7}"
        sql(
            f"update {table} set n = n + 1 where {few}",
            f"update {table} set part = 'q' where id = {first}",
            f"update {table} set id = id + 1000 where id in ({first + 1}, {first + 2})",
            f"update {table} set n = n + 1, small = '__debezium_unavailable_value' where id = {first + 3}",
            f"begin; update {table} set c0 = repeat('z', 5000), c7 = null where id = {first + 4}; "
            f"update {table} set n = -1 where id = {first + 4}; update {table} set id = -id where id = {first + 4}; commit",
            f"begin; update {table} set id = id + 500 where id = {first + 5}; "
            f"update {table} set id = id - 500 where id = {first + 5} + 500; commit",
            f"update {table} set c0 = 'unchanged-toast-datum', c7 = 'null' where id = {first + 6}",
            f"update {table} set n = 7 where id = {first + 6}",
            f"begin; update {table} set n = 8 where id = {first + 7}; delete from {table} where id = {first + 7}; commit",
        )

    for table in IDENTITIES:
        change(table, 1)
    running.kill()
    for table in IDENTITIES:
        change(table, 9)
    running.start()
    for table in IDENTITIES:
        change(table, 17)
    running.compare([("public", table) for table in IDENTITIES])
    duck = duckdb.connect()
    for table in IDENTITIES:
        running.lake.relation(duck, running.lake.files("public", table))
        holes = duck.execute("select count(*) from lake where \"Op\" in ('I', 'U') and (c1 is null or c2 is null)")
        assert holes.fetchone() == (0,), "every row in a file is whole"
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("12", "13", "14", crash=True)
def test_keys_that_move_and_rows_without_one(daemon, sql, server, database):
    """Composite keys in another order than their columns, keys that come back within a transaction, that take each other's
    place, or change in part; and tables without a key whose rows are twins, or have nulls everywhere."""
    sql(
        "create table composite (v text, b int, c text, a date, primary key (c, a, b))",
        "insert into composite select 'v', i, 'c' || i % 3, date '2026-01-01' + i from generate_series(1, 60) i",
        "create table swapped (k int primary key deferrable, v text)",
        "alter table swapped replica identity full",
        "create table indexed (v text, k int not null, unique (k) include (v))",
        "alter table indexed replica identity using index indexed_k_v_key",
        "insert into swapped values (1, 'one'), (2, 'two'), (3, 'three')",
        "insert into indexed select 'v' || i, i from generate_series(1, 20) i",
        "create table twins (a int, b text, c numeric)",
        "alter table twins replica identity full",
        "insert into twins select i % 3, nullif('x' || i % 2, 'x1'), null from generate_series(1, 30) i",
        "create table audit (came boolean, went \"char\", like twins)",
        "create function note() returns trigger language plpgsql as $$ begin "
        "if tg_op <> 'INSERT' then insert into audit select false, 'D', old.*; end if; "
        "if tg_op <> 'DELETE' then insert into audit select true, null, new.*; end if; return null; end $$",
        "insert into audit select true, null, * from twins",
        "create trigger note after insert or update or delete on twins for each row execute function note()",
    )
    tables = ["composite", "swapped", "indexed", "twins"]
    running = daemon([f"public.{table}" for table in tables]).start_and_load()

    def change():
        sql(
            "update composite set c = 'c' || (b + 1) % 3 where b % 4 = 0",
            "update composite set a = a + 1, b = b + 1000 where b = 7",
            "begin; update composite set b = -b where b < 20; update composite set b = -b where b < 0; commit",
            "begin; delete from composite where b = 9; insert into composite values ('again', 9, 'c0', '2026-01-10'); "
            "update composite set c = 'c9' where b = 9; commit",
            "update swapped set k = 3 - k where k in (1, 2)",
            "begin; update swapped set k = k % 3 + 1; update swapped set k = k % 3 + 1, v = v || '!'; commit",
            "begin; update indexed set k = -k; update indexed set k = -k where k > -10; commit",
            "begin; update indexed set k = 100 where k = 1; update indexed set k = 1 where k = 2; "
            "update indexed set k = 2 where k = 100; commit",
            "update twins set b = null where a = 1",
            "update twins set c = 'NaN' where a = 2 and b is null",
            "delete from twins where ctid in (select ctid from twins where a = 0 order by ctid limit 2)",
            "insert into twins values (null, null, null), (null, null, null)",
        )

    change()
    running.kill()
    change()
    running.start()
    change()
    running.compare([*(("public", table) for table in tables[:3]), ("public", "twins", ("public", "audit"))])
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("4", crash=True)
def test_logical_messages_do_not_disturb(daemon, sql, server, database):
    """Of others and like our own, transactional and not, around rows and alone, rolled back, and then a kill."""
    sql("create table t (id int primary key, v text)")
    running = daemon(["public.t"]).start_and_load()

    def emit(round):
        with server.connect(database) as connection:
            for number in range(30):
                id = round * 1000 + number
                connection.execute("select pg_logical_emit_message(true, 'other', %s)", (f"before {id}",))
                connection.execute("insert into t values (%s, 'x')", (id,))
                connection.execute("select pg_logical_emit_message(false, 'millrace heartbeat', 'shop')")
                connection.execute("update t set v = 'y' where id = %s", (id - 1,))
                connection.execute("select pg_logical_emit_message(true, 'millrace', %s)", ("x" * 9000,))
                (connection.rollback if number % 5 == 4 else connection.commit)()
                connection.execute("select pg_logical_emit_message(%s, '', '')", (number % 2 == 0,))
                connection.commit()

    for round in range(3):
        emit(round)
        running.kill()
        emit(round + 10)
        running.start()
    running.wait_confirmed()
    running.compare([("public", "t")])
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "t"))
    found = duck.execute("select count(*), count(distinct change_order) from lake where \"Op\" = 'I'").fetchone()
    assert found == (6 * 24, 6 * 24), "once each"


@pytest.mark.trap("23", crash=True)
def test_prepared_transactions(daemon, sql, server, database):
    """One from before the slot holds it up, and `check` names it; later ones arrive whole when they are committed, across
    a restart in between, and not at all when they are rolled back."""
    sql("create table t (id int primary key, v text)", "insert into t select i, 'old' from generate_series(1, 50) i")

    def prepare(name, *statements):
        with server.connect(database, autocommit=True) as connection:
            connection.execute("begin")
            for statement in statements:
                connection.execute(statement)
            connection.execute("prepare transaction '{}'".format(name.replace("'", "''")))

    prepare("it's old", "update t set v = 'prepared before' where id = 1")
    running = daemon(["public.t"])
    said = running.run("check")
    assert "PG-LONG-TRANSACTION" in said and "ROLLBACK PREPARED 'it''s old';" in said, said
    running.start()
    time.sleep(2)
    sql("commit prepared 'it''s old'")
    running.wait_states()
    prepare("kept", "insert into t values (100, 'kept')", "update t set id = 200 where id = 2", "delete from t where id = 3")
    prepare("undone", "insert into t values (101, 'undone')", "update t set v = 'undone' where id = 4")
    prepare("late", "update t set v = 'late' where id between 10 and 20")
    sql("update t set v = 'meanwhile' where id = 5")
    running.compare([("public", "t")])
    running.wait_confirmed()
    running.kill()
    sql("commit prepared 'kept'", "rollback prepared 'undone'")
    running.start()
    running.compare([("public", "t")])
    assert running.terminate() == 0
    running.start()
    sql("commit prepared 'late'", "update t set v = 'after' where id = 10")
    running.compare([("public", "t")])
    duck = duckdb.connect()
    running.lake.relation(duck, running.lake.files("public", "t"))
    assert duck.execute("select count(*) from lake where v = 'undone'").fetchone() == (0,)
    assert duck.execute("select count(distinct left(change_order, 32)) from lake where v = 'late'").fetchone() == (1,)


@pytest.mark.trap("25", crash=True)
@pytest.mark.parametrize("origin", ["none", "any"])
def test_changes_with_an_origin(daemon, sql, server, database, origin):
    """What the source took over from elsewhere is left out on request, truncates and new columns included; what it does
    itself is not."""
    sql(
        "create table t (id int primary key, v text)",
        "create table emptied (id int primary key)",
        "insert into t values (1, 'own'), (2, 'own')",
        "insert into emptied values (1)",
    )
    options = {"origin": origin} if origin == "none" else {}
    running = daemon(["public.*"], options=options).start_and_load()
    node = f"elsewhere_{origin}"
    server.execute(database, f"select pg_replication_origin_create('{node}')", user="postgres")

    def replicate(*statements):
        with server.connect(database, "postgres", autocommit=True) as connection:
            connection.execute(f"select pg_replication_origin_session_setup('{node}')")
            for statement in statements:
                connection.execute("begin")
                connection.execute("select pg_replication_origin_xact_setup('0/AB', now())")
                connection.execute(statement)
                connection.execute("commit")

    def both(base):
        replicate(f"insert into t (id, v) values ({base}, 'taken over')", "update t set v = 'theirs' where id = 1")
        sql(f"insert into t (id, v) values ({base + 1}, 'own')")

    both(10)
    running.wait_confirmed()
    running.kill()
    both(20)
    replicate("truncate emptied", "alter table t add column w int default 3")
    sql("insert into emptied values (2)")
    running.start()
    both(30)
    running.wait_confirmed()
    if origin == "any":
        running.compare([("public", "t"), ("public", "emptied")])
        return
    duck = duckdb.connect()
    ids = lambda table: {  # noqa: E731
        id for (id,) in duck.execute(f"select id from ({running.lake.view('public', table)})").fetchall()
    }
    wait_for(lambda: ids("t") >= {11, 21, 31} and ids("emptied") >= {2}, 30, "our own rows")
    assert ids("t") == {1, 2, 11, 21, 31} and ids("emptied") == {1, 2}
    shown = duck.execute(f"select v, w from ({running.lake.view('public', 't')}) where id in (1, 31)").fetchall()
    assert shown == [("own", 3), ("own", 3)]
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("22", crash=True)
def test_names_and_columns_of_every_kind(daemon, sql):
    """Keywords, quotes, dots, 63 bytes of two and more bytes each, names that differ in their case only; identity and
    generated columns, dropped ones, and a table with the key alone."""
    long = "naïve_" + "ü" * 28
    assert len(long.encode()) == 63
    tables = {
        "select": '"from" int primary key, "order" text, "user" text',
        'a.b"c.d': '"x.y" int primary key, "q""uote" text, "sp ace" text',
        long: f'id int primary key, "{long}" text, "🌊" text',
        "Größe": 'id int primary key, "ß" text, "Ää" text',
        "counted": "id int generated always as identity primary key, a text, g int generated always as (length(a)) stored, "
        "b text",
        "alone": "id int primary key",
        "\\back 'n' tick": '"\\" int primary key, "\'" text, "%s" text',
    }
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in tables}
    for name, columns in tables.items():
        sql(f"create table {quoted[name]} ({columns})")
    sql('create table "Twin" (id int primary key, "V" text, v text)')
    options = {"exclude": ["public.Twin"]}
    running = daemon(["public.*"], options=options)
    twin = daemon(["public.Twin"]).command("check")
    assert twin.returncode == 3 and 'rename: { "v": "v_2" }' in twin.stdout, twin.stdout

    def insert(first, last):
        for name in tables:
            target = quoted[name]
            if name == "counted":
                sql(f"insert into counted (a, b) select 'a' || i, 'b' from generate_series({first}, {last}) i")
            elif name == "alone":
                sql(f"insert into alone select i from generate_series({first}, {last}) i")
            else:
                sql(f"insert into {target} select i, 'a' || i, 'ü' from generate_series({first}, {last}) i")

    insert(1, 20)
    running.start_and_load()
    insert(21, 40)
    running.kill()
    sql(
        'update "select" set "from" = -"from" where "from" % 3 = 0',
        """update "a.b""c.d" set "q""uote" = E'\\\\N' where "x.y" = 5""",
        f'update "{long}" set "🌊" = \'🌊\' where id = 6',
        "update \"Größe\" set id = 1000 where id = 7",
        "update counted set a = 'longer' where id = 8",
        "update alone set id = -id where id > 10",
        """delete from "\\back 'n' tick" where "\\" = 9""",
        'alter table "select" drop column "order"',
    )
    running.start()
    sql('insert into "select" values (100, \'u\')')
    running.compare(
        [{"schema": "public", "table": name, "drop": ["g"] if name == "counted" else []} for name in tables]
    )
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("22")
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_databases_that_are_not_utf8(server, database, encoding):
    """The server translates; where it cannot (SQL_ASCII takes any bytes), a row that is no text goes to the dead letters."""
    name = f"odd_{encoding.lower()}"
    server.execute(
        "postgres",
        f"create database {name} owner shop encoding '{encoding}' locale 'C' template template0",
        f"grant create on database {name} to cdc",
        user="postgres",
    )
    run = lambda *statements: server.execute(name, *statements)  # noqa: E731
    e = "chr(233)" if encoding == "LATIN1" else "convert_from('\\xc3a9', 'SQL_ASCII')"
    run(
        "create table t (id int primary key, v text, big text, c char(3))",
        "alter table t alter big set storage external",
        f"insert into t select i, {e} || '£', repeat({e}, 3000), {e} from generate_series(1, 20) i",
        'create table "prix_é" (id int primary key, "coût" text)',
        f"insert into \"prix_é\" values (1, {e})",
    )
    if encoding == "SQL_ASCII":
        run("insert into t values (99, convert_from('\\xff41', 'SQL_ASCII'), 'x', 'y')")
    with Daemon(server, name, ["public.*"]) as running:
        running.start_and_load()
        run("delete from t where id = 99")
        run(
            "update t set id = -id where id % 3 = 0",
            "update t set c = 'é' where id = 4",
            f"update \"prix_é\" set \"coût\" = 'œuf' || {e}" if encoding != "LATIN1" else
            "update \"prix_é\" set \"coût\" = 'Ñ'",
            "insert into \"prix_é\" values (2, 'ÿ')",
        )
        running.compare([("public", "t"), ("public", "prix_é")])
        if encoding == "SQL_ASCII":
            run("insert into t values (100, convert_from('\\xff41', 'SQL_ASCII'), 'x', 'y')", "insert into t values (101, 'z')")
            wait_for(lambda: len(running.dead_letters()) == 2, 20, "the dead letters, loaded and changed")
            assert {letter["reason"] for letter in running.dead_letters()} == {"it is not UTF-8"}
        wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")
    server.drop_slots()
    server.execute("postgres", f"drop database {name} with (force)", user="postgres")
