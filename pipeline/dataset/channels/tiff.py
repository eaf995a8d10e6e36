"""TIFFs with any channels and depth, by tifffile.

Of several pages, and of other axes than height and width, every slice is a channel. LZW, PackBits, JPEG and other
compressed TIFFs need the package imagecodecs, except for those that Pillow reads at full depth.
"""

from __future__ import annotations

import io
import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.images import MOST_PIXELS, BadImage

MOST_VALUES = 1 << 30  # of an image: 2 GiB of uint16
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274  # the tag
PALETTE = 3  # its photometric interpretation


def is_tiff(data: bytes) -> bool:
    return data[:4] in MAGIC


def is_deep(data: bytes) -> bool:
    """Whether the first page of a TIFF has what 8-bit color cannot show: more than 8 bits, numbers with a sign or a
    fraction, or another number of samples than gray, RGB or RGB with alpha have."""
    try:
        with _opened(data) as file:
            page = file.pages[0]
            deep = page.bitspersample > 8 or page.sampleformat not in (1, None)
            return bool(deep or page.samplesperpixel not in (1, 3, 4))
    except Exception:  # tifffile raises anything on broken data
        return False


def read_tiff(data: bytes, most: int) -> tuple[NDArray, str, int] | None:
    """The array of a TIFF, its axes in tifffile's letters (without those of length 1) and its EXIF orientation.

    None for a palette, and for a compression that needs imagecodecs. Raises BadImage, also for more than `most` pixels,
    before it reads any.
    """
    try:
        with _opened(data) as file:
            page = file.pages[0]
            if page.photometric == PALETTE:
                return None
            series = file.series[0]
            sides = [size for letter, size in zip(series.axes, series.shape, strict=True) if letter in "YX"]
            if math.prod(series.shape) > MOST_VALUES or math.prod(sides) > most:
                raise BadImage("too large")
            letters = [letter for letter, size in zip(series.axes, series.shape, strict=True) if size > 1]
            array, shape = series.asarray(), [size for size in series.shape if size > 1]
            if len(letters) < 2:  # an image of one row or column
                letters, shape = list(series.axes), list(series.shape)
            tag = page.tags.get(ORIENTATION)
            return array.reshape(shape), "".join(letters), 1 if tag is None else int(tag.value)
    except BadImage:
        raise
    except Exception as error:  # tifffile raises anything on broken data
        if "imagecodecs" in str(error):
            return None
        raise BadImage("unreadable") from None


def page_count(path: str) -> int:
    """The number of pages; 1 if the file is no TIFF or cannot be read."""
    try:
        with _tifffile().TiffFile(path) as file:
            return max(1, len(file.pages))
    except Exception:  # tifffile raises anything on broken data
        return 1


def read_page(path: str, number: int) -> NDArray:
    """A page of a file by itself, (H, W) or (H, W, C). Raises OSError, and BadImage, also for more than MOST_PIXELS."""
    try:
        with open(path, "rb") as stream, _tifffile().TiffFile(stream) as file:
            page = file.pages[number]
            if int(page.imagelength) * int(page.imagewidth) > MOST_PIXELS:
                raise BadImage("too large")
            if page.photometric == PALETTE:
                raise BadImage("a page of palette colors")
            planes = planes_last(page.asarray(), page.axes)
            if planes is None:
                raise BadImage("a page with other axes than height, width and channels")
            return planes[..., 0] if planes.shape[2] == 1 else planes
    except (BadImage, OSError):
        raise
    except IndexError:
        raise BadImage("changed since the table was made (fewer pages)") from None
    except Exception as error:  # tifffile raises anything on broken data
        needs = "a compressed page that needs the package imagecodecs"
        raise BadImage(needs if "imagecodecs" in str(error) else "unreadable") from None


def planes_last(array: NDArray, axes: str) -> NDArray | None:
    """An array with these axes as (H, W, C): all but Y and X become channels, in their order; None
    where the file does not say what they are (Q)."""
    if axes.count("Y") != 1 or axes.count("X") != 1 or "Q" in axes:
        return None
    rest = [index for index, letter in enumerate(axes) if letter not in "YX"]
    moved = array.transpose(axes.index("Y"), axes.index("X"), *rest)
    return moved.reshape(*moved.shape[:2], math.prod(moved.shape[2:]))


def _opened(data: bytes) -> Any:
    return _tifffile().TiffFile(io.BytesIO(np.frombuffer(data, np.uint8).tobytes()))


def _tifffile() -> Any:
    import tifffile  # takes a tenth of a second

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it tolerates
    return tifffile
