"""`make check-errors`: what commonly goes wrong at a first start. Each mistake is answered by `check` in at most twelve
lines with its remedy and by `run` with the same text; a remedy that is SQL or config is applied as it was printed, and
then `check` finds nothing.

    check_errors.py
"""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(__file__))

from daemon import Daemon  # noqa: E402
from servers import CarelessS3, Postgres, free_port  # noqa: E402

LINES_MAX = 12
SQL = re.compile(r"\b((?:ALTER|GRANT|CREATE|DROP|SELECT pg_)[^;]*;?)\s*$", re.IGNORECASE)


class Wrong(Exception):
    """The daemon's answer is not what it must be."""


def blocks(text):
    """The errors in a command's output, each as its lines."""
    found = []
    for line in text.splitlines():
        if re.match(r"error\[[A-Z0-9-]+\]: ", line):
            found.append([line])
        elif re.match(r"(warning\[|error:|\d+ error)", line) or not line.startswith((" ", "\t")):
            found.append(None)
        elif found and found[-1] is not None and line.strip():
            found[-1].append(line.rstrip())
    return [block for block in found if block]


def settled(block):
    """The lines without what differs from one attempt to the next: names of probe objects, durations."""
    text = re.sub(r"_millrace_probe_\w+", "_millrace_probe_", "\n".join(block))
    return re.sub(r"\bin [\d.]+(ns|µs|ms|s)\b", "in TIME", text)


def expect(daemon, code, words, exit_code=3, errors=1):
    """Runs `check` and `run`; gives the lines of the remedy."""
    checked = daemon.command("check")
    ran = daemon.command("run", timeout=60)
    text = checked.stdout + checked.stderr
    if checked.returncode != exit_code:
        raise Wrong(f"check ended with {checked.returncode}, not {exit_code}:\n{text}")
    found = blocks(text)
    if len(found) < errors:
        raise Wrong(f"{errors} errors expected:\n{text}")
    for block in found:
        if len(block) > LINES_MAX:
            raise Wrong(f"{len(block)} lines, more than {LINES_MAX}:\n" + "\n".join(block))
        if not any(line.strip().startswith("fix:") for line in block):
            raise Wrong("no remedy:\n" + "\n".join(block))
    if code and not any(re.match(rf"error\[({code})\]", block[0]) for block in found):
        raise Wrong(f"no error[{code}]:\n{text}")
    for word in words:
        if word not in text:
            raise Wrong(f"{word!r} is not in:\n{text}")
    if ran.returncode != exit_code:
        raise Wrong(f"run ended with {ran.returncode}, not {exit_code}:\n{ran.stdout}{ran.stderr}")
    ran_blocks = [settled(block) for block in blocks(ran.stdout + ran.stderr)]
    for block in found:
        if settled(block) not in ran_blocks:
            raise Wrong("run does not say the same:\n" + "\n".join(block) + f"\nbut\n{ran.stdout}{ran.stderr}")
    fixes = []
    for block in found:
        start = next(place for place, line in enumerate(block) if line.strip().startswith("fix:"))
        fixes += [line.strip().removeprefix("fix:").strip() for line in block[start:]]
    return fixes


def expect_healed(daemon):
    """After the remedy, `check` finds nothing."""
    done = daemon.command("check")
    if done.returncode != 0:
        raise Wrong(f"the remedy was applied, and check still ends with {done.returncode}:\n{done.stdout}{done.stderr}")


def apply_sql(server, database, fixes):
    """Runs the SQL among the lines of a remedy, as a superuser."""
    statements = [match.group(1) for line in fixes for match in [SQL.search(line)] if match]
    if not statements:
        raise Wrong("no SQL in the remedy:\n" + "\n".join(fixes))
    server.execute(database, *statements, user="postgres")


def wrong_port(server, database):
    with Daemon(server, database, ["public.*"], port=free_port()) as daemon:
        expect(daemon, "CONNECTION|PG-[A-Z-]+", ["127.0.0.1", "refused"])
        daemon.write_config(re.sub(r'"port": \d+', f'"port": {server.port}', daemon.config_text))
        expect_healed(daemon)


def wrong_password(server, database):
    with Daemon(server, database, ["public.*"]) as daemon:
        with open(daemon.password_file, "w") as file:
            file.write("not it\n")
        fixes = expect(daemon, "AUTHENTICATION|PG-[A-Z-]+", ["cdc"])
        if "not it" in "\n".join(fixes):
            raise Wrong("the password is in the answer")
        with open(daemon.password_file, "w") as file:
            file.write(server.PASSWORD + "\n")
        expect_healed(daemon)


def wrong_database(server, database):
    with Daemon(server, database, ["public.*"], source={"database": "no_such_db"}) as daemon:
        expect(daemon, None, ["no_such_db"])
        daemon.write_config(daemon.config_text.replace("no_such_db", database))
        expect_healed(daemon)


