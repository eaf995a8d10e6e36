"""Images of the kinds that occur in real datasets, made in code: three dictionaries from name to encoded bytes.

Backends may decode `plain_images()` themselves. `odd_images()` are readable, but only Pillow decodes them correctly.
`bad_images()` are not readable, and come with the reason for their quarantine. Suffixes are right, except in names with
`_called`.
"""

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, features

HEIGHT, WIDTH = 45, 67
XMP = b"http://ns.adobe.com/xap/1.0/\0"
TURNED = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """`(height, width, 3)` uint8, smooth with a sharp corner: shows rotations, swapped channels, lost chroma rows."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rgb = np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 9 + y / 13)], axis=-1)
    rgb[: height // 3, : width // 4] = (250, 20, 60)
    return rgb.clip(0, 255).astype(np.uint8)


def ramp16() -> np.ndarray:
    """`(HEIGHT, WIDTH)` uint16 over all of 0..65535."""
    return np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """`image` in the format that Pillow calls `kind`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------- pieces of files


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block with one tag, the orientation, of TIFF type `kind`."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0] if kind == 3 else [orientation]))
    return head + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


def camera_exif() -> bytes:
    """EXIF as from a camera: orientation 6 among texts, fractions, and directories for exposure and place."""
    tags = Image.Exif()
    tags.update({0x010F: "Maker", 0x0110: "A model with a long name", 0x0112: 6, 0x011A: 72.0, 0x0132: "2020:01:01"})
    tags.get_ifd(0x8769).update({0x829A: 0.005, 0x9000: b"0230", 0x9003: "2020:01:01 00:00:00", 0xA002: WIDTH})
    tags.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return tags.tobytes()


def with_segments(jpeg: bytes, *bodies: bytes) -> bytes:
    """A JPEG with APP1 segments at its start."""
    return jpeg[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies) + jpeg[2:]


def chunk(tag: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def with_chunk(png: bytes, tag: bytes, body: bytes) -> bytes:
    """A PNG with a chunk inserted after its header."""
    return png[:33] + chunk(tag, body) + png[33:]


def with_exif_prefix(webp: bytes) -> bytes:
    """A WebP whose EXIF chunk begins with `Exif\\0\\0`, as some programs write it."""
    at = webp.index(b"EXIF")
    (length,) = struct.unpack_from("<I", webp, at + 4)
    body = b"Exif\0\0" + webp[at + 8 : at + 8 + length]
    new = b"EXIF" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    rest = webp[12:at] + new + webp[at + 8 + length + length % 2 :]
    return b"RIFF" + struct.pack("<I", len(rest) + 4) + b"WEBP" + rest


def large_metadata(png: bytes) -> dict[str, bytes]:
    """PNGs with texts and profiles that Pillow refuses to read, though the pixels are fine."""
    text, noise = b"y" * 3_000_000, np.random.default_rng(0).bytes(1_300_000)
    turned = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(exif(6)) + 6, (b"Exif\0\0" + exif(6)).hex().encode())
    damaged = with_chunk(png, b"tEXt", b"x\0y")
    many = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"y" * 1_040_000)) * 66  # each of a size that Pillow takes
    return {
        "large_text.png": with_chunk(png, b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(text)),
        "large_text_latin.png": with_chunk(png, b"zTXt", b"parameters\0\0" + zlib.compress(text)),
        "large_text_at_end.png": png[:-12] + chunk(b"zTXt", b"x\0\0" + zlib.compress(text)) + png[-12:],
        "large_profile.png": with_chunk(png, b"iCCP", b"x\0\0" + zlib.compress(noise)),
        "large_xmp.png": with_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
        "many_texts.png": png[:33] + many + png[33:],
        "unknown_compression.png": with_chunk(png, b"iCCP", b"x\0\7abc"),
        "damaged_text.png": damaged.replace(b"x\0y", b"x\0z"),
        "turned_with_large_text.png": with_chunk(
            with_chunk(png, b"tEXt", turned), b"zTXt", b"x\0\0" + zlib.compress(text)
        ),
    }


def raw_png(samples: np.ndarray, adam7: bool = False) -> bytes:
    """A PNG of `(H, W, C)` uint8 or uint16 samples without filters; C = 1 gray, 2 with alpha, 3 RGB, 4 RGBA."""
    height, width, channels = samples.shape
    color, depth = {1: 0, 2: 4, 3: 2, 4: 6}[channels], 8 * samples.dtype.itemsize
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    raw = b""
    for y, x, down, right in passes if adam7 else ((0, 0, 1, 1),):
        part = samples[y::down, x::right].astype(samples.dtype.newbyteorder(">"))
        raw += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, adam7)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def _rgba() -> Image.Image:
    alpha = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    return Image.fromarray(np.concatenate([scene(), alpha], axis=-1))


