"""JPEG 2000 of more than 8 bits: gray with the values of the file; color as pictures only."""

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from pipeline.conversion.tiling.regions import open_scene
from pipeline.dataset.channels.decode import decode_native, is_deep
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.images import BadImage, decode, probe
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from support.native.images import tiff
from support.small_datasets import write

# 8 x 8 pixels of 12 bits by OpenJPEG 2.5.3, and the boxes that make a .jp2 of it
CODESTREAM = b64decode(
    "/0//UQApAAIAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1IADQEAAAEAAAQEAAGZ/1wABEBg/2QAPQABQ3JlYXRlZCBieSBPcGVu"
    "SlBFRyB2ZXJzaW9uIDIuNS4zLiBMT1NTTEVTUyBzZXR0aW5ncyB1c2Vk/5AACgAAAAAAZgAB/5Pf4VQSLEKnl5WxQw7WKD/e6CnFSLg0VhLheQ6YkYVP"
    "Q9GYfhKbzjvDeb1xScaFN4JiVhW3Oc516kpADMAoAAdEZdUjzFOGC1xn2uspq4TrgHDYbDYbDYbD/9k="
)
BOXES = bytes.fromhex(
    "0000000c6a5020200d0a870a00000014667479706a703220000000006a7032200000002d6a70326800000016"
    "69686472000000080000000800010b0700000000000f636f6c7201000000000011000000f16a703263"
)
TWELVE_BITS = (65 * np.arange(64).reshape(8, 8, 1)).astype(np.uint16)


def jpeg_2000(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG2000", irreversible=False)
    return stream.getvalue()


@pytest.mark.parametrize("data", [CODESTREAM, BOXES + CODESTREAM], ids=["codestream", "boxes"])
def test_gray_of_12_bits_has_the_values_of_the_file(data):
    assert is_deep(data)
    array = decode_native(data)
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, TWELVE_BITS)
    assert decode(data).max() == 255  # as a picture white is white


def test_tiles_have_the_same_values_with_and_without_rasterio(tmp_path):
    (tmp_path / "a.jp2").write_bytes(BOXES + CODESTREAM)
    np.testing.assert_array_equal(open_scene(tmp_path / "a.jp2", "auto").read(2, 1, 5), TWELVE_BITS[2:7, 1:6])


def test_bands_and_gray_files_keep_their_depth(tmp_path):
    image = np.random.default_rng(0).integers(0, 65536, (20, 30, 2)).astype(np.uint16)
    files = {
        f"{name}_{band}.jp2": jpeg_2000(image[..., place]) for name in "ab" for place, band in enumerate(("B02", "B03"))
    }
    folder = write(tmp_path / "scenes", files)
    table = open_dataset(folder, tmp_path / "tables", 1, False)
    assert str(table.pixels) == "1 channel of uint16" and len(table) == 4
    np.testing.assert_array_equal(Reader(table).native(1), image[..., 1:])
    table = open_dataset(folder, tmp_path / "tables", 1, False, choice=Choice(bands="B02,B03"))
    np.testing.assert_array_equal(Reader(table).native(1), image)
    assert not open_dataset(folder, tmp_path / "tables", 1, False, choice=Choice(channels="rgb")).pixels.native


def test_color_of_more_than_8_bits_is_a_picture_alone():
    eight = jpeg_2000(np.zeros((8, 8, 3), np.uint8) + np.uint8(9))
    assert decode_native(eight).shape == (8, 8, 3) and not is_deep(eight)
    place = eight.index(b"ihdr") + 14
    twelve = eight[:place] + b"\x0b" + eight[place + 1 :]
    assert not is_deep(twelve)
    with pytest.raises(BadImage, match="color of more than 8 bits in a JPEG 2000"):
        decode_native(twelve)


def test_pillow_prints_nothing_about_a_tiff_of_many_bands(caplog):
    probe(tiff(np.zeros((16, 16, 13), np.uint16), planarconfig="contig", photometric="minisblack"))
    assert not caplog.records
