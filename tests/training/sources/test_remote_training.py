"""Training on a server's shards that the cache does not hold: runs that are killed, or stopped while the server is
down, go on with the same losses."""

import time

import pytest

from perf.remote.server import serving
from support.remote.sites import write_site
from support.tiny_runs import kill, losses, make_workplace, train, wait_for_step

pytestmark = pytest.mark.slow(seconds=60)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    workplace = make_workplace(tmp_path_factory.mktemp("remote"))
    write_site(workplace / "site", count=68, a_shard=17)
    train(workplace, "disk", f"data.path={workplace}/site", f"data.cache={workplace}/local")
    return workplace


def settings(server, cache):
    return [f"data.path={server.address}/list.txt", "data.cache_bytes=40KB", f"data.cache={cache}"]


def test_killed_runs_on_a_slow_server_go_on_with_the_losses_of_a_run_on_a_disk(workplace, tmp_path):
    with serving(workplace / "site", latency=0.005) as server:
        remote = settings(server, tmp_path)
        for step in (3, 15):
            process = train(workplace, "server", *remote, wait=False)
            wait_for_step(workplace, "server", step, process)
            kill(process)
        server.faults += ["503", "reset", "cut", "", "flipped", "503", "cut"]  # the fourth is the list, then images
        train(workplace, "server", *remote)
    assert losses(workplace, "server") == losses(workplace, "disk")


def test_a_signal_while_the_server_is_down_saves_at_once_and_the_run_goes_on_with_the_same_losses(workplace, tmp_path):
    with serving(workplace / "site") as server:
        process = _stopped_while_down(workplace, "stopped", server, tmp_path)
        output, _ = process.communicate()
        done = max(losses(workplace, "stopped"))
        assert process.returncode == 0 and "stopped by a signal, saved" in output, output
        assert (workplace / "stopped" / "checkpoints" / f"step-{done:09d}").is_dir()
        train(workplace, "stopped", *settings(server, tmp_path))
    assert losses(workplace, "stopped") == losses(workplace, "disk")


def test_processes_that_cannot_agree_to_save_say_so_soon_and_go_on_from_the_last_checkpoint(workplace, tmp_path):
    with serving(workplace / "site") as server:
        process = _stopped_while_down(workplace, "two", server, tmp_path, ranks=2)
        output, _ = process.communicate()
        assert process.returncode == 1 and "Traceback" not in output, output
        assert "stopped by a signal, but not saved: " in output and "start again when the server answers" in output
        train(workplace, "two", *settings(server, tmp_path), ranks=2)
        assert max(losses(workplace, "two")) == max(losses(workplace, "disk"))


def _stopped_while_down(workplace, name, server, cache, ranks=1):
    """A run whose server fails from its third step on, and which has ended by SIGTERM when it could no longer go on. A
    request alone is tried again for 300 s."""
    process = train(workplace, name, *settings(server, cache), ranks=ranks, wait=False)
    wait_for_step(workplace, name, 3, process)
    server.faults += ["503"] * 100_000
    steps, since = 0, time.monotonic()
    while time.monotonic() < since + 2:  # no step for so long: it waits for images
        if len(losses(workplace, name)) > steps:
            steps, since = len(losses(workplace, name)), time.monotonic()
        time.sleep(0.05)
    assert process.poll() is None and len(server.faults) < 100_000
    process.terminate()
    while process.poll() is None and time.monotonic() < since + 60:
        time.sleep(0.05)
    ended = process.poll() is not None
    server.faults.clear()
    assert ended or process.kill()
    return process
