"""Ranks of perf.ranks are forked from the server of all tests, which has imported more than perf.ranks asks for."""

import pytest

from support.forks import start_server


@pytest.fixture(scope="session", autouse=True)
def forks():
    start_server()
