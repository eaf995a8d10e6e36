"""Fashion-MNIST: parsing, where it is fetched from, and the packed result."""

import gzip
import hashlib
import io
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from common import progress
from common.files import sha256
from pipeline import fashion_mnist
from pipeline.collections.__main__ import main
from pipeline.dataset.idx import parse_idx, stored_png
from pipeline.dataset.images import probe
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import DatasetError, State
from pipeline.fashion_mnist import CLASSES, fetch, prepare, records

PRIOR = Path(__file__).resolve().parents[2] / "data" / "fashion-mnist"
GOLDEN = {  # SHA-256 of our shards: the same on every machine
    "test/test-000000.tar": "ee5f75222eaeb8cf3c51fc096c7bccafefd8b6a1627200322e9965e36774650f",
    "train/train-000000.tar": "fcf89140ca65730d501771d1e537bf2a61e4ba3038d4e93a44f4b66d9e207842",
    "train/train-000001.tar": "b33b0166ab0adb9629ee25786e758dfe8e3dbb9007ff912dd443614a313dedc7",
    "train/train-000002.tar": "c2290c5b337d9ec6173bc584d0fe27f9c277831be1b9243f30273e64495a1ef7",
    "train/train-000003.tar": "fe1bd97b1011dbdd07e3743b3bc063d7c66b9647c4f960f3a65dfdcdb759eb93",
}
# Of the test set: label of image 0 and sum of all pixels, computed from the IDX files with zcat, od and awk.
FIRST_LABEL, PIXEL_SUM = 9, 573_469_082


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without the package, without apt, and with an authors' folder of two small files."""
    files = {"a": idx(np.arange(6, dtype=np.uint8)), "b": idx(np.zeros((2, 3), np.uint8))}
    for name, data in files.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", Path("/usr/share/datasets/never-installed"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return files, {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, tmp_path


def fake_program(folder: Path, name: str, script: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / name
    program.write_text(f"#!{sys.executable}\nimport gzip, os, pathlib, sys\n{script}\n")
    program.chmod(0o755)


# ---------------------------------------------------------------------------------------------- IDX and PNG


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)))
def test_idx_files_are_read_back(array):
    np.testing.assert_array_equal(parse_idx(idx(array)), array)


@given(st.binary(max_size=40))
def test_other_bytes_are_an_error_or_an_array_of_all_of_them(data):
    try:
        array = parse_idx(data)
    except DatasetError:
        return
    assert array.size == len(data) - 4 - 4 * data[3]


def test_a_cut_idx_file_says_what_is_missing():
    with pytest.raises(DatasetError, match=r"has 5 values, its shape \(6,\) needs 6"):
        parse_idx(idx(np.zeros(6, np.uint8))[:-1])


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30))))
def test_a_stored_png_is_a_plain_png(pixels):
    data = stored_png(pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert probe(data).state == State.OK
    assert pixels.tobytes()[: pixels.shape[1]] in data  # rows are stored unchanged


def test_the_shuffle_is_one_and_fixed():
    images, labels = np.zeros((10, 2, 2), np.uint8), np.arange(10, dtype=np.uint8)
    keys = [record.key for record in records(images, labels)]
    assert keys == [f"{record.label:05d}" for record in records(images, labels)]
    assert sorted(keys) == [f"{i:05d}" for i in range(10)] != keys


# ---------------------------------------------------------------------------------------------- fetch


def test_the_authors_address_is_used_where_there_is_no_apt(offline):
    files, sums, folder = offline
    assert fetch(progress=False, address=folder.as_uri(), sums=sums) == files


def test_a_wrong_file_is_refused(offline):
    _, sums, folder = offline
    with pytest.raises(DatasetError, match=r"b\.gz is not the published file"):
        fetch(progress=False, address=folder.as_uri(), sums=sums | {"b": "0" * 64})
    (folder / "a.gz").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match=r"a\.gz cannot be unpacked"):
        fetch(progress=False, address=folder.as_uri(), sums=sums)


def test_debian_is_asked_first_and_what_it_gives_is_unpacked(offline):
    files, sums, folder = offline
    fake_program(folder, "apt-get", "open('dataset-fashion-mnist_1_all.deb', 'w').close()")
    lines = [f"(p / '{name}.gz').write_bytes(gzip.compress({data!r}))" for name, data in files.items()]
    unpack = f"p = pathlib.Path(sys.argv[3], '{fashion_mnist.INSTALLED.relative_to('/')}'); p.mkdir(parents=True)"
    fake_program(folder, "dpkg-deb", "\n".join([unpack, *lines]))
    assert fetch(progress=False, address="file:///nowhere", sums=sums) == files


def test_the_download_from_debian_shows_a_bar(offline, capsys, monkeypatch):
    _, _, folder = offline
    monkeypatch.setattr(progress, "DELAY", 0.0)
    fake_program(folder, "apt-get", "import time; open('some.deb', 'wb').write(bytes(5000)); time.sleep(0.5)")
    fake_program(folder, "dpkg-deb", "sys.exit('broken')")
    with pytest.raises(DatasetError):
        fetch(progress=True, address="file:///nowhere")
    assert re.search(r"fetching dataset-fashion-mnist: .* 5.00k/30.9M \[", capsys.readouterr().err)


def test_where_no_source_is_reached_one_line_says_what_to_do(offline, capsys, monkeypatch):
    _, sums, folder = offline
    fake_program(folder, "apt-get", "sys.exit('E: Unable to locate package dataset-fashion-mnist')")
    fake_program(folder, "dpkg-deb", "")
    monkeypatch.setattr(fetch, "__defaults__", (False, "http://127.0.0.1:9", sums))
    assert main(["fashion-mnist", "--out", str(folder / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("fetching Debian's package")
    assert len(lines) == 2
    assert lines[1].startswith(f"swave: --out={folder / 'out'}: Fashion-MNIST cannot be fetched: ")
    assert "Unable to locate package dataset-fashion-mnist): run `apt-get update` once" in lines[1]
    assert "http://127.0.0.1:9/a.gz cannot be reached" in lines[1]
    assert not list((folder / "out").glob("*"))


# ---------------------------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and tables: `data/fashion-mnist` if it exists, else fetched and packed."""
    there = all((PRIOR / split / "table.npz").exists() for split in ("train", "test"))
    out = PRIOR if there else tmp_path_factory.mktemp("data") / "fashion-mnist"
    try:
        return out, prepare(out, progress=False, workers=len(os.sched_getaffinity(0)))
    except DatasetError as error:
        pytest.skip(f"Fashion-MNIST is neither in data/ nor to be fetched: {error}")


@pytest.mark.slow
def test_all_images_are_there_by_class(whole):
    tables = whole[1]
    for split, count in (("train", 6_000), ("test", 1_000)):
        table = tables[split]
        assert table.classes == CLASSES
        assert np.bincount(table.label).tolist() == [count] * 10
        assert set(zip(table.width.tolist(), table.height.tolist(), table.state.tolist(), strict=True)) == {(28, 28, 0)}


@pytest.mark.slow
def test_the_shards_are_the_same_on_every_machine(whole):
    out, tables = whole
    assert sorted(GOLDEN) == [f"{split}/{name}" for split in ("test", "train") for name in tables[split].containers]
    for name, digest in GOLDEN.items():
        assert sha256(out / name) == digest


@pytest.mark.slow
def test_pixels_and_labels_are_the_published_ones(whole):
    table = whole[1]["test"]
    reader = Reader(table)
    names = [table.name(row) for row in range(200)]
    order = np.random.RandomState(fashion_mnist.SEED).permutation(10_000)
    assert names == [f"test-000000.tar:{index:05d}.png" for index in order[:200]]
    first = int(np.flatnonzero(order == 0)[0])
    assert table.label[first] == FIRST_LABEL
    assert sum(int(reader.decode(row)[..., 0].sum()) for row in range(len(table))) == PIXEL_SUM


@pytest.mark.slow
def test_the_second_call_returns_at_once_and_says_so(whole, capsys, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "fetch", None)  # a second fetch would fail
    assert main(["fashion-mnist", "--out", str(whole[0])]) == 0
    assert "exists already (60,000 train, 10,000 test images)" in capsys.readouterr().out
