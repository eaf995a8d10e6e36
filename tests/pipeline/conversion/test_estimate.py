"""Conversion estimates its disk space before it starts, and leaves nothing behind if it refuses."""

import os
import pickle
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline.conversion.estimate import expect
from pipeline.conversion.rewrite import Options
from pipeline.conversion.sources import open_source
from pipeline.dataset.table import SampleTable
from support.conversions import converted, target
from support.odd_images import chunk, encode, exif
from support.packed_sources import Evil, cifar10, hugging_face, idx, write_arrow
from support.photos import photographs
from support.small_datasets import error_of, write

PART = 1 << 28
TURNED = exif(6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs of three kinds in turn: small in bytes, rotated by EXIF, in CMYK. As PNGs the first take 200 bytes."""
    folder, files, sources = tmp_path_factory.mktemp("photos"), {}, photographs()
    for index in range(24):
        photo = Image.fromarray(sources[index % len(sources)]).resize((300 + 7 * index, 200))
        files[f"flat/{index}.png"] = encode(Image.new("RGB", photo.size, (index, 9, 9)), "PNG")
        files[f"turned/{index}.jpg"] = encode(photo, "JPEG", quality=75, exif=b"Exif\0\0" + TURNED)
        files[f"cmyk/{index}.jpg"] = encode(photo.convert("CMYK"), "JPEG", quality=60)
    return write(folder, files)


@pytest.mark.parametrize("kind", ["flat", "turned", "cmyk", "."])
@pytest.mark.parametrize(
    "options",
    [
        Options("beton"), Options("beton", raw=True), Options("beton", raw=True, short=50), Options("wds"),
        Options("wds", short=100), Options("beton", quality=30),
    ],
)  # fmt: skip
def test_the_estimate_is_enough_and_not_much_more(photos, tmp_path, kind, options):
    expected = expect(open_source(photos / kind, tmp_path / "spool", progress=False), options, PART)
    out = target(tmp_path, options.format)
    converted(
        photos / kind, out, **{"kind": options.format} | {n: getattr(options, n) for n in ("short", "raw", "quality")}
    )
    files = out.rglob("*") if out.is_dir() else tmp_path.glob("x.*")
    taken = sum(file.stat().st_size for file in files)
    assert taken <= expected.out <= 1.3 * taken + (1 << 24)  # pages of 8 MiB at both ends of a .beton
    table = SampleTable.load(out / "table.npz" if out.is_dir() else out.with_suffix(".npz"))
    assert expected.image == pytest.approx(table.length.mean() + (2048 if options.format == "wds" else 0), rel=0.1)


def test_the_page_that_one_image_fills_by_half_is_counted(tmp_path):
    files = {f"{index}.png": encode(Image.new("RGB", (2000, 1500 + index)), "PNG") for index in range(12)}
    source = write(tmp_path / "source", files)  # 9 MB of pixels each, in pages of 16 MiB
    expected = expect(open_source(source, tmp_path / "spool", progress=False), Options("beton", raw=True), PART)
    converted(source, tmp_path / "x.beton", "beton", raw=True)
    taken = (tmp_path / "x.beton").stat().st_size
    assert taken > 1.5 * 12 * 9e6
    assert taken <= expected.out <= 1.3 * taken


@pytest.mark.parametrize("kind", ["parquet", "arrow", "idx", "cifar"])
def test_what_spooling_takes_is_known_before(tmp_path, kind):
    root = tmp_path / "root"
    if kind == "parquet":
        root.mkdir()
        parquet.write_table(pa.concat_tables([hugging_face()] * 30), root / "x.parquet", use_dictionary=False)
    elif kind == "arrow":
        write_arrow(root / "x.arrow", pa.concat_tables([hugging_face()] * 30))
    elif kind == "idx":
        images = np.zeros((200, 28, 28), np.uint8)
        write(root, {"x-images-idx3-ubyte": idx(images), "x-labels-idx1-ubyte": idx(images[:, 0, 0])})
    else:
        write(root, cifar10()[0])
    estimates = []
    open_source(root, tmp_path / "spool", progress=False, check=lambda source: estimates.append(source.bytes))
    taken = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.tar"))
    assert 0.8 * taken - (1 << 14) < estimates[0] < 1.5 * taken


def test_a_source_is_not_spooled_without_room(tmp_path):
    for name, header in (
        ("x-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, 1 << 31, 60, 60)),
        ("data_batch_1", b""),
    ):
        with open(tmp_path / name, "wb") as file:
            file.write(header)
            file.truncate(1 << 43)  # eight terabytes, sparse
        line = error_of(converted, tmp_path / name, tmp_path / "x.beton", "beton")
        assert "of it to unpack the source), and " in line and "are free" in line
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_what_was_spooled_goes_where_out_has_no_room(tmp_path):
    """Raw pixels of large PNGs: their size is known only from a sample, which needs the spooled tars."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free > 1 << 40:
        pytest.skip("no small file system at /dev/shm")
    header = struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    rows = shutil.disk_usage(memory).free // (3 * 9000**2) + 2
    parquet.write_table(pa.table({"image": [{"bytes": png, "path": None}] * rows}), tmp_path / "x.parquet")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        line = error_of(converted, tmp_path / "x.parquet", Path(folder) / "x.beton", "beton", raw=True)
        assert "needs about" in line and "to unpack" not in line
        assert os.listdir(folder) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_is_refused_leaves_nothing(tmp_path, workers):
    files = cifar10()[0] | {"data_batch_2": pickle.dumps({"data": Evil(str(tmp_path / "evil")), "labels": []})}
    source = write(tmp_path / "source", files)
    line = error_of(converted, source, tmp_path / "x", "wds", workers=workers)
    assert "which could run any program" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    parquet.write_table(pa.table({"image": pa.array([], pa.struct([("bytes", pa.binary())]))}), tmp_path / "x.parquet")
    assert "no images found" in error_of(converted, tmp_path / "x.parquet", tmp_path / "x", "wds")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "x.parquet"]
