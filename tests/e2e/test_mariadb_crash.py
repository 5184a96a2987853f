"""MariaDB as a source: a crash that takes back what stands in the log already."""

import os

import pytest

from servers import MariaDB


@pytest.fixture(scope="module")
def server(mariadb):
    """The one that others use as well."""
    return mariadb


def test_a_transaction_that_a_crash_cut_off_is_not_delivered(database, daemon):
    with MariaDB({"innodb-flush-log-at-trx-commit": 1}) as server:
        sql = lambda *statements, user="shop": server.execute(database, *statements, user=user)  # noqa: E731
        server.create_database(database)
        sql("create table t (id int primary key, a int)", "insert into t values (1, 1)")
        run = daemon([f"{database}.t"], server=server).start_and_load()
        run.terminate()
        sql("insert into t values (2, 2)", "insert into t values (3, 3)")
        file = sql(server.STATUS, user="root")[0][0]
        end = sql(f"show binlog events in '{file}'", user="root")[-1]
        assert end[2] == "Xid"
        server.process.kill()
        server.process.wait()
        os.truncate(f"{server.data}/{file}", end[1])
        server.start()
        # What the crash of a whole machine would have taken from the engine as well.
        sql("set sql_log_bin = 0", "delete from t where id = 3", "set sql_log_bin = 1", user="root")
        sql("insert into t values (4, 4)")
        run.start()
        run.compare([(database, "t")])
        assert run.states() == {(database, "t"): "Table completed"}