# ---------------------------------------------------------------------------------------------- the collections


@cache
def plain_images() -> dict[str, bytes]:
    """Images that every decoder reads in the same way."""
    rgb = Image.fromarray(scene())
    gray, palette = rgb.convert("L"), rgb.quantize(16)
    jpeg, png = encode(rgb, "JPEG", quality=90), encode(rgb, "PNG")
    images = {
        "rgb.jpg": jpeg,
        "rgb444.jpg": encode(rgb, "JPEG", quality=90, subsampling=0),
        "rgb422.jpg": encode(rgb, "JPEG", quality=90, subsampling=1),
        "gray.jpg": encode(gray, "JPEG", quality=90),
        "progressive.jpg": encode(rgb, "JPEG", quality=90, progressive=True),
        "restarts.jpg": encode(rgb, "JPEG", restart_marker_blocks=2),
        "icc.jpg": encode(rgb, "JPEG", icc_profile=b"any bytes will do"),
        "trailing_bytes.jpg": jpeg + b"trailing" * 40,
        "xmp.jpg": with_segments(jpeg, b"Exif\0\0" + exif(3), XMP + b"<x/>"),
        "big_endian_exif.jpg": with_segments(jpeg, b"Exif\0\0" + exif(6, ">")),
        "unknown_orientation.jpg": with_segments(jpeg, b"Exif\0\0" + exif(0)),
        "camera.jpg": encode(rgb, "JPEG", quality=90, exif=camera_exif()),
        "two_pictures_in_one.jpg": encode(rgb, "MPO", save_all=True, append_images=[gray.convert("RGB")]),
        "rgb.png": png,
        "gray.png": encode(gray, "PNG"),
        "one_bit.png": encode(gray.convert("1"), "PNG"),
        "gray_alpha.png": encode(_rgba().convert("LA"), "PNG"),
        "rgba.png": encode(_rgba(), "PNG"),
        "palette.png": encode(palette, "PNG"),
        "palette_2_bits.png": encode(rgb.quantize(4), "PNG", bits=2),
        "palette_key.png": encode(palette, "PNG", transparency=3),
        "palette_alpha.png": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "rgb_key.png": encode(rgb, "PNG", transparency=(250, 20, 60)),
        "gray_key.png": encode(gray, "PNG", transparency=100),
        "interlaced.png": raw_png(scene(), adam7=True),
        "gamma.png": with_chunk(png, b"gAMA", struct.pack(">I", 22_222)),
        "exif_at_end.png": png[:-12] + chunk(b"eXIf", exif(6)) + png[-12:],
        "lossy.webp": encode(rgb, "WEBP", quality=90),
        "lossless.webp": encode(rgb, "WEBP", lossless=True),
        "alpha.webp": encode(_rgba(), "WEBP", lossless=True, exact=True),
        "lossy_alpha.webp": encode(_rgba(), "WEBP", quality=90),
        "xmp.webp": encode(rgb, "WEBP", lossless=True, xmp=b"<x/>"),
        "png_called.jpg": png,
        "jpeg_called.png": jpeg,
        "one_pixel.png": encode(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"),
        "one_pixel.jpg": encode(Image.new("RGB", (1, 1), (9, 99, 199)), "JPEG"),
    }
    for orientation in range(1, 9):
        images[f"exif{orientation}.jpg"] = encode(rgb, "JPEG", quality=95, exif=b"Exif\0\0" + exif(orientation))
        images[f"exif{orientation}.png"] = with_chunk(png, b"eXIf", exif(orientation))
    return images


@cache
def odd_images() -> dict[str, bytes]:
    """Readable images on which decoders disagree, fail or crash."""
    rgb = Image.fromarray(scene())
    gray, cmyk, upside_down = rgb.convert("L"), rgb.convert("CMYK"), Image.fromarray(scene()[::-1].copy())
    jpeg, png, adobe = encode(rgb, "JPEG"), encode(rgb, "PNG"), encode(cmyk, "JPEG", quality=95)
    negative = encode(ImageChops.invert(cmyk), "JPEG", quality=95)  # Pillow inverts it once more when writing
    marker = adobe.index(b"Adobe")  # its segment starts 4 bytes earlier and has 16 bytes
    block = b"Exif\0\0" + exif(6)
    images = {
        "cmyk_adobe.jpg": adobe,
        "cmyk_ycck.jpg": adobe[: marker + 11] + b"\2" + adobe[marker + 12 :],
        "cmyk_plain.jpg": negative[: marker - 4] + negative[marker + 12 :],
        "cmyk_turned.jpg": encode(cmyk, "JPEG", quality=95, exif=block),
        "stored_as_rgb.jpg": encode(rgb, "JPEG", quality=95, keep_rgb=True),
        "two_exif_that_disagree.jpg": with_segments(jpeg, block, b"Exif\0\0" + exif(3)),  # SIGSEGV in DALI 2.4
        "two_exif.jpg": with_segments(jpeg, block, block),
        "exif_long.jpg": with_segments(jpeg, b"Exif\0\0" + exif(6, ">", kind=4)),
        "exif_cut.jpg": with_segments(jpeg, block[:20]),
        "exif_garbage.jpg": with_segments(jpeg, b"Exif\0\0garbage!"),
        "turned_by_xmp.jpg": with_segments(jpeg, XMP + TURNED),
        "exif_garbage.png": with_chunk(png, b"eXIf", b"garbage!"),
        "turned_by_text.png": with_chunk(
            png, b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
        ),
        "turned_by_xmp.png": with_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED),
        "no_end.png": png[:-12],
        "wrong_checksum.png": png[:-16] + b"\1\2\3\4" + png[-12:],
        "gray16.png": raw_png(ramp16()[..., None]),
        "gray16_alpha.png": raw_png(np.stack([ramp16(), ramp16()[::-1]], axis=-1)),
        "rgb16.png": raw_png(np.stack([ramp16(), ramp16()[::-1], ramp16()[:, ::-1]], axis=-1)),
        "rgba16.png": raw_png(np.asarray(_rgba()).astype(np.uint16) * 257),
        "animated.png": encode(rgb, "PNG", save_all=True, append_images=[upside_down]),
        "animated_with_default.png": encode(
            rgb, "PNG", save_all=True, default_image=True, append_images=[upside_down, rgb]
        ),
        "animated.webp": encode(rgb, "WEBP", save_all=True, append_images=[upside_down], lossless=True),
        "turned.webp": encode(rgb, "WEBP", lossless=True, exif=exif(6)),
        "exif.webp": encode(rgb, "WEBP", lossless=True, exif=exif(1)),
        "turned_lossy.webp": encode(rgb, "WEBP", quality=90, exif=exif(6)),
        "turned_after_prefix.webp": with_exif_prefix(encode(rgb, "WEBP", quality=90, exif=exif(6))),
        **large_metadata(png),
        "rgb.bmp": encode(rgb, "BMP"),
        "rgb.ppm": encode(rgb, "PPM"),
        "gray16.ppm": b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + ramp16().astype(">u2").tobytes(),
        "rgb.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "gray16.tif": encode(Image.fromarray(ramp16()), "TIFF"),
        "one_bit.tif": encode(gray.convert("1"), "TIFF"),
        "cmyk.tif": encode(cmyk, "TIFF"),
        "turned.tif": encode(rgb, "TIFF", tiffinfo={0x0112: 6}),
        "gif_called.jpg": encode(rgb.quantize(16), "GIF"),
    }
    if features.check("avif"):
        images["avif_called.jpg"] = encode(rgb, "AVIF", quality=90)
    return images


