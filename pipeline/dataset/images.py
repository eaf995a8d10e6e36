"""The canonical decode of one image, and the probe: does DALI's decoder give the same pixels?

A plain 8-bit JPEG, PNG or WebP is `State.OK`: backends decode its bytes themselves. Any other image that Pillow can
read is `State.PIL`: it is decoded here and passed on as PPM, so that every backend sees the same pixels. DALI 2.4.0
on the CPU (nvImageCodec 0.9), compared with Pillow 13 on the images of `tests/support/odd_images.py`,

- refuses lossless WebP with EXIF, GIF, AVIF, 1-bit TIFF, and PNG with a wrong CRC or without IEND;
- gives other pixels for 16-bit RGB and gray with alpha, palette TIFF and EXIF-rotated CMYK (all by one level), for
  APNG with a default image (another frame), and for an orientation in XMP, PNG text, an odd EXIF type or a lossy
  WebP's EXIF chunk that begins with `Exif\\0\\0` (ignored);
- crashes on JPEGs and PNGs with contradictory EXIF: SIGSEGV or a corrupted heap, which no handler catches.

So backends decode only files whose structure `pipeline.dataset.structure` has checked; Pillow decodes all others. For
each of 24,000 randomly mutated files that passed the check, DALI gave exactly the same pixels as `decode`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.png_metadata import ORIENTING, is_png, without_metadata
from pipeline.dataset.sniff import HAS_HEIF
from pipeline.dataset.structure import ORIENTATION, is_plain
from pipeline.dataset.table import State

MAX_PIXELS = (
    89_478_485  # Pillow's own bound for a decompression bomb: a quarter GiB of RGB; `data.max_pixels` raises it
)
MOST_PIXELS = 1 << 30  # the highest `data.max_pixels`
GAP, REDUCING_GAP = 2, 3.0  # see `shrink`
TRANSPOSES = 5  # EXIF orientations from this one on exchange width and height
TURNS = {  # EXIF orientation -> the operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Fit = Callable[[tuple[int, int]], tuple[int, int]]  # width and height of an image -> those to shrink it to


DEEPER = "more than 16 bits, kept by data.channels=1"


class BadImage(ValueError):
    """The bytes cannot be decoded; `reason` is one of the fixed phrases of quarantine lists: 'zero bytes', 'not an
    image', 'truncated', 'too large', DEEPER, 'unreadable'."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Probe(NamedTuple):
    """Result of a full decode: size in pixels as displayed (0 x 0 if quarantined), state, and the reason if quarantined
    (else '')."""

    width: int
    height: int
    state: State
    reason: str = ""


class Probes(NamedTuple):
    """The columns of a table that need a look into the images, (N,) each, the quarantine reasons by row, and the pixel
    format."""

    length: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    state: NDArray[np.uint8]
    quarantine: dict[int, str]
    pixels: PixelFormat = COLOR


class Upright(NamedTuple):
    """A decoded image as displayed, RGB; the file's format and mode (in Pillow's words) and EXIF orientation (1..8);
    and the width and height that the image has in the file, as displayed."""

    image: Image.Image
    kind: str
    mode: str
    orientation: int
    size: tuple[int, int]


