"""Arrays in .beton files, written and read by the stock FFCV."""

from multiprocessing import get_context

import numpy as np


class Samples:
    """A dataset for FFCV's writer: it pickles and has a length."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def write_arrays(path, arrays, labels, picture=None):
    """A .beton of NDArrayField and IntField, and with `picture` an RGBImageField, by FFCV's writer in a process of its
    own."""
    process = get_context("fork").Process(target=_write, args=(str(path), arrays, labels, picture))
    process.start()
    process.join()
    assert process.exitcode == 0
    return path


def stock_arrays(path):
    """Array and label of each sample, by FFCV's own reader of the fields and their descriptions."""
    from ffcv.reader import Reader

    stock = Reader(str(path))
    field = stock.handlers["image"]
    data = np.fromfile(path, np.uint8)
    for pointer, label in stock.metadata:
        size = int(field.element_size)
        yield data[pointer : pointer + size].view(field.dtype).reshape(field.shape), int(label)


def _write(path, arrays, labels, picture):
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": NDArrayField(arrays.dtype, arrays.shape[1:]), "label": IntField()}
    rows = list(zip(arrays, labels, strict=True))
    if picture is not None:
        fields = {"image": fields["image"], "photo": RGBImageField(write_mode="raw"), "label": IntField()}
        rows = [(array, picture, label) for array, label in rows]
    DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(Samples(rows), chunksize=2)
