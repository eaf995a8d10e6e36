"""Shards in a folder that a server serves, and their tables, local and remote."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pipeline.crops import Crops, View
from pipeline.dataset.open import open_splits
from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import SampleTable
from support.odd_images import encode

CROPS = Crops(views=(View(16, (0.3, 1.0)),) * 2)


def write_site(root: Path, count: int = 200, a_shard: int = 40, side: int = 60) -> Path:
    """`count` different JPEGs of three classes in tars without a table, and list.txt with their names."""
    noise = np.random.default_rng(0)
    images = (Image.fromarray(noise.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(count))
    records = [Record(f"{row:05d}", encode(image, "JPEG"), "jpg", row % 3) for row, image in enumerate(images)]
    pack(records, root, "shard", max_count=a_shard)
    for table in root.glob("table.*"):
        table.unlink()
    write_list(root)
    return root


def write_list(root: Path) -> None:
    (root / "list.txt").write_text("".join(f"{file.name}\n" for file in sorted(root.glob("*.tar"))))


def size_of(root: Path, pattern: str = "*.tar") -> int:
    return sum(file.stat().st_size for file in root.rglob(pattern))


def table_of(path: object, cache: Path, cache_bytes: str = "1GB", **choice: str) -> SampleTable:
    return open_splits(section(path, cache, cache_bytes, **choice), progress=False)[0]


def section(path: object, cache: Path, cache_bytes: str = "1GB", **choice: str):
    """A recipe's `data` section."""
    data = {"path": str(path), "test": None, "cache": str(cache), "cache_bytes": cache_bytes, "workers": 1}
    return OmegaConf.create(data | {"image": None, "label": None} | choice)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` (512k) in memory at `folder`; the test is skipped where mounting is not allowed."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
