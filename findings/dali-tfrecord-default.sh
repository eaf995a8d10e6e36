#!/bin/sh
# DALI 2.4.0, TFRecord: the default of FixedLenFeature is not used for a record that lacks the feature.
#
# Expected: tfrecord.FixedLenFeature([1], tfrecord.int64, -1) gives [-1] for records without the feature, as its signature
# (shape, dtype, default_value) says. Seen: where no record of a batch has it, the reader gives a scalar of shape () that is
# not -1, so unlabeled images get the label of a class; where only some records lack it, the batch ends with an error about
# dimensions. Records made without labels (a test split, a crawl) therefore need the feature written into each of them.
#
# Installs into a temporary folder (some 600 MB); needs no GPU and no TensorFlow. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check nvidia-dali-cuda120==2.4.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import struct, subprocess, sys
from pathlib import Path
import numpy as np
from nvidia.dali import fn, pipeline_def, tfrecord


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, body):
    return bytes([number << 3 | 2]) + varint(len(body)) + body


def example(features):
    entries = b"".join(field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items())
    return field(1, entries)


def bytes_list(body):
    return field(1, field(1, body))


def int64_list(number):
    return field(3, field(1, varint(number)))


def crc(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write(path, labels):
    with open(path, "wb") as file:
        for number, label in enumerate(labels):
            features = {"image/encoded": bytes_list(b"image %d" % number)}
            if label is not None:
                features["image/class/label"] = int64_list(label)
            body, length = example(features), struct.pack("<Q", len(example(features)))
            file.write(length + crc(length) + body + crc(body))
    subprocess.run([Path(sys.executable).with_name("tfrecord2idx"), path, path.with_suffix(".idx")], check=True)


@pipeline_def(batch_size=3, num_threads=1, device_id=None)
def reader(path):
    features = {
        "image/encoded": tfrecord.FixedLenFeature((), tfrecord.string, ""),
        "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
    }
    read = fn.readers.tfrecord(path=[str(path)], index_path=[str(path.with_suffix(".idx"))], features=features)
    return read["image/class/label"], read["image/encoded"]


for case, labels in (("all have a label", [4, 5, 6]), ("none has a label", [None] * 3), ("one lacks its label", [4, None, 6])):
    path = Path(sys.argv[1], case.replace(" ", "_") + ".tfrecord")
    write(path, labels)
    try:
        pipeline = reader(path)
        pipeline.build()
        first = np.array(pipeline.run()[0][0])
        print(f"{case}: shape {first.shape}, is -1: {bool((first == -1).all())}")
    except RuntimeError as error:
        print(f"{case}: error, samples differ in dimensions: {'must have the same dimensionality' in str(error)}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2>"$folder/stderr" | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
cat > "$folder/expected" <<'TEXT'
all have a label: shape (1,), is -1: False
none has a label: shape (), is -1: False
one lacks its label: error, samples differ in dimensions: True
TEXT
diff "$folder/expected" "$folder/seen" && echo "DALI 2.4.0: as stated"
