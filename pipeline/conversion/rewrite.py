"""Converts one image: keeps its bytes, or makes a JPEG, a PNG or raw pixels of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from PIL import Image

from pipeline.conversion.beton_writer import LONGEST_SIDE
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.images import BadImage, Fit, Upright, few_pixels, is_plain, shrink, upright
from pipeline.dataset.png_metadata import without_metadata
from pipeline.dataset.table import State

LONGEST_JPEG = 65_500  # pixels: libjpeg's limit for a written file
LARGEST_BLOB = 1 << 31  # bytes: FFCV's pages are smaller than 4 GiB
QUALITY = 95  # of a JPEG that has to be re-encoded


@dataclass(frozen=True)
class Options:
    """How images are stored. format: one of `pipeline.convert.FORMATS`; short, long: limit of that side in pixels, or
    None; quality: re-encode every JPEG at it, None re-encodes only where needed (at QUALITY); raw: RGB pixels instead
    of JPEGs (beton only). pixels: the kind of all images in OUT; size: height and width of all its arrays, None if they
    may differ."""

    format: str
    short: int | None = None
    long: int | None = None
    quality: int | None = None
    raw: bool = False
    pixels: PixelFormat = COLOR
    size: tuple[int, int] | None = None


class Rewritten(NamedTuple):
    """A stored image: bytes, suffix, size in pixels, state in the table, and the kinds of changes."""

    data: bytes
    suffix: str
    width: int
    height: int
    state: State
    kinds: tuple[str, ...]


def rewrite(data: bytes, shape: tuple[int, int], options: Options) -> Rewritten:
    """The stored form of one image. shape: (height, width) of raw RGB pixels, (0, 0) if encoded. Raises BadImage.

    Bytes that the readers of the target accept stay unchanged, unless they are a JPEG and a quality is given. Any other
    image is made upright and RGB and shrunk if necessary. It becomes raw pixels, a JPEG (in a .beton, or if a JPEG was
    shrunk or a quality is given) or else a PNG.
    """
    fit = few_pixels if options.format == "index" else partial(shrunk_size, options=options)
    image, kind, mode, orientation, size = _raw_pixels(data, shape, fit) if any(shape) else upright(data, fit)
    plain = is_plain(data, kind, mode, orientation)
    if options.format == "index":
        state = State.RAW if kind == "raw" else State.OK if plain else State.PIL
        return Rewritten(data, "", *size, state, ())
    width, height = image.size
    small_enough = image.size == size
    is_jpeg = kind in ("JPEG", "MPO")
    unchanged = plain and small_enough and (options.format != "beton" or (is_jpeg and orientation == 1))
    again = is_jpeg and options.quality is not None
    if unchanged and not options.raw and not again:
        if len(data) > LARGEST_BLOB:
            raise BadImage("too large")
        return Rewritten(data, "jpg" if is_jpeg else kind.lower(), width, height, State.OK, ())
    kinds = _kinds(data, kind, mode, orientation) + (() if small_enough else ("resized",))
    if options.raw:
        if max(width, height) > LONGEST_SIDE:
            raise BadImage("too large")
        return Rewritten(image.tobytes(), "raw", width, height, State.RAW, (*kinds, "stored as pixels"))
    image.info = {}  # else Pillow would write comments and color profiles of the old format into the new file
    out = io.BytesIO()
    if options.format != "beton" and not (again or (is_jpeg and "resized" in kinds)):
        image.save(out, "PNG")
        return Rewritten(out.getvalue(), "png", width, height, State.OK, (*kinds, "re-encoded as PNG"))
    if max(width, height) > LONGEST_JPEG:
        raise BadImage("too large")
    image.save(out, "JPEG", quality=options.quality or QUALITY, subsampling=0)
    return Rewritten(out.getvalue(), "jpg", width, height, State.OK, (*kinds, "re-encoded as JPEG"))


def shrunk_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    """Width and height of an image of this size with its short (long) side at most `options.short` (`.long`)."""
    side, limit = (max(size), options.long) if options.long else (min(size), options.short)
    if not limit or side <= limit:
        return size
    width, height = (max(1, round(length * limit / side)) for length in size)
    return width, height


def _raw_pixels(data: bytes, shape: tuple[int, int], fit: Fit) -> Upright:
    """The image of raw pixels, shrunk as by `upright`."""
    size = shape[1], shape[0]
    if len(data) != size[0] * size[1] * 3:
        raise BadImage("truncated")
    image, wanted = Image.frombytes("RGB", size, data), fit(size)
    return Upright(image if wanted == size else shrink(image, wanted), "raw", "RGB", 1, size)


def _kinds(data: bytes, kind: str, mode: str, orientation: int) -> tuple[str, ...]:
    """The properties of a file (of Pillow's format `kind`) for which it is changed."""
    deep = mode.startswith("I") or (kind == "PNG" and data[24] == 16)  # Pillow's mode of 16-bit RGB is RGB too
    may_move = kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
    properties = {
        "CMYK": mode == "CMYK",
        "16-bit": deep,
        "grayscale": mode[0] in "1LI",
        "RGBA": mode in ("RGBA", "LA", "PA"),
        "palette": mode[0] == "P",
        "EXIF-rotated": orientation != 1,
        "animated: first frame": may_move
        and getattr(Image.open(io.BytesIO(without_metadata(data))), "is_animated", False),
    }
    return tuple(name for name, applies in properties.items() if applies)
