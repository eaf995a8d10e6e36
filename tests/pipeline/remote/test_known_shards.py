"""Shards larger than the cache whose table lies beside them: no image is fetched before training needs it."""

import json
import shutil

import numpy as np
import pytest

from perf.remote.server import serving
from pipeline.loader import Loader
from support.conversions import converted
from support.remote.sites import CROPS, size_of, table_of, write_site

TENTH = "30KB"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Tars and a .beton that conversion wrote, with their tables."""
    root = tmp_path_factory.mktemp("known")
    write_site(root / "plain", 60, 30)
    converted(root / "plain" / "*.tar", root / "tars", "wds")
    (root / "beton").mkdir()
    converted(root / "plain" / "*.tar", root / "beton" / "x.beton", "beton")
    for folder in (root / "tars", root / "beton"):
        names = sorted(file.name for file in folder.iterdir())
        (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def drawn(table):
    """Rows and sums of the crops of two epochs."""
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=10)
    steps = [(batch.rows.tolist(), [float(crops.sum()) for crops in batch.crops]) for _ in range(2) for batch in loader]
    loader.close()
    return steps


@pytest.mark.parametrize("kind", ["tars", "beton"])
def test_a_start_fetches_the_table_and_no_image(shards, tmp_path, kind):
    pattern = "*.beton" if kind == "beton" else "*.tar"
    path = shards / kind / "x.beton" if kind == "beton" else shards / kind
    local = table_of(path, tmp_path / "local")
    with serving(shards / kind) as server:
        address = f"{server.address}/{'x.beton' if kind == 'beton' else 'list.txt'}"
        table = table_of(address, tmp_path / "cache", TENTH)
        assert server.sent < 0.15 * size_of(shards / kind, pattern)
        assert table.digest() == local.digest() and table.classes == local.classes
        files = [table.root / name for name in table.containers]
        assert size_of(table.root, pattern) == size_of(shards / kind, pattern)
        assert sum(file.stat().st_blocks for file in files) * 512 < 0.15 * size_of(shards / kind, pattern)
        server.sent = 0
        assert drawn(table) == drawn(local)
        assert int(local.length.sum()) < server.sent < 2 * 1.05 * int(local.length.sum())


@pytest.mark.parametrize("change", ["size", "missing", "damaged"])
def test_a_table_that_does_not_fit_is_not_believed(shards, tmp_path, change):
    site = shutil.copytree(shards / "tars", tmp_path / "site")
    if change == "size":
        manifest = json.loads((site / "table.json").read_text())
        manifest["containers"][0]["bytes"] += 512
        (site / "table.json").write_text(json.dumps(manifest))
    elif change == "missing":
        (site / "table.json").unlink()
        names = [name for name in (site / "list.txt").read_text().split() if name != "table.json"]
        (site / "list.txt").write_text("\n".join(names))
    else:
        (site / "table.json").write_text("{")
    local = table_of(site, tmp_path / "local")
    with serving(site) as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", TENTH)
        first = table.containers[0]
        assert server.asked[first] == 1  # the whole tar, for a scan
        assert table.digest() == local.digest() and drawn(table) == drawn(local)


def test_a_beton_with_the_table_of_another_is_scanned(shards, tmp_path):
    site = shutil.copytree(shards / "beton", tmp_path / "site")
    converted(shards / "plain" / "shard-000000.tar", tmp_path / "y.beton", "beton")
    for suffix in (".npz", ".json"):
        (site / f"x{suffix}").write_bytes((tmp_path / f"y{suffix}").read_bytes())
    with serving(site) as server:
        table = table_of(f"{server.address}/x.beton", tmp_path / "cache", TENTH)
        assert server.sent > size_of(site, "*.beton") and len(table) == 60
        assert np.array_equal(table.length, table_of(shards / "beton" / "x.beton", tmp_path / "local").length)


def test_faults_while_training_change_nothing_without_checksums(shards, tmp_path):
    with serving(shards / "tars") as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", TENTH)
        server.faults += ["cut", "503", "reset"]
        local = table_of(shards / "tars", tmp_path / "local")
        assert drawn(table) == drawn(local) and not server.faults
