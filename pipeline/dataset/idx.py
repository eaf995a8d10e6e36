"""Arrays of bytes as files: IDX in, PNG out."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from pipeline.dataset.table import DatasetError


def parse_idx(data: bytes) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes as an array of its shape. Raises DatasetError for anything else."""
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DatasetError("not an IDX file of unsigned bytes")
    dimensions = data[3]
    if len(data) < 4 + 4 * dimensions:
        raise DatasetError("IDX file cut short in its header")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    wanted = 1
    for size in shape:
        wanted *= size
    if len(values) != wanted:
        raise DatasetError(f"IDX file has {len(values)} values, its shape {shape} needs {wanted}")
    return values.reshape(shape)


def stored_png(pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Gray or RGB pixels as a PNG, stored, not deflated: the same bytes with every zlib."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each row is led by its filter byte
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    blocks = [raw[start : start + 65_535] for start in range(0, len(raw), 65_535)]
    body = b"\x78\x01" + b"".join(
        struct.pack("<BHH", index == len(blocks) - 1, len(block), 65_535 - len(block)) + block
        for index, block in enumerate(blocks)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2 * (pixels.ndim == 3), 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body + struct.pack(">I", zlib.adler32(raw))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )
