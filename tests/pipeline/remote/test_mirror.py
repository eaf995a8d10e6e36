"""The mirror of a bucket or server: the same table as from a disk; fetched once, again only where it changed."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from config.recipe import ROOT
from config.schema.ranges import bytes_of
from perf.remote.server import serving
from pipeline.dataset.table import State
from pipeline.remote.index import FILE
from pipeline.remote.mirror import local_path, mirror_folder
from support.remote.sites import size_of, small_disk, table_of, write_list, write_site
from support.small_datasets import BAD, PLAIN, error_of, write

APART = "20KB"  # less than any site here has


@pytest.fixture
def server(tmp_path):
    with serving(write_site(tmp_path / "site", count=40, a_shard=10, side=40)) as server:
        yield server


def mirror_of(server, cache):
    return mirror_folder(cache, f"{server.address}/list.txt")


@pytest.mark.parametrize("cache_bytes", ["1GB", APART])
def test_shards_of_a_server_give_the_same_table_as_from_a_disk(server, tmp_path, cache_bytes):
    local = table_of(server.folder / "*.tar", tmp_path / "local")
    table = table_of(f"{server.address}/list.txt", tmp_path / "cache", cache_bytes)
    assert table.digest() == local.digest() and np.array_equal(table.offset, local.offset)
    assert list(table.containers) == list(local.containers)
    assert [table.name(row) for row in (0, 39)] == [local.name(row) for row in (0, 39)]
    assert server.sent == size_of(server.folder) + len((server.folder / "list.txt").read_bytes())


def test_shards_without_their_images_are_small_and_listed_anew_for_another_choice_of_labels(server, tmp_path):
    write_site(server.folder / "large", count=6, a_shard=3, side=150)  # a hole is whole blocks of the disk
    for shard in server.folder.glob("*.tar"):
        shard.unlink()
    for shard in server.folder.glob("large/*.tar"):
        shard.rename(server.folder / shard.name)
    write_list(server.folder)
    table = table_of(f"{server.address}/list.txt", tmp_path / "cache", APART)
    blocks = sum(file.stat().st_blocks for file in table.root.glob("*.tar")) * 512
    assert blocks < 0.6 * size_of(server.folder) == 0.6 * size_of(table.root)
    sent = server.sent
    unlabelled = table_of(f"{server.address}/list.txt", tmp_path / "cache", APART, label="none")
    assert (unlabelled.label == -1).all() and np.array_equal(unlabelled.length, table.length)
    assert server.sent - sent < 1000  # the list


def test_loose_images_and_bad_ones_are_those_of_a_folder(tmp_path):
    images = {f"{'ab'[i % 2]}/{name}": data for i, (name, data) in enumerate(PLAIN.items())}
    images["a/broken.jpg"] = next(iter(BAD.values()))[0]
    write(tmp_path / "site", images)
    local = table_of(tmp_path / "site", tmp_path / "local")
    (tmp_path / "site" / "list.txt").write_text("".join(f"{name}\n" for name in images))
    with serving(tmp_path / "site") as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache")
    assert table.digest() == local.digest() and table.classes == local.classes == ("a", "b")
    assert list(table.quarantine.values()) == list(local.quarantine.values())


def test_a_missing_object_is_quarantined_like_an_empty_file(tmp_path):
    names = list(PLAIN)
    write(tmp_path / "site", {**PLAIN, "list.txt": "\n".join(names).encode()})
    with serving(tmp_path / "site") as server:
        server.gone.add(names[0])
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache")
    (row,) = np.flatnonzero(table.state == State.QUARANTINED)
    assert table.name(row) == names[0] and len(table) == len(names)


@pytest.mark.parametrize("name", ["list.txt", "shard-{000000..000003}.tar"])
def test_a_missing_shard_is_one_line_before_any_is_fetched(server, tmp_path, name):
    server.gone.add("shard-000002.tar")
    line = error_of(table_of, f"{server.address}/{name}", tmp_path / "cache")
    assert line.endswith("shard-000002.tar: no such object on the server; put it there, or leave it out")
    assert set(+server.asked) <= {"list.txt"}


@pytest.mark.parametrize("cache_bytes", ["1GB", APART])
def test_the_next_start_fetches_what_is_new_or_changed_and_drops_what_is_gone(server, tmp_path, cache_bytes):
    address, cache = f"{server.address}/list.txt", tmp_path / "cache"
    before = table_of(address, cache, cache_bytes)
    _leave(server, cache)
    server.asked.clear()
    assert table_of(address, cache, cache_bytes).digest() == before.digest()
    assert set(+server.asked) == {"list.txt"}
    first, second, *_ = sorted(server.folder.glob("*.tar"))
    first.write_bytes(second.read_bytes())
    second.unlink()
    write_list(server.folder)
    _leave(server, cache)
    after = table_of(address, cache, cache_bytes)
    assert set(+server.asked) == {"list.txt", first.name}
    assert len(after) == 30 and after.length[:10].tolist() == before.length[10:20].tolist()


def _leave(server, cache):
    """What the end of a process does: others may replace the mirror's files."""
    from pipeline.remote import mirror

    for folder in list(mirror._in_use):
        mirror._in_use.pop(folder).close()


