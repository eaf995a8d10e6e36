"""The bytes of one image, wherever it is."""

from __future__ import annotations

import os

from common.holes import open_file
from pipeline.dataset.channels.dicom import read_frame
from pipeline.dataset.channels.tiff import is_tiff, read_page
from pipeline.dataset.inside.hdf5 import as_file, read_hdf5
from pipeline.dataset.inside.names import FRAME, file_of, is_inside, place_in


def read_place(root: str | os.PathLike[str], name: str, offset: int, length: int) -> bytes:
    """The bytes of an image, as a file would have them. root, name, offset, length: as in a `SampleTable`; length -1 is
    the rest of a file. Raises OSError, and BadImage for a frame or page."""
    if is_inside(name):
        return read_inside(root, name, offset)
    with open_file(os.path.join(root, name)) as file:
        file.seek(offset)
        return file.read(length)


def read_inside(root: str | os.PathLike[str], name: str, number: int) -> bytes:
    """Image `number` of a place inside of a file. Raises OSError, and BadImage for a frame or page."""
    path = os.path.join(root, file_of(name))
    if not name.endswith(FRAME):
        return read_hdf5(path, place_in(name), number)
    with open(path, "rb") as file:
        is_page = is_tiff(file.read(4))
    return as_file(read_page(path, number)) if is_page else read_frame(path, number)
