"""What the kernel needs to know of a JPEG before it decodes it: size, orientation, and how its colors are stored."""

from __future__ import annotations

import numpy as np
from numba import njit

FINE, BROKEN, MISFIT = range(3)  # status of a row
ORIENTATION = 0x0112  # TIFF tag
TRANSPOSES = 5  # EXIF orientations from this one on exchange rows and columns


@njit(nogil=True, error_model="numpy")
def read_header(data, height, width):
    """(status, orientation, across, down) of a JPEG (`data`, its bytes) that is height x width pixels when upright.

    status: FINE, MISFIT for another size, BROKEN without a frame header. orientation: EXIF's, 1 to 8. across, down:
    luma samples for each chroma sample; (0, 0) for gray; (-1, -1) if the components are no such planes: RGB, CMYK,
    unusual sampling.
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return BROKEN, 1, -1, -1
    at = np.int64(2)
    orientation, adobe = 1, 1
    while at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xD9 or marker == 0xDA:
            return BROKEN, 1, -1, -1
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
            continue
        length = _number(data, at + 2, 2, False)
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            rows, columns = _number(data, at + 5, 2, False), _number(data, at + 7, 2, False)
            if orientation >= TRANSPOSES:
                rows, columns = columns, rows
            across, down = _sampling(data[at + 9 : at + 2 + length])
            if adobe != 1:
                across, down = -1, -1
            return FINE if rows == height and columns == width else MISFIT, orientation, across, down
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and orientation == 1:
            orientation = _orientation(body)
        elif marker == 0xEE and len(body) >= 12 and body[0] == 0x41 and body[1] == 0x64:  # "Ad(obe)": its transform
            adobe = body[11]
        at += 2 + length
    return BROKEN, 1, -1, -1


@njit(nogil=True, error_model="numpy")
def _sampling(frame):
    """(across, down) as in `read_header`; frame: the bytes from the number of components on."""
    if len(frame) >= 4 and frame[0] == 1:
        return (0, 0) if frame[2] == 0x11 else (-1, -1)
    if len(frame) < 10 or frame[0] != 3 or frame[5] != 0x11 or frame[8] != 0x11:
        return -1, -1
    if frame[1] == 0x52 and frame[4] == 0x47 and frame[7] == 0x42:  # components named R, G and B
        return -1, -1
    across, down = np.int64(frame[2] >> 4), np.int64(frame[2] & 15)
    usual = (across == 1 and down <= 2) or (across == 2 and down <= 2) or (across == 4 and down == 1)
    return (across, down) if usual and down >= 1 else (-1, -1)


@njit(nogil=True, error_model="numpy")
def _orientation(block):
    """EXIF orientation in an APP1 block of a JPEG; 1 if it is absent or invalid."""
    if len(block) < 16 or block[0] != 0x45 or block[1] != 0x78 or block[2] != 0x69 or block[3] != 0x66:  # "Exif"
        return 1
    tiff = block[6:]
    little = tiff[0] == 0x49
    directory = _number(tiff, 4, 4, little)
    for entry in range(_number(tiff, directory, 2, little)):
        at = directory + 2 + 12 * entry
        if at + 12 > len(tiff):
            return 1
        if _number(tiff, at, 2, little) == ORIENTATION:
            value = _number(tiff, at + 8, 2, little)
            return value if 2 <= value <= 8 else 1
    return 1


@njit(nogil=True, error_model="numpy")
def _number(data, at, count, little):
    """Unsigned integer of `count` bytes at `at`; 0 if `data` ends before it does."""
    if at + count > len(data):
        return 0
    value = np.int64(0)
    for i in range(count):
        value = value << 8 | np.int64(data[at + (count - 1 - i if little else i)])
    return value
