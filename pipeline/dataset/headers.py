"""What the sample table needs of an image, without decoding it: size, state and turn, from its first bytes.

For an image that decodes, the result is exactly that of `pipeline.dataset.images.probe`. One that does not decode may
pass: who decodes it first finds out. Images that are not plain JPEGs, PNGs or WebPs are decoded here as there.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from common.holes import pread
from pipeline.dataset.images import MAX_PIXELS, TRANSPOSES, Probe, probe
from pipeline.dataset.png_metadata import is_png
from pipeline.dataset.structure import Structure, jpeg_structure, png_structure, webp_structure
from pipeline.dataset.table import State

FIRST, SECOND = 1 << 12, 1 << 16  # bytes that are read at once; without a thumbnail most headers have less than 1,000
START, END, SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"  # markers of a JPEG; coded pixels contain none


def probe_headers(descriptor: int, offset: int, length: int | None, most: int = MAX_PIXELS) -> tuple[int, Probe]:
    """Length in bytes, and the probe, of an image in an open file. length: None for all of the file; most: pixels.
    Raises OSError."""
    size = os.fstat(descriptor).st_size
    length = size - offset if length is None else length
    for count in (FIRST, SECOND, length):
        data = _read(descriptor, offset, min(count, length))
        structure = _structure(data, length)
        if structure is not None or len(data) == length or offset + length > size:
            break
    if structure is None and is_png(data):
        structure = png_structure(data)
    if structure is None or offset + length > size or not _sure(structure, most):
        return length, probe(data if len(data) == length else _read(descriptor, offset, length), most)
    width, height = structure.width, structure.height
    return length, Probe(*((height, width) if structure.orientation >= TRANSPOSES else (width, height)), State.OK)


def _structure(data: bytes, length: int) -> Structure | None:
    """The structure of a JPEG or WebP of `length` bytes, of which `data` is the beginning."""
    if data[:3] == b"\xff\xd8\xff":
        return jpeg_structure(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and 8 + int.from_bytes(data[4:8], "little") <= length:
        return webp_structure(data)
    return None


def _sure(structure: Structure, most: int) -> bool:
    return not structure.unsure and 0 < structure.width * structure.height <= most


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """All bytes of a range, or those up to the end of the file."""
    parts, end = [], offset + length
    while offset < end and (part := pread(descriptor, end - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def is_cut(data: NDArray[np.uint8]) -> bool:
    """Whether a JPEG, (n,) uint8, lacks its end. Of other formats nothing is said: their decoders notice it."""
    if data[:2].tobytes() != START or data[-2:].tobytes() == END:
        return False
    whole = data.tobytes()
    return whole.rfind(END) < whole.rfind(SCAN)
