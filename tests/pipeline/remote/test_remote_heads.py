"""A scan of headers over the network: the table of the disk, after a few bytes of each image."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from perf.remote.server import serving
from pipeline.dataset.table import State
from pipeline.loader import Loader
from pipeline.remote import mirror
from support.conversions import converted
from support.remote.sites import CROPS, table_of, write_site
from support.small_datasets import PLAIN, error_of, write

WRITTEN = Path(__file__).parents[1] / "written"
COUNT, BOUND, HEADERS = 24, "400KB", {"check": "headers"}


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """JPEGs of 110 kB in tars without a table, of which one is cut short and one is 3 kB."""
    root = tmp_path_factory.mktemp("tars")
    write_site(root / "small", 1, 1, side=30)
    write_site(root / "large", COUNT - 2, 10, side=400)
    data = (root / "large" / "shard-000000.tar").read_bytes()
    start = data.index(b"\xff\xd8\xff")
    write(root / "cut", {"cut.jpg": data[start : start + 60_000]})
    shutil.make_archive(str(root / "cut"), "tar", root / "cut")
    site = root / "site"
    site.mkdir()
    (root / "cut.tar").rename(site / "cut.tar")
    (root / "small" / "shard-000000.tar").rename(site / "small.tar")
    for shard in (root / "large").glob("*.tar"):
        shard.rename(site / shard.name)
    return site


def site_of(kind, tars, root):
    """A folder with the images in files of a kind, and a list of them."""
    if kind == "tar":
        shutil.copytree(tars, root)
    elif kind == "loose":
        for number, shard in enumerate(sorted(tars.glob("*.tar"))):
            shutil.unpack_archive(shard, root / f"class{number}")
        for other in root.rglob("*.cls"):
            other.unlink()
    elif kind in ("tfrecord", "recordio"):
        converted(tars / "shard*.tar", root, kind)
        for other in (*root.glob("*.json"), *root.glob("*.npz"), *root.glob("*.idx")):
            other.unlink()
    elif kind == "beton":
        root.mkdir()
        converted(tars / "shard*.tar", root / "x.beton", kind)
        (root / "x.npz").unlink()
    else:
        shutil.copytree(WRITTEN / kind, root)
    names = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
    (root / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return root, sum((root / name).stat().st_size for name in names)


def drawn(table):
    """Rows and sums of the crops of two epochs, and the images that were replaced."""
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=3)
    steps = [(batch.rows.tolist(), [float(crops.sum()) for crops in batch.crops]) for _ in range(2) for batch in loader]
    loader.close()
    return steps, loader.bad


KINDS = ["tar", "beton", "tfrecord", "recordio", "loose", "mds/jpeg", "litdata/jpeg", "litdata/rows"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_and_the_epochs_are_those_of_the_disk_after_a_tenth_of_the_bytes(tars, tmp_path, kind):
    root, size = site_of(kind, tars, tmp_path / "site")
    (root / "list.txt").rename(tmp_path / "list.txt")
    local = table_of(root / "*.tar" if kind == "tar" else root, tmp_path / "local", **HEADERS)
    (tmp_path / "list.txt").rename(root / "list.txt")
    written = "/" in kind  # by the library, with small images
    with serving(root) as server:
        table = table_of(
            f"{server.address}/list.txt", tmp_path / "cache", f"{size // 2}B" if written else BOUND, **HEADERS
        )
        assert server.sent < (1.1 if written else 0.12) * size
        assert server.requests["GET"] < 1.5 * len(table) + 20
        assert table.digest() == local.digest() and table.classes == local.classes and table.check == local.check
        for column in ("state", "width", "height", "label", "length", "offset"):
            assert np.array_equal(getattr(table, column), getattr(local, column)), column
        steps, bad = drawn(table)
        assert (steps, bad) == drawn(local)
        assert len(bad) == (kind in ("tar", "loose"))  # the one that is cut short, found when it is first used


def leave(cache):
    """What the end of a process does: others may replace the mirror's files."""
    for folder in list(mirror._in_use):
        if cache in folder.parents:
            mirror._in_use.pop(folder).close()


def test_a_later_start_that_decodes_fetches_all_and_one_of_headers_then_nothing(tars, tmp_path):
    root, size = site_of("tar", tars, tmp_path / "site")
    cache = tmp_path / "cache"
    with serving(root) as server:
        address = f"{server.address}/list.txt"
        table_of(address, cache, BOUND, **HEADERS)
        leave(cache)
        server.asked.clear()
        assert len(table_of(address, cache, BOUND, **HEADERS)) == COUNT and set(+server.asked) == {"list.txt"}
        leave(cache)
        server.sent = 0
        decoded = table_of(address, cache, BOUND)
        assert server.sent >= size and (decoded.state == State.QUARANTINED).sum() == 1
        leave(cache)
        server.asked.clear()
        table_of(address, cache, BOUND, **HEADERS)
        leave(cache)
        table_of(address, cache, BOUND)
        assert set(+server.asked) == {"list.txt"}


def test_images_that_are_gone_or_change_are_treated_as_in_a_scan_that_decodes(tmp_path):
    root = write(tmp_path / "site", PLAIN)
    (root / "list.txt").write_text("".join(f"{name}\t{len(data)}\n" for name, data in PLAIN.items()))
    with serving(root) as server:
        server.gone.add(sorted(PLAIN)[0])
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", "2KB", **HEADERS)
        assert np.flatnonzero(table.state == State.QUARANTINED).tolist() == [0] and len(table) == len(PLAIN)


def test_a_damaged_shard_is_one_line_that_names_it(tars, tmp_path):
    root, _ = site_of("tar", tars, tmp_path / "site")
    shard = root / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    second = data.index(b"ustar", 1000) - 257
    data[second : second + 512] = b"x" * 512
    shard.write_bytes(data)
    with serving(root) as server:
        line = error_of(table_of, f"{server.address}/list.txt", tmp_path / "cache", BOUND, **HEADERS)
    assert "shard-000000.tar: damaged at byte" in line and str(tmp_path / "cache") not in line
