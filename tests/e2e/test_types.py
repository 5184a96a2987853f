"""Every type, through load and CDC alike: literal in, Parquet type and value expected out, and equal to the server's own
text (`compare`). Values that a type cannot hold, by policy; the policy `dead-letter` is in test_dead_letters.py."""

import datetime
import decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet
import pytest
from servers import wait_for

D = decimal.Decimal
UTC = datetime.timezone.utc


def at(*parts, tz=None):
    return datetime.datetime(*parts, tzinfo=tz)


# (column type, Arrow type, [(literal, value in the lake), …]); None as a value is SQL's null.
TYPES = [
    ("boolean", pa.bool_(), [("true", True), ("false", False)]),
    ("smallint", pa.int16(), [("-32768", -32768), ("32767", 32767)]),
    ("integer", pa.int32(), [("-2147483648", -(2**31)), ("2147483647", 2**31 - 1), ("0", 0)]),
    ("bigint", pa.int64(), [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)]),
    ("real", pa.float32(), [("1.5", 1.5), ("'-Infinity'", float("-inf")), ("'1e-45'", 1.401298464324817e-45)]),
    (
        "double precision",
        pa.float64(),
        [
            ("0.1", 0.1),
            ("'Infinity'", float("inf")),
            ("5e-324", 5e-324),
            ("1.7976931348623157e308", 1.7976931348623157e308),
        ],
    ),
    (
        "numeric(10,2)",
        pa.decimal128(10, 2),
        [("12.5", D("12.50")), ("-99999999.99", D("-99999999.99")), ("0", D("0.00"))],
    ),
    ("numeric(38,0)", pa.decimal128(38, 0), [("99999999999999999999999999999999999999", D("9" * 38)), ("-1", D("-1"))]),
    ("numeric(38,38)", pa.decimal128(38, 38), [("0.00000000000000000000000000000000000001", D("1e-38"))]),
    ("numeric(3,3)", pa.decimal128(3, 3), [("0.001", D("0.001")), ("-0.999", D("-0.999"))]),
    ("numeric(5)", pa.decimal128(5, 0), [("12345", D("12345"))]),
    (
        "numeric(39,2)",
        pa.string(),
        [("1.5", "1.50"), ("1234567890123456789012345678901234567.89", "1234567890123456789012345678901234567.89")],
    ),
    ("numeric(3,5)", pa.string(), [("0.00999", "0.00999")]),
    ("numeric(3,-2)", pa.string(), [("12345", "12300")]),
    (
        "numeric",
        pa.string(),
        [
            ("1e-30", "0.000000000000000000000000000001"),
            ("'NaN'", "NaN"),
            ("'Infinity'", "Infinity"),
            ("1e20", "100000000000000000000"),
            ("0.10", "0.10"),
            ("10000", "10000"),
            ("-0.0001", "-0.0001"),
            ("1e131071", "1" + "0" * 131071),
        ],
    ),
    (
        "text",
        pa.string(),
        [
            ("'plain'", "plain"),
            ("''", ""),
            ("E'\\\\N \\t\\n\\r\\\\ \"'", '\\N \t\n\r\\ "'),
            ("'日本語 🎡'", "日本語 🎡"),
            ("'NULL'", "NULL"),
        ],
    ),
    ("varchar(10)", pa.string(), [("'abc'", "abc"), ("'  '", "  ")]),
    ("char(5)", pa.string(), [("'ab'", "ab   "), ("''", "     ")]),
    ("\"char\"", pa.string(), [("'x'", "x")]),
    ("name", pa.string(), [("'a name'", "a name")]),
    ("bytea", pa.binary(), [("'\\x00ff10'", b"\x00\xff\x10"), ("''", b"")]),
    ("uuid", pa.string(), [("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")]),
    (
        "date",
        pa.date32(),
        [
            ("'2024-02-29'", datetime.date(2024, 2, 29)),
            ("'0001-01-01'", datetime.date(1, 1, 1)),
            ("'1582-10-10'", datetime.date(1582, 10, 10)),
            ("'9999-12-31'", datetime.date(9999, 12, 31)),
        ],
    ),
    (
        "time",
        pa.time64("us"),
        [
            ("'00:00'", datetime.time(0)),
            ("'23:59:59.999999'", datetime.time(23, 59, 59, 999999)),
            ("'12:34:56.7'", datetime.time(12, 34, 56, 700000)),
        ],
    ),
    ("time(0)", pa.time64("us"), [("'12:34:56'", datetime.time(12, 34, 56))]),
    (
        "timestamp",
        pa.timestamp("us"),
        [
            ("'2024-01-01 12:00:00.123456'", at(2024, 1, 1, 12, 0, 0, 123456)),
            ("'0001-01-01'", at(1, 1, 1)),
            ("'1969-12-31 23:59:59.999999'", at(1969, 12, 31, 23, 59, 59, 999999)),
        ],
    ),
    (
        "timestamptz",
        pa.timestamp("us", "UTC"),
        [
            ("'2024-07-01 12:00:00+02'", at(2024, 7, 1, 10, tz=UTC)),
            ("'1900-01-01 00:00:00Z'", at(1900, 1, 1, tz=UTC)),
            ("'2024-03-31 02:30:00 Europe/Paris'", at(2024, 3, 31, 1, 30, tz=UTC)),
        ],
    ),
    (
        "interval",
        pa.string(),
        [
            ("'1 year 2 mons -3 days 04:05:06.7'", "1 year 2 mons -3 days +04:05:06.7"),
            ("'0'", "00:00:00"),
            ("'-1 month'", "-1 mons"),
            ("'1 day'", "1 day"),
            ("'-178000000 years'", "-178000000 years"),
            ("'-0.000001 s'", "-00:00:00.000001"),
            ("'1 day -25:00'", "1 day -25:00:00"),
            ("'2 years 1 mon'", "2 years 1 mon"),
        ],
    ),
    (
        "json",
        pa.string(),
        [("'{\"b\" : 1,  \"a\":[1e400, \"\\u00e9\"], \"b\":2}'", "{\"b\" : 1,  \"a\":[1e400, \"\\u00e9\"], \"b\":2}")],
    ),
    ("jsonb", pa.string(), [("'{\"b\": 1, \"a\": [null, true]}'", '{"a": [null, true], "b": 1}')]),
    ("mood", pa.string(), [("'sad'", "sad"), ("'Ok so'", "Ok so")]),
    ("boolean[]", pa.list_(pa.bool_()), [("'{t,NULL,f}'", [True, None, False]), ("'{}'", [])]),
    ("smallint[]", pa.list_(pa.int16()), [("'{1}'", [1])]),
    ("integer[]", pa.list_(pa.int32()), [("'{1,NULL,-3}'", [1, None, -3]), ("'{}'", [])]),
    ("bigint[]", pa.list_(pa.int64()), [("'{9223372036854775807}'", [2**63 - 1])]),
    ("real[]", pa.list_(pa.float32()), [("'{1.5,Infinity}'", [1.5, float("inf")])]),
    ("double precision[]", pa.list_(pa.float64()), [("'{0.1,NULL}'", [0.1, None])]),
    ("numeric(6,2)[]", pa.list_(pa.decimal128(6, 2)), [("'{1.5,NULL,-9999.99}'", [D("1.50"), None, D("-9999.99")])]),
    ("numeric[]", pa.list_(pa.string()), [("'{1.50,NaN}'", ["1.50", "NaN"])]),
    (
        "text[]",
        pa.list_(pa.string()),
        [("array['a,b', 'q\"x', null, 'NULL', '', '{', E'\\\\']", ["a,b", 'q"x', None, "NULL", "", "{", "\\"])],
    ),
    ("varchar(5)[]", pa.list_(pa.string()), [("'{a}'", ["a"])]),
    ("bytea[]", pa.list_(pa.binary()), [("array['\\x00ff'::bytea, null]", [b"\x00\xff", None])]),
    (
        "uuid[]",
        pa.list_(pa.string()),
        [("'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"])],
    ),
    ("date[]", pa.list_(pa.date32()), [("'{2024-01-01,NULL}'", [datetime.date(2024, 1, 1), None])]),
    ("time[]", pa.list_(pa.time64("us")), [("'{12:00}'", [datetime.time(12)])]),
    ("timestamp[]", pa.list_(pa.timestamp("us")), [("'{2024-01-01 12:00:00.5}'", [at(2024, 1, 1, 12, 0, 0, 500000)])]),
    (
        "timestamptz[]",
        pa.list_(pa.timestamp("us", "UTC")),
        [("'{2024-01-01 12:00:00+00}'", [at(2024, 1, 1, 12, tz=UTC)])],
    ),
    ("interval[]", pa.list_(pa.string()), [("'{1 day,NULL}'", ["1 day", None])]),
    ("jsonb[]", pa.list_(pa.string()), [("array['{\"a\": 1}'::jsonb, null]", ['{"a": 1}', None])]),
    ("mood[]", pa.list_(pa.string()), [("'{sad,\"Ok so\"}'", ["sad", "Ok so"])]),
    # Any other type is its text.
    ("inet", pa.string(), [("'10.0.0.1/8'", "10.0.0.1/8"), ("'10.0.0.1'", "10.0.0.1"), ("'::1'", "::1")]),
    ("cidr", pa.string(), [("'10.0.0.0/8'", "10.0.0.0/8")]),
    ("macaddr", pa.string(), [("'08:00:2b:01:02:03'", "08:00:2b:01:02:03")]),
    ("money", pa.string(), [("12.5", "$12.50")]),
    ("bit(3)", pa.string(), [("B'101'", "101")]),
    ("bit varying", pa.string(), [("B''", ""), ("B'1'", "1")]),
    ("point", pa.string(), [("'(1.5,-2)'", "(1.5,-2)")]),
    ("polygon", pa.string(), [("'((0,0),(1,1),(1,0))'", "((0,0),(1,1),(1,0))")]),
    ("timetz", pa.string(), [("'12:34:56.5+05:30'", "12:34:56.5+05:30"), ("'24:00:00+00'", "24:00:00+00")]),
    ("xml", pa.string(), [("'<a>b</a>'", "<a>b</a>")]),
    ("tsvector", pa.string(), [("'a:1 b:2'", "'a':1 'b':2")]),
    ("int4range", pa.string(), [("'[1,5)'", "[1,5)"), ("'empty'", "empty"), ("'(,)'", "(,)")]),
    ("int4multirange", pa.string(), [("'{[1,3),[5,7)}'", "{[1,3),[5,7)}")]),
    ("int4range[]", None, [("array['[1,5)'::int4range]", '{"[1,5)"}')]),
    ("pair", pa.string(), [("row(1, 'a b')", '(1,"a b")'), ("row(null, null)", "(,)"), ("row(1, null)", "(1,)")]),
    ("inet[]", None, [("'{10.0.0.1,NULL,10.0.0.1/8}'", None)]),
    ("positive", None, [("5", 5)]),
    ("oid", None, [("4294967295", 4294967295)]),
    ("pg_lsn", pa.string(), [("'16/B374D848'", "16/B374D848")]),
]
PRELUDE = [
    "create type mood as enum ('sad', 'Ok so')",
    "create type pair as (a int, b text)",
    "create domain positive as int check (value > 0)",
]


