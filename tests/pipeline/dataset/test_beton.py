"""FFCV's .beton: files of the real `ffcv` package are read, opened and trained from; damage is one clear line."""

import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.conversion.sources import open_source
from pipeline.dataset import beton
from pipeline.dataset.beton import read_beton
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import find_split, open_dataset
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import State
from support.conversions import converted
from support.photos import photographs
from support.small_datasets import ROOT, error_of, same

LABELS = [3, 0, 2, 3, 1, 0]


def ff():
    """FFCV's fields. Importing them compiles for three seconds, which a process that only collects this file saves."""
    from ffcv import fields

    return fields


def ffcv_pixels(image, mode):
    """The bytes that FFCV stores for an image: its pixels, or a JPEG of quality 90 by OpenCV."""
    if mode == "raw":
        return image
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return jpeg.tobytes()


class Indexed:
    """A dataset for FFCV's writer: it pickles and has a length."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def write_beton(path, samples, fields, workers=1):
    """Runs FFCV's writer in a separate process, because it leaves pipes and shared memory open."""
    from ffcv.writer import DatasetWriter

    write = DatasetWriter(str(path), fields, num_workers=workers).from_indexed_dataset
    process = get_context("fork").Process(target=write, args=(Indexed(samples),), kwargs={"chunksize": 2})
    process.start()
    process.join()
    assert process.exitcode == 0
    return path


@pytest.fixture(scope="module")
def images():
    return [np.ascontiguousarray(image[: 200 + 10 * index, :250]) for index, image in enumerate(photographs())]


@pytest.fixture(scope="module", params=["jpg", "raw"])
def written(request, images, tmp_path_factory):
    """A .beton of FFCV's writer, and the mode of its images."""
    path = tmp_path_factory.mktemp(request.param) / "train.beton"
    fields = {"image": ff().RGBImageField(write_mode=request.param), "label": ff().IntField()}
    return write_beton(path, list(zip(images, LABELS, strict=True)), fields, workers=2), request.param


@pytest.mark.slow(seconds=3)
def test_the_format_is_ffcvs_own():
    from ffcv.types import ALLOC_TABLE_TYPE, TYPE_ID_HANDLER, FieldDescType, HeaderType

    assert (HeaderType, FieldDescType, ALLOC_TABLE_TYPE) == (beton.HEADER, beton.FIELD, beton.ALLOCATION)
    fields = [ff().FloatField(), ff().IntField(), ff().RGBImageField(), ff().BytesField(), None, ff().JSONField(), None]
    fields[4] = ff().NDArrayField(np.dtype("f4"), (2,))
    fields[6] = ff().TorchTensorField(torch.float32, (2,))
    for number, field in enumerate(fields):
        assert TYPE_ID_HANDLER[number] is type(field)
        assert field.metadata_type == beton.RECORDS[number]


def test_a_beton_of_ffcv_opens_with_the_same_bytes_labels_and_sizes(written, images, tmp_path):
    path, mode = written
    content = read_beton(path)
    assert content.fields == ("image", "label")
    assert content.label.tolist() == LABELS
    assert content.raw.tolist() == [mode == "raw"] * len(images)
    assert list(zip(content.height, content.width, strict=True)) == [image.shape[:2] for image in images]
    entries = open_source(path, tmp_path)
    assert (entries.kind, entries.classes, entries.label.tolist()) == ("beton", (), LABELS)
    for data, shape, image in zip(entries.read(range(len(images))), entries.shape, images, strict=True):
        pixels = ffcv_pixels(image, mode)
        assert data == (pixels.tobytes() if mode == "raw" else pixels)
        assert tuple(shape) == (image.shape[:2] if mode == "raw" else (0, 0))


def test_a_beton_of_ffcv_is_a_sample_table(written, images, tmp_path):
    path, mode = written
    table = open_dataset(path, tmp_path / "cache", workers=1, progress=False)
    assert set(table.state) == {State.RAW if mode == "raw" else State.OK}
    assert (table.label.tolist(), list(table.containers)) == (LABELS, ["train.beton"])
    assert list(zip(table.height, table.width, strict=True)) == [image.shape[:2] for image in images]
    reader = Reader(table)
    for row, (image, data) in enumerate(zip(images, reader.read(range(len(images))), strict=True)):
        stored = ffcv_pixels(image, mode)
        header = b"P6\n%d %d\n255\n" % image.shape[1::-1]
        assert bytes(data) == (header + image.tobytes() if mode == "raw" else stored)
        pixels = image if mode == "raw" else cv2.cvtColor(cv2.imdecode(np.frombuffer(stored, np.uint8), 1), 4)
        assert np.abs(reader.decode(row).astype(int) - pixels).max() <= (0 if mode == "raw" else 3)


