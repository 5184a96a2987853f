"""`MILLRACE_TEST_PG` chooses the server; every test of this folder runs against it. This one makes sure that it did."""

import os


def test_the_server_is_of_the_version_that_was_asked_for(server, sql):
    assert sql("show server_version_num")[0][0].startswith(os.environ.get("MILLRACE_TEST_PG", "15"))
    assert server.major == int(os.environ.get("MILLRACE_TEST_PG", "15"))
