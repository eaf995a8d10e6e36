"""Arrays of bytes as files: reads IDX, writes PNG."""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from pipeline.dataset.table import DatasetError


def parse_idx(data: bytes) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes. Raises DatasetError for any other content."""
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DatasetError("not an IDX file of unsigned bytes")
    dimensions = data[3]
    if len(data) < 4 + 4 * dimensions:
        raise DatasetError("IDX file cut short in its header")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    count = math.prod(shape)
    if len(values) != count:
        raise DatasetError(f"IDX file has {len(values)} values, its shape {shape} needs {count}")
    return values.reshape(shape)


def stored_png(pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w c"]) -> bytes:
    """Gray, RGB or RGBA pixels as an uncompressed PNG, so that every zlib gives the same bytes."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each row starts with its filter byte
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    blocks = [raw[start : start + 65_535] for start in range(0, len(raw), 65_535)]
    body = b"\x78\x01" + b"".join(
        struct.pack("<BHH", index == len(blocks) - 1, len(block), 65_535 - len(block)) + block
        for index, block in enumerate(blocks)
    )
    kind = 0 if pixels.ndim == 2 else {3: 2, 4: 6}[pixels.shape[2]]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body + struct.pack(">I", zlib.adler32(raw))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )
