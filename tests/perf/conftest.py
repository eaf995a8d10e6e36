"""perf.ranks forks its ranks from the fork server of all tests, which has already imported the heavy libraries."""

import pytest

from support.forks import start_server


@pytest.fixture(scope="session", autouse=True)
def forks():
    start_server()