@pytest.mark.parametrize("change", ["object", "bound"])
def test_files_that_another_run_reads_are_not_replaced(server, tmp_path, change):
    address, cache = f"{server.address}/list.txt", tmp_path / "cache"
    table = table_of(address, cache)
    _leave(server, cache)
    with (mirror_of(server, cache) / "in-use").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        if change == "object":
            next(server.folder.glob("*.tar")).touch()
        line = error_of(table_of, address, cache, APART if change == "bound" else "1GB")
        assert "another run reads" in line and "set another data.cache" in line
        assert size_of(table.root) == size_of(server.folder)  # nothing is lost


def test_a_cache_of_another_version_is_one_line_and_stays(server, tmp_path):
    address, cache = f"{server.address}/list.txt", tmp_path / "cache"
    table_of(address, cache)
    index = mirror_of(server, cache) / FILE
    text = index.read_text().replace('"swave mirror": 1', '"swave mirror": 7')
    index.write_text(text)
    line = error_of(table_of, address, cache)
    assert "is a cache of another version" in line and str(index.parent) in line and "delete that folder" in line
    assert index.read_text() == text


def test_a_large_beton_that_is_none_is_one_line(tmp_path):
    write(tmp_path / "site", {"train.beton": bytes(50_000)})
    with serving(tmp_path / "site") as server:
        line = error_of(table_of, f"{server.address}/train.beton", tmp_path / "cache", APART)
    assert line.startswith(f"data.path={server.address}/train.beton: train.beton: not FFCV's format 2")


def test_one_large_file_beyond_the_bound_is_one_line(tmp_path):
    write(tmp_path / "site", {"train.h5": bytes(50_000)})
    with serving(tmp_path / "site") as server:
        line = error_of(table_of, f"{server.address}/train.h5", tmp_path / "cache", APART)
    assert "data.cache_bytes=20000" in line and "make tars of them" in line
    assert server.sent == 0


