"""The canonical decode, and the promise of `State.OK`: DALI's own decoder gives the same pixels."""

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.images import BadImage, decode, probe
from pipeline.dataset.ppm import to_ppm
from pipeline.dataset.table import State
from support.odd_images import HEIGHT, WIDTH, bad_images, encode, odd_images, plain_images, ramp16, scene

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Image size")  # Pillow's, for odd images
PLAIN, ODD, BAD = plain_images(), odd_images(), bad_images()
LOSSY = (".jpg", "lossy.webp", "lossy_alpha.webp", "jpeg_called.png")
LOSSLESS = [
    *("rgb.png", "rgba.png", "rgb_key.png", "interlaced.png", "no_end.png", "wrong_checksum.png", "animated.png"),
    *("large_text.png", "large_text_latin.png", "large_text_at_end.png", "large_profile.png", "large_xmp.png"),
    *("many_texts.png", "unknown_compression.png", "damaged_text.png"),
    *("animated_with_default.png", "animated.webp", "lossless.webp", "alpha.webp", "rgb.bmp", "rgb.tif"),
]
UPRIGHT = {  # EXIF 2.3, section 4.6.4: the upright image as indexing of the stored array
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.fixture(scope="module")
def from_dali():
    """Each image decoded by DALI on the CPU: plain ones from their bytes, odd ones from our PPM."""
    blobs = [*PLAIN.values(), *(to_ppm(decode(data)) for data in ODD.values())]
    return dict(zip([*PLAIN, *ODD], decoded_by_dali(blobs), strict=True))


def decoded_by_dali(blobs):
    """The pixels that DALI's own decoder gives for encoded images."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=len(blobs), num_threads=2, device_id=None, prefetch_queue_depth=1)
    def decoder():
        encoded = fn.external_source(source=[[np.frombuffer(blob, np.uint8) for blob in blobs]], batch=True)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, adjust_orientation=True)

    pipe = decoder()
    pipe.build()
    (images,) = pipe.run()
    return [np.array(images.at(index)) for index in range(len(blobs))]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_are_left_to_dali_which_gives_our_pixels(name, from_dali):
    pixels = decode(PLAIN[name])
    assert probe(PLAIN[name]) == (pixels.shape[1], pixels.shape[0], State.OK, "")
    assert from_dali[name].shape == pixels.shape
    difference = np.abs(pixels.astype(int) - from_dali[name])
    # Libraries may round the transform of lossy formats differently: at most 2 levels on average (measured: 0).
    assert difference.mean() <= 2 if name.endswith(LOSSY) else difference.max() == 0


@pytest.mark.parametrize("name", ODD)
def test_odd_images_reach_dali_through_our_decode_exactly(name, from_dali):
    pixels = decode(ODD[name])
    assert probe(ODD[name]) == (pixels.shape[1], pixels.shape[0], State.PIL, "")
    np.testing.assert_array_equal(from_dali[name], pixels)


@pytest.mark.parametrize("name", BAD)
def test_bad_images_have_a_reason(name):
    data, reason = BAD[name]
    assert probe(data) == (0, 0, State.QUARANTINED, reason)
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_exif_turns_are_applied(kind, orientation):
    pixels = decode(PLAIN[f"exif{orientation}.{kind}"]).astype(int)
    expected = UPRIGHT[orientation](scene())
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() <= (3 if kind == "jpg" else 0)


def test_dali_misses_a_turn_in_some_webps_and_refuses_others():
    plain, after_prefix = decoded_by_dali([ODD["turned_lossy.webp"], ODD["turned_after_prefix.webp"]])
    assert plain.shape == (WIDTH, HEIGHT, 3)
    assert after_prefix.shape == (HEIGHT, WIDTH, 3)  # so this file is not left to DALI
    with pytest.raises(RuntimeError, match="Critical error"):
        decoded_by_dali([ODD["exif.webp"]])


TURNED = ("turned.webp", "turned_after_prefix.webp", "turned_with_large_text.png", "turned.tif")


@pytest.mark.parametrize("name", [*TURNED, "turned_by_xmp.jpg", "turned_by_text.png"])
def test_turns_that_dali_does_not_see_are_applied(name):
    assert np.abs(decode(ODD[name]).astype(int) - UPRIGHT[6](scene())).mean() < 6


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_scene(name):
    np.testing.assert_array_equal(decode((PLAIN | ODD)[name]), scene())


@pytest.mark.parametrize("name", ["cmyk_adobe.jpg", "cmyk_plain.jpg", "cmyk.tif"])
def test_cmyk_gives_the_scene_and_not_its_negative(name):
    assert np.abs(decode(ODD[name]).astype(int) - scene()).mean() < 6


@pytest.mark.parametrize("name", ["gray16.png", "gray16.ppm", "gray16.tif", "rgb16.png"])
def test_sixteen_bits_are_scaled_and_not_clipped(name):
    red, expected = decode(ODD[name])[..., 0].astype(int), ramp16() / 257
    assert np.abs(red - expected).max() <= (1.0 if name == "rgb16.png" else 0.5)
    assert (red.min(), red.max()) == (0, 255)


def test_gray_becomes_three_equal_channels():
    gray = decode(PLAIN["gray.png"])
    assert gray.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(gray, np.asarray(Image.fromarray(scene()).convert("L"))[..., None].repeat(3, axis=2))


def test_a_megapixel_is_not_too_large():
    assert probe(encode(Image.new("L", (2000, 600)), "PNG")).state == State.OK
