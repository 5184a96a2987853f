"""Compares a source with its lake row by row, with readers that are not ours: DuckDB over the files that the catalog
lists. Source and lake are brought to one canonical text per type, and `EXCEPT ALL` runs in both directions.

What is checked for each table:
- every listed file opens, and its row count equals the manifest's;
- keyed tables: no two rows with the same key and `change_order`; the greatest `change_order` per key (deletes left
  out) is the source's row; the SQL of `millrace catalog view` says the same;
- tables without a key: the appended rows are the source's rows as a multiset, or, where an audit table is named, the
  events in the lake are the audited events as a multiset.
"""

import dataclasses
import io
import json
import os
import re
import sys

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pymysql

import mysql_side

SESSION = (
    "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set bytea_output = 'hex'; "
    "set extra_float_digits = 1"
)
OURS = ("op", "commit_timestamp", "change_order")


@dataclasses.dataclass
class Result:
    """What became of one table."""

    table: str
    source_rows: int = 0
    lake_rows: int = 0
    files: int = 0
    problems: list = dataclasses.field(default_factory=list)

    def __str__(self):
        lines = [f"{self.table}: {self.source_rows} rows at the source, {self.lake_rows} in the lake"]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems])


class Difference(AssertionError):
    """Source and lake are not identical."""


def name(identifier):
    """A quoted SQL identifier (PostgreSQL and DuckDB agree)."""
    return '"' + identifier.replace('"', '""') + '"'


class Lake:
    """The lake as the catalog describes it. `catalog` runs `millrace catalog …` and gives its output; with `s3` (a
    boto3 client) the listed objects are fetched into `mirror` first, because DuckDB's wheel has no S3 reader."""

    def __init__(self, catalog, s3=None, mirror=None):
        self.catalog, self.s3, self.mirror = catalog, s3, mirror

    def files(self, database, table):
        """The manifest: objects with path, rows, bytes."""
        return json.loads(self.catalog("files", f"{database}.{table}", "--json"))

    def local(self, path):
        """Where the object can be read."""
        if path.startswith("file://"):
            return path[len("file://") :]
        if not path.startswith("s3://"):
            return path
        bucket, key = path[len("s3://") :].split("/", 1)
        copy = os.path.join(self.mirror, bucket, key)
        if not os.path.exists(copy):
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            # `download_file` starts threads for each of thousands of small objects.
            with open(copy + ".new", "wb") as file:
                file.write(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            os.replace(copy + ".new", copy)
        return copy

    def view(self, database, table):
        """The SQL of the table's current state, over files that DuckDB can reach."""
        sql = self.catalog("view", f"{database}.{table}").strip().rstrip(";")
        if self.s3:
            sql = sql.replace("s3://", self.mirror.rstrip("/") + "/")
        return re.sub(r"(?is)^create\s+(or\s+replace\s+)?view\s+.*?\sas\s+(?=select|with)", "", sql)

    def columns(self, database, table):
        """The catalog's columns: id, name, older_rows."""
        tables = json.loads(self.catalog("tables", database, "--json"))
        tables = tables if isinstance(tables, list) else tables["tables"]
        return next((found["columns"] for found in tables if found["name"] in (table, f"{database}.{table}")), [])

    def relation(self, connection, files, into="lake", columns=None):
        """Makes a DuckDB view over the data files; with the catalog's columns, each is read with the names and identities
        that it was written with."""
        selects = []
        if columns is None:
            paths = ", ".join(literal(self.local(file["path"])) for file in files)
            selects = [f"select * from read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"]
            files = []
        held, kinds = {}, {}
        for local in [self.local(file["path"]) for file in files]:
            fields = pyarrow.parquet.read_schema(local)
            held[local] = {int((field.metadata or {})[b"PARQUET:field_id"]): field.name for field in fields}
            for column in columns:
                if column["older_rows"] is not None and column["id"] in held[local] and column["id"] not in kinds:
                    sql = f"describe select {name(held[local][column['id']])} from read_parquet({literal(local)})"
                    kinds[column["id"]] = connection.execute(sql).fetchone()[1]
        for local, names in held.items():
            cells = []
            for column in columns:
                if column["id"] in names:
                    cells.append(f"{name(names[column['id']])} as {name(column['name'])}")
                elif column["older_rows"] is not None:
                    kind = kinds.get(column["id"], "varchar")
                    cells.append(f"cast({literal(column['older_rows'])} as {kind}) as {name(column['name'])}")
            selects.append(f"select {', '.join(cells)} from read_parquet({literal(local)}, hive_partitioning = false)")
        connection.execute(f"create or replace view {into} as " + " union all by name ".join(selects))


def literal(text):
    """A quoted SQL string."""
    return "'" + text.replace("'", "''") + "'"


def position(text):
    """A position of the catalog as a number: `X/Y` as PostgreSQL writes it, or hexadecimal digits where it is larger."""
    high, _, low = text.rpartition("/")
    return (int(high or "0", 16) << 32) + int(low, 16)


def data_files(files):
    """Without dead letters."""
    return [file for file in files if str(file.get("kind", "")).replace("_", "-") != "dead-letters"]


def source_columns(connection, schema, table):
    """Live columns in order: (name, type as `format_type` prints it)."""
    return connection.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute join pg_class c on c.oid = attrelid "
        "join pg_namespace n on n.oid = relnamespace where nspname = %s and relname = %s and attnum > 0 "
        "and not attisdropped order by attnum",
        (schema, table),
    ).fetchall()


