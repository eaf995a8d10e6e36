"""Training on shards whose images are not on this machine: the same rows and crops; every byte once; Belady's cache."""

import fcntl
import shutil
import threading
import time
import zlib

import numpy as np
import pytest

from perf.remote.server import serving
from pipeline.dataset.sniff import HEAD
from pipeline.dataset.table import DatasetError
from pipeline.loader import Loader, evaluation_batches
from pipeline.order import order
from pipeline.remote.plan import NextUses, Plan, Step
from pipeline.remote.ranges import SPARE, spans
from pipeline.remote.records import NEVER, Records
from support.conversions import converted
from support.remote.sites import CROPS, small_disk, table_of, write_site
from support.small_datasets import packed

TENTH = "130KB"  # of the site's 1.3 MB
ROWS, BATCH = 200, 10


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def local(site, tmp_path_factory):
    return table_of(site / "*.tar", tmp_path_factory.mktemp("local"))


@pytest.fixture
def server(site, tmp_path):
    with serving(shutil.copytree(site, tmp_path / "site")) as server:
        yield server


@pytest.fixture
def table(server, tmp_path):
    table = table_of(f"{server.address}/list.txt", tmp_path / "cache", TENTH)
    server.requests.clear()
    server.sent = 0
    return table


def loader_of(table, **options):
    return Loader(table, CROPS, backend="torchvision", seed=1, global_batch=BATCH, **options)


def drawn(loader, epochs):
    """Rows and sums of crops of each step."""
    return [
        (batch.rows.tolist(), [float(crops.sum()) for crops in batch.crops]) for _ in range(epochs) for batch in loader
    ]


@pytest.mark.slow(seconds=5)
def test_rows_and_crops_are_those_of_the_disk_and_few_bytes_are_fetched_in_vain(server, table, local):
    remote, disk = loader_of(table), loader_of(local)
    assert drawn(remote, 4) == drawn(disk, 4)
    traffic = remote.feed.reader.remote.traffic
    remote.close(), disk.close()
    assert traffic.fetched <= 1.05 * traffic.needed
    assert traffic.kept > 0.08 * traffic.images  # a cache of a tenth, and the rows that are being fetched
    assert server.sent == traffic.fetched < 4 * int(local.length.sum())
    kept = sum(file.stat().st_size for file in table.root.parent.glob("images/*/*/*"))
    assert 0.5 * 130_000 < kept <= 130_000


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("table_beside", [True, False])
def test_a_beton_larger_than_the_cache_gives_the_same_rows_and_crops(site, tmp_path, raw, table_beside):
    converted(site / "*.tar", tmp_path / "site" / "x.beton", "beton", raw=raw)
    if not table_beside:
        (tmp_path / "site" / "x.npz").unlink()
    local = table_of(tmp_path / "site" / "x.beton", tmp_path / "local")
    with serving(tmp_path / "site") as server:
        table = table_of(f"{server.address}/x.beton", tmp_path / "cache", TENTH)
        assert table.digest() == local.digest() and np.array_equal(table.state, local.state)
        assert not any(table_bytes(table, row) for row in range(ROWS))
        remote, disk = loader_of(table), loader_of(local)
        assert drawn(remote, 2) == drawn(disk, 2)
        traffic = remote.feed.reader.remote.traffic
        remote.close(), disk.close()
    assert traffic.fetched <= 1.05 * traffic.needed


def table_bytes(table, row):
    """What the file on this machine has behind the first bytes of an image."""
    with (table.root / table.containers[0]).open("rb") as file:
        file.seek(int(table.offset[row]) + HEAD)
        return file.read(int(table.length[row]) - HEAD).strip(b"\0")


@pytest.mark.slow(seconds=3)
def test_a_run_that_goes_on_draws_the_same_and_finds_what_the_last_one_kept(server, table, local):
    whole = loader_of(local)
    expected = drawn(whole, 3)
    whole.close()
    first = loader_of(table)
    got = drawn(first, 1)
    state = first.state_dict(list)
    first.close()
    second = loader_of(table)
    second.load_state_dict(state)
    server.sent = 0
    assert got + drawn(second, 2) == expected
    assert second.feed.reader.remote.traffic.kept > 10
    second.close()