def lake_rows(running, table):
    """All rows of the files by id, newest last, and the schema."""
    tables = [
        pyarrow.parquet.read_table(running.lake.local(file["path"])) for file in running.lake.files("public", table)
    ]
    rows = [row for part in tables for row in part.to_pylist()]
    rows.sort(key=lambda row: row["change_order"])
    return {row["id"]: row for row in rows}, tables[0].schema, tables


@pytest.mark.trap("18", "19", "20", "21")
def test_every_type_through_load_and_changes(daemon, sql):
    types = [entry for entry in TYPES if entry[0] != "xml" or supports_xml(sql)]
    columns = ", ".join(f'c{index} {kind}' for index, (kind, _, _) in enumerate(types))
    sql(*PRELUDE, f"create table t (id int primary key, {columns})")
    samples = max(len(values) for _, _, values in types)

    def insert(base):
        for number in range(samples):
            values = ", ".join(f"({values[number % len(values)][0]})::{kind}" for kind, _, values in types)
            sql(f"insert into t values ({base + number}, {values})")
        sql(f"insert into t (id) values ({base + 99})")

    insert(0)
    running = daemon(["public.t"]).start_and_load()
    insert(1000)
    # An update that changes one column only sends the others again; large ones are filled.
    sql(
        "insert into t select * from t where false",
        "update t set c0 = not c0 where id >= 1000 and id < 1099",
        "update t set c0 = not c0 where id >= 1000 and id < 1099",
    )
    running.compare([("public", "t")])
    rows, schema, tables = lake_rows(running, "t")
    wrong = []
    for index, (kind, arrow, values) in enumerate(types):
        column = f"c{index}"
        for part in tables:
            if part.schema.field(column).type != schema.field(column).type:
                wrong.append(
                    f"{kind}: load and change files differ: {schema.field(column).type}, {part.schema.field(column).type}"
                )
        found = schema.field(column).type
        if arrow is not None and not same_type(found, arrow):
            wrong.append(f"{kind}: {found} in the file, {arrow} expected")
        metadata = schema.field(column).metadata or {}
        if not any(canonical_type(kind) in value.decode() for value in metadata.values()):
            wrong.append(f"{kind}: the field's metadata does not name its type: {metadata}")
        for base in (0, 1000):
            for number in range(samples):
                expected, value = values[number % len(values)][1], rows[base + number][column]
                if expected is not None and value != expected and str(value) != str(expected):
                    wrong.append(
                        f"{kind}: {str(value)[:80]!r} in the lake ({'load' if base == 0 else 'change'}), {str(expected)[:80]!r} expected"
                    )
            if rows[base + 99][column] is not None:
                wrong.append(f"{kind}: null became {rows[base + 99][column]!r}")
    assert not wrong, "\n".join(wrong)