def test_rows_of_a_beton_outlive_the_reader(written, tmp_path):
    path, mode = written
    table = open_dataset(path, tmp_path / "cache", workers=1, progress=False)
    reader = Reader(table)
    views = reader.read([1, 1]) if mode == "jpg" else [reader.decode(1), reader.decode(1)]
    assert not views[0].flags.writeable
    copy = views[0].copy()
    reader.close()
    np.testing.assert_array_equal(views[0], copy)
    np.testing.assert_array_equal(reader.decode(1), Reader(table).decode(1))  # it opens again


def test_a_beton_that_is_cut_emptied_or_gone_is_an_error_by_row(written, tmp_path):
    path = tmp_path / "train.beton"
    path.write_bytes(written[0].read_bytes())
    table = open_dataset(path, tmp_path / "cache", workers=1, progress=False)
    reader, rows = Reader(table), np.argsort(table.offset)
    assert all(isinstance(item, np.ndarray) for item in reader.try_read(rows))
    os.truncate(path, int(table.offset[rows[3]]) + 5)
    items = reader.try_read(rows)
    assert [isinstance(item, ReadError) for item in items] == [False] * 3 + [True] * 3
    assert "changed since the table was made (5 bytes where" in str(items[3])
    for damage, reason in ((lambda: os.truncate(path, 0), "(0 bytes where"), (path.unlink, "No such file")):
        damage()
        assert all(reason in str(item) for item in Reader(table).try_read(rows))
    assert all("changed since" in str(item) for item in reader.try_read(rows))


def test_a_cached_beton_is_decoded_again_only_when_it_changes(written, tmp_path, monkeypatch):
    path = tmp_path / "train.beton"
    path.write_bytes(written[0].read_bytes())

    def opened():
        return open_dataset(path, tmp_path / "cache", workers=1, progress=False)

    table = opened()
    os.utime(path, ns=(0, 0))  # copied or touched: still the same file
    with monkeypatch.context() as context:
        context.setattr("pipeline.dataset.open.scan_beton", None)
        assert same(opened(), table)
        data = bytearray(path.read_bytes())
        at = data.index(np.int64(LABELS[0]).tobytes(), 24 + 2 * 1041 + 16)
        data[at] = 1
        path.write_bytes(data)
        with pytest.raises(TypeError):  # a scan fails
            opened()
    assert opened().label.tolist() == [1, *LABELS[1:]]


def test_the_table_in_the_folder_of_a_beton_is_used_if_it_fits(written, tmp_path, monkeypatch, capsys):
    path = tmp_path / "data" / "train.beton"
    path.parent.mkdir()
    path.write_bytes(written[0].read_bytes())
    table = open_dataset(path, tmp_path / "cache", workers=1, progress=False)
    named = replace(table, classes=("a", "b", "c", "d"))
    named.save(path.with_suffix(".npz"))
    moved = path.parent.rename(tmp_path / "moved") / "train.beton"
    monkeypatch.setattr("pipeline.dataset.open.scan_beton", None)
    again = open_dataset(moved, tmp_path / "cache2", workers=1, progress=False)
    assert same(again, replace(named, root=moved.parent))
    assert not (tmp_path / "cache2").exists()
    assert open_source(moved, tmp_path).classes == named.classes
    replace(again, label=named.label[::-1]).save(moved.with_suffix(".npz"))
    with pytest.raises(TypeError):  # a scan fails
        open_dataset(moved, tmp_path / "cache2", workers=1, progress=False)
    assert "train.npz is not the table of this file" in capsys.readouterr().err


def test_the_allocation_table_may_be_in_any_order(written, tmp_path):
    data, path = written[0].read_bytes(), tmp_path / "x.beton"
    table = np.frombuffer(data[-24 * len(LABELS) :], beton.ALLOCATION)
    path.write_bytes(data[: -table.nbytes] + table[[3, 0, 5, 1, 4, 2]].tobytes())
    np.testing.assert_array_equal(read_beton(path).length, read_beton(written[0]).length)