def test_a_loader_that_stops_within_an_epoch_goes_on_there(server, table, local):
    remote, disk = loader_of(table), loader_of(local)
    for loader in (remote, disk):
        for _ in zip(range(5), loader, strict=False):
            pass
        loader.close()
    assert drawn(remote, 1) == drawn(disk, 1)
    remote.close(), disk.close()


def test_a_loader_ends_soon_where_the_server_does_not_answer(server, table):
    server.faults += ["503"] * 10_000
    loader = loader_of(table)
    threading.Thread(target=lambda: next(iter(loader)), daemon=True).start()
    while not server.requests["GET"]:
        time.sleep(0.01)
    begun = time.monotonic()
    loader.close()
    assert time.monotonic() - begun < 60  # the budget of a request is 300 s


@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut", "flipped"])
def test_faults_while_training_change_nothing(server, table, local, fault):
    server.faults += [fault] * 3
    remote, disk = loader_of(table), loader_of(local)
    assert drawn(remote, 1) == drawn(disk, 1)
    assert not remote.bad and not server.faults
    remote.close(), disk.close()


def test_a_changed_object_ends_training_in_one_line_that_names_it(server, table):
    loader = loader_of(table)
    next(iter(loader))
    for shard in server.folder.glob("*.tar"):
        data = shard.read_bytes()
        shard.write_bytes(data[:600] + bytes(len(data) - 600))
    with pytest.raises(DatasetError, match=r"/shard-\d+\.tar: the object changed while it was in use"):
        drawn(loader, 1)
    loader.close()


def test_images_of_a_missing_shard_are_replaced_as_far_as_the_user_allows(server, table):
    (server.folder / "shard-000002.tar").unlink()
    lenient, strict = loader_of(table, max_bad_fraction=0.5), loader_of(table)
    rows = [row for rows, _ in drawn(lenient, 1) for row in rows]
    assert len(lenient.bad) == 40 and set(lenient.bad.values()) == {"missing on the server"}
    assert sorted(rows) == list(range(ROWS))  # the order stays
    assert server.sent < 2 * int(table.length.sum())  # a batch with a bad image is not fetched again
    with pytest.raises(DatasetError, match="images could not be read"):
        drawn(strict, 1)
    lenient.close(), strict.close()


def test_a_damaged_file_of_the_cache_is_fetched_again(server, table, local):
    remote, disk = loader_of(table), loader_of(local)
    drawn(remote, 1)
    remote.close()
    files = list(table.root.parent.glob("images/*/*/*"))
    for file in files[::2]:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    for file in files[1::2]:
        file.write_bytes(b"")
    drawn(disk, 1)
    assert files and drawn(remote, 1) == drawn(disk, 1)
    remote.close(), disk.close()


