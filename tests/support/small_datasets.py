"""Small datasets on disk for tests, comparison of tables, and errors as text."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import COLUMNS, DatasetError, SampleTable
from support.odd_images import bad_images, encode, odd_images, plain_images, scene

ROOT = Path(__file__).resolve().parents[2]
PLAIN, ODD, BAD = plain_images(), odd_images(), bad_images()
ALL = PLAIN | ODD | {f"bad_{name}": data for name, (data, _) in BAD.items()}
PNG = encode(Image.fromarray(scene(20, 30)), "PNG")


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def same(one: SampleTable, two: SampleTable) -> bool:
    return (
        all(np.array_equal(getattr(one, name), getattr(two, name)) for name in COLUMNS)
        and (one.root, one.classes, one.quarantine) == (two.root, two.classes, two.quarantine)
        and list(one.containers) == list(two.containers)
    )


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        function(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def packed(out: Path, count: int = 7, **options) -> SampleTable:
    records = [
        Record(f"{i:03d}", encode(Image.fromarray(scene(20 + i, 30)), "PNG"), "png", i % 3) for i in range(count)
    ]
    return pack(records, out, "some", ("a", "b", "c"), **options)
