"""Texts and color profiles of PNGs, which no decoder needs for the pixels (PNG 1.2, sections 4.2.2.4 and 4.2.3).

Image generators write workflows of megabytes, and Pillow refuses the whole file if a text or profile inflates beyond 1
MiB (`PngImagePlugin.MAX_TEXT_CHUNK`), or all of them beyond 64.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection

SIGNATURE = b"\x89PNG\r\n\x1a\n"
METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTING = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp", b"exif")  # read by Pillow
MOST = 1 << 24  # bytes that are inflated to count them


def is_png(data: bytes) -> bool:
    """Whether the bytes begin as a PNG does."""
    return data[:8] == SIGNATURE


def without_metadata(data: bytes, keep: Collection[bytes] = ()) -> bytes:
    """A PNG without its texts and color profile, except for texts with these keywords; what cannot be parsed stays.
    Other files stay as they are."""
    if not is_png(data):
        return data
    pieces, position = [SIGNATURE], 8
    while position + 12 <= len(data):
        length, tag = struct.unpack_from(">I4s", data, position)
        following = position + 12 + length
        if following > len(data):
            break
        keyword = data[position + 8 : position + 8 + min(length, 80)].partition(b"\0")[0]
        if tag not in METADATA or keyword in keep:
            pieces.append(data[position:following])
        position = following
    return b"".join([*pieces, data[position:]])


def inflated_size(tag: bytes, body: bytes) -> int:
    """Bytes of a text or profile when inflated, at most about MOST; 0 for other chunks."""
    if tag not in METADATA:
        return 0
    content = body.partition(b"\0")[2]
    if tag == b"iTXt":
        compressed, content = content[:1] != b"\0", content[2:].split(b"\0", 2)[-1]
    else:
        compressed, content = tag != b"tEXt", content[tag != b"tEXt" :]
    try:
        return len(zlib.decompressobj().decompress(content, MOST)) if compressed else len(content)
    except zlib.error:
        return MOST
