"""Rows of which MySQL and MariaDB log a part are made whole by their key, whatever its type is."""

import pytest

# Type, and two keys as SQL writes them.
KEYS = {
    "tiny": ("tinyint", "-128", "127"),
    "yes": ("boolean", "true", "false"),
    "whole": ("bigint unsigned", "18446744073709551615", "0"),
    "money": ("decimal(20,5)", "1.1", "-2"),
    "large": ("decimal(38,0)", "99999999999999999999999999999999999999", "10"),
    "small": ("decimal(30,30)", "0.000000000000000000000000000001", "-0.5"),
    "wide": ("decimal(65,30)", "12345678901234567890123456789012345.5", "1"),
    "single": ("float", "1.1", "-3e38"),
    "double_one": ("double", "0.1", "-1e300"),
    "day": ("date", "'2024-02-29'", "'1000-01-01'"),
    "moment": ("datetime(6)", "'2024-02-29 23:59:59.000001'", "'1000-01-01 00:00:00'"),
    "second": ("datetime", "'2024-02-29 23:59:59'", "'9999-12-31 23:59:59'"),
    "stamp": ("timestamp(3)", "'2024-02-29 23:59:59.125'", "'1980-01-01 00:00:00'"),
    "span": ("time(3)", "'00:00:00'", "'23:59:59.125'"),
    "year_one": ("year", "2024", "1901"),
    "words": ("varchar(20) character set utf8mb4", "'é '", "'it''s \\\\'"),
    "padded": ("char(5) character set latin1", "'a'", "'ü'"),
    "raw": ("binary(4)", "x'00ff'", "x'ff000000'"),
    "rawer": ("varbinary(9)", "x'00ff'", "x'00'"),
    "bits": ("bit(10)", "b'1000000001'", "b'0'"),
    "choice": ("enum('x','y y')", "'x'", "'y y'"),
    "choices": ("set('x','y')", "'x,y'", "'x'"),
}
ONLY = {"mariadb": {"uid": ("uuid", "'123e4567-e89b-12d3-a456-426655440000'", "'00000000-0000-0000-0000-000000000001'"),
                    "address": ("inet6", "'::1'", "'2001:db8::ff00:42:8329'")}, "mysql": {}}  # fmt: skip


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request):
    """One of the two."""
    return request.getfixturevalue(request.param)


@pytest.mark.trap("29")
def test_a_partial_row_is_made_whole_by_a_key_of_any_type(server, database, daemon):
    keys = {**KEYS, **ONLY[server.TYPE]}
    for name, (of_type, one, other) in keys.items():
        server.execute(
            database,
            f"create table {name} (k {of_type} not null, n int not null, a int, b varchar(9), primary key (n, k))",
            f"insert into {name} values ({one}, 1, 1, 'one'), ({other}, 2, 2, 'two')",
        )
    server.execute(
        database, "create table as_text (k bit(16) primary key, a int, b varchar(9))", "insert into as_text values (300, 1, 'one')"
    )
    as_text = {"from": f"{database}.as_text", "values": {"k": {"as": "text"}}}
    run = daemon([as_text, f"{database}.*"], server=server).start_and_load()
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute("set binlog_row_image = 'MINIMAL'")
        for name, (_, one, other) in keys.items():
            cursor.execute(f"update {name} set a = a + 10")
            cursor.execute(f"insert into {name} (k, n, a) values ({one}, 3, 3)")
            cursor.execute(f"update {name} set n = 4 where n = 2")
        cursor.execute("update as_text set a = a + 10")
    run.compare([(database, name) for name in (*keys, "as_text")])
    assert "is suspended" not in run.log(1_000_000)


@pytest.mark.trap("29")
@pytest.mark.parametrize("log_format", ["statement", "mixed"])
def test_a_temporary_table_that_hides_one_of_ours_is_truncated(server, database, daemon, log_format):
    """Where the log has statements, that one names ours; the rows of ours stay."""
    server.execute(database, "create table t (id int primary key)", "insert into t values (1), (2)")
    run = daemon([f"{database}.t"], server=server).start_and_load()
    with server.connect(database, "root") as connection, connection.cursor() as cursor:
        cursor.execute(f"set binlog_format = {log_format}")
        cursor.execute("create temporary table t (id int)")
        cursor.execute("truncate t")
        cursor.execute("drop temporary table t")
    server.execute(database, "insert into t values (3)")
    run.compare([(database, "t")])