def no_replication_right(server, database):
    server.execute("postgres", "alter role cdc noreplication", user="postgres")
    try:
        with Daemon(server, database, ["public.*"]) as daemon:
            apply_sql(server, database, expect(daemon, None, ["REPLICATION"]))
            expect_healed(daemon)
    finally:
        server.execute("postgres", "alter role cdc replication", user="postgres")


def no_select_right(server, database):
    server.execute(
        database,
        "create role poor login replication password '" + server.PASSWORD + "'",
        f"grant create on database {database} to poor",
        user="postgres",
    )
    try:
        with Daemon(server, database, ["public.*"], user="poor") as daemon:
            for _ in range(3):
                # One remedy at a time may uncover the next: the right to read, and publications by their owner.
                if daemon.command("check").returncode == 0:
                    return
                apply_sql(server, database, expect(daemon, None, []))
            expect_healed(daemon)
    finally:
        for name in ("millrace_shop", "millrace_shop_inserts"):
            server.execute(database, f"drop publication if exists {name}", user="postgres")
        server.execute(database, "drop owned by poor", "drop role poor", user="postgres")


def no_logical_wal(_server, _database):
    with Postgres(settings={"wal_level": "replica"}) as server:
        server.create_database("shop")
        server.execute("shop", "create table t (id int primary key)")
        with Daemon(server, "shop", ["public.*"]) as daemon:
            fixes = expect(daemon, None, ["wal_level"])
            apply_sql(server, "shop", [line for line in fixes if "wal_level" in line])
            # The harness sets it on the command line, which would win over what the remedy wrote.
            del server.settings["wal_level"]
            server.stop()
            server.start()
            expect_healed(daemon)


def no_free_slot(_server, _database):
    with Postgres(settings={"max_replication_slots": 1}) as server:
        server.create_database("shop")
        server.execute("shop", "create table t (id int primary key)")
        server.execute("shop", "select pg_create_physical_replication_slot('taken')", user="postgres")
        with Daemon(server, "shop", ["public.*"]) as daemon:
            expect(daemon, None, ["max_replication_slots"])


def two_unknown_keys(server, database):
    with Daemon(server, database, ["public.*"]) as daemon:
        text = daemon.config_text
        daemon.write_config(text.replace("    mode:", "    moed:").replace('"database":', '"datebase":'))
        fixes = expect(daemon, None, ["moed", "datebase"], exit_code=2, errors=2)
        if not any("mode" in line for line in fixes) or not any("database" in line for line in fixes):
            raise Wrong("the nearest keys are not named: " + "\n".join(fixes))
        daemon.write_config(text)
        expect_healed(daemon)


def unwritable_target(server, database):
    with Daemon(server, database, ["public.*"]) as daemon:
        blocked = f"{daemon.folder}/blocked"
        # A plain file in the way: nobody can write below it, not even root.
        with open(blocked, "w") as file:
            file.write("in the way")
        text = daemon.config_text
        daemon.write_config(text.replace(daemon.lake_folder, f"{blocked}/lake"))
        expect(daemon, None, [blocked])
        daemon.write_config(text)
        expect_healed(daemon)


def careless_s3(server, database):
    with CarelessS3() as s3:
        target = {
            "type": "s3",
            "bucket": "lake",
            "endpoint": s3.endpoint,
            "access-key-id": "a",
            "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
        }
        with Daemon(server, database, ["public.*"], target=target, environment={"MILLRACE_S3_SECRET": "b"}) as daemon:
            expect(daemon, None, ["If-None-Match"])


def unreachable_s3(server, database):
    target = {
        "type": "s3",
        "bucket": "lake",
        "endpoint": f"http://127.0.0.1:{free_port()}",
        "access-key-id": "a",
        "secret-access-key": {"env": "MILLRACE_S3_SECRET"},
    }
    with Daemon(server, database, ["public.*"], target=target, environment={"MILLRACE_S3_SECRET": "b"}) as daemon:
        expect(daemon, None, ["127.0.0.1"])


CASES = [
    wrong_port,
    wrong_password,
    wrong_database,
    no_replication_right,
    no_select_right,
    no_logical_wal,
    no_free_slot,
    two_unknown_keys,
    unwritable_target,
    careless_s3,
    unreachable_s3,
]


def run_case(case, server):
    """One case in a database of its own."""
    database = server.create_database(case.__name__)
    server.execute(database, "create table t (id int primary key, v text)", "insert into t values (1, 'x')")
    case(server, database)


def main():
    failed = 0
    with Postgres() as server:
        for case in CASES:
            try:
                run_case(case, server)
                print(f"check-errors: {case.__name__}: answered", flush=True)
            except (Wrong, AssertionError) as error:
                failed += 1
                print(f"check-errors: {case.__name__}: FAILED\n{error}", flush=True)
    print(f"check-errors: {len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