def test_other_fields_than_the_image_are_skipped_and_counted(images, tmp_path):
    fields = {
        "score": ff().FloatField(), "image_of_a_long_name": ff().RGBImageField(), "notes": ff().JSONField(),
        "index": ff().IntField(), "label": ff().IntField(), "array": ff().NDArrayField(np.dtype("f4"), (2,)),
    }  # fmt: skip
    samples = [
        (0.5, image, {"a": 1}, 7 * 10**12, label, np.ones(2, "f4")) for image, label in zip(images, LABELS, strict=True)
    ]
    content = read_beton(write_beton(tmp_path / "x.beton", samples, fields))
    assert content.fields == ("score", "image_of_a_long_", "notes", "index", "label", "array")
    assert content.label.tolist() == LABELS  # the field of that name, not the first
    assert content.width.tolist() == [image.shape[1] for image in images]
    assert open_source(tmp_path / "x.beton", tmp_path).read([2]) == [images[2].tobytes()]
    unused = dict.fromkeys(("field score", "field notes", "field index", "field array"), len(images))
    assert open_dataset(tmp_path / "x.beton", tmp_path / "t", 1, False).left_out == unused
    assert converted(tmp_path / "x.beton", tmp_path / "shards", "wds").left_out == unused
    only = write_beton(
        tmp_path / "y.beton",
        [(image, 7 * 10**12) for image in images],
        {"i": ff().RGBImageField(), "id": ff().IntField()},
    )
    assert read_beton(only).label.tolist() == [-1] * len(images)  # an identifier is no label


def test_the_fields_of_a_beton_are_known_by_their_names(images, tmp_path):
    small = np.zeros((20, 30, 3), np.uint8)
    fields = {
        "mask": ff().RGBImageField(), "image": ff().RGBImageField(), "index": ff().IntField(),
        "target": ff().IntField(), "score": ff().FloatField(), "name": ff().BytesField(), "json": ff().JSONField(),
    }  # fmt: skip
    names = [np.frombuffer(name, np.uint8) for name in (b"owl", b"cat", b"owl")]
    samples = [(small, images[0], 900 + i, i % 2, float(i), names[i], f"j{i}") for i in range(3)]
    path = write_beton(tmp_path / "x.beton", samples, fields)
    content = read_beton(path)
    assert (set(content.width), content.label.tolist()) == ({images[0].shape[1]}, [0, 1, 0])
    content = read_beton(path, Choice("mask", "name"))
    assert (set(content.width), content.classes, content.label.tolist()) == ({30}, ("cat", "owl"), [1, 0, 1])
    assert not {"field mask", "field name"} & read_beton(path, Choice("mask", "name")).left_out.keys()
    assert read_beton(path, Choice(None, "json")).classes == ("j0", "j1", "j2")
    assert read_beton(path, Choice(None, "score")).label.tolist() == [0, 1, 2]
    assert read_beton(path, Choice(None, "none")).label.tolist() == [-1] * 3
    assert "data.image=x: no images of this name; there are mask, image" in error_of(read_beton, path, Choice("x"))
    assert "data.label=mask: no labels of this name" in error_of(read_beton, path, Choice(None, "mask"))
    table = open_dataset(path, tmp_path / "cache", 1, False, choice=Choice("mask", "name"))
    assert (set(table.width), table.classes) == ({30}, ("cat", "owl"))
    assert set(open_dataset(path, tmp_path / "cache", 1, False).width) == {images[0].shape[1]}  # a table of its own
    data = path.read_bytes()
    path.write_bytes(data.replace(data.index(b"owl").to_bytes(8, "little"), b"\xff" * 8, 1))
    assert "a label has no bytes in the file" in error_of(read_beton, path, Choice("mask", "name"))


def test_fields_that_could_be_either_ask_which(images, tmp_path):
    fields = {
        "left": ff().RGBImageField(),
        "right": ff().RGBImageField(),
        "age": ff().IntField(),
        "index": ff().IntField(),
    }
    path = write_beton(tmp_path / "x.beton", [(images[0], images[1], 5, i) for i in range(3)], fields)
    assert "several images (left, right); choose with data.image=left" in error_of(read_beton, path)
    line = error_of(read_beton, path, Choice("left"))
    assert "which field holds the labels (age); choose with data.label=age, or data.label=none" in line
    assert error_of(open_source, path, tmp_path / "s").endswith("choose with --image=left")
    assert read_beton(path, Choice("right", "age")).label.tolist() == [5, 5, 5]
    arrays = {"image": ff().RGBImageField(), "label": ff().NDArrayField(np.dtype("i8"), (2,))}
    path = write_beton(tmp_path / "a.beton", [(images[0], np.array([1, 0])) for _ in range(3)], arrays)
    assert "the field label holds arrays, which are no classes" in error_of(read_beton, path)
    assert read_beton(path, Choice(None, "none")).label.tolist() == [-1] * 3
    samples, fields = [(images[0], i) for i in range(3)], {"image": ff().RGBImageField(), "index": ff().IntField()}
    assert read_beton(write_beton(tmp_path / "y.beton", samples, fields)).label.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10], "cut short"),
        (lambda data: data[:3000], "cut short"),
        (lambda data: data[:10], "cut short"),
        (lambda data: b"", "cut short"),
        (lambda data: b"\1" + data[1:], "FFCV's format 2 (its version field is 1)"),
        (lambda data: b"PNG" * 1000, "FFCV's format 2"),
        (lambda data: data[:16] + bytes(8) + data[24:], "its writer stopped before the end"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "cut short"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "cut short"),
        (
            lambda data: data[:24] + b"\1" + data[25:],
            "no array of 2 or 3 axes (its fields: image, label)",
        ),
        (lambda data: data[: 24 + 1041] + b"\xff" + data[24 + 1042 :], "FFCV has no class for the field 'label'"),
        (lambda data: data[:2106] + b"\7" + data[2107:], "sample 0 has no bytes in the file"),
        (lambda data: data[:2111] + b"\7" + data[2112:], "sample 0 has no bytes in the file"),
        (lambda data: data[:-24] + b"\xff" * 24, "has no bytes in the file"),
    ],
)
def test_a_bad_beton_is_one_clear_line(written, tmp_path, damage, message):
    path = tmp_path / "bad.beton"
    path.write_bytes(damage(written[0].read_bytes()))
    line = error_of(open_dataset, path, tmp_path / "cache", workers=1, progress=False)
    assert line.startswith(f"data.path={path}: bad.beton: ")
    assert message in line
    assert message in error_of(open_source, path, tmp_path / "spool")