def supports_xml(sql):
    """Some builds of the server come without libxml."""
    try:
        return bool(sql("select '<a/>'::xml::text"))
    except Exception:  # noqa: BLE001
        return False


def same_type(found, expected):
    """Item fields of lists may be named differently."""
    if pa.types.is_list(expected):
        return pa.types.is_list(found) and found.value_type == expected.value_type
    return found == expected


def canonical_type(kind):
    """As `format_type` prints it, as far as a substring goes."""
    return {
        "varchar(10)": "character varying(10)",
        "char(5)": "character(5)",
        "time": "time",
        "time(0)": "time(0)",
        "varchar(5)[]": "character varying(5)[]",
        "timestamp": "timestamp without time zone",
        "numeric(5)": "numeric(5,0)",
        "timestamptz": "timestamp with time zone",
        "timetz": "time with time zone",
        "time[]": "time without time zone[]",
        "timestamp[]": "timestamp without time zone[]",
        "timestamptz[]": "timestamp with time zone[]",
    }.get(kind, kind)


def test_catalog_has_hive_types(daemon, sql):
    sql(
        "create table t (id int primary key, b bool, s smallint, l bigint, f real, d double precision, n numeric(9,2), "
        "x numeric, t text, y bytea, da date, ti time, ts timestamp, tz timestamptz, a int[], n2 numeric(5,1)[])"
    )
    running = daemon(["public.t"]).start_and_load()
    table = next(row for row in running.catalog_tables("public") if row["name"] == "t")
    found = {column["name"]: column["type"] for column in table["columns"]}
    # Glue's columns are lower case.
    assert {name.lower(): kind for name, kind in found.items()} == {
        "op": "string",
        "id": "int",
        "b": "boolean",
        "s": "smallint",
        "l": "bigint",
        "f": "float",
        "d": "double",
        "n": "decimal(9,2)",
        "x": "string",
        "t": "string",
        "y": "binary",
        "da": "date",
        "ti": "string",
        "ts": "timestamp",
        "tz": "timestamp",
        "a": "array<int>",
        "n2": "array<decimal(5,1)>",
        "commit_timestamp": "timestamp",
        "change_order": "string",
    }


