"""One image of a conversion that keeps channels and depth: a .npy in shards, bare samples in a .beton."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.conversion.rewrite import LARGEST_BLOB, Options, Rewritten, rewrite, shrunk_size
from pipeline.dataset.channels.decode import decode_as, decode_native
from pipeline.dataset.channels.format import PixelFormat, words
from pipeline.dataset.images import BadImage
from pipeline.dataset.table import State


def stored(data: bytes, shape: tuple[int, int], pixels: PixelFormat, options: Options) -> Rewritten:
    """The stored form of one image of a source, of whatever kind OUT is. shape, pixels: height and width of a raw
    image, and the format of the source's images; see `Entries`. Raises BadImage."""
    if not options.pixels.native:
        return rewrite(data, shape, options)
    array = array_of(data, shape, pixels, options.pixels.layout)
    height, width, channels = array.shape
    if (channels, str(array.dtype)) != (options.pixels.channels, options.pixels.dtype):
        raise BadImage(f"of another kind: {words(channels, str(array.dtype))}")
    if options.format == "index":
        return Rewritten(data, "", width, height, State.ARRAY, ())
    smaller = shrunk_size((width, height), options)
    kinds: tuple[str, ...] = ()
    if smaller != (width, height):
        array, kinds = shrunk(array, smaller), ("resized",)
    if options.size not in (None, array.shape[:2]):
        raise BadImage(f"of another size: {array.shape[1]} x {array.shape[0]}")
    if options.format == "beton":
        suffix, out = "raw", np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    else:
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(array))
        suffix, out = "npy", stream.getvalue()
    if len(out) > LARGEST_BLOB:
        raise BadImage("too large")
    kinds += ("stored as an array",) * (out != data)
    return Rewritten(out, suffix, array.shape[1], array.shape[0], State.ARRAY, kinds)


def array_of(data: bytes, shape: tuple[int, int], pixels: PixelFormat, layout: str) -> NDArray:
    """An image of a source, (H, W, C), with its own channels. Raises BadImage."""
    if pixels.stored:
        return decode_as(data, pixels, *shape)
    if any(shape):
        if len(data) != 3 * shape[0] * shape[1]:
            raise BadImage("truncated")
        return np.frombuffer(data, np.uint8).reshape(*shape, 3)
    return decode_native(data, layout)


def shrunk(array: NDArray, size: tuple[int, int]) -> NDArray:
    """The array (H, W, C) at (width, height), each channel by Lanczos in float32; integers are rounded and clipped."""
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(size, Image.Resampling.LANCZOS))
        for plane in array.transpose(2, 0, 1)
    ]
    out = np.stack(planes, axis=2)
    if array.dtype.kind == "f":
        return out
    return np.clip(np.rint(out), 0, np.iinfo(array.dtype).max).astype(array.dtype)
