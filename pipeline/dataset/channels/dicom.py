"""DICOM images by pydicom, at full depth: DICOM PS3.3, sections C.7.6.3, C.7.6.16 and C.11.1.

Stored values become those of the modality: value times rescale slope plus intercept. MONOCHROME1 shows its lowest
value as white, so it is inverted within the range of its stored bits. No window is applied.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.images import MOST_PIXELS, BadImage

HEAD = 132  # bytes: a preamble, and `DICM`
NEEDS = "a DICOM needs pydicom: .venv/bin/python -m pip install pydicom"
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(data: bytes) -> bool:
    return data[HEAD - 4 : HEAD] == b"DICM"


def read_dicom(data: bytes, most: int) -> NDArray:
    """The image of a file with one frame: (H, W), integers where the values are the stored ones, else float32;
    (H, W, 3) uint8 for color. Raises BadImage, also for more than `most` pixels, before it reads any, and for several
    frames, which are images of their own."""
    return _frame(lambda: io.BytesIO(data), None, most)


def read_frame(path: str, number: int) -> bytes:
    """A frame of a file, as `read_dicom` gives it, as the bytes of a .npy. Raises OSError and BadImage."""
    with open(path, "rb") as file:
        array = _frame(lambda: file, number, MOST_PIXELS)
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def frame_count(path: str) -> int:
    """The number of frames by the header; 1 if the file is no DICOM or cannot be read, and without pydicom."""
    try:
        with open(path, "rb") as file:
            if not is_dicom(file.read(HEAD)):
                return 1
            file.seek(0)
            header = _pydicom().dcmread(file, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
            return max(1, int(header.get("NumberOfFrames") or 1))
    except Exception:  # pydicom raises anything on broken data
        return 1


def _frame(source: Callable[[], IO[bytes]], number: int | None, most: int) -> NDArray:
    """A frame, read from the beginning of a stream; None: the only one."""
    pydicom = _pydicom()
    try:
        header = pydicom.dcmread(_rewound(source()), stop_before_pixels=True)
        kind = str(header.PhotometricInterpretation)
        if int(header.Rows) * int(header.Columns) > most:
            raise BadImage("too large")
        if kind not in ("MONOCHROME1", "MONOCHROME2", *COLORS):
            raise BadImage(f"a DICOM of {' '.join(kind.split())[:20]}")
        frames = max(1, int(header.get("NumberOfFrames") or 1))
        if number is None and frames > 1:
            raise BadImage(f"a DICOM of {frames} frames, which are images of their own in folders only")
        if number is not None and number >= frames:
            raise BadImage(f"changed since the table was made ({frames} frames)")
        pixels = pydicom.pixels.pixel_array(_rewound(source()), index=number or 0)
        return pixels if kind in COLORS else _of_modality(pixels, header, number or 0, kind == "MONOCHROME1")
    except BadImage:
        raise
    except Exception as error:  # pydicom raises anything on broken data, and on compression that it has no decoder for
        missing = "missing dependencies" in str(error)
        raise BadImage("a compressed DICOM that needs pylibjpeg" if missing else "unreadable") from None


def _rewound(file: IO[bytes]) -> IO[bytes]:
    file.seek(0)
    return file


def _of_modality(values: NDArray, header: Any, number: int, inverted: bool) -> NDArray:
    place = _transformation(header, number)
    slope, intercept = _number(place, "RescaleSlope", 1.0), _number(place, "RescaleIntercept", 0.0)
    if inverted:  # x becomes lowest + highest - x, which is -1 - x of signed values
        ends = 2 ** int(header.BitsStored) - 1 if values.dtype.kind == "u" else -1
        values = np.array(ends, values.dtype) - values
    if (slope, intercept) != (1.0, 0.0):
        return (values * slope + intercept).astype(np.float32)
    return values


def _transformation(header: Any, number: int) -> Any:
    """Where the rescale of a frame stands: in its functional groups or those of all frames (C.7.6.16.2.9), else in the
    file."""
    of_frame = (header.get("PerFrameFunctionalGroupsSequence") or [])[number : number + 1]
    for group in (*of_frame, *(header.get("SharedFunctionalGroupsSequence") or [])[:1]):
        if items := group.get("PixelValueTransformationSequence"):
            return items[0]
    return header


def _number(file: Any, name: str, otherwise: float) -> float:
    value = file.get(name)
    return otherwise if value is None or str(value) == "" else float(value)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise BadImage(NEEDS) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs what it tolerates
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom
