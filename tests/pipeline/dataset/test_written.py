"""Files that other libraries wrote (tests/pipeline/written/write.py), trained on in place or converted."""

import io
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image

from pipeline.conversion.rewrite import Options
from pipeline.convert import convert
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice
from pipeline.dataset.open import open_dataset, open_splits
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import State
from support.remote.sites import section
from support.small_datasets import error_of

WRITTEN = Path(__file__).parents[1] / "written"
JPEGS = [(WRITTEN / "images" / f"{number}.jpg").read_bytes() for number in range(6)]
PIXELS = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in JPEGS]
LABELS = [2, 0, 1, 1, 0, 2]
NAMES = ("cat", "dog", "owl")


def opened(name, tmp_path, choice=NOT_CHOSEN):
    path = name if isinstance(name, Path) else WRITTEN / name
    return open_dataset(path, tmp_path / "cache", 1, progress=False, choice=choice)


def converted(name, tmp_path, choice=NOT_CHOSEN):
    """The table of the shards that conversion makes of it, in the order of the source."""
    path = name if isinstance(name, Path) else WRITTEN / name
    convert(path, tmp_path / "out", Options("wds"), seed=None, workers=1, progress=False, choice=choice)
    return opened(tmp_path / "out", tmp_path)


def pixels(table):
    reader = Reader(table)
    return [reader.decode(row) for row in range(len(table))]


def same(given, wanted):
    return all(np.array_equal(one, other) for one, other in zip(given, wanted, strict=True))


JPEG_SOURCES = [
    ("mds/jpeg", ()), ("mds/bytes", NAMES), ("litdata/jpeg", ()), ("litdata/tuple", ()),
    ("litdata/rows", ()), ("litdata/nested", NAMES), ("lmdb/caffe_encoded_lmdb", ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "classes"), JPEG_SOURCES)
def test_encoded_images_are_read_in_place_with_their_labels(tmp_path, name, classes):
    table = opened(name, tmp_path)
    assert [bytes(data) for data in Reader(table).read(range(6))] == JPEGS
    assert (table.label.tolist(), table.classes, table.left_out) == (LABELS, classes, {})


@pytest.mark.parametrize("name", ["mds/pil", "mds/png", "litdata/pil", "litdata/numpy"])
def test_pixels_and_pngs_are_read_in_place(tmp_path, name):
    table = opened(name, tmp_path)
    assert same(pixels(table), PIXELS)
    assert table.label.tolist() == LABELS
    assert (table.state == (State.OK if name == "mds/png" else State.RAW)).all()


@pytest.mark.parametrize("name", ["mds/zstd", "mds/gz", "mds/br", "mds/gray", "litdata/tensor", "lmdb/caffe_raw_lmdb"])
def test_what_has_no_byte_range_is_named_and_converted(tmp_path, name):
    line = error_of(opened, name, tmp_path)
    assert "make convert SRC=" in line
    assert ("is compressed" if name in ("mds/zstd", "mds/gz", "mds/br") else "holds raw pixels (") in line
    table = converted(name, tmp_path)
    gray = [np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in PIXELS]
    assert same(pixels(table), gray if name == "mds/gray" else PIXELS)
    assert table.label.tolist() == LABELS


@pytest.mark.parametrize("name", ["mds/views", "mds/list", "litdata/array"])
def test_each_image_of_a_list_counts_with_the_label_of_its_sample(tmp_path, name):
    table = opened(name, tmp_path)
    second = [JPEGS[(number + 1) % 6] if name == "mds/views" else JPEGS[0] for number in range(6)]
    assert [bytes(data) for data in Reader(table).read(range(12))] == [
        data for pair in zip(JPEGS, second, strict=True) for data in pair
    ]
    assert table.label.tolist() == ([-1] * 12 if name == "litdata/array" else np.repeat(LABELS, 2).tolist())


def test_keys_and_pickles_of_lmdb_give_labels(tmp_path):
    table = opened("lmdb/classes.lmdb", tmp_path)
    assert (len(table), table.classes) == (31, NAMES)
    assert table.label.tolist() == [0] * 10 + [1] * 10 + [2] * 11
    assert bytes(Reader(table).read([0])[0]) == JPEGS[0]
    assert (table.width[-1], table.height[-1], table.state[-1]) == (80, 80, State.OK)
    table = opened("lmdb/pickled.lmdb", tmp_path)
    assert [bytes(data) for data in Reader(table).read(range(6))] == JPEGS
    assert (table.label.tolist(), table.left_out) == (LABELS, {"value without an image": 2})


