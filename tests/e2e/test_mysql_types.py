"""MariaDB's and MySQL's types: a load and the log give the same, and both what the server has."""

import re

import duckdb
import pytest

import compare
from servers import wait_for

# Column, declaration, literals in. Each literal becomes a row; the others of that row are null.
TYPES = [
    ("tiny", "tinyint", ["-128", "127"]),
    ("tiny_u", "tinyint unsigned", ["0", "255"]),
    ("small_u", "smallint unsigned", ["65535"]),
    ("medium", "mediumint", ["-8388608", "8388607"]),
    ("medium_u", "mediumint unsigned", ["16777215"]),
    ("whole", "int", ["-2147483648", "2147483647"]),
    ("whole_z", "int(10) unsigned zerofill", ["7", "4294967295"]),
    ("big", "bigint", ["-9223372036854775808", "9223372036854775807"]),
    ("big_u", "bigint unsigned", ["9223372036854775808", "18446744073709551615"]),
    ("bit1", "bit(1)", ["b'0'", "b'1'"]),
    ("bit10", "bit(10)", ["b'1100000001'"]),
    ("bit63", "bit(63)", ["b'1'", "9223372036854775807"]),
    ("bit64", "bit(64)", ["18446744073709551615"]),
    ("dec38", "decimal(38,10)", ["-1234567890123456789012345678.0123456789", "0.0000000001"]),
    ("dec4", "decimal(4,2)", ["-99.99", "0.5", "-0.01"]),
    ("dec9", "decimal(9,0)", ["999999999", "-1"]),
    ("dec65", "decimal(65,30)", ["-99999999999999999999999999999999999.999999999999999999999999999999", "0.5", "0"]),
    ("dec_z", "decimal(60,2) zerofill", ["12.3", "0", "0.05"]),
    ("dec_u", "decimal(18,9) unsigned", ["123456789.987654321"]),
    ("f32", "float", ["1.1", "-3.4028234e38", "1e-40", "16777216"]),
    ("f64", "double", ["1.7976931348623157e308", "-5e-324", "0.1", "-0e0"]),
    ("f64_md", "double(10,2)", ["2.675", "-99999999.99"]),
    ("y", "year", ["1901", "2155", "0"]),
    ("d", "date", ["'0001-01-01'", "'9999-12-31'", "'1582-10-10'"]),
    ("t0", "time", ["'00:00:00'", "'23:59:59'"]),
    ("t6", "time(6)", ["'00:00:00.000001'", "'23:59:59.999999'"]),
    ("dt0", "datetime", ["'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'"]),
    ("dt3", "datetime(3)", ["'1969-12-31 23:59:59.999'"]),
    ("dt6", "datetime(6)", ["'2024-03-31 02:30:00.123456'"]),
    ("ts0", "timestamp null", ["'2024-10-27 01:30:00'", "'2038-01-19 08:44:07'"]),
    ("ts6", "timestamp(6) null", ["'1970-01-01 05:30:01.000001'"]),
    ("c", "char(10) character set utf8mb4", ["'a  '", "'Zoë😀'", "''"]),
    ("vc", "varchar(300) character set utf8mb4", ["'trailing  '", "repeat('x', 300)", "'\\\\ \\' \\n'"]),
    ("vc_latin1", "varchar(50) character set latin1", ["'é€ÿ'", "_latin1 x'8081'"]),
    ("vc_latin2", "varchar(50) character set latin2", ["'łŐ'"]),
    ("vc_cp1251", "varchar(50) character set cp1251", ["'Привет'"]),
    ("vc_ucs2", "varchar(50) character set ucs2", ["'aé中'"]),
    ("vc_utf16", "varchar(50) character set utf16", ["'aé中😀'"]),
    ("vc_utf16le", "varchar(50) character set utf16le", ["'aé中😀'"]),
    ("vc_utf32", "varchar(50) character set utf32", ["'aé中😀'"]),
    ("vc_gbk", "varchar(50) character set gbk", ["'a中文'"]),
    ("vc_sjis", "varchar(50) character set sjis", ["'aｱ日本'"]),
    ("vc_big5", "varchar(50) character set big5", ["'a中文'"]),
    ("vc_euckr", "varchar(50) character set euckr", ["'a한국'"]),
    ("txt", "mediumtext character set utf8mb4", ["repeat('ü', 70000)"]),
    ("txt_latin1", "text character set latin1", ["'é'"]),
    ("b", "binary(5)", ["x'410000'", "x'4142434445'", "x'20'", "''"]),
    ("b255", "binary(255)", ["x'ff'"]),
    ("c100", "char(100) character set utf8mb4", ["repeat('ü', 100)", "'a'"]),
    ("vb", "varbinary(300)", ["x'00ff00'", "''"]),
    ("bl", "blob", ["x'0000'", "repeat(x'ff', 60000)"]),
    ("tb", "tinyblob", ["''"]),
    ("en", "enum('a','it''s','é') character set latin1", ["'a'", "'it''s'", "'é'", "0"]),
    ("en_escaped", r"enum('a\\b','c\nd','\r','n''\'')", [r"'a\\b'", r"'c\nd'", r"'\r'", "'n'''''"]),
    ("se_escaped", r"set('a\\b','c\nd')", [r"'a\\b,c\nd'"]),
    ("se", "set('x','y','z','é') character set latin1", ["'x,z'", "''", "'é,y'"]),
    ("pt", "point", ["point(1, 2)"]),
    ("geo", "geometry", ["st_geomfromtext('linestring(0 0, 1 1)', 4326)"]),
]
MARIADB = [
    ("vc_uca", "varchar(50) character set utf8mb4 collate utf8mb4_uca1400_ai_ci", ["'Zoë'"]),
    ("js", "json", ["'{\"a\": [1, 2.50, \"é\"]}'"]),
    ("u", "uuid", ["'12345678-9abc-1def-8123-456789abcdef'", "'00000000-0000-0000-0000-000000000000'",
                   "'ffffffff-ffff-4fff-bfff-ffffffffff00'"]),
    ("i6", "inet6", ["'::'", "'::1'", "'2001:db8::ff00:42:8329'", "'::ffff:192.0.2.1'", "'::192.0.2.1'", "'1:0:0:2::'",
                      "'1:0:2:3:4:5:6:7'", "'0:2:3:4:5:6:7:8'",
                      "'1:2:3:4:5:6:7:0'", "'::1:2'", "'::ffff:0:0'", "'::ffff:1:0'", "'0:0:1::'", "'1:0:0:2:3:0:0:4'"]),
    ("i4", "inet4", ["'0.0.0.0'", "'192.0.2.255'"]),
]
# Numbers in JSON are printed by rules of the server's own: those beside a border of the rules, those that lie in the middle
# of two shortest texts, and powers of two, where the next number below is nearer than the next above.
EXPONENTS = [*range(-18, 20), -300, 299]
NUMBERS = [
    f"{digits}e{exponent}" for exponent in EXPONENTS for digits in ("1", "-1.5", "9.87654321", "-1.2345678901234567")
]
NUMBERS += [repr(2.0**power) for power in range(-60, 100)]
NUMBERS += [f"{2**power + 1}.{fraction}e0" for power in range(44, 53) for fraction in (25, 75, 125, 375, 5, "0625")]
MYSQL = [
    ("vc_0900", "varchar(50) character set utf8mb4 collate utf8mb4_0900_ai_ci", ["'Zoë😀'"]),
    ("vc_ja", "varchar(50) character set utf8mb4 collate utf8mb4_ja_0900_as_cs_ks", ["'日本'"]),
    ("vec", "vector(3)", ["to_vector('[1,-2.5,3e10]')"]),
    ("js", "json", [
        "'null'", "'true'", "'[]'", "'{}'", "'\"\"'", "'0'", "'-32768'", "'32768'", "'-2147483649'", "'4294967296'",
        "'18446744073709551615'", "'-9223372036854775808'", "'-0.0'", "'1.0'", "'5e-324'", "'1.7976931348623157e308'",
        "'{\"b\": 1, \"a\": [1, 2.50, {\"c\": null}], \"aa\": \"é😀\", \"\": false}'",
        "'\"a\\\\\\\"b\\\\\\\\c\\\\n\\\\t\\\\u0001\\\\u001f\\\\b\\\\f\\\\r/\\\\u00e9\\\\u007f\"'",
        "concat(repeat('[', 99), '1', repeat(']', 99))",
        "json_array(repeat('ü', 70000), repeat('x', 127), repeat('x', 128), 70000, -70000, 4000000000)",
        "json_object(repeat('k', 300), json_object('d', cast(1.50 as decimal(10,2)), 'n', cast(-1.2 as decimal(30,12))))",
        "json_array(cast('2024-01-02' as date), cast('2024-01-02 03:04:05.6' as datetime(6)), cast('12:00:00' as time))",
        "json_array(cast('-838:59:58.000001' as time(6)), timestamp'2024-01-02 03:04:05', timestamp'9999-12-31 23:59:59')",
        "json_array(cast('abc' as binary), x'00ff', b'101', cast(2024 as year), repeat(x'ab', 200), x'')",
        "json_array(cast(0.0 as decimal(5,3)), cast(-0.001 as decimal(5,3)), cast(repeat('9', 35) as decimal(65,30)))",
        "json_array(st_geomfromtext('point(1 2)'), cast(1.1 as float), 1.10, 1e3)",
        "json_array(" + ", ".join(NUMBERS) + ")",
    ]),
]
# What a column's type cannot hold: it is null, and the text stands beside it.
UNFIT = [
    ("d_zero", "date", ["'0000-00-00'", "'2024-00-10'", "'2024-02-00'"]),
    ("dt_zero", "datetime(3)", ["'0000-00-00 00:00:00'", "'2024-00-10 11:12:13.5'"]),
    ("ts_zero", "timestamp null", ["'0000-00-00 00:00:00'"]),
    ("t_wide", "time", ["'-838:59:59'", "'838:59:59'", "'24:00:00'"]),
    ("t_wide6", "time(6)", ["'-838:59:59.999999'", "'-00:00:00.000001'", "'-00:00:01'", "'-01:00:00.5'"]),
    ("t_wide2", "time(2)", ["'-00:00:00.01'", "'-12:34:56.78'"]),
]


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request):
    """One of the two."""
    return request.getfixturevalue(request.param)


