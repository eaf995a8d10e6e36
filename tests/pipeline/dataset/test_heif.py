"""HEIC, the photographs of telephones: read where pillow-heif is installed, else counted with what to install."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.accounting import accounting, in_one_line
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.dataset.sniff import HAS_HEIF
from pipeline.dataset.table import State
from support.small_datasets import PNG, write


@pytest.mark.skipif(HAS_HEIF, reason="pillow-heif is installed")
def test_without_the_package_a_line_says_what_to_install(tmp_path):
    root = write(tmp_path / "x", {"a/1.png": PNG, "a/2.HEIC": b"\0\0\0\x18ftypheic" + bytes(200)})
    table = open_dataset(root, tmp_path / "cache", 1, progress=False)
    line = in_one_line(accounting(table))
    assert "left out: 1 (.heic 1), .heic needs pip install pillow-heif" in line


def test_with_the_package_they_are_read_upright(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 250, 20, 20
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for name, options in {"plain": {}, "turned": {"exif": exif.tobytes()}}.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "HEIF", quality=95, **options)
        files[f"a/{name}.heic"] = files[f"b/{name}"] = buffer.getvalue()
    files["a/broken.heic"] = files["a/plain.heic"][:300]
    table = open_dataset(write(tmp_path / "x", files), tmp_path / "cache", 1, progress=False)
    assert sorted(table.name(row) for row in np.flatnonzero(table.state == State.PIL)) == sorted(files)[1:]
    assert table.quarantine.keys() == {0} and table.name(0) == "a/broken.heic"
    reader = Reader(table)
    for row in range(1, len(table)):
        upright = np.rot90(pixels, -1) if "turned" in table.name(row) else pixels
        assert (table.height[row], table.width[row]) == upright.shape[:2]
        decoded = reader.decode(row)
        assert decoded.shape == upright.shape and np.abs(decoded.astype(int) - upright).mean() < 4