@pytest.mark.slow(seconds=5)
def test_a_killed_writer_leaves_a_beton_that_is_refused(tmp_path):
    code = (
        "import os, sys; sys.path[:0] = ['tests', 'tests/pipeline/dataset']\n"
        "from test_beton import Indexed, ff\n"
        "from ffcv.writer import DatasetWriter\n"
        "class Dies(Indexed):\n    def __getitem__(self, index): os.kill(os.getppid(), 9); os._exit(1)\n"
        "fields = {'image': ff().RGBImageField(), 'label': ff().IntField()}\n"
        "DatasetWriter(sys.argv[1], fields, num_workers=1).from_indexed_dataset(Dies([0] * 9))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.beton")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120
    )
    assert done.returncode == -9
    assert "its writer stopped before the end" in error_of(open_source, tmp_path / "x.beton", tmp_path)


def test_a_row_of_no_pixels_is_quarantined(images, tmp_path):
    path = write_beton(
        tmp_path / "x.beton",
        [(images[0], 0), (images[1], 1)],
        {"image": ff().RGBImageField(), "label": ff().IntField()},
    )
    data = bytearray(path.read_bytes())
    data[2107:2109] = bytes(2)  # width 0 of sample 0, and of length 0 in the allocation table
    sizes = np.frombuffer(data, beton.ALLOCATION, offset=len(data) - 48).copy()
    sizes["size"][sizes["sample_id"] == 0] = 0
    path.write_bytes(bytes(data[:-48]) + sizes.tobytes())
    table = open_dataset(path, tmp_path / "cache", workers=1, progress=False)
    assert table.quarantine == {0: "zero bytes"}
    assert table.state.tolist() == [State.QUARANTINED, State.RAW]


def test_a_pair_of_betons_is_a_split(tmp_path):
    (tmp_path / "train.beton").touch()
    assert find_split(tmp_path) == (tmp_path / "train.beton", None)
    for name in ("validation", "test", "val"):
        (tmp_path / f"{name}.beton").touch()
        assert find_split(tmp_path) == (tmp_path / "train.beton", tmp_path / f"{name}.beton")


def test_the_dali_backend_trains_from_a_beton_as_from_its_images(written, images, tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from pipeline.crops import Crops, View
    from pipeline.loader import Loader

    crops = Crops(views=(View(96, (0.14, 1.0)),) * 2 + (View(48, (0.05, 0.14)),) * 2)
    path, mode = written
    for index, image in enumerate(images):
        stored = ffcv_pixels(image, mode)
        file = tmp_path / "images" / f"{index}.{'png' if mode == 'raw' else 'jpg'}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(stored) if mode == "jpg" else Image.fromarray(stored).save(file)
    batches = []
    for source in (path, tmp_path / "images"):
        table = open_dataset(source, tmp_path / "cache", workers=1, progress=False)
        loader = Loader(table, crops, backend="dali", seed=3, global_batch=len(images))
        batches.append(next(iter(loader)))
        loader.close()
    assert batches[0].rows.tolist() == batches[1].rows.tolist()
    for swave, ffcv in zip(batches[0].crops, batches[1].crops, strict=True):
        np.testing.assert_array_equal(swave.numpy(), ffcv.numpy())
