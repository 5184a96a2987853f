"""MySQL's and MariaDB's half of a comparison: columns, key and rows of a table, in the texts that `compare.py` brings both
sides to. Values are read as the text protocol prints them; nothing of the connector is used."""

import pyarrow as pa

BYTES = {"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector"}
BYTES |= {"point", "geometry", "linestring", "polygon", "geomcollection"}


def name(identifier):
    """A quoted SQL identifier."""
    return "`" + identifier.replace("`", "``") + "`"


def source_columns(connection, schema, table):
    """Columns that are not generated, in order: (name, type)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select column_name, column_type from information_schema.columns where table_schema = %s and table_name = %s "
            "and (extra not like '%%GENERATED%%' or extra like '%%DEFAULT_GENERATED%%') order by ordinal_position",
            (schema, table),
        )
        return list(cursor.fetchall())


def source_key(connection, schema, table):
    """The columns of the primary key; empty: append-only."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select column_name from information_schema.statistics where table_schema = %s and table_name = %s "
            "and index_name = 'PRIMARY' order by seq_in_index",
            (schema, table),
        )
        return [row[0] for row in cursor.fetchall()]


def expression(column, declared):
    """What to select so that the text is the value, whole."""
    kind = declared.split("(")[0].split(" ")[0]
    quoted = name(column)
    if kind in BYTES:
        return f"concat('\\\\x', lower(hex({quoted})))"
    if kind == "bit":
        return f"case {quoted} when 1 then 't' when 0 then 'f' end" if declared == "bit(1)" else f"cast({quoted} + 0 as char)"
    if kind == "year" or "zerofill" in declared:
        return f"cast({quoted} + 0 as char)"
    if kind in ("float", "double"):
        return f"cast({quoted} * 1e0 as char)"
    if kind == "timestamp":
        return f"concat({quoted}, '+00')"
    return f"cast({quoted} as char character set utf8mb4)"


def fetch_source(connection, schema, table, columns, where="", only=False):
    """The source's rows as an Arrow table of text."""
    types = dict(source_columns(connection, schema, table))
    chosen = ", ".join(expression(column, types[column]) for column in columns)
    with connection.cursor() as cursor:
        cursor.execute("set time_zone = '+00:00', sql_mode = ''")
        cursor.execute(f"select {chosen} from {name(schema)}.{name(table)} {where}")
        rows = cursor.fetchall()
    text = lambda value: value.decode() if isinstance(value, bytes) else value  # noqa: E731
    return pa.table(
        {f"c{index}": pa.array([text(row[index]) for row in rows], pa.string()) for index in range(len(columns))}
    )