def decode(data: bytes, most: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Encoded bytes -> (H, W, 3) uint8 RGB, upright: the first frame, without alpha; color profiles are not applied.

    16-bit samples are scaled to 8 bits, not clipped: gray is rounded; for RGB, Pillow keeps the high byte (within 1
    level). Raises BadImage, also for more than `most` pixels.
    """
    return np.asarray(upright(data, most=most).image)


def probe(data: bytes, most: int = MAX_PIXELS) -> Probe:
    """Read the whole image once; of a JPEG every coefficient, but few pixels. Bad data raises no error: the probe holds
    the quarantine reason."""
    try:
        image = upright(data, few_pixels, most)
    except BadImage as error:
        return Probe(0, 0, State.QUARANTINED, error.reason)
    plain = is_plain(data, image.kind, image.mode, image.orientation)
    return Probe(*image.size, State.OK if plain else State.PIL)


def is_decodable(data: bytes, most: int = MAX_PIXELS) -> bool:
    """Whether `decode` gives pixels."""
    try:
        decode(data, most)
    except BadImage:
        return False
    return True


# ---------------------------------------------------------------------------------------------- Pillow


@cache
def formats() -> tuple[str, ...]:
    """The formats that are opened, whatever the file is called. An explicit list, because Pillow's EPS reader starts
    Ghostscript."""
    Image.init()
    if HAS_HEIF:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    allowed = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000", "HEIF")
    return tuple(name for name in allowed if name in Image.OPEN)


def few_pixels(size: tuple[int, int]) -> tuple[int, int]:
    """For `upright`: only whether the image can be decoded matters."""
    return 1, 1


def opened(data: bytes, most: int = MAX_PIXELS) -> Image.Image:
    """An image of at most `most` pixels, not yet decoded. Raises BadImage and what Pillow raises."""
    if most > MAX_PIXELS:  # else Pillow refuses twice its own bound before this function can
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, most)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs what it refuses
    image = Image.open(io.BytesIO(data), formats=formats())
    if image.width * image.height > most:
        raise BadImage("too large")
    return image


def upright(data: bytes, fit: Fit | None = None, most: int = MAX_PIXELS) -> Upright:
    """Decode an image of at most `most` pixels. fit: from the size in the file to that to shrink to. A JPEG of at least
    `GAP` times these sides is then decoded at 1/2, 1/4 or 1/8 of its size, each pixel the mean of a square. Raises
    BadImage."""
    if not data:
        raise BadImage("zero bytes")
    try:
        return _upright(data, fit, most)
    except BadImage:
        # Pillow refuses a PNG for its metadata alone, if that is large or damaged: the pixels do not need it.
        for keep in (ORIENTING, ()) if is_png(data) else ():
            with suppress(BadImage):
                return _upright(without_metadata(data, keep), fit, most)
        raise


def _upright(data: bytes, fit: Fit | None, most: int) -> Upright:
    try:
        image = opened(data, most)
        kind, mode, size = image.format or "", image.mode, image.size
        wanted = fit(size) if fit else size
        drafted = wanted != size and image.draft(None, (GAP * wanted[0], GAP * wanted[1]))
        image.load()
        if not drafted:  # loading turns a TIFF
            size = image.size
            wanted = fit(size) if fit else size
        rgb = _rgb(image)
        if wanted != size:
            rgb = shrink(rgb, wanted, drafted[1] if drafted else None)
        # After the pixels are read: with an APNG, getexif() moves on to the next frame.
        orientation = orientation_of(image)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("too large") from None
    except Exception as error:  # decoders raise anything on broken data, even SyntaxError
        raise BadImage(reason_of(data, error)) from None
    if orientation in TURNS:
        rgb = rgb.transpose(TURNS[orientation])
    return Upright(rgb, kind, mode, orientation, size[::-1] if orientation >= TRANSPOSES else size)


def shrink(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """The image, or its `box` (left, top, right, bottom), resized to (width, height).

    Uses Lanczos, preceded by averaging over whole factors above a factor of six: for 3840 x 2562 to 384 x 256 pixels,
    53 ms instead of 347, with a mean difference of 0.45 of 255 levels; below six there is no difference. (A box filter
    alone is three times as fast as Lanczos and differs by 1 to 4 levels.) A JPEG is averaged while it is decoded, if
    twice as many pixels as needed remain on each side: 2 to 3 times as fast for 4032 x 3024 pixels, and 0.2 to 0.35
    levels from Lanczos.
    """
    return image.resize(size, Image.Resampling.LANCZOS, box, REDUCING_GAP)


def _rgb(image: Image.Image) -> Image.Image:
    """Pixels of a loaded image of any mode as RGB."""
    image.info.pop("transparency", None)  # unused without alpha, and Pillow would warn about it
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise BadImage(DEEPER)  # the value of white is unknown
        return Image.fromarray(((samples + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage(DEEPER)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        return ImageChops.invert(image).convert("RGB")  # Pillow treats every CMYK JPEG as Adobe's inverted kind
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # only the EXIF block is broken, not the pixels
        return 1
    return value if value in TURNS else 1


def reason_of(data: bytes, error: Exception) -> str:
    """The quarantine reason for an error of Pillow."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return "truncated"  # libwebp gives no reason
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return "truncated" if "truncated" in str(error).lower() else "unreadable"
