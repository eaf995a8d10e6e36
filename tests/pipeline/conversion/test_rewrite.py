"""The conversion of one image."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.conversion.rewrite import Options, rewrite
from pipeline.dataset.images import decode
from pipeline.dataset.table import State
from support.odd_images import encode, scene
from support.photos import photographs
from support.small_datasets import ODD, PLAIN

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")  # Pillow's, for odd images


def test_plain_images_of_any_kind_are_untouched_in_shards():
    for name, data in PLAIN.items():
        assert rewrite(data, (0, 0), Options("wds")).data == data, name


@pytest.mark.parametrize("name", ODD)
def test_odd_images_become_png_in_shards_without_loss(name):
    stored = rewrite(ODD[name], (0, 0), Options("wds"))
    assert stored.suffix == "png" and stored.state == State.OK
    assert "re-encoded as PNG" in stored.kinds
    assert np.array_equal(decode(stored.data), decode(ODD[name]))
    assert rewrite(stored.data, (0, 0), Options("wds")).data == stored.data  # plain now


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cmyk_adobe.jpg", "CMYK"), ("cmyk_turned.jpg", "EXIF-rotated"), ("gray16.png", "16-bit"),
        ("gray16.png", "grayscale"), ("rgb16.png", "16-bit"), ("rgba16.png", "RGBA"), ("gray16.ppm", "16-bit"),
        ("gray16.tif", "16-bit"), ("gif_called.jpg", "palette"), ("turned_by_xmp.jpg", "EXIF-rotated"),
        ("animated.png", "animated: first frame"), ("animated.webp", "animated: first frame"),
        ("rgb.bmp", "re-encoded as JPEG"), ("exif6.jpg", "EXIF-rotated"), ("palette.png", "palette"),
        ("gray.png", "grayscale"), ("rgba.png", "RGBA"), ("lossy.webp", "re-encoded as JPEG"),
    ],
)  # fmt: skip
def test_changes_for_a_beton_are_counted_by_kind(name, kind):
    assert kind in rewrite((PLAIN | ODD)[name], (0, 0), Options("beton")).kinds


@pytest.mark.parametrize("name", [name for name in PLAIN | ODD if name != "one_pixel.png"])
def test_every_image_becomes_an_upright_jpeg_in_a_beton(name):
    data = (PLAIN | ODD)[name]
    stored = rewrite(data, (0, 0), Options("beton"))
    with Image.open(io.BytesIO(stored.data)) as image:
        assert image.format in ("JPEG", "MPO")
        assert image.getexif().get(0x0112, 1) in (0, 1)
        assert image.size == (stored.width, stored.height)
    assert np.abs(decode(stored.data).astype(int) - decode(data)).mean() < 3
    if stored.data != data:
        assert image.layer[0][1:3] == (1, 1)  # 4:4:4


@pytest.mark.parametrize("kind", ["beton", "wds"])
def test_a_quality_re_encodes_every_jpeg_and_without_one_they_stay(kind):
    for name in ("rgb.jpg", "gray.jpg", "exif6.jpg", "cmyk_adobe.jpg"):
        data = (PLAIN | ODD)[name]
        low, high = (rewrite(data, (0, 0), Options(kind, quality=quality)) for quality in (30, 95))
        assert len(low.data) < len(high.data), name
        assert low.suffix == "jpg" and "re-encoded as JPEG" in low.kinds
        assert np.abs(decode(high.data).astype(int) - decode(data)).mean() < 3
    assert rewrite(PLAIN["rgb.jpg"], (0, 0), Options(kind)).data == PLAIN["rgb.jpg"]


def test_without_a_quality_new_jpegs_have_95_and_in_shards_a_png_stays_one():
    png = PLAIN["rgb.png"]
    jpegs = [rewrite(png, (0, 0), Options("beton", quality=quality)).data for quality in (None, 95, 50)]
    assert jpegs[0] == jpegs[1] and len(jpegs[2]) < len(jpegs[1])
    assert rewrite(png, (0, 0), Options("wds", quality=50)).data == png


@pytest.mark.parametrize(
    ("options", "size"),
    [(Options("beton", short=30), (45, 30)), (Options("wds", long=30), (30, 20)), (Options("wds", short=40), (60, 40))],
)
def test_images_shrink_and_never_grow(options, size):
    large, small = encode(Image.fromarray(scene(40, 60)), "JPEG"), encode(Image.fromarray(scene(20, 28)), "JPEG")
    stored = rewrite(large, (0, 0), options)
    assert (stored.width, stored.height) == size == Image.open(io.BytesIO(stored.data)).size
    assert stored.suffix == "jpg"
    assert (stored.data == large) == (size == (60, 40))
    assert rewrite(small, (0, 0), options).data == small


def test_shrinking_is_lanczos():
    photo = Image.fromarray(photographs()[0])
    stored = rewrite(encode(photo, "PNG"), (0, 0), Options("wds", short=200))
    expected = photo.resize((round(photo.width * 200 / photo.height), 200), Image.Resampling.LANCZOS)
    assert stored.suffix == "png" and np.array_equal(decode(stored.data), np.asarray(expected))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_small_and_stays_within_half_a_level_of_lanczos(orientation):
    photo = Image.fromarray(photographs()[0]).resize((2001, 1502), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, "JPEG", quality=92, exif=exif)
    stored = rewrite(data, (0, 0), Options("beton", short=240, raw=True))
    size = (320, 240) if orientation == 1 else (240, 320)
    expected = Image.fromarray(decode(data)).resize(size, Image.Resampling.LANCZOS)
    assert (stored.width, stored.height) == size
    pixels = np.frombuffer(stored.data, np.uint8).reshape(*size[::-1], 3).astype(int)
    assert 0 < np.abs(pixels - np.asarray(expected)).mean() < 0.5


def test_pixels_of_a_raw_source_are_unchanged():
    pixels = scene(7, 9)
    for options in (Options("wds"), Options("beton", raw=True)):
        stored = rewrite(pixels.tobytes(), (7, 9), options)
        rgb = decode(stored.data) if stored.suffix == "png" else np.frombuffer(stored.data, np.uint8)
        assert np.array_equal(rgb.reshape(7, 9, 3), pixels)
    assert error_reason(pixels.tobytes()[:-1], (7, 9)) == "truncated"


def error_reason(data, shape):
    with pytest.raises(ValueError) as caught:
        rewrite(data, shape, Options("wds"))
    return caught.value.reason


def test_what_a_beton_cannot_hold_is_too_large(tmp_path):
    wide = encode(Image.new("RGB", (65_600, 2)), "PNG")
    for raw in (False, True):
        with pytest.raises(ValueError, match="too large"):
            rewrite(wide, (0, 0), Options("beton", raw=raw))
