"""Names of places inside of files: `x.h5//group/data`, `x.dcm//frame`. No file has `//` in its name."""

from __future__ import annotations

INSIDE = "//"
ROWS = "/"  # at the end of a name: each row of a dataset is an image
FRAME = f"{INSIDE}frame"  # at the end of a DICOM or TIFF of several images


def inside(file: str, place: str) -> str:
    return f"{file}{INSIDE}{place}"


def is_inside(name: str) -> bool:
    return INSIDE in name


def file_of(name: str) -> str:
    """The file itself."""
    return name.partition(INSIDE)[0]


def numbered(name: str, number: int) -> str:
    """The name of an image of a place."""
    return f"{name}{number}" if name.endswith((ROWS, FRAME)) else name


def place_in(name: str) -> str:
    return name.partition(INSIDE)[2]
