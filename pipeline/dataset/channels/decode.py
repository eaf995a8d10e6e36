"""The decode of an image to its own channels at full depth, from any format that is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.dataset.channels import jpeg_2000, tiff
from pipeline.dataset.channels.arrays import NPY, ZIP, plain_values, read_array, with_channels_last
from pipeline.dataset.channels.bands import is_packed, stacked, unpacked
from pipeline.dataset.channels.dicom import is_dicom, read_dicom
from pipeline.dataset.channels.format import PixelFormat, words
from pipeline.dataset.images import MAX_PIXELS, BadImage, opened, orientation_of, reason_of
from pipeline.dataset.png_metadata import is_png

DEEP_HEAD = 132  # bytes: of a DICOM, and more than of a JPEG 2000
PNG_DEPTH = 24  # the byte in IHDR
LOOKED_AT = 1, 99  # percentiles that are black and white in false color
# Of Pillow: their samples are the channels, as they are.
OWN_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "F", "I")
NUMPY_TURNS = {  # EXIF orientation -> the operation that makes an array (H, W, C) upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def is_deep(data: bytes) -> bool:
    """Whether an image has more than 8-bit RGB can show: an array file, a PNG of 16 bits, gray of more than 8 bits in
    a JPEG 2000, a TIFF with other samples. Only its header is read."""
    if is_packed(data) or is_dicom(data):
        return True
    return may_be_deep(data) and (not tiff.is_tiff(data) or tiff.is_deep(data))


def may_be_deep(data: bytes) -> bool:
    """The same from the first DEEP_HEAD bytes, but True for every TIFF."""
    if is_png(data):
        return len(data) > PNG_DEPTH and data[PNG_DEPTH] == 16
    return data[:4] == ZIP or data[:6] == NPY or tiff.is_tiff(data) or is_dicom(data) or jpeg_2000.is_deep_gray(data)


def decode_native(data: bytes, layout: str = "auto", most: int = MAX_PIXELS) -> NDArray:
    """Encoded bytes -> (H, W, C), uint8, uint16 or float32: all samples of the file, upright, nothing scaled.

    Alpha is a channel. Palettes become RGB. layout: of array files and of TIFFs whose axes have no names. most: pixels.
    Raises BadImage.
    """
    if not data:
        raise BadImage("zero bytes")
    if is_packed(data):
        return stacked([decode_native(file, layout, most) for file in unpacked(data)])
    if data[:4] == ZIP or data[:6] == NPY:
        return plain_values(_within(with_channels_last(read_array(data), layout), most))
    if is_dicom(data):
        return plain_values(with_channels_last(read_dicom(data, most), "hwc"))
    if tiff.is_tiff(data):
        read = tiff.read_tiff(data, most)
        if read is not None:
            array, axes, orientation = read
            planes = tiff.planes_last(array, axes)
            planes = with_channels_last(array, layout) if planes is None else with_channels_last(planes, "hwc")
            return _turned(plain_values(_within(planes, most)), orientation)
    return _by_pillow(data, most)


def decode_as(data: bytes, pixels: PixelFormat, height: int, width: int) -> NDArray:
    """The same, of a format and size that are known. Raises BadImage for another one: the file has changed."""
    array = _decode_as(data, pixels, height, width)
    return _stretch(array, pixels) if pixels.range else array


def _stretch(array: NDArray, pixels: PixelFormat) -> NDArray:
    """The image in the range of its format."""
    planes = [curve(ends, pixels.dtype)[array[..., channel]] for channel, ends in enumerate(pixels.range)]
    return np.stack(planes, axis=2)


@lru_cache(maxsize=256)
def curve(ends: tuple[int, int], dtype: str) -> NDArray:
    """For every value of an integer type the one that it becomes, if `ends` become 0 and the largest, rounded."""
    values, white = np.arange(np.iinfo(dtype).max + 1, dtype=float), np.iinfo(dtype).max
    low, high = ends
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * white).astype(dtype)


def _decode_as(data: bytes, pixels: PixelFormat, height: int, width: int) -> NDArray:
    if pixels.stored:
        return _bare(data, pixels, height, width)
    shape, most = (height, width, pixels.channels), max(MAX_PIXELS, height * width)
    array = decode_native(data, pixels.layout, most)
    if array.shape != shape:  # several sources may have different layouts
        others = (decode_native(data, layout, most) for layout in ("hwc", "chw"))
        array = next((other for other in others if other.shape == shape), array)
    if array.shape != shape or array.dtype != pixels.dtype:
        found = f"{array.shape[1]} x {array.shape[0]}, {words(array.shape[2], str(array.dtype))}"
        raise BadImage(f"changed since the table was made ({found})")
    return array


def shown_channels(channels: int, chosen: Sequence[int] = ()) -> list[int]:
    """The channels of an image that are shown as red, green and blue: the chosen ones, else the first three; of two the
    second is blue as well, of one all are that one."""
    return list(chosen) or [0, min(1, channels - 1), min(2, channels - 1)]


def false_color(array: NDArray, chosen: Sequence[int] = ()) -> NDArray[np.uint8]:
    """An image (H, W, C) of any type as RGB (H, W, 3) uint8 to look at: its `shown_channels`, each from one of the
    `LOOKED_AT` percentiles of its values in this image to the other, so that a few outliers do not darken the rest."""
    shown = array[:, :, shown_channels(array.shape[2], chosen)].astype(np.float64)
    low, high = np.percentile(shown, LOOKED_AT, axis=(0, 1), method="nearest")
    return np.rint(255 * np.clip((shown - low) / np.maximum(high - low, 1e-12), 0, 1)).astype(np.uint8)


def _bare(data: bytes, pixels: PixelFormat, height: int, width: int) -> NDArray:
    """The image (H, W, C) of samples without a file around them."""
    planar = pixels.layout == "chw"
    shape = (pixels.channels, height, width) if planar else (height, width, pixels.channels)
    samples = np.frombuffer(data, pixels.stored) if len(data) % np.dtype(pixels.stored).itemsize == 0 else np.empty(0)
    if samples.size != math.prod(shape):
        raise BadImage("truncated")
    return plain_values(with_channels_last(samples.reshape(shape), pixels.layout))


def _within(array: NDArray, most: int) -> NDArray:
    """An array (H, W, C) of at most `most` pixels. Raises BadImage for a larger one."""
    if array.shape[0] * array.shape[1] > most:
        raise BadImage("too large")
    return array


def _turned(array: NDArray, orientation: int) -> NDArray:
    turn = NUMPY_TURNS.get(orientation)
    return array if turn is None else np.ascontiguousarray(turn(array))


def _by_pillow(data: bytes, most: int) -> NDArray:
    try:
        image = opened(data, most)
        channels, bits = jpeg_2000.channels_and_bits(data)
        if image.format == "TIFF" and (tiff.is_deep(data) and image.mode not in ("I;16", "I;16B", "F", "I")):
            raise BadImage("a TIFF that needs the package imagecodecs")
        if is_png(data) and data[PNG_DEPTH] == 16 and data[25] != 0:  # Pillow keeps the high byte of each sample only
            array = _color_png(data)
        elif jpeg_2000.is_deep_gray(data):
            array = np.asarray(image) >> (16 - bits)
        elif channels > 1 and bits > 8:
            raise BadImage("color of more than 8 bits in a JPEG 2000")
        else:
            image.load()
            array = np.asarray(image if image.mode in OWN_MODES else image.convert(_simple(image.mode)))
        orientation = 1 if image.format == "TIFF" else orientation_of(image)  # Pillow has turned a TIFF
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("too large") from None
    except Exception as error:  # decoders raise anything on broken data, even SyntaxError
        raise BadImage(reason_of(data, error)) from None
    return _turned(plain_values(with_channels_last(array, "hwc")), orientation)


def _simple(mode: str) -> str:
    """The mode of samples to which another one is converted: 1-bit images to gray, palettes and others to RGB."""
    return "L" if mode == "1" else "RGB"


def _color_png(data: bytes) -> NDArray:
    """The samples of a 16-bit PNG in color or with alpha, (H, W, C) uint16. Raises RuntimeError."""
    import torch  # takes seconds to import, and few sources need it
    from torchvision.io import ImageReadMode, decode_image

    encoded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    return decode_image(encoded, ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