def own(server):
    """All types of a server."""
    return TYPES + (MYSQL if server.TYPE == "mysql" else MARIADB)


def fill(server, database, types, table="t"):
    """One table of all types; a row for each literal."""
    columns = ", ".join(f"{name} {declared}" for name, declared, _ in types)
    server.execute(database, f"create table {table} (id int primary key auto_increment, {columns}) engine=InnoDB")
    for name, _, literals in types:
        for literal in literals:
            server.execute(database, "set sql_mode = ''", f"insert into {table} ({name}) values ({literal})")


def insert_again(server, database, types, table="t"):
    """All rows once more, for the log; with other keys. The server's own copy takes no way through a client."""
    names = ", ".join(name for name, _, _ in types)
    with server.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("set sql_mode = ''")
        cursor.execute(f"insert into {table} (id, {names}) select id + 1000, {names} from {table}")


def halves(run, database, table):
    """What the lake has of the rows that were loaded and of those that came by the log, companions included."""
    files = compare.data_files(run.lake.files(database, table))
    connection = duckdb.connect()
    run.lake.relation(connection, files)
    names = [row[0] for row in connection.execute("describe lake").fetchall()]
    names = [name for name in names if name.lower() not in ("op", "commit_timestamp", "change_order", "id")]
    chosen = ", ".join(f"cast({compare.name(name)} as varchar)" for name in names)
    of = lambda condition: connection.execute(  # noqa: E731
        f"select id % 1000, {chosen} from lake where {condition} order by 1"
    ).fetchall()
    return names, of("id < 1000"), of("id > 1000")


