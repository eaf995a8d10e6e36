"""What the header of a JPEG 2000 says about its samples (ISO/IEC 15444-1, I.5.3.1 and A.5.1).

Pillow reads gray of 9 to 16 bits as 16 bits, moved up so that white is white, and color of more bits as 8.
"""

from __future__ import annotations

FILE, CODESTREAM = b"\0\0\0\x0cjP  ", b"\xffO\xffQ"
HEAD = 132  # bytes in which the image header box begins
SIGNED = 128


def channels_and_bits(data: bytes) -> tuple[int, int]:
    """Channels, and bits of a sample; (0, 0) for other files; 0 bits for samples with a sign or of different bits."""
    if data.startswith(CODESTREAM):
        at = 40
    elif data.startswith(FILE) and (box := data.find(b"ihdr", 0, HEAD)) > 0:
        at = box + 12
    else:
        return 0, 0
    if len(data) < at + 3:
        return 0, 0
    depth = data[at + 2]
    return int.from_bytes(data[at : at + 2]), depth + 1 if depth < SIGNED else 0


def is_deep_gray(data: bytes) -> bool:
    """Whether it is gray of more than 8 bits, which Pillow keeps."""
    channels, bits = channels_and_bits(data)
    return channels == 1 and 8 < bits <= 16
