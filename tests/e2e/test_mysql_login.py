"""MySQL as a source: how a password is told to it, with and without encryption. MariaDB has neither this method nor a
certificate of its own making."""

import pytest

from daemon import Daemon


@pytest.fixture(scope="module")
def server(mysql):
    """A private MySQL 9."""
    return mysql


def codes(run, code):
    """What `check` found."""
    return [finding["code"] for finding in run.json("check", code=code)["findings"]]


@pytest.mark.parametrize("mode", ["disable", "require", "verify-ca"])
def test_a_password_is_told_in_every_mode_of_encryption(server, database, sql, mode):
    """The server asks for the password itself as long as it does not have the user in its cache, and for a proof then."""
    sql("create table t (id int primary key)")
    encrypted = mode != "disable"
    sql(
        "drop user if exists teller@'%'",
        f"create user teller@'%' identified with caching_sha2_password by '{server.PASSWORD}'"
        + (" require ssl" if encrypted else ""),
        f"grant {server.RIGHTS} on *.* to teller@'%'",
        user="root",
    )
    tls = {"mode": mode, **({"ca-file": f"{server.data}/ca.pem"} if mode == "verify-ca" else {})}
    with Daemon(server, database, [f"{database}.t"], user="teller", source={"tls": tls}) as run:
        assert codes(run, 0) == []
        assert codes(run, 0) == []
        sql("alter user teller@'%' identified by 'another'", user="root")
        assert codes(run, 3) == ["MYSQL-AUTH"]
    if encrypted:
        with Daemon(server, database, [f"{database}.t"], user="teller", source={"tls": {"mode": "disable"}}) as run:
            sql(f"alter user teller@'%' identified by '{server.PASSWORD}'", user="root")
            assert codes(run, 3) == ["MYSQL-AUTH"]
    sql("drop user teller@'%'", user="root")


@pytest.mark.parametrize("tls", [{"mode": "verify-full"}, {"mode": "verify-ca"}])
def test_a_certificate_of_nobody_is_refused(server, database, sql, tls):
    sql("create table t (id int primary key)")
    with Daemon(server, database, [f"{database}.t"], source={"tls": tls}) as run:
        (finding,) = run.json("check", code=3)["findings"]
        assert finding["code"] == "MYSQL-AUTH" and "certificate" in str(finding), finding


def test_settings_that_make_a_poor_log_are_found(server, database, sql):
    sql("create table t (id int primary key)")
    settings = {
        "binlog_row_value_options": ("partial_json", "", "MYSQL-ROW-IMAGE"),
    }
    with Daemon(server, database, [f"{database}.t"]) as run:
        for name, (value, usual, code) in settings.items():
            sql(f"set global {name} = '{value}'", user="root")
            try:
                assert codes(run, 3) == [code]
            finally:
                sql(f"set global {name} = '{usual}'", user="root")
        assert codes(run, 0) == []