def test_a_full_disk_under_the_cache_is_one_line(server, tmp_path):
    with small_disk(tmp_path / "disk", "512k") as disk:
        (server.folder / "large.tar").write_bytes(bytes(1 << 20))
        early = error_of(table_of, f"{server.address}/large.tar", disk)
        assert "MB of room" in early and str(disk) in early and server.sent == 0
        blocks = -(-(server.folder / "shard-000000.tar").stat().st_size // 4096)
        (disk / "filler").write_bytes(bytes((os.statvfs(disk).f_bavail - blocks - 2) * 4096))
        late = error_of(table_of, f"{server.address}/shard-000000.tar", disk)  # the shard fits, but nothing else
        assert "cannot write" in late and "No space left on device" in late and str(disk) in late
        _leave(server, disk)


def test_a_disk_that_fills_while_an_object_is_fetched_leaves_no_file_with_holes(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.remote.mirror._check_room", lambda *_: None)  # another program fills it later
    with small_disk(tmp_path / "disk", "1m") as disk:
        (server.folder / "large.tar").write_bytes(bytes(range(256)) * 6000)
        line = error_of(table_of, f"{server.address}/large.tar", disk)
        assert "cannot write to the cache" in line and "No space left on device" in line
        assert not list(disk.rglob("large.tar"))
        _leave(server, disk)


PROGRAM = """
import sys
from pathlib import Path
from pipeline.remote.mirror import local_path
print(local_path(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 1, progress=False))
"""


def _start(server, cache, cache_bytes):
    command = [sys.executable, "-c", PROGRAM, f"{server.address}/list.txt", str(cache), str(cache_bytes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("cache_bytes", [10**9, 20_000])
def test_a_kill_while_fetching_leaves_only_whole_files_and_the_rest_is_fetched(server, tmp_path, cache_bytes):
    local = table_of(server.folder / "*.tar", tmp_path / "local")
    cache, total = tmp_path / "cache", size_of(server.folder)
    for sent in (total // 4, total // 2):
        server.rate, server.sent = 60_000, 0
        process = _start(server, cache, cache_bytes)
        while server.sent < sent and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        for file in (mirror_of(server, cache) / "files").glob("*.tar"):
            assert file.stat().st_size == (server.folder / file.name).stat().st_size
    server.rate = 0
    table = table_of(f"{server.address}/list.txt", cache, f"{cache_bytes}B")
    assert table.digest() == local.digest()
    assert not any((mirror_of(server, cache) / "partial").iterdir())


@pytest.mark.slow(seconds=10)
def test_processes_that_start_together_fetch_each_byte_once(server, tmp_path):
    server.latency = 0.05
    processes = [_start(server, tmp_path / "cache", 10**9) for _ in range(3)]
    watch = threading.Thread(target=lambda: [process.wait() for process in processes])
    watch.start()
    watch.join(60)
    outputs = [process.communicate() for process in processes]
    assert len({place for place, _ in outputs}) == 1 and all(process.returncode == 0 for process in processes), outputs
    assert all(count == 1 for name, count in server.asked.items() if name != "list.txt")


def test_processes_that_make_the_folders_of_a_mirror_at_the_same_moment_are_not_in_each_others_way(server, tmp_path):
    address, together = f"{server.address}/list.txt", 4
    for number in range(20):  # of 20 moments, one hits a folder that another process has just removed
        gate = threading.Barrier(together)

        def start(gate=gate, cache=tmp_path / f"cache{number}"):
            gate.wait()
            return local_path(address, cache, None, workers=1, progress=False)

        with ThreadPoolExecutor(together) as pool:
            assert len(set(pool.map(lambda begin: begin(), [start] * together))) == 1


@pytest.mark.parametrize(
    ("first", "second", "whole", "check"),
    [
        ((APART, "headers"), (APART, "decode"), False, "decode"),
        (("1GB", "decode"), (APART, "decode"), False, "decode"),
        ((APART, "decode"), ("1GB", "headers"), True, ""),
    ],
)
def test_a_start_that_waits_for_one_with_other_settings_makes_the_mirror_its_own(
    server, tmp_path, first, second, whole, check
):
    address, cache, server.latency = f"{server.address}/list.txt", tmp_path / "cache", 0.05
    mirror = mirror_of(server, cache)

    def start(cache_bytes, check):
        return local_path(address, cache, bytes_of(cache_bytes), workers=1, progress=False, check=check)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(start, *first)
        while not (mirror / "partial").exists():
            time.sleep(0.001)
        assert start(*second) == other.result()
    apart = mirror / "without-images.json"
    assert apart.exists() == (not whole)
    assert whole or json.loads(apart.read_text())["check"] == check
    for row in json.loads(f"[{','.join((mirror / FILE).read_text().splitlines()[1:])}]"):
        assert row[5] == whole
