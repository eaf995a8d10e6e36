"""Files of records and loose images larger than the cache: the rows, crops and labels of the disk, by byte ranges."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from perf.remote.server import serving
from pipeline.dataset.reader import Reader
from pipeline.dataset.sniff import HEAD
from pipeline.dataset.table import DatasetError, State
from pipeline.loader import Loader
from support.conversions import converted
from support.native.images import tiff, tiles
from support.odd_images import raw_png
from support.remote.sites import CROPS, table_of, write_site
from support.small_datasets import BAD, PLAIN, error_of, write

WRITTEN = Path(__file__).parents[1] / "written"


def listed(root):
    """`list.txt` of all files below a folder."""
    names = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
    (root / "list.txt").write_text("".join(f"{name}\n" for name in names if name != "list.txt"))
    return root


@pytest.fixture
def source(request, tmp_path):
    """A folder of files that the real library wrote, or that conversion makes."""
    kind, root = request.param, tmp_path / "site"
    if kind in ("tfrecord", "recordio"):
        write_site(tmp_path / "tars", 60, 30, 24)
        converted(tmp_path / "tars" / "*.tar", root, kind)
    elif kind == "loose":
        write(root, {f"{'ab'[i % 2]}/{name}": data for i, (name, data) in enumerate(PLAIN.items())})
    else:
        shutil.copytree(next((WRITTEN / kind).rglob("*-of-*")).parent if "tfds" in kind else WRITTEN / kind, root)
    return root


SOURCES = [
    "tfrecord", "recordio", "tfds/pets/jpeg", "mds/jpeg", "mds/pil", "litdata/jpeg", "litdata/pil", "litdata/rows",
    "loose",
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_rows_labels_and_crops_are_those_of_the_disk(source, tmp_path):
    local = table_of(source, tmp_path / "local")
    listed(source)
    bound = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) * 2 // 3
    with serving(source) as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", f"{bound}B")
        assert table.digest() == local.digest()
        for column in ("state", "width", "height", "label", "length", "offset"):
            assert np.array_equal(getattr(table, column), getattr(local, column)), column
        assert table.classes == local.classes
        assert not any(image_bytes(table, row) for row in range(len(table)))
        server.sent = 0
        assert drawn(table) == drawn(local)
        assert server.sent <= 1.05 * 2 * int(local.length.sum())
        again = table_of(f"{server.address}/list.txt", tmp_path / "other", f"{bound}B")
        assert again.digest() == local.digest()


def drawn(table):
    """Rows and sums of the crops of two epochs."""
    loader = Loader(table, CROPS, backend="torchvision", seed=1, global_batch=3)
    steps = [(batch.rows.tolist(), [float(crops.sum()) for crops in batch.crops]) for _ in range(2) for batch in loader]
    loader.close()
    return steps


def image_bytes(table, row):
    """What the file on this machine has of an image behind its first bytes."""
    data = (table.root / table.containers[table.container[row]]).read_bytes()
    start = int(table.offset[row])
    return data[start + HEAD : start + int(table.length[row])].strip(b"\0")


def test_bad_images_are_those_of_the_disk_and_stay_out(tmp_path):
    images = {f"{'ab'[i % 2]}/{name}": data for i, (name, data) in enumerate(PLAIN.items())}
    images |= {f"a/bad-{name}.jpg": data for name, (data, _) in BAD.items()}
    root = write(tmp_path / "site", images)
    local = table_of(root, tmp_path / "local")
    listed(root)
    with serving(root) as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", "50KB")
        assert table.quarantine == local.quarantine and len(local.quarantine) == len(BAD)
        assert table.digest() == local.digest()
        gone = sorted(PLAIN)[0]
        server.gone.add(next(name for name in images if name.endswith(f"/{gone}")))
        other = table_of(f"{server.address}/list.txt", tmp_path / "other", "50KB")
    assert (other.state == State.QUARANTINED).sum() == len(BAD) + 1


def test_a_start_after_a_kill_fetches_only_the_images_that_are_missing(tmp_path, monkeypatch):
    from pipeline.remote import mirror

    monkeypatch.setattr(mirror, "IMAGES_OF_GROUP", 3)
    root = listed(write(tmp_path / "site", PLAIN))
    with serving(root) as server:
        address, cache = f"{server.address}/list.txt", tmp_path / "cache"
        done, real = [], mirror.images_apart

        def killed(files, workers):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(files)
            return real(files, workers)

        monkeypatch.setattr(mirror, "images_apart", killed)
        with pytest.raises(KeyboardInterrupt):
            table_of(address, cache, "20KB")
        monkeypatch.setattr(mirror, "images_apart", real)
        server.asked.clear()
        assert len(table_of(address, cache, "20KB")) == len(PLAIN)
        assert len(+server.asked) == 1 + len(PLAIN) - 2 * 3


def test_what_cannot_be_fetched_in_part_is_one_line(tmp_path):
    root = listed(shutil.copytree(WRITTEN / "mds/gray", tmp_path / "site"))
    with serving(root) as server:
        line = error_of(table_of, f"{server.address}/list.txt", tmp_path / "cache", "1KB")
    assert "holds raw pixels" in line and "raise data.cache_bytes" in line and str(tmp_path / "cache") not in line


def test_deep_images_are_refused_by_name(tmp_path):
    deep = np.arange(900, dtype=np.uint16).reshape(30, 30, 1) * 50
    root = listed(write(tmp_path / "site", {f"{number}.png": raw_png(deep + number) for number in range(4)}))
    with serving(root) as server, pytest.raises(DatasetError, match="are not fetched one by one"):
        table_of(f"{server.address}/list.txt", tmp_path / "cache", "1KB")


def bands(root):
    images = tiles(4, channels=2)
    return write(root, {f"{row}_b{band}.tif": tiff(images[row][..., band]) for row in range(4) for band in range(2)})


def frames(root):
    dicom = pytest.importorskip("support.native.dicoms", reason="pydicom is not installed").dicom
    pixels = np.stack(tiles(4, channels=1))[..., 0]
    return write(root, {"a/one.dcm": dicom(pixels[0]), "b/three.dcm": dicom(pixels[1:])})


def hdf5(root):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    root.mkdir()
    with h5py.File(root / "x.h5", "w") as file:
        file.create_dataset("x", data=np.stack(tiles(4)), compression="gzip")
    return root


@pytest.mark.parametrize(
    ("make", "choice", "refusal"),
    [
        (bands, {"bands": "b0,b1"}, "images with 1 channel of uint16 are not fetched one by one"),
        (frames, {}, "images with 1 channel of uint16 are not fetched one by one"),
        (hdf5, {}, "without byte ranges of images"),
    ],
)
def test_other_images_are_those_of_the_disk_if_the_cache_holds_them_and_else_refused(tmp_path, make, choice, refusal):
    root = make(tmp_path / "site")
    local = table_of(root, tmp_path / "local", **choice)
    listed(root)
    with serving(root) as server:
        table = table_of(f"{server.address}/list.txt", tmp_path / "cache", **choice)
        line = error_of(table_of, f"{server.address}/list.txt", tmp_path / "small", "1KB", **choice)
    assert table.digest() == local.digest() and len(table) == 4
    for row in range(4):
        np.testing.assert_array_equal(Reader(table).native(row), Reader(local).native(row))
    assert refusal in line and ("raise data.cache_bytes" in line or "raise it" in line)
