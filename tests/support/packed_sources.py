"""Tiny datasets in formats of others: Hugging Face tables, IDX, CIFAR-10, and a malicious pickle."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from support.source_files import image

NAMES = ["cat", "dog", "owl"]
ROWS = [{"bytes": image(i), "path": f"photos/{i % 5}.jpg" if i % 2 else None} for i in range(7)]
ROW_LABELS = [2, 0, None, 1, -1, 1, 0]


def hugging_face(column="label"):
    """A table as `datasets` writes it: an Image column first in its metadata, a ClassLabel, another column."""
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        column: {"names": NAMES, "_type": "ClassLabel"},
    }
    cells = {"id": pa.array(range(7)), "image": pa.array(ROWS), column: pa.array(ROW_LABELS, pa.int64())}
    return pa.table(cells).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_arrow(path, table, new=ipc.new_stream):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def cifar10(python2=False):
    """Files of CIFAR-10's python version with 4 images in each batch, and their pixels; pickled by Python 3 or, like
    the published files, by Python 2 (whose text is bytes in Python 3)."""

    def pickled(value):
        data = pickle.dumps(value, protocol=2)
        # Protocol 2 has names in plain text: put in the module name of the NumPy of that time.
        return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") if python2 else data

    text = str.encode if python2 else str
    files, pixels = {}, {}
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        pixels[name] = np.random.default_rng(number).integers(0, 256, (4, 32, 32, 3), np.uint8)
        files[name] = pickled({
            text("batch_label"): text("some"), text("labels"): [3, 1, 0, 2],
            text("data"): np.ascontiguousarray(pixels[name].transpose(0, 3, 1, 2)).reshape(4, 3072),
            text("filenames"): [text(f"cat_s_{number}{i}.png") for i in range(4)],
        })  # fmt: skip
    files["batches.meta"] = pickled({text("label_names"): [text(name) for name in ("plane", "car", "bird", "cat")]})
    return files, pixels


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
