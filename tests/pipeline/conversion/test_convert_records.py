"""TFRecord and RecordIO shards, read by DALI and by our loader."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.conversion.recordio_writer import has_mark, without_marks
from pipeline.dataset.images import BadImage
from pipeline.dataset.reader import Reader
from pipeline.dataset.records.crc32c import masked_crc
from pipeline.dataset.records.recordio import MARK
from pipeline.dataset.shards import Record, pack
from pipeline.dataset.table import SampleTable
from support.conversions import converted, target
from support.photos import photographs, write_folder
from support.small_datasets import error_of


def encoded(kind):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 90, 200)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["wds", "tfrecord", "recordio"])
def test_dali_reads_names_that_are_long_or_have_blanks(tmp_path, kind):
    """DALI 2.4.0 by itself does not (findings/dali-webdataset-names.sh), nor labels that some records lack."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    for number, name in enumerate(["a cat/" + "n" * 120, "a cat/my photo 1", "a dog/2"]):
        path = tmp_path / "source" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 5), (number, 0, 0)).save(path)
    out = target(tmp_path / "out", kind)
    converted(tmp_path / "source", out, kind, shard_images=2)
    table = SampleTable.load(out / "table.npz")
    assert len(table.containers) == 2
    expected = list(zip(Reader(table).read(range(3)), table.label, strict=True))
    read = [pair for name in table.containers for pair in read_by_dali(out / name, kind)]
    assert read == [(bytes(data), label) for data, label in expected]
    for data, label in read:
        assert table.classes[label] == ("a dog" if Image.open(io.BytesIO(data)).getpixel((0, 0))[0] == 2 else "a cat")


def read_by_dali(shard, kind):
    """Bytes and label of each record. DALI's reader of RecordIO takes one shard, the others take any number."""
    from nvidia.dali import fn, pipeline_def, tfrecord

    index = shard.with_suffix(".idx")
    records = len(index.read_text().splitlines()) - (kind == "wds")

    @pipeline_def(batch_size=records, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def reading():
        if kind == "recordio":
            return tuple(fn.readers.mxnet(path=[str(shard)], index_path=[str(index)]))
        if kind == "wds":
            return tuple(fn.readers.webdataset(paths=[str(shard)], index_paths=[str(index)], ext=["png", "cls"]))
        features = {
            "image/encoded": tfrecord.FixedLenFeature((), tfrecord.string, ""),
            "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
        }
        read = fn.readers.tfrecord(path=[str(shard)], index_path=[str(index)], features=features)
        return read["image/encoded"], read["image/class/label"]

    pipe = reading()
    pipe.build()
    images, labels = pipe.run()
    for row in range(records):
        label = int(bytes(labels.at(row))) if kind == "wds" else int(labels.at(row)[0])
        yield bytes(images.at(row)), label


def test_a_tfrecord_index_is_that_of_dalis_tool(tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    source = write_folder(tmp_path / "source", [photo[:30, :40] for photo in photographs()[:3]])
    out = target(tmp_path, "tfrecord")
    converted(source, out, "tfrecord")
    (shard,) = out.glob("*.tfrecord")
    tool = Path(sys.executable).with_name("tfrecord2idx")
    subprocess.run([sys.executable, tool, shard, tmp_path / "theirs"], check=True, timeout=60)
    assert (tmp_path / "theirs").read_text() == shard.with_suffix(".idx").read_text()


@pytest.mark.parametrize(
    ("data", "crc"), [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)]
)
def test_the_checksum_of_a_tfrecord_is_crc32c(data, crc):
    """The values of RFC 3720, appendix B.4, and the usual check value; the mask as in TensorFlow's crc32c.h."""
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc(data) == masked_crc(data, plain=True) == masked.to_bytes(4, "little")


def test_recordio_holds_its_mark_only_at_the_start_of_a_record():
    plain = encoded("JPEG")
    for shift in range(4):
        comment = b"\xff\xfe" + (2 + 12 + shift).to_bytes(2, "big") + bytes(4 + shift) + MARK + bytes(4)
        marked = plain[:20] + comment + plain[20:]
        moved = without_marks(marked)
        assert not has_mark(moved)
        assert (moved == marked) == (not has_mark(marked))
        assert (np.array(Image.open(io.BytesIO(moved))) == np.array(Image.open(io.BytesIO(plain)))).all()
    with pytest.raises(BadImage, match="RecordIO"):
        without_marks(b"PNG?" + MARK)


def test_recordio_refuses_labels_that_float32_does_not_hold(tmp_path):
    records = [Record(f"{label}", encoded("PNG"), "png", label) for label in (0, 16_777_217)]
    pack(records, tmp_path / "source", "x")
    line = error_of(converted, tmp_path / "source", tmp_path / "x", "recordio")
    assert "16777217" in line and "tfrecord" in line