def source_key(connection, schema, table):
    """The columns that tell rows apart: the replica identity index, else an immediate primary key; with identity full
    a deferrable one too. Empty: append-only."""
    return [
        row[0]
        for row in connection.execute(
            "select attname from pg_index i join pg_class c on c.oid = indrelid join pg_namespace n on n.oid = relnamespace "
            "cross join lateral unnest(indkey::int2[]) with ordinality k(att, place) "
            "join pg_attribute a on a.attrelid = c.oid and attnum = k.att "
            "where nspname = %s and relname = %s and case relreplident when 'i' then indisreplident "
            "when 'f' then indisprimary when 'd' then indisprimary and indimmediate else false end "
            "and place <= indnkeyatts order by place",
            (schema, table),
        ).fetchall()
    ]


def fetch_source(connection, schema, table, columns, where="", only=False):
    """The source's rows as an Arrow table of text, exactly as the server prints them."""
    connection.execute(SESSION)
    chosen = ", ".join(name(column) for column in columns)
    text = io.BytesIO()
    with connection.cursor().copy(
        f"copy (select {chosen} from {'only ' * only}{name(schema)}.{name(table)} {where}) to stdout "
        "(format csv, force_quote *, null '')"
    ) as copy:
        for piece in copy:
            text.write(piece)
    labels = [f"c{index}" for index in range(len(columns))]
    if text.tell() == 0:
        return pa.table({label: pa.array([], pa.string()) for label in labels})
    return pyarrow.csv.read_csv(
        io.BytesIO(text.getvalue()),
        read_options=pyarrow.csv.ReadOptions(column_names=labels, block_size=1 << 28),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={label: pa.string() for label in labels},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def canonical(kind, source, lake):
    """DuckDB expressions that bring both sides of a column of DuckDB type `kind` to one text."""
    kind = kind.upper()
    if kind == "BOOLEAN":
        return f"case {source} when 't' then 'true' when 'f' then 'false' else {source} end", f"cast({lake} as varchar)"
    if kind == "BLOB":
        return source, f"'\\x' || lower(hex({lake}))"
    if kind in ("FLOAT", "DOUBLE", "DATE", "TIME") or kind.startswith("DECIMAL"):
        return (f"coalesce(cast(try_cast({source} as {kind}) as varchar), {source})", f"cast({lake} as varchar)")
    if kind == "TIMESTAMP":
        return (
            f"coalesce(cast(epoch_us(try_cast({source} as timestamp)) as varchar), {source})",
            f"cast(epoch_us({lake}) as varchar)",
        )
    if kind == "TIMESTAMP WITH TIME ZONE":
        utc = f"regexp_replace({source}, '[+]00$', '')"
        return (
            f"case when {source} like '%+00' then coalesce(cast(epoch_us(try_cast({utc} as timestamp)) as varchar), "
            f"{source}) else {source} end",
            f"cast(epoch_us({lake}) as varchar)",
        )
    if kind.endswith("[]"):
        # The source's side comes through `canonical_list`.
        return source, f"cast(to_json({list_items(kind[:-2], lake)}) as varchar)"
    return source, f"cast({lake} as varchar)"


def list_items(kind, lake):
    """A lake's list with its items in canonical text."""
    return f"list_transform({lake}, lambda x: {canonical(kind, 'x', 'x')[1]})"


def parse_pg_array(text):
    """The items of a one-dimensional PostgreSQL array literal; None for NULL."""
    items, at = [], 1
    if text == "{}":
        return items
    while True:
        if text[at] == '"':
            at, item = at + 1, []
            while text[at] != '"':
                at += text[at] == "\\"
                item.append(text[at])
                at += 1
            items.append("".join(item))
            at += 1
        else:
            end = at
            while text[end] not in ",}":
                end += 1
            items.append(None if text[at:end] == "NULL" else text[at:end])
            at = end
        if text[at] == "}":
            return items
        at += 1


def canonical_list(inner, text, kind):
    """A source's array in the canonical text of a list; what is no plain list stays as it is."""
    if text is None or not text.startswith("{"):
        return text
    expression = canonical(kind, "x", "x")[0]
    inner.execute(f"select {expression} from (select unnest(?::varchar[]) x)", [parse_pg_array(text)])
    return json.dumps([row[0] for row in inner.fetchall()], ensure_ascii=False, separators=(",", ":"))


def short(column):
    """Long texts by their digest, so that a comparison holds no gigabytes."""
    return f"case when length({column}) > 200 then md5({column}) || ' of ' || length({column}) else {column} end"


def our_columns(found):
    """The names of `Op`, `commit_timestamp` and `change_order` in these files: with a leading underscore where the
    table has a column of that name."""
    lower = {column.lower(): column for column in found}
    return [lower.get("_" + ours) or lower[ours] for ours in OURS]


def check_files(lake, files, result):
    """Every listed file opens and holds what its manifest says."""
    for file in files:
        try:
            local = lake.local(file["path"])
            rows = pyarrow.parquet.ParquetFile(local).metadata.num_rows
            if rows != file["rows"]:
                result.problems.append(f"{file['path']}: {rows} rows, the manifest says {file['rows']}")
            if os.path.getsize(local) != file["bytes"]:
                result.problems.append(
                    f"{file['path']}: {os.path.getsize(local)} bytes, the manifest says " f"{file['bytes']}"
                )
        except Exception as error:  # noqa: BLE001: whatever a reader says is the finding
            result.problems.append(f"{file['path']}: does not open: {error}")
    paths = [file["path"] for file in files]
    if len(paths) != len(set(paths)):
        result.problems.append("the manifest lists a file twice")


def compare_table(connection, lake, schema, table, target=None, rename=None, drop=(), audit=None, where="", only=False):
    """Compares one table; `target` is (schema, table) in the lake, `audit` the table of its audited events."""
    target_schema, target_table = target or (schema, table)
    database, catalog_table = target_schema.lower(), target_table.lower()
    result = Result(f"{schema}.{table}")
    files = data_files(lake.files(database, catalog_table))
    result.files = len(files)
    check_files(lake, files, result)
    side = mysql_side if isinstance(connection, pymysql.Connection) else sys.modules[__name__]
    columns = [column for column, _ in side.source_columns(connection, schema, table) if column not in drop]
    targets = [(rename or {}).get(column, column) for column in columns]
    key = [(rename or {}).get(column, column) for column in side.source_key(connection, schema, table)]
    source = side.fetch_source(connection, schema, table, columns, where, only)
    result.source_rows = source.num_rows
    if any("does not open" in problem for problem in result.problems):
        return result
    duck = duckdb.connect()
    duck.execute("set threads = 2; set timezone = 'UTC'")
    if not files:
        if source.num_rows and not audit:
            result.problems.append("the catalog lists no files")
        return result
    lake.relation(duck, files, columns=lake.columns(database, catalog_table))
    op, time, order = our_columns([row[0] for row in duck.execute("describe lake").fetchall()])
    check_change_files(duck, result, op, time, order)
    if audit:
        compare_events(duck, connection, result, audit, columns, targets, op, (schema, table))
        return result
    if key:
        missing = sorted(set(key) - {row[0] for row in duck.execute("describe lake").fetchall()})
        if missing:
            result.problems.append(f"no file has these columns of the key: {', '.join(missing)}")
            return result
        listed = ", ".join(name(column) for column in key)
        twins = duck.execute(
            f"select {listed}, {name(order)}, count(*) from lake group by all having count(*) > 1 " "limit 5"
        ).fetchall()
        for twin in twins:
            result.problems.append(f"twice: key {twin[:-2]}, change_order {twin[-2]}, {twin[-1]} rows")
        duck.execute(
            f"create or replace view current as select * from lake qualify row_number() over (partition by "
            f"{listed} order by {name(order)} desc) = 1"
        )
        duck.execute(f"create or replace view state as select * from current where {name(op)} <> 'D'")
    else:
        duck.execute(f"create or replace view state as select * from lake where {name(op)} <> 'D'")
    compare_rows(duck, result, source, targets, key, "state")
    if not result.problems:
        duck.execute(f"create or replace view shown as {lake.view(database, catalog_table)}")
        compare_rows(duck, result, source, targets, key, "shown", "through `catalog view`: ")
    return result


def check_change_files(duck, result, op, time, order):
    """Our three columns hold what they must."""
    wrong = duck.execute(
        f"select count(*) from lake where {name(op)} is null or {name(op)} not in ('I', 'U', 'D') "
        f"or {name(order)} is null or not regexp_full_match({name(order)}, '[0-9a-f]{{40}}') "
        # A loaded row has ordinal 0 and no commit time; every change has both.
        f"or (right({name(order)}, 8) = '00000000') <> ({name(time)} is null)"
    ).fetchone()[0]
    if wrong:
        result.problems.append(f"{wrong} rows with a wrong {op}, {time} or {order}")


def compare_rows(duck, result, source, targets, key, state, through=""):
    """EXCEPT ALL in both directions between the source's rows and a DuckDB view."""
    kinds = {row[0]: row[1] for row in duck.execute(f"describe {state}").fetchall()}
    lower = {column.lower(): column for column in kinds}
    missing = [column for column in targets if column.lower() not in lower]
    if missing:
        result.problems.append(f"{through}columns missing in the lake: {missing}")
        return
    ours, theirs = [], []
    for index, target in enumerate(targets):
        column = lower[target.lower()]
        if kinds[column].endswith("[]"):
            items = [canonical_list(duck.cursor(), text, kinds[column][:-2]) for text in source[index].to_pylist()]
            source = source.set_column(index, f"c{index}", pa.array(items, pa.string()))
        left, right = canonical(kinds[column], f"c{index}", name(column))
        ours.append(f"{short(left)} as c{index}")
        theirs.append(f"{short(right)} as c{index}")
    duck.register("source_text", source)
    duck.execute(f"create or replace temp table s as select {', '.join(ours)} from source_text")
    duck.execute(f"create or replace temp table l as select {', '.join(theirs)} from {state}")
    result.lake_rows = duck.execute("select count(*) from l").fetchone()[0]
    describe_differences(duck, result, targets, key, through)


def describe_differences(duck, result, targets, key, through):
    """What is in one of the tables `s` and `l` only; rows of the same key are shown column by column."""
    lost = duck.execute("select * from s except all select * from l").fetchall()
    extra = duck.execute("select * from l except all select * from s").fetchall()
    if not lost and not extra:
        return
    places = [targets.index(column) for column in key] or list(range(len(targets)))
    by_key = lambda rows: {tuple(row[place] for place in places): row for row in rows}  # noqa: E731
    lost_by, extra_by = by_key(lost), by_key(extra)
    changed = [found for found in lost_by if found in extra_by] if key else []
    only_source = [found for found in lost_by if found not in extra_by]
    only_lake = [found for found in extra_by if found not in lost_by]
    result.problems.append(
        f"{through}{len(lost)} rows only at the source, {len(extra)} only in the lake "
        f"({len(changed)} keys with other values)"
    )
    for title, keys in (("only at the source", only_source), ("only in the lake", only_lake)):
        for found in keys[:5]:
            result.problems.append(f"{through}{title}: {dict(zip([targets[p] for p in places], found))}")
    for found in changed[:5]:
        pairs = {
            column: (left, right)
            for column, left, right in zip(targets, lost_by[found], extra_by[found])
            if left != right
        }
        result.problems.append(f"{through}key {found}, (source, lake): {pairs}")


def compare_events(duck, connection, result, audit, columns, targets, op, table):
    """A keyless table with full identity: an update is told as a delete of the old row and an insert of the new one. Its
    events agree with the audit of its triggers as multisets, and what came less what went is what is there."""
    schema, audited = audit
    for title, source, lake_rows in (
        ("rows that came", (schema, audited, "where came"), f"select * from lake where {name(op)} in ('I', 'U')"),
        ("rows that went", (schema, audited, "where not came"), f"select * from lake where {name(op)} = 'D'"),
        (
            "rows that are there",
            (*table, ""),
            f"select {', '.join(map(name, targets))} from lake where {name(op)} <> 'D' except all "
            f"select {', '.join(map(name, targets))} from lake where {name(op)} = 'D'",
        ),
    ):
        duck.execute(f"create or replace view part as {lake_rows}")
        found = fetch_source(connection, source[0], source[1], columns, source[2])
        result.source_rows = found.num_rows
        compare_rows(duck, result, found, targets, [], "part", f"{title}: ")


def assert_identical(results):
    """Raises with everything that differs."""
    bad = [str(result) for result in results if result.problems]
    if bad:
        raise Difference("source and lake differ:\n" + "\n".join(bad))
