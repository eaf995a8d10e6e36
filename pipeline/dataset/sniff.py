"""Which files count as images: by extension, or by their first bytes if the name has no image extension."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec

HEIF = (".heic", ".heif", ".hif", ".heics", ".heifs")  # of telephones; decoded where this package is installed
HEIF_PACKAGE = "pillow-heif"
HAS_HEIF = find_spec("pillow_heif") is not None
# Of the formats that `pipeline.dataset.images` decodes.
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".jfif",
    ".jpe", ".mpo", ".apng", ".pgm", ".pbm", ".pnm", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".avifs",
    ".dcm", ".dicom", *(HEIF if HAS_HEIF else ()),
)  # fmt: skip
ARRAYS = (".npy", ".npz")  # images where no other files are: beside pictures they usually hold something else
HEAD = 132  # bytes that `looks_like_image` needs
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|P[1-6]\s+[\d#]"
    rb"|II[*+]\0|MM\0[*+]|....ftyp(?:avif|avis|mif1|msf1)|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"
    + (rb"|....ftyp(?:heic|heix|heim|heis)" if HAS_HEIF else b""),
    re.DOTALL,
)
# Raw camera files are TIFFs too; Pillow would decode their thumbnail.
CAMERA = (".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".srf", ".srw", ".pef", ".orf", ".rw2", ".3fr", ".iiq")
# Folders of operating systems and storage devices: thumbnails, copies of deleted files.
SYSTEM = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
EXTENSION = re.compile(r"\.(?=\w*[a-z])\w{1,8}")
NO_EXTENSION = "no extension"
MAX_EXTENSIONS = 8  # in a message


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, without its path, is passed over."""
    return name.startswith(".") or name in SYSTEM


def has_extension(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def has_array_extension(name: str) -> bool:
    return name.lower().endswith(ARRAYS)


def looks_like_image(name: str, head: bytes) -> bool:
    """Whether a file that starts with `head` has a format that is decoded, and not the name of a raw camera file."""
    return (MAGIC.match(head) is not None or head[128:132] == b"DICM") and not name.lower().endswith(CAMERA)


def extension(name: str) -> str:
    """'.txt', or 'no extension' (digits after a dot are not an extension)."""
    base = name.rpartition("/")[2].lower()
    dot = base.rfind(".")
    return base[dot:] if dot > 0 and EXTENSION.fullmatch(base[dot:]) else NO_EXTENSION


def in_words(counts: Mapping[str, int]) -> str:
    """'3 other files (.txt 2, .csv 1)'"""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name} {count:,}" for name, count in most[:MAX_EXTENSIONS]] + ["..."] * (len(most) > MAX_EXTENSIONS)
    total = sum(counts.values())
    return f"{total:,} other file{'s' * (total != 1)} ({', '.join(named)})"
