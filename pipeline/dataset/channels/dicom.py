"""DICOM images by pydicom, at full depth: DICOM PS3.3, sections C.7.6.3 and C.11.1.

Stored values become those of the modality: value times rescale slope plus intercept. MONOCHROME1 shows its lowest
value as white, so it is inverted within the range of its stored bits. No window is applied.
"""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.images import BadImage

HEAD = 132  # bytes: a preamble, and `DICM`
NEEDS = "a DICOM needs pydicom: .venv/bin/python -m pip install pydicom"
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(data: bytes) -> bool:
    return data[HEAD - 4 : HEAD] == b"DICM"


def read_dicom(data: bytes, most: int) -> NDArray:
    """The image of a file with one frame: (H, W), integers where the values are the stored ones, else float32;
    (H, W, 3) uint8 for color. Raises BadImage, also for more than `most` pixels, before it reads any, and for several
    frames, which `frames_of` reads."""
    frames = frames_of(data, most)
    if len(frames) > 1:
        raise BadImage(f"a DICOM of {len(frames)} frames, which make convert takes apart in folders")
    return frames[0]


def frame_count(data: bytes) -> int:
    """The number of frames by the header; 1 if it cannot be read. Raises BadImage without pydicom."""
    pydicom = _pydicom()
    try:
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return max(1, int(header.get("NumberOfFrames") or 1))
    except Exception:  # pydicom raises anything on broken data
        return 1


def frames_of(data: bytes, most: int) -> list[NDArray]:
    """The frames of a file, each as `read_dicom` gives it. Raises BadImage."""
    pydicom = _pydicom()
    try:
        file = pydicom.dcmread(io.BytesIO(data))
        kind = str(file.PhotometricInterpretation)
        if int(file.Rows) * int(file.Columns) > most:
            raise BadImage("too large")
        if kind not in ("MONOCHROME1", "MONOCHROME2", *COLORS):
            raise BadImage(f"a DICOM of {' '.join(kind.split())[:20]}")
        pixels = file.pixel_array
    except BadImage:
        raise
    except Exception as error:  # pydicom raises anything on broken data, and on compression that it has no decoder for
        missing = "missing dependencies" in str(error)
        raise BadImage("a compressed DICOM that needs pylibjpeg" if missing else "unreadable") from None
    frames = list(pixels) if int(file.get("NumberOfFrames") or 1) > 1 else [pixels]
    return frames if kind in COLORS else [_of_modality(frame, file, kind == "MONOCHROME1") for frame in frames]


def _of_modality(values: NDArray, file: Any, inverted: bool) -> NDArray:
    slope, intercept = _number(file, "RescaleSlope", 1.0), _number(file, "RescaleIntercept", 0.0)
    if inverted:  # x becomes lowest + highest - x, which is -1 - x of signed values
        ends = 2 ** int(file.BitsStored) - 1 if values.dtype.kind == "u" else -1
        values = np.array(ends, values.dtype) - values
    if (slope, intercept) != (1.0, 0.0):
        return (values * slope + intercept).astype(np.float32)
    return values


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