def test_a_second_run_on_the_same_cache_reads_the_same_and_keeps_nothing(server, table, local, capfd):
    disk = loader_of(local)
    digest = loader_of(table).feed.reader.remote._records.folder  # makes the folder, as the first run does
    from pipeline.remote.rows import _records_of

    _records_of.cache_clear()
    with (digest / "rank-0.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        second = loader_of(table)
        assert drawn(second, 2) == drawn(disk, 2)
        second.close(), disk.close()
    assert "another run keeps images here" in capfd.readouterr().err
    assert not list(digest.glob("*/*"))


def test_the_ranks_of_a_node_share_what_they_keep(server, table, local, monkeypatch):
    ranks = []
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        ranks.append(loader_of(table, rank=rank, world_size=2))
    disk = [loader_of(local, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(3):
        for batches in zip(*ranks, *disk, strict=True):  # in step, as training is
            assert [batch.rows.tolist() for batch in batches[:2]] == [batch.rows.tolist() for batch in batches[2:]]
    traffic = [loader.feed.reader.remote.traffic for loader in ranks]
    assert sum(each.kept for each in traffic) > 0.08 * sum(each.images for each in traffic)
    for loader in ranks + disk:
        loader.close()


def test_the_table_that_conversion_wrote_beside_the_shards_is_taken(tmp_path):
    local = packed(tmp_path / "site", count=60, max_count=20)
    names = [file.name for file in sorted((tmp_path / "site").iterdir())]
    (tmp_path / "site" / "list.txt").write_text("\n".join(names))
    with serving(tmp_path / "site") as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", "30KB")
        assert "table.npz" in names and table.digest() == local.digest() and table.classes == local.classes
        remote, disk = loader_of(table), loader_of(local)
        assert drawn(remote, 1) == drawn(disk, 1) and remote.feed.reader.remote.traffic.fetched
        remote.close(), disk.close()


def test_evaluation_reads_ahead_too(server, table, local):
    crops = CROPS.for_evaluation(16, 0.9)
    rows = np.arange(ROWS)[::-3].copy()
    options = {"backend": "torchvision", "batch_size": 8}
    one, two = (
        [batch.crops[0].sum().item() for batch in evaluation_batches(each, rows, crops, **options)]
        for each in (table, local)
    )
    assert one == two


# ------------------------------------------------------------------------------------------------- the cache alone


def _fetches_by_belady(steps, until, capacity):
    """Fetches before the step `until` for rows of one size, by looking through all later steps at each eviction."""
    kept, fetches = set(), 0
    for now, row in enumerate(steps[:until]):
        if row in kept:
            continue
        fetches += 1
        kept.add(row)
        if len(kept) > capacity:
            later = steps[now + 1 :]
            kept.remove(max(kept, key=later.index))
    return fetches


def test_the_cache_fetches_as_often_as_beladys_rule(tmp_path):
    rows, size, capacity, epochs = 40, 100, 10, 5
    orders = [order(3, epoch, np.arange(rows)) for epoch in range(epochs + 2)]
    steps = np.concatenate(orders).tolist()
    uses = NextUses(Plan(lambda epoch: orders[epoch], 1, 0, 1), rows)
    records, fetches = Records(tmp_path / "kept", capacity * size, 0, 1), 0
    for now, row in enumerate(steps[: epochs * rows]):
        data, following = bytes([row]) * size, int(uses.in_epoch(now // rows + 1)[row])
        if records.get(row, size, zlib.crc32(data)) is None:
            fetches += 1
            records.offer(row, data, following)
        else:
            records.use_at({row: following})
    assert fetches == _fetches_by_belady(steps, epochs * rows, capacity) < 0.9 * epochs * rows


def test_a_full_disk_ends_the_keeping_of_images_with_one_line(tmp_path, capfd):
    with small_disk(tmp_path / "disk", "128k") as disk:
        records = Records(disk / "kept", 1 << 30, 0, 1)
        data = {row: bytes([row]) * 20_000 for row in range(12)}
        kept = [row for row in data if records.offer(row, data[row], row)]
        assert 2 <= len(kept) < 12 and kept == list(range(len(kept)))
        for row in data:
            expected = data[row] if row in kept else None
            assert records.get(row, 20_000, zlib.crc32(data[row])) == expected
        records._place.close()
    assert capfd.readouterr().err.count("No space left on device; no more images are kept") == 1


def test_the_next_use_of_a_row_counts_the_ranks_of_this_node_only(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    orders = [np.arange(18), np.arange(18)[::-1]]
    uses = NextUses(Plan(lambda epoch: orders[epoch], 8, 3, 4), 18)  # ranks 2 and 3 of four, two samples each
    assert uses.node_rows(Step(0, 8, orders[0][6:8])).tolist() == [4, 5, 6, 7]
    first = uses.in_epoch(0)
    assert np.flatnonzero(first < NEVER).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]  # 16 and 17 are no whole batch
    assert uses.in_epoch(1)[13] == 18 + 4
    before = uses.before(Step(0, 16, orders[0][14:16]))
    assert before[12] == 12 and before[4] == 18 + 13
    lengths = np.full(18, 10)
    assert [uses.last_kept(1, lengths, most) for most in (25, 45, 80)] == [18 + 8, 18 + 16, NEVER]


def test_neighbors_share_a_request_as_long_as_little_lies_between_them():
    starts, lengths = [0, 10_000, 30_000, 40_300], [9_900, 10_000, 10_000, 10_000]
    made = spans([7, 8, 9, 10], [0, 0, 0, 0], starts, lengths)
    assert [span.rows for span in made] == [(7, 8), (9, 10)]
    for span in made:
        needed = sum(lengths[row - 7] for row in span.rows)
        assert span.end - span.start <= (1 + SPARE) * needed
    assert len(spans([1, 2], [0, 1], [0, 10], [10, 10])) == 2