# (column type, values that it cannot hold)
UNFIT = [
    ("date", ["infinity", "-infinity", "0044-03-15 BC"]),
    ("time", ["24:00:00"]),
    ("timestamp", ["infinity", "0001-12-31 23:59:59 BC", "294276-12-31 23:59:59.999999"]),
    ("timestamptz", ["infinity", "-infinity"]),
    ("numeric(9,2)", ["NaN"]),
    ("int[]", ["{{1,2},{3,4}}", "[0:1]={1,2}"]),
    ("date[]", ["{infinity,2024-01-01}"]),
]


def shown(running, table, columns, order="1"):
    """Rows of `millrace catalog view`, as text."""
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    chosen = ", ".join(f'cast("{column}" as varchar)' for column in columns)
    return connection.execute(
        f"select {chosen} from ({running.lake.view('public', table)}) order by {order}"
    ).fetchall()


def catalog_columns(running, table):
    """Name and type of the table's columns in the catalog, and its version."""
    record = next(row for row in running.catalog_tables("public") if row["name"] == table)
    return [(column["name"], column["type"]) for column in record["columns"]], record["version"]


def until_equal(seen, expected, seconds=20):
    """What is seen once it is what is expected, or when the time is over."""
    try:
        wait_for(lambda: seen() == expected(), seconds, "equal rows")
    except TimeoutError:
        pass
    return seen()


