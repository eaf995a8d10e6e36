"""TFRecord and RecordIO files as others write them, read in place. Messages are made by Google's protobuf."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.conversion.rewrite import Options
from pipeline.convert import convert
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_dataset, open_splits
from pipeline.dataset.reader import Reader
from pipeline.dataset.records.crc32c import masked_crc
from pipeline.dataset.records.recordio import HEADER, MARK
from support.small_datasets import error_of


def encoded(number, kind="JPEG"):
    out = io.BytesIO()
    Image.new("RGB", (12, 8), (20 * number, 90, 200)).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def example_type():
    """The class of tf.train.Example, from TensorFlow's example.proto and feature.proto."""
    protobuf = pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    assert protobuf
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields, parent=None):
        made = (file.message_type if parent is None else parent.nested_type).add(name=name)
        for number, (label, kind, title) in enumerate(fields, 1):
            plain = not isinstance(kind, str)
            made.field.add(
                name=title, number=number, label=label,
                type=kind if plain else field.TYPE_MESSAGE, type_name=None if plain else f".t.{kind}",
            )  # fmt: skip
        return made

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", (many, field.TYPE_BYTES, "value"))
    message("FloatList", (many, field.TYPE_FLOAT, "value"))
    message("Int64List", (many, field.TYPE_INT64, "value"))
    feature = message(
        "Feature", (one, "BytesList", "bytes_list"), (one, "FloatList", "float_list"), (one, "Int64List", "int64_list")
    )
    feature.oneof_decl.add(name="kind")
    for each in feature.field:
        each.oneof_index = 0
    features = message("Features", (many, "Features.FeatureEntry", "feature"))
    entry = message("FeatureEntry", (one, field.TYPE_STRING, "key"), (one, "Feature", "value"), parent=features)
    entry.options.map_entry = True
    message("Example", (one, "Features", "features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def write_tfrecord(path, example_type, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for row in rows:
            example = example_type()
            for name, values in row.items():
                feature = example.features.feature[name]
                lists = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}
                lists[type(values[0])].value.extend(values)
            data = example.SerializeToString()
            length = struct.pack("<Q", len(data))
            file.write(length + masked_crc(length) + data + masked_crc(data))
    return path


def opened(path, tmp_path, **options):
    return open_dataset(path, tmp_path / "cache", 1, progress=False, **options)


def slim(number, label, text=b""):
    """The features of a record of TF-Slim's ImageNet script."""
    return {
        "image/encoded": [encoded(number)], "image/format": [b"JPEG"], "image/height": [8], "image/width": [12],
        "image/class/label": [label], "image/class/text": [text], "image/filename": [b"n%d.JPEG" % number],
        "image/object/bbox/label": [1, 2, 3], "image/object/bbox/xmin": [0.5, 0.25],
    }  # fmt: skip


def test_tf_slims_records_are_read_in_place(tmp_path, example_type):
    rows = [slim(number, 1 + number % 2) for number in range(6)]
    for part in range(2):
        write_tfrecord(tmp_path / "data" / f"train-{part:05d}-of-00002", example_type, rows[3 * part : 3 * part + 3])
    table = opened(tmp_path / "data", tmp_path)
    assert table.label.tolist() == [1, 2, 1, 2, 1, 2]
    assert [bytes(data) for data in Reader(table).read(range(6))] == [encoded(number) for number in range(6)]
    assert table.left_out == {}


def test_names_of_classes_count_and_not_their_numbers(tmp_path, example_type):
    rows = [slim(0, 7, b"dog"), slim(1, 3, b"cat"), slim(2, -1, b"")]
    table = opened(write_tfrecord(tmp_path / "x.tfrecord", example_type, rows), tmp_path)
    assert (table.classes, table.label.tolist()) == (("cat", "dog"), [1, 0, -1])


def test_splits_of_tensorflow_datasets_are_found_with_their_names(tmp_path, example_type):
    folder = tmp_path / "digits/1.0.0"
    for split, count in (("train", 4), ("test", 2)):
        rows = [{"image": [encoded(n, "PNG")], "label": [n % 2], "id": [100 + n]} for n in range(count)]
        for part in range(2):
            name = f"digits-{split}.tfrecord-{part:05d}-of-00002"
            write_tfrecord(folder / name, example_type, rows[part::2])
    (folder / "label.labels.txt").write_text("one\nzero\n")
    (folder / "features.json").write_text("{}")
    data = {"path": folder, "test": None, "cache": tmp_path / "cache", "workers": 1, "image": None, "label": None}
    train, test = open_splits(type("Data", (dict,), {"__getattr__": dict.__getitem__})(data), progress=False)
    assert (len(train), len(test)) == (4, 2)
    assert train.classes == ("one", "zero")
    assert train.label.tolist() == [0, 0, 1, 1]


def test_a_choice_is_asked_for_where_records_hold_several_images(tmp_path, example_type):
    rows = [{"left": [encoded(n)], "right": [encoded(n + 5)], "y": [n]} for n in range(2)]
    path = write_tfrecord(tmp_path / "x.tfrecord", example_type, rows)
    assert "data.image=left" in error_of(opened, path, tmp_path)
    table = opened(path, tmp_path, choice=Choice("right", None))
    assert [bytes(data) for data in Reader(table).read(range(2))] == [encoded(5), encoded(6)]
    assert table.label.tolist() == [0, 1]


def test_records_without_the_image_are_counted(tmp_path, example_type):
    rows = [{"image": [encoded(0)], "label": [1]}, {"label": [1]}, {"image": [encoded(2)], "label": [0]}]
    table = opened(write_tfrecord(tmp_path / "x.tfrecord", example_type, rows), tmp_path)
    assert (len(table), table.left_out) == (2, {"record without an image": 1})


def test_features_that_the_first_record_lacks_are_found(tmp_path, example_type):
    rows = [
        {"target": [5]},
        {"image": [encoded(1)], "target": [5], "labels": [1, 2]},
        {"image": [encoded(2)], "label": [0], "target": [5], "labels": [1]},
    ]
    path = write_tfrecord(tmp_path / "x.tfrecord", example_type, rows)
    assert "it is not clear which field holds the labels (label, target)" in error_of(opened, path, tmp_path)
    table = opened(path, tmp_path, choice=Choice(label="label"))
    assert [bytes(data) for data in Reader(table).read(range(2))] == [encoded(1), encoded(2)]
    assert (table.label.tolist(), table.left_out) == ([-1, 0], {"record without an image": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-3], "cut short"),
        (lambda data: data[:5] + b"x" + data[6:], "damaged at byte 0"),
        (lambda data: b"\x1f\x8b" + data, "compressed"),
        (lambda data: struct.pack("<Q", 4) + masked_crc(struct.pack("<Q", 4)) + b"abcd" + bytes(4), "tf.train.Example"),
    ],
)
def test_a_damaged_tfrecord_is_named(tmp_path, example_type, change, message):
    path = write_tfrecord(tmp_path / "x.tfrecord", example_type, [slim(0, 1)])
    path.write_bytes(change(path.read_bytes()))
    line = error_of(opened, path, tmp_path)
    assert "x.tfrecord" in line
    assert message in line


