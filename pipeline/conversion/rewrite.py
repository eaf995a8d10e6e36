"""What becomes of one image in a conversion: its own bytes, or a JPEG, a PNG or pixels made of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from pipeline.conversion.beton_writer import LONGEST_SIDE
from pipeline.dataset.images import PLAIN, BadImage, upright
from pipeline.dataset.table import State

LONGEST_JPEG = 65_500  # pixels: libjpeg's bound for what it writes
LARGEST_BLOB = 1 << 31  # bytes: FFCV's pages are smaller than 4 GiB
REDUCING_GAP = 3.0  # see `shrink`
QUALITY = 95  # of a JPEG that has to be written anew
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


@dataclass(frozen=True)
class Options:
    """How images are stored. format: 'beton', 'wds' or 'index'; short, long: bound in pixels of that side, or None;
    quality: of all JPEGs, None to write only those anew that have to be (at QUALITY); raw: RGB pixels instead of JPEGs
    (beton only)."""

    format: str
    short: int | None = None
    long: int | None = None
    quality: int | None = None
    raw: bool = False


class Rewritten(NamedTuple):
    """An image as it is stored: bytes, suffix, size in pixels, state in the table, and in what ways it was changed."""

    data: bytes
    suffix: str
    width: int
    height: int
    state: State
    kinds: tuple[str, ...]


def rewrite(data: bytes, shape: tuple[int, int], options: Options) -> Rewritten:
    """What to store for one image (`shape` (height, width) of raw RGB pixels, (0, 0) if encoded). Raises BadImage.

    Bytes that the target's readers take as they are stay untouched, unless a quality is given and they are a JPEG.
    Anything else is turned upright, made RGB, shrunk if asked for, and becomes a JPEG (in a .beton, or where a JPEG was
    shrunk or a quality given), a PNG or raw pixels.
    """
    whole, kind, mode, orientation = _pixels(data, shape) if any(shape) else upright(data)
    structure = PLAIN.get(kind, lambda data: None)
    plain = mode in PLAIN_MODES and structure(data) == orientation
    if options.format == "index":
        state = State.RAW if kind == "raw" else State.OK if plain else State.PIL
        return Rewritten(data, "", whole.width, whole.height, state, ())
    image = shrink(whole, options)
    width, height = image.size
    is_jpeg = kind in ("JPEG", "MPO")
    as_it_is = plain and image is whole and (options.format == "wds" or (is_jpeg and orientation == 1))
    again = is_jpeg and options.quality is not None
    if as_it_is and not options.raw and not again:
        if len(data) > LARGEST_BLOB:
            raise BadImage("too large")
        return Rewritten(data, "jpg" if is_jpeg else kind.lower(), width, height, State.OK, ())
    kinds = _kinds(data, kind, mode, orientation) + (("resized",) if image is not whole else ())
    if options.raw:
        if max(width, height) > LONGEST_SIDE:
            raise BadImage("too large")
        return Rewritten(image.tobytes(), "raw", width, height, State.RAW, (*kinds, "stored as pixels"))
    image.info = {}  # Pillow would write comments and color profiles of another format into the new file
    out = io.BytesIO()
    if options.format == "wds" and not (again or (is_jpeg and "resized" in kinds)):
        image.save(out, "PNG")
        return Rewritten(out.getvalue(), "png", width, height, State.OK, (*kinds, "re-encoded as PNG"))
    if max(width, height) > LONGEST_JPEG:
        raise BadImage("too large")
    image.save(out, "JPEG", quality=options.quality or QUALITY, subsampling=0)
    return Rewritten(out.getvalue(), "jpg", width, height, State.OK, (*kinds, "re-encoded as JPEG"))


def shrink(image: Image.Image, options: Options) -> Image.Image:
    """The image with its short (long) side at most `options.short` (`.long`); the same object if it is so already.

    Lanczos, and above a factor of six averaging by whole factors before it: measured on a 3840 x 2562 photograph made
    384 x 256, 53 ms instead of 347, with 0.45 of 255 levels mean difference; below six there is none. (A box filter
    alone is three times as fast as Lanczos and differs by 1 to 4 levels.)
    """
    size = shrunk_size(image.size, options)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)


def shrunk_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    """Width and height of what `shrink` makes of an image of this size."""
    side, bound = (max(size), options.long) if options.long else (min(size), options.short)
    if not bound or side <= bound:
        return size
    width, height = (max(1, round(length * bound / side)) for length in size)
    return width, height


def _pixels(data: bytes, shape: tuple[int, int]) -> tuple[Image.Image, str, str, int]:
    """Raw pixels in the form of `images.upright`."""
    height, width = shape
    if len(data) != height * width * 3:
        raise BadImage("truncated")
    return Image.frombytes("RGB", (width, height), data), "raw", "RGB", 1


def _kinds(data: bytes, kind: str, mode: str, orientation: int) -> tuple[str, ...]:
    """What was special about a file of Pillow's format `kind` that had to be changed."""
    deep = mode.startswith("I") or (kind == "PNG" and data[24] == 16)  # Pillow says RGB for 16-bit RGB, too
    may_move = kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
    told = {
        "CMYK": mode == "CMYK",
        "16-bit": deep,
        "grayscale": mode[0] in "1LI",
        "RGBA": mode in ("RGBA", "LA", "PA"),
        "palette": mode[0] == "P",
        "EXIF-rotated": orientation != 1,
        "animated: first frame": may_move and getattr(Image.open(io.BytesIO(data)), "is_animated", False),
    }
    return tuple(name for name, applies in told.items() if applies)
