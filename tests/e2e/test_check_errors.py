"""The first mistakes, as in `make check-errors`."""

import pytest
from check_errors import CASES, run_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_mistake(server, case):
    try:
        run_case(case, server)
    finally:
        server.drop_slots()
        server.execute("postgres", f"drop database if exists {case.__name__} with (force)", user="postgres")