@pytest.mark.trap("18", "19", "21", crash=True)
@pytest.mark.fault("38", "infinite dates, NaN, years beyond Parquet", promise="records")
def test_values_that_do_not_fit_stand_beside_their_columns(daemon, sql):
    kinds = ", ".join(f"v{number} {kind}" for number, (kind, _) in enumerate(UNFIT))
    names = [f"v{number}" for number in range(len(UNFIT))]
    sql(
        f"create table loaded (id int primary key, {kinds}, fits date)",
        f"create table changed (id int primary key, {kinds}, fits date)",
        "create table keyed (at timestamptz primary key, n int)",
        "create table plain (d date, n int)",
        "alter table plain replica identity full",
    )

    def insert(table, base):
        for round in range(3):
            values = ", ".join(f"'{values[round % len(values)]}'" for _, values in UNFIT)
            sql(f"insert into {table} values ({base + round}, {values}, '2024-01-01')")

    insert("loaded", 0)
    sql("insert into changed (id, fits) values (0, '2024-01-01')", "insert into keyed values ('infinity', 1)")
    running = daemon(["public.*"]).start_and_load()
    companions = [(f"{name}__exact", "string") for name in names]
    columns, version = catalog_columns(running, "loaded")
    assert [column for column in columns if column[0].endswith("__exact")] == companions
    assert columns[-2:] == [("commit_timestamp", "timestamp"), ("change_order", "string")] and version == 1
    columns, version = catalog_columns(running, "changed")
    assert not any(name.endswith("__exact") for name, _ in columns) and version == 1

    # The first such value of a change brings the companions, with a new version of the table.
    insert("changed", 10)
    sql("insert into keyed values ('-infinity', 2), ('2024-01-01 00:00:00+00', 3)", "update keyed set n = 10 where at = 'infinity'")
    sql("insert into plain values ('infinity', 1), ('infinity', 1), ('-infinity', 2)")
    sql("delete from plain where ctid = (select min(ctid) from plain)")
    wait_for(lambda: catalog_columns(running, "changed")[1] == 2, 20, "a new version")
    wait_for(lambda: len(shown(running, "changed", ["id"])) == 4, 20, "the rows")
    columns, _ = catalog_columns(running, "changed")
    assert [column for column in columns if column[0].endswith("__exact")] == companions
    running.kill()
    running.start()
    insert("changed", 20)
    sql("update changed set fits = null where id = 10", "update changed set v0 = '2024-02-03' where id = 11")
    sql("delete from changed where id = 12")

    def expected(table):
        """The source's rows, each value in its column or beside it."""
        chosen = ", ".join(f"{name}::text" for name in names)
        session = ("set datestyle = 'ISO'", "set timezone = 'UTC'")
        return [tuple(row) for row in sql(*session, f"select id::text, {chosen} from {table} order by id")]

    def in_lake(table):
        rows = shown(running, table, ["id", *names, *(name for name, _ in companions)], "id")
        for row in rows:
            for typed, exact in zip(row[1 : 1 + len(names)], row[1 + len(names) :]):
                assert (typed is None) or (exact is None), row
        return [(row[0], *(exact or typed for typed, exact in zip(row[1 : 1 + len(names)], row[1 + len(names) :]))) for row in rows]

    for table in ("loaded", "changed"):
        seen = until_equal(lambda: in_lake(table), lambda: expected(table))
        assert seen == expected(table), table
    # Keys whose values do not fit are told apart.
    keyed = lambda: shown(running, "keyed", ["at", "at__exact", "n"], "n")  # noqa: E731
    wait_for(lambda: len(keyed()) == 3, 20, "the rows of keyed")
    assert [(row[0] and row[0][:10], *row[1:]) for row in keyed()] == [
        (None, "-infinity", "2"),
        ("2024-01-01", None, "3"),
        (None, "infinity", "10"),
    ]
    sql("delete from keyed where at = '-infinity'")
    wait_for(lambda: len(keyed()) == 2, 20, "the delete")
    assert shown(running, "plain", ["d", "d__exact", "n"], "n") == [(None, "infinity", "1"), (None, "-infinity", "2")]
    # Nothing went to the dead letters, and a reload keeps the companions.
    assert running.dead_letters() == []
    version = catalog_columns(running, "changed")[1]
    running.run("reload", running.task, "public.changed")
    running.wait_states()
    sql("insert into changed (id) values (99)")
    assert until_equal(lambda: in_lake("changed"), lambda: expected("changed")) == expected("changed")
    assert catalog_columns(running, "changed")[1] == version
    wait_for(lambda: running.metrics().get(("millrace_unaccounted_rows",)) == 0, 10, "unaccounted = 0")


