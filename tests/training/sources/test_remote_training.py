"""Training on a server's shards that the cache does not hold: killed runs go on with the same losses."""

import pytest

from perf.remote.server import serving
from support.remote.sites import write_site
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step

pytestmark = pytest.mark.slow(seconds=60)


def test_killed_runs_on_a_slow_server_go_on_with_the_losses_of_a_run_on_a_disk(tmp_path):
    workplace = make_workplace(tmp_path)
    site = write_site(tmp_path / "site", count=68, a_shard=17)
    local = [f"data.path={site}", f"data.cache={tmp_path}/local"]
    train(workplace, "disk", *local)
    with serving(site, latency=0.005) as server:
        remote = [f"data.path={server.address}/list.txt", "data.cache_bytes=40KB", f"data.cache={tmp_path}/cache"]
        for step in (3, 9, 15):
            process = train(workplace, "server", *remote, wait=False)
            wait_for_step(workplace, "server", step, process)
            kill(process)
        server.faults += ["503", "reset", "cut", "", "flipped", "503", "cut"]  # the fourth is the list, then images
        train(workplace, "server", *remote)
    assert losses(workplace, "server") == losses(workplace, "disk")
