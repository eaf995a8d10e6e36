"""Parts of large images: TIFF by tifffile, JPEG 2000 by rasterio, whole slides by OpenSlide, others whole.

Each function returns a `Scene`, whose `read` gives one square and holds no more than that and some decoded blocks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.conversion.tiling.tiff import opened
from pipeline.dataset.channels.decode import decode_native
from pipeline.dataset.channels.tiff import is_tiff
from pipeline.dataset.images import MAX_PIXELS, BadImage
from pipeline.dataset.table import DatasetError

SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu")
JPEG_2000 = (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c")
LARGEST_WHOLE = 1 << 30  # bytes of a file that is decoded as a whole
GDAL_CACHE = "128"  # MB of decoded blocks of a JPEG 2000; GDAL's default is a twentieth of the machine's memory


class Scene(NamedTuple):
    """An image of any size. read: top, left and side of a square -> (side, side, C), as the file has it."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    read: Callable[[int, int, int], NDArray]


def open_scene(path: Path, layout: str) -> Scene:
    """The image of a file. layout: `data.layout`, of arrays. Raises BadImage for what cannot be read, and DatasetError
    where a package is missing."""
    if path.suffix.lower() in SLIDES:
        return _slide(path)
    with path.open("rb") as file:
        head = file.read(16)
    if is_tiff(head) and (pages := opened(path, layout)):
        return Scene(pages.height, pages.width, pages.channels, pages.dtype, pages.read)
    if path.suffix.lower() in JPEG_2000 and (scene := _jpeg_2000(path)):
        return scene
    if path.stat().st_size > LARGEST_WHOLE:
        raise BadImage("too large to be decoded as a whole")
    whole = decode_native(path.read_bytes(), layout, MAX_PIXELS)
    height, width, channels = whole.shape
    return Scene(
        height, width, channels, whole.dtype, lambda top, left, side: whole[top : top + side, left : left + side]
    )


def _slide(path: Path) -> Scene:
    """A whole slide at its finest level, RGB; what no scan covers is white."""
    openslide = _package("openslide", "openslide-python openslide-bin", path)
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise BadImage(f"no slide that OpenSlide reads ({' '.join(str(error).split())[:80]})") from None
    width, height = slide.dimensions

    def read(top: int, left: int, side: int) -> NDArray:
        try:
            pixels = np.asarray(slide.read_region((left, top), 0, (side, side))).astype(np.uint16)
        except openslide.OpenSlideError:
            raise BadImage("unreadable") from None
        alpha = pixels[..., 3:]
        return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)

    return Scene(height, width, 3, np.dtype(np.uint8), read)


def _jpeg_2000(path: Path) -> Scene | None:
    """A JPEG 2000 by regions; None without rasterio for one that can be decoded as a whole."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                small = image.width * image.height <= MAX_PIXELS
    except Exception as error:  # Pillow raises anything on broken data, and its own bound for large images
        small = not isinstance(error, Image.DecompressionBombError)
    os.environ.setdefault("GDAL_CACHEMAX", GDAL_CACHE)  # GDAL asks for it when it decodes its first block
    try:
        rasterio = _package("rasterio", "rasterio", path)
    except DatasetError:
        if small:
            return None
        raise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            file = rasterio.open(path, driver="JP2OpenJPEG")
    except rasterio.errors.RasterioError:
        raise BadImage("unreadable") from None

    def read(top: int, left: int, side: int) -> NDArray:
        try:
            return file.read(window=((top, top + side), (left, left + side))).transpose(1, 2, 0)
        except rasterio.errors.RasterioError:
            raise BadImage("unreadable") from None

    return Scene(file.height, file.width, file.count, np.dtype(file.dtypes[0]), read)


def _package(name: str, packages: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        advice = f".venv/bin/python -m pip install {packages}"
        raise DatasetError(f"{path.name}: tiles of it need the package {name}; install it: {advice}") from None