def test_choices_are_as_for_other_sources(tmp_path):
    table = opened("litdata/jpeg", tmp_path, Choice(None, "index"))
    assert table.label.tolist() == list(range(6))
    assert opened("mds/jpeg", tmp_path, Choice(None, "none")).label.tolist() == [-1] * 6
    assert "there are image" in error_of(opened, "mds/jpeg", tmp_path, Choice("photo"))
    assert "have one image each" in error_of(opened, "lmdb/pickled.lmdb", tmp_path, Choice("photo"))


def test_merged_shards_and_splits_are_found(tmp_path):
    """As `merge_index` of streaming leaves them: sub-folders below one index; and two folders that are splits."""
    root = tmp_path / "merged"
    shards = []
    for part in ("0", "1"):
        shutil.copytree(WRITTEN / "mds/jpeg", root / part)
        for shard in json.loads((root / part / "index.json").read_text())["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
    (root / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    table = opened(root, tmp_path)
    assert (table.label.tolist(), table.left_out) == (LABELS * 2, {})
    (root / "1/shard.00001.mds").unlink()
    assert "lists 1/shard.00001.mds, which is missing" in error_of(opened, root, tmp_path)
    for split in ("train.lmdb", "val.lmdb"):
        shutil.copytree(WRITTEN / "lmdb/classes.lmdb", tmp_path / "splits" / split)
    assert "holds several splits (train.lmdb, val.lmdb)" in error_of(converted, tmp_path / "splits", tmp_path)


@pytest.mark.parametrize(
    ("name", "choice", "wanted", "labels", "classes"),
    [
        ("encoded.h5", NOT_CHOSEN, PIXELS, LABELS, ()),
        ("encoded.h5", Choice(None, "names"), PIXELS, LABELS, NAMES),
        ("arrays.hdf5", NOT_CHOSEN, [image[:8] for image in PIXELS], LABELS, NAMES),
        ("groups.h5", NOT_CHOSEN, [PIXELS[number] for number in (1, 4, 2, 3, 0, 5)], [0, 0, 1, 1, 2, 2], NAMES),
        ("splits.h5", Choice("train"), [PIXELS[number] for number in (1, 2, 3, 0)], [0, 1, 1, 2], NAMES),
    ],
)
@pytest.mark.parametrize("read", ["converted", "in place"])
def test_hdf5_is_read_and_converted(tmp_path, name, choice, wanted, labels, classes, read):
    pytest.importorskip("h5py")
    table = (converted if read == "converted" else opened)(f"hdf5/{name}", tmp_path, choice)
    assert same(pixels(table), wanted)
    assert (table.label.tolist(), table.classes) == (labels, classes)


def test_hdf5_that_is_not_clear_or_damaged_is_refused(tmp_path):
    pytest.importorskip("h5py")
    assert "no dataset holds images (features float32[6, 4])" in error_of(converted, "hdf5/features.h5", tmp_path)
    assert "choose the images with --image=train" in error_of(converted, "hdf5/splits.h5", tmp_path)
    assert "choose the images with data.image=train" in error_of(opened, "hdf5/splits.h5", tmp_path)
    (tmp_path / "x.h5").write_bytes((WRITTEN / "hdf5/groups.h5").read_bytes()[:9000])
    assert "x.h5: no HDF5 file, or damaged" in error_of(converted, tmp_path / "x.h5", tmp_path)


def test_saved_folders_of_datasets_are_converted(tmp_path):
    assert "holds several splits (train, test)" in error_of(converted, "datasets/saved", tmp_path)
    table = converted("datasets/saved/train", tmp_path)
    assert same(pixels(table), PIXELS)
    assert (table.label.tolist(), table.classes) == (LABELS, NAMES)


@pytest.mark.parametrize("name", ["datasets/views.parquet", "datasets_4/views.parquet", "datasets_4/saved"])
def test_each_image_of_a_list_of_datasets_counts(tmp_path, name):
    table = converted(name, tmp_path)
    assert same(pixels(table), [PIXELS[number] for number in (0, 1, 2, 2, 3, 4, 4)])
    assert table.label.tolist() == [2, 0, 0, 1, 1, 1, 0]


def test_lance_is_converted(tmp_path):
    pytest.importorskip("lance")
    table = converted("lance/pets.lance", tmp_path)
    assert same(pixels(table), PIXELS)
    assert (table.label.tolist(), table.classes) == (LABELS, NAMES)


def test_damaged_lance_is_named(tmp_path):
    pytest.importorskip("lance")
    root = shutil.copytree(WRITTEN / "lance/pets.lance", tmp_path / "pets.lance")
    first = min(root.glob("data/*"))
    first.write_bytes(first.read_bytes()[:200])
    assert "pets.lance: damaged lance file" in error_of(converted, root, tmp_path)


def test_lance_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    line = error_of(converted, "lance/pets.lance", tmp_path)
    assert "pets.lance: Lance needs the package pylance; install it: .venv/bin/python -m pip install pylance" in line
    assert "holds lance files, which only `make convert` reads" in error_of(opened, "lance/pets.lance", tmp_path)


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_tensorflow_datasets_are_read_in_place(tmp_path, encoding):
    data = section(WRITTEN / "tfds/pets" / encoding / "1.0.0", tmp_path / "cache")
    train, test = open_splits(data, progress=False)
    assert (len(test), train.classes, test.classes) == (2, NAMES, NAMES)
    order = [next(n for n, image in enumerate(PIXELS) if np.array_equal(image, each)) for each in pixels(train)]
    assert sorted(order) == list(range(6)) and order != list(range(6))  # the library shuffles
    assert train.label.tolist() == [LABELS[number] for number in order]


@pytest.mark.parametrize("read", [opened, converted])
def test_a_folder_above_records_is_told_which_one_to_take(tmp_path, read):
    line = error_of(read, WRITTEN / "tfds/pets/jpeg", tmp_path)
    assert "no images found" in line and "its folder 1.0.0 holds tfrecord files: give that one" in line


@pytest.mark.parametrize("read", [opened, converted])
def test_an_array_record_is_named_and_not_taken_for_a_tfrecord(tmp_path, read):
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/pets-train.array_record-00000-of-00001").write_bytes(bytes(64))
    line = error_of(read, tmp_path / "pets", tmp_path)
    assert "pets-train.array_record-00000-of-00001: an ArrayRecord, which swave does not read; write the data" in line


@pytest.mark.parametrize("name", ["img2dataset/files", "img2dataset/webdataset", "img2dataset/parquet"])
def test_what_img2dataset_wrote_is_read_without_what_failed(tmp_path, name):
    table = (converted if name.endswith("parquet") else opened)(name, tmp_path)
    images = sorted(pixels(table), key=len)
    assert [image.shape for image in images] == [image.shape for image in PIXELS]
    # It encodes images anew.
    assert all(np.abs(one.astype(int) - other).mean() < 4 for one, other in zip(images, PIXELS, strict=True))
    assert (table.label == -1).all()
    if not name.endswith("parquet"):
        assert table.left_out == {".json": 8, ".parquet": 2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mds/no-image", "no column holds images (caption: str, label: int)"),
        ("mds/snappy", "compressed by snappy"),
        ("litdata/zstd", "its chunks are compressed (zstd)"),
        ("litdata/zstd-chunk", "its chunks are compressed (zstd)"),
    ],
)
def test_what_is_not_read_is_said_in_one_line(tmp_path, name, message):
    assert message in error_of(opened, name, tmp_path)
    assert message in error_of(converted, name, tmp_path)


def with_long_keys(data):
    """Keys of an LMDB that are said to be longer than a page, where the value has pages of its own."""
    changed = bytearray(data)
    for page in range(0, len(data), 4096):
        flags, lower = struct.unpack_from("<HH", data, page + 10)
        for place in struct.unpack_from(f"<{(lower - 16) // 2}H", data, page + 16) if flags == 2 else ():
            if data[page + place + 4] == 1:
                struct.pack_into("<H", changed, page + place + 6, 20_000)
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("mds/jpeg", "shard.00000.mds", lambda data: data[:-3], "shard.00000.mds: cut short or damaged"),
        ("mds/jpeg", "shard.00000.mds", lambda data: data[:40] + b"~" + data[41:], "no MDS shard"),
        ("mds/zstd", "shard.00000.mds.zstd", lambda data: data[:-9], "shard.00000.mds.zstd: damaged"),
        ("mds/jpeg", "index.json", lambda data: b'{"version": 2, "shards": [{}]}', "index.json: damaged"),
        ("litdata/jpeg", "chunk-0-1.bin", lambda data: data[:16] + b"~" * 4 + data[20:], "1.bin: damaged in item"),
        ("litdata/rows", "chunk-0-1.bin", lambda data: data[:-9] + b"~" + data[-8:], "1.bin: damaged, its rows"),
        ("litdata/rows", "chunk-0-1.bin", lambda data: data.replace(b"ARROW1", b"~" * 6), "1.bin: damaged, its rows"),
        ("litdata/jpeg", "index.json", lambda data: data.replace(b"data_spec", b"spec"), "no data_format"),
        ("lmdb/classes.lmdb", "data.mdb", lambda data: data[:9000], "cut short or damaged at page"),
        ("lmdb/classes.lmdb", "data.mdb", lambda data: b"~" * len(data), "no LMDB of version 1"),
        ("lmdb/classes.lmdb", "data.mdb", lambda data: with_long_keys(data), "cut short or damaged at page"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, name, file, change, message):
    root = shutil.copytree(WRITTEN / name, tmp_path / name)
    (root / file).write_bytes(change((root / file).read_bytes()))
    assert message in error_of(converted, root, tmp_path)


def test_a_broken_image_is_quarantined(tmp_path):
    root = shutil.copytree(WRITTEN / "mds/jpeg", tmp_path / "mds")
    data = (root / "shard.00000.mds").read_bytes()
    (root / "shard.00000.mds").write_bytes(data.replace(JPEGS[1], bytes(len(JPEGS[1]))))
    table = opened(root, tmp_path)
    assert table.quarantine == {1: "not an image"}
    assert table.label.tolist() == LABELS


def test_a_column_called_label_that_holds_no_class_is_refused(tmp_path):
    root = shutil.copytree(WRITTEN / "mds/png", tmp_path / "x")
    for file in (root / "index.json", *root.glob("*.mds")):
        file.write_bytes(file.read_bytes().replace(b'"uint8"', b'"other"'))
    line = error_of(opened, root, tmp_path)
    assert "the column label holds other, which is no class; choose another with data.label, or data.label=none" in line
    assert opened(root, tmp_path, Choice(None, "none")).label.tolist() == [-1] * 6


def test_rows_of_litdata_with_several_labels_or_without_an_image(tmp_path):
    root = shutil.copytree(WRITTEN / "litdata/rows", tmp_path / "x")
    index = json.loads((root / "index.json").read_text())
    (root / "index.json").write_text(json.dumps(index | {"chunks": index["chunks"][:1]}))
    (root / "chunk-0-1.bin").unlink()

    def write_rows(rows):
        sink = pyarrow.BufferOutputStream()
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            for start in range(len(rows)):
                writer.write_table(table.slice(start, 1))
        body, begin = sink.getvalue().to_pybytes(), 8 + 4 * len(rows)
        head = struct.pack(f"<{len(rows) + 2}I", len(rows), *[begin] * (len(rows) + 1))
        (root / "chunk-0-0.bin").write_bytes(head + body + struct.pack("<I", len(body)) + b"LDARW01\0")

    write_rows([{"image": JPEGS[0], "label": [1, 2]}])
    line = error_of(opened, root, tmp_path)
    assert "the column label holds list<" in line and "which is no class; choose another with data.label" in line
    write_rows([{"image": JPEGS[number] if number != 2 else None, "label": number} for number in range(4)])
    table = opened(root, tmp_path)
    assert [bytes(data) for data in Reader(table).read(range(3))] == [JPEGS[number] for number in (0, 1, 3)]
    assert (table.label.tolist(), table.left_out) == ([0, 1, 3], {"record without an image": 1})