@cache
def bad_images() -> dict[str, tuple[bytes, str]]:
    """Unreadable bytes, each with its quarantine reason."""
    rgb = Image.fromarray(scene())
    jpeg, png, webp = encode(rgb, "JPEG"), encode(rgb, "PNG"), encode(rgb, "WEBP")

    def claims(width: int, height: int) -> bytes:
        """A PNG of a few bytes whose header gives a huge size."""
        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    middle = len(png) // 2
    return {
        "empty.jpg": (b"", "zero bytes"),
        "text.jpg": (b"hello world, not an image\n" * 20, "not an image"),
        "zeros.png": (bytes(1000), "not an image"),
        "two_bytes.jpg": (b"\xff\xd8", "not an image"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "most.jpg": (jpeg[: len(jpeg) * 9 // 10], "truncated"),
        "no_end.jpg": (jpeg[:-2], "truncated"),
        "half.png": (png[:middle], "truncated"),
        "half.webp": (webp[: len(webp) // 2], "truncated"),
        "last_byte_lost.webp": (webp[:-1], "truncated"),
        "half.bmp": (encode(rgb, "BMP")[:4000], "truncated"),
        "scrambled.png": (png[:middle] + b"\x12\x34" + png[middle + 2 :], "unreadable"),
        "float.tif": (
            encode(Image.fromarray(ramp16().astype(np.float32)), "TIFF"),
            "more than 16 bits, kept by data.channels=1",
        ),
        "large.png": (claims(10_000, 9_000), "too large"),
        "bomb.png": (claims(100_000, 100_000), "too large"),
    }