def record(label, data, flag=0, part=0):
    body = HEADER.pack(flag, label, 5, 0) + data
    return MARK + struct.pack("<I", part << 29 | len(body)) + body + bytes(-len(body) % 4)


def test_recordio_is_read_in_place(tmp_path):
    labels = struct.pack("<f", 4.0)
    path = tmp_path / "x.rec"
    path.write_bytes(
        record(2, encoded(0)) + record(0, labels + encoded(1), flag=1) + record(0, labels * 2 + encoded(2), flag=2)
        + record(-1, encoded(3)) + record(1, encoded(4), part=1) + record(1, encoded(4), part=3)
    )  # fmt: skip
    table = opened(path, tmp_path)
    assert table.label.tolist() == [2, 4, -1, -1]
    assert [bytes(data) for data in Reader(table).read(range(4))] == [encoded(number) for number in range(4)]
    assert table.left_out == {"record in parts": 1}
    path.write_bytes(path.read_bytes()[:-9])
    assert "cut short" in error_of(opened, path, tmp_path)
    path.write_bytes(b"abcd" + path.read_bytes())
    assert "damaged at byte 0" in error_of(opened, path, tmp_path)


@pytest.mark.parametrize("kind", ["tfrecord", "recordio"])
def test_what_conversion_writes_is_read_without_its_table(tmp_path, kind):
    for number in range(4):
        path = tmp_path / "source" / ("cat" if number % 2 else "dog") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    convert(tmp_path / "source", tmp_path / "out", Options(kind), shard_images=3, workers=1, progress=False)
    written = opened(tmp_path / "out", tmp_path)
    for name in ("table.npz", "table.json", "report.json"):
        (tmp_path / "out" / name).unlink()
    table = opened(tmp_path / "out", tmp_path)
    for column in ("container", "offset", "length", "width", "height", "label"):
        np.testing.assert_array_equal(getattr(table, column), getattr(written, column))
    assert table.classes == (written.classes if kind == "tfrecord" else ())
    convert(tmp_path / "out", tmp_path / "again", Options("wds"), workers=1, progress=False)
    again = opened(tmp_path / "again", tmp_path)
    images = sorted(bytes(data) for data in Reader(again).read(range(4)))
    assert images == sorted(encoded(number) for number in range(4))
