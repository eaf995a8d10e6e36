"""CRC-32C, which guards the records of a TFRecord (RFC 3720, appendix B.4; the mask as in TensorFlow's crc32c.h)."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


def masked_crc(data: bytes, plain: bool = False) -> bytes:
    """The four bytes that guard `data` in a TFRecord. plain: by Python alone, for few bytes."""
    value = _plain(data) if plain else int(_compiled()(np.frombuffer(data, np.uint8), _tables()))
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _plain(data: bytes) -> int:
    table: list[int] = _tables()[0].tolist()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _tables() -> NDArray[np.uint32]:
    """(8, 256): the CRC-32C of a byte that is followed by 0 to 7 zero bytes."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    tables = [table]
    for _ in range(7):
        tables.append(tables[-1] >> 8 ^ table[tables[-1] & 255])
    return np.stack(tables)


@cache
def _compiled() -> Any:
    from numba import njit  # half a second, which a run on other files need not wait for

    return njit(cache=True, nogil=True)(_crc32c)


def _crc32c(data: Any, tables: Any) -> Any:  # eight bytes a turn
    crc = np.uint32(0xFFFFFFFF)
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        crc ^= (
            np.uint32(data[at]) | np.uint32(data[at + 1]) << np.uint32(8)
            | np.uint32(data[at + 2]) << np.uint32(16) | np.uint32(data[at + 3]) << np.uint32(24)
        )  # fmt: skip
        crc = (
            tables[7, crc & np.uint32(255)] ^ tables[6, crc >> np.uint32(8) & np.uint32(255)]
            ^ tables[5, crc >> np.uint32(16) & np.uint32(255)] ^ tables[4, crc >> np.uint32(24)]
            ^ tables[3, data[at + 4]] ^ tables[2, data[at + 5]] ^ tables[1, data[at + 6]] ^ tables[0, data[at + 7]]
        )  # fmt: skip
    for at in range(whole, len(data)):
        crc = tables[0, (crc ^ np.uint32(data[at])) & np.uint32(255)] ^ crc >> np.uint32(8)
    return crc ^ np.uint32(0xFFFFFFFF)
