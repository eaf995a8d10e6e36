"""The structure of an encoded image: which files are plain, so that every decoder gives the same pixels, and how large
they are. Only headers and checksums are read.

Each `..._structure` returns None if the file is not plain.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from pipeline.dataset.png_metadata import ORIENTING, inflated_size

MOST_METADATA = 1 << 20  # bytes of a PNG's texts and profile that backends are given: Pillow's bound of one text
ORIENTATION, EXIF_DIRECTORY, GPS_DIRECTORY = 0x0112, 0x8769, 0x8825  # TIFF tags
EXIF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # by TIFF type
XMP, TURNED_BY_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


class Structure(NamedTuple):
    """Width and height in pixels as stored; orientation: EXIF's (1..8), as DALI finds it. unsure: whether a text that
    only Pillow reads may turn the image, too."""

    width: int
    height: int
    orientation: int
    unsure: bool


def is_plain(data: bytes, kind: str, mode: str, orientation: int) -> bool:
    """Whether backends may decode a file themselves. kind, mode and orientation: of the decoded image, as in `Upright`
    of `pipeline.dataset.images`."""
    read = STRUCTURES.get(kind)
    structure = read(data) if read and mode in PLAIN_MODES else None
    return structure is not None and structure.orientation == orientation


def jpeg_structure(data: bytes) -> Structure | None:
    """Plain: 8-bit baseline, extended or progressive Huffman JPEG, gray or YCbCr, with at most one EXIF block, which is
    well-formed. The bytes up to the first scan are enough."""
    position, orientation, exif_blocks, frame, xmp = 2, 0, 0, b"", False
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9 or length < 2:
            return None
        if marker == 0xDA:  # the scan starts: there are no more headers
            if not frame:
                return None
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            return Structure(width, height, orientation or 1, xmp and not orientation)
        if marker == 0xE1 and body[:6] == b"Exif\0\0":
            exif_blocks += 1
            in_block = _exif_orientation(body[6:])
            if in_block is None or exif_blocks > 1:
                return None
            orientation = in_block
        elif marker == 0xE1 and body.startswith(XMP):
            xmp = xmp or TURNED_BY_XMP in body
        elif marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\1":
            return None  # transform 0 or 2: RGB, CMYK or YCCK instead of YCbCr
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            ids = body[6::3]
            if frame or marker > 0xC2 or body[:1] != b"\x08" or len(ids) not in (1, 3) or ids == b"RGB":
                return None
            frame = body
        position += 2 + length
    return None


def png_structure(data: bytes) -> Structure | None:
    """Plain: a complete PNG of at most 8 bits per sample, all checksums right, not animated, at most one EXIF block,
    little metadata (Pillow and libpng have limits for it). All bytes are needed."""
    position, orientation, exif_blocks, metadata, unsure = 8, 0, 0, 0, data[12:16] != b"IHDR"
    while position + 12 <= len(data):
        length, tag = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        checksum = int.from_bytes(data[end : end + 4], "big")
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != checksum:
            return None
        if tag == b"IEND":
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
            return Structure(width, height, orientation or 1, unsure)
        metadata += inflated_size(tag, data[position + 8 : end])
        if tag == b"acTL" or (tag == b"IHDR" and data[position + 16] > 8) or metadata > MOST_METADATA:
            return None
        unsure = unsure or (tag[1:] in (b"EXt", b"TXt") and _keyword(data, position + 8, end) in ORIENTING)
        if tag == b"eXIf":
            exif_blocks += 1
            in_block = _exif_orientation(data[position + 8 : end])
            if in_block is None or exif_blocks > 1:
                return None
            orientation = in_block
        position = end + 4
    return None


def webp_structure(data: bytes) -> Structure | None:
    """Plain: a still WebP, lossy or lossless, without EXIF (lossless, DALI refuses it; lossy, it can miss a turn). The
    first 30 bytes are enough."""
    if len(data) < 30 or data[12:16] not in (b"VP8 ", b"VP8L", b"VP8X"):
        return None
    if data[12:16] == b"VP8X":
        if data[20] & 0b1010:  # flags: 8 EXIF, 4 XMP, 2 animation
            return None
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return Structure(width, height, 1, bool(data[20] & 0b100))
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Structure(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 1, data[20] != 0x2F)
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return Structure(width, height, 1, data[23:26] != b"\x9d\x01\x2a")


def _keyword(data: bytes, start: int, end: int) -> bytes:
    """Of a PNG's text: at most 79 bytes before a zero."""
    return data[start : min(end, start + 80)].partition(b"\0")[0]


def _exif_orientation(block: bytes) -> int | None:
    """The orientation in a TIFF header; 0 if it has no such tag; None if anything in its directories is malformed.

    From malformed EXIF (a value outside the block, an unknown type, a wild pointer) DALI's parser and its decoder can
    read two different orientations, and then write a tall image into a buffer for a wide one.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return None
    orientations: list[int] = []
    pending, seen = [struct.unpack_from(order + "I", block, 4)[0]], 0
    while pending:
        start, seen = pending.pop(0), seen + 1
        if seen > 8 or start < 8 or start + 2 > len(block):
            return None
        (entries,) = struct.unpack_from(order + "H", block, start)
        end = start + 2 + 12 * entries
        if end + 4 > len(block):
            return None
        for at in range(start + 2, end, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHII", block, at)
            size = count * EXIF_BYTES.get(kind, 1 << 32)
            if kind not in EXIF_BYTES or (size > 4 and value + size > len(block)):
                return None
            if tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
                pending.append(value)
            if tag == ORIENTATION and seen == 1:
                (value,) = struct.unpack_from(order + "H", block, at + 8)
                orientations.append(value or 1)  # some cameras write 0 for "not known"
                if kind != 3 or count != 1 or value > 8:
                    return None
        (following,) = struct.unpack_from(order + "I", block, end)
        if following:
            pending.append(following)
    if len(orientations) > 1:
        return None
    return orientations[0] if orientations else 0


STRUCTURES = {"JPEG": jpeg_structure, "MPO": jpeg_structure, "PNG": png_structure, "WEBP": webp_structure}
