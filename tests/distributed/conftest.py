"""Hosts for tests of clusters; tests are skipped, with the reason, where hosts cannot be made."""

import pytest

from perf.virtual_cluster.hosts import Hosts, missing
from support.nodes.sshd import sshd


@pytest.fixture(scope="session")
def hosts_possible():
    """Skips where hosts cannot be made."""
    lack = missing()
    if lack:
        pytest.skip(f"no hosts here: {lack}")


@pytest.fixture
def make_hosts(hosts_possible, tmp_path):
    """Hosts(count, folder, ...) in a folder of this test."""

    def make(count, **options):
        return Hosts(count, tmp_path / f"hosts{len(list(tmp_path.iterdir()))}", **options)

    return make


@pytest.fixture
def cluster(tmp_path):
    """Two host names that lead to an sshd on this machine; the test's folder with their hostfile and ssh_config."""
    with sshd(tmp_path) as folder:
        yield folder