@pytest.mark.trap("18", "19")
def test_policies_for_values_that_do_not_fit(daemon, sql):
    sql(
        "create table t (id int primary key, a date, b date, c numeric, d timestamptz, e numeric(5,2))",
        "insert into t values (1, 'infinity', 'infinity', 12.5, 'infinity', 'NaN'), (2, '2024-01-01', '2024-01-01', 1, null, 1)",
    )
    values = {
        "types": {"timestamptz": {"unfit": "clamp"}, "numeric": {"unfit": "dead-letter"}},
    }
    rule = {
        "from": "public.t",
        "values": {
            "b": {"unfit": "text"},
            "c": {"as": "decimal(10,1)", "unfit": "clamp"},
            "a": {"unfit": "clamp"},
            "e": {"unfit": "clamp"},
        },
    }
    running = daemon([rule], options={"values": values}).start_and_load()
    sql("insert into t values (3, '-infinity', '0044-03-15 BC', 1e20, '-infinity', 3), (4, null, null, 0.25, null, null)")
    wait_for(lambda: len(shown(running, "t", ["id"])) == 4, 20, "the rows")
    columns, _ = catalog_columns(running, "t")
    assert dict(columns)["b"] == "string" and dict(columns)["c"] == "decimal(10,1)"
    assert [name for name, _ in columns if name.endswith("__exact")] == ["e__exact"], "NaN has no nearest value"
    assert shown(running, "t", ["a", "b", "c", "e", "e__exact"], "id") == [
        ("5874897-12-31", "infinity", "12.5", None, "NaN"),
        ("2024-01-01", "2024-01-01", "1.0", "1.00", None),
        ("0001-01-01", "0044-03-15 BC", "999999999.9", "3.00", None),
        (None, None, "0.3", None, None),
    ]
    years = [row[0] and row[0].split("-")[0] for row in shown(running, "t", ["d"], "id")]
    assert years == ["294247", None, "0001", None]
    assert running.dead_letters() == []
    # Another type for a column makes the table load anew.
    running.terminate()
    running.write_config(running.config_text.replace("decimal(10,1)", "text"))
    running.start()
    wait_for(lambda: dict(catalog_columns(running, "t")[0])["c"] == "string", 30, "the new type")
    running.wait_states()
    assert [row[0] for row in shown(running, "t", ["c"], "id")] == ["12.5", "1", "100000000000000000000", "0.25"]
    # What is wrong in such rules is told.
    running.write_config(running.config_text.replace('"as": "text"', '"as": "decimal(99,1)"'))
    done = running.command("check")
    assert done.returncode == 2 and "decimal(99,1)" in done.stdout + done.stderr