@pytest.mark.trap("30")
@pytest.mark.scorecard("MySQL: MEDIUMTEXT")
def test_every_type_is_the_same_by_load_and_by_log(server, database, daemon):
    types = own(server)
    fill(server, database, types)
    run = daemon([f"{database}.t"], server=server)
    run.start_and_load()
    insert_again(server, database, types)
    run.compare([(database, "t")], seconds=15)
    names, loaded, logged = halves(run, database, "t")
    assert len(loaded) == sum(len(literals) for _, _, literals in types)
    for left, right in zip(loaded, logged, strict=True):
        assert left == right, [name for name, a, b in zip(names, left[1:], right[1:]) if a != b]
    assert run.dead_letters() == []


@pytest.mark.trap("30")
@pytest.mark.fault("38", "values of MariaDB and MySQL that no target can hold", promise="records")
def test_what_a_type_cannot_hold_stands_beside_it(server, database, daemon):
    fill(server, database, UNFIT)
    run = daemon([f"{database}.t"], server=server)
    run.start_and_load()
    insert_again(server, database, UNFIT)
    total = sum(len(literals) for _, _, literals in UNFIT)
    wait_for(lambda: len(halves(run, database, "t")[2]) == total, 60, "the changes in the lake", every=0.5)
    names, loaded, logged = halves(run, database, "t")
    assert loaded == logged
    with server.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("set time_zone = '+00:00'")
        for name, _, literals in UNFIT:
            cursor.execute(f"select id, cast({name} as char) from t where {name} is not null and id < 1000 order by id")
            expected = list(cursor.fetchall())
            assert len(expected) == len(literals)
            place = names.index(f"{name}__exact") + 1
            shown = [(row[0], row[place]) for row in loaded if row[place] is not None]
            assert shown == expected, name
    assert run.dead_letters() == []
