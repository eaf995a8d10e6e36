"""Images with their own channels and depth: from files of every kind to arrays, without a change of a value."""

import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pipeline.dataset.channels.decode import decode_as, decode_native, false_color, is_deep
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.images import BadImage
from pipeline.dataset.open import open_dataset, open_splits
from pipeline.dataset.reader import Reader, ReadError
from pipeline.dataset.table import SampleTable, State
from support.native.images import as_tar, gray_png, npy, npz, tiff, tiles, write_tiles
from support.odd_images import encode, scene
from support.small_datasets import PNG, error_of, write

FOUR = tiles(1)[0]  # (24, 24, 4) uint16
WIDE = np.random.default_rng(1).integers(0, 65536, (9, 14, 5)).astype(np.uint16)
FILES = {
    "npy": npy(WIDE),
    "npy, channels first": npy(WIDE.transpose(2, 0, 1)),
    "npy, big-endian": npy(WIDE.astype(">u2")),
    "npy, Fortran order": npy(np.asfortranarray(WIDE)),
    "npz": npz(anything=WIDE),
    "npz, one called image": npz(image=WIDE, mask=WIDE[..., 0]),
    "TIFF, interleaved": tiff(WIDE, photometric="minisblack", planarconfig="contig"),
    "TIFF, planar": tiff(WIDE.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
    "TIFF, a page for each channel": tiff(WIDE.transpose(2, 0, 1), photometric="minisblack", metadata=None),
    "TIFF, tiled and deflated": tiff(
        WIDE, photometric="minisblack", planarconfig="contig", tile=(16, 16), compression="zlib", predictor=True
    ),
    "TIFF, big-endian": tiff(WIDE, photometric="minisblack", planarconfig="contig", byteorder=">"),
    "BigTIFF": tiff(WIDE, photometric="minisblack", planarconfig="contig", bigtiff=True),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_every_value_of_all_its_channels(name):
    assert is_deep(FILES[name])
    array = decode_native(FILES[name])
    assert array.dtype == np.uint16 and array.dtype.isnative
    np.testing.assert_array_equal(array, WIDE)


@pytest.mark.parametrize("data", [gray_png(WIDE[..., 0]), npy(WIDE[..., 0]), tiff(WIDE[..., 0])])
def test_gray_of_16_bits_is_one_channel(data):
    assert is_deep(data)
    np.testing.assert_array_equal(decode_native(data), WIDE[..., :1])


def test_the_layout_decides_where_square_arrays_have_their_channels():
    cube = np.arange(4 * 4 * 4, dtype=np.uint16).reshape(4, 4, 4)
    np.testing.assert_array_equal(decode_native(npy(cube), "auto"), cube)
    np.testing.assert_array_equal(decode_native(npy(cube), "hwc"), cube)
    np.testing.assert_array_equal(decode_native(npy(cube), "chw"), cube.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(np.uint8, "uint8"), (np.int16, "float32"), (np.float16, "float32"), (np.float64, "float32"), (bool, "float32")],
)
def test_other_types_become_one_of_three_with_the_same_values(given, dtype):
    values = np.array([[0, 1], [1, 100]]).astype(given)
    array = decode_native(npy(values))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array[..., 0], values)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (FILES["npy"][:-1], "truncated"),
        (b"\x93NUMPY\1\0" + b"\xff" * 40, "unreadable"),
        (FILES["npz"][:-30], "unreadable"),
        (FILES["TIFF, interleaved"][:40], "unreadable"),
        (npy(np.array([[np.nan, 1]], np.float32)), "infinite or NaN values"),
        (npy(np.array([[2.0**200, 1]])), "infinite or NaN values"),
        (npy(np.array([[2**24 + 1, 1]])), "int64 values that float32 does not have"),
        (npy(np.array([[1j, 1]])), "an array of complex128"),
        (npy(np.zeros((2, 2, 2, 2), np.uint8)), "an array of 4 axes"),
        (npy(np.zeros((0, 2), np.uint8)), "an array without values"),
        (npz(a=WIDE, b=WIDE), "2 arrays, none of them called image"),
    ],
)
def test_what_has_no_exact_pixels_is_refused_with_a_reason(data, reason):
    with pytest.raises(BadImage, match=f"^{re.escape(reason)}$"):
        decode_native(data)


def test_an_object_array_is_not_unpickled(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.array([[{}, 1]], object), allow_pickle=True)
    with pytest.raises(BadImage, match="an array of object"):
        decode_native(file.read_bytes())


def test_a_turned_tiff_is_upright():
    turned = tiff(WIDE, photometric="minisblack", planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(decode_native(turned), np.rot90(WIDE, -1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_an_8_bit_picture_has_the_channels_of_its_mode(mode):
    image = Image.fromarray(scene(20, 30)).convert(mode)
    array = decode_native(encode(image, "PNG"))
    np.testing.assert_array_equal(array, np.asarray(image).reshape(20, 30, -1))
    assert not is_deep(encode(image, "PNG"))


@pytest.mark.slow(seconds=10)  # imports torch and torchvision in a process that has none
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_16_bit_png_in_color_keeps_its_low_bytes(channels):
    import torch
    from torchvision.io import decode_image

    from support.native.png16 import png16

    data = png16(WIDE[..., :channels])
    assert decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8)).dtype == torch.uint16
    np.testing.assert_array_equal(decode_native(data), WIDE[..., :channels])


# ---- sources


KINDS = {
    "npy": (npy, "npy"),
    "npz": (lambda image: npz(image=image), "npz"),
    "tiff": (lambda image: tiff(image, photometric="minisblack", planarconfig="contig"), "tif"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_folders_and_tars_have_the_channels_of_their_images(tmp_path, kind, packed):
    images = tiles(6)
    source = folder = write_tiles(tmp_path / "images", images, *KINDS[kind])
    if packed:
        source = as_tar(folder, tmp_path / "images.tar")
    table = open_dataset(source, tmp_path / "tables", workers=1, progress=False)
    assert table.pixels == PixelFormat(4, "uint16", native=True)
    assert table.classes == ("dark", "light") and table.label.tolist() == [0] * 3 + [1] * 3
    assert (table.state == State.ARRAY).all() and not table.quarantine
    reader = Reader(table)
    for row, image in enumerate([*images[::2], *images[1::2]]):
        np.testing.assert_array_equal(reader.native(row), image)
        assert reader.decode(row).shape == (24, 24, 3)  # to look at
    again = open_dataset(source, tmp_path / "tables", workers=1, progress=False)
    assert again.pixels == table.pixels and again.digest() == table.digest()


def test_images_of_another_kind_are_quarantined_by_name(tmp_path):
    folder = write_tiles(tmp_path / "images", tiles(5))
    write(folder / "dark", {"a_two.npy": npy(FOUR[..., :2]), "b_float.npy": npy(FOUR.astype(np.float32)), "c.npy": b""})
    table = open_dataset(folder, tmp_path / "tables", workers=1, progress=False)
    reasons = {table.name(row).rpartition("/")[2]: reason for row, reason in table.quarantine.items()}
    assert reasons == {
        "a_two.npy": "of another kind: 2 channels of uint16",
        "b_float.npy": "of another kind: 4 channels of float32",
        "c.npy": "zero bytes",
    }
    manifest = json.loads(next((tmp_path / "tables").glob("*.json")).read_text())
    assert {entry["name"].rpartition("/")[2] for entry in manifest["quarantined"]} == set(reasons)
    chosen = open_dataset(folder, tmp_path / "tables", 1, False, choice=Choice(channels=2))
    assert chosen.pixels.channels == 2 and [chosen.name(row) for row in chosen.usable()] == ["dark/a_two.npy"]


def test_pictures_stay_8_bit_rgb_beside_few_deep_images(tmp_path):
    pictures = {f"{index}.png": encode(Image.fromarray(scene(20, 30)), "PNG") for index in range(3)}
    folder = write(tmp_path / "images", {**pictures, "deep.png": gray_png(WIDE[..., 0]), "feature.npy": npy(FOUR)})
    table = open_dataset(folder, tmp_path / "tables", workers=1, progress=False)
    assert table.pixels is COLOR or table.pixels == COLOR
    assert table.state.tolist() == [State.OK] * 3 + [State.PIL] and table.left_out == {".npy": 1}
    gray = write(tmp_path / "gray", {"deep.png": gray_png(WIDE[..., 0])})
    assert open_dataset(gray, tmp_path / "tables", 1, False).pixels == PixelFormat(1, "uint16", native=True)
    assert open_dataset(gray, tmp_path / "tables", 1, False, choice=Choice(channels="rgb")).pixels == COLOR


def test_named_arrays_are_images_beside_pictures_too(tmp_path):
    folder = write(tmp_path / "images", {"a.png": encode(Image.fromarray(scene(20, 30)), "PNG"), "b.npy": npy(FOUR)})
    table = open_dataset(folder, tmp_path / "tables", 1, False, choice=Choice(image="npy"))
    assert table.pixels.channels == 4 and list(table.containers) == ["b.npy"]


def test_mistakes_name_the_setting(tmp_path):
    folder = write_tiles(tmp_path / "images", tiles(4))
    line = error_of(open_dataset, folder, tmp_path / "tables", 1, False, choice=Choice(channels=7))
    assert "none of the 4 images can be read (4 of another kind: 4 channels of uint16)" in line
    line = error_of(open_dataset, folder, tmp_path / "tables", 1, False, choice=Choice(channels="rgb"))
    assert line.endswith("data.channels=rgb: .npy and .npz files are no pictures; leave it out")
    table = open_dataset(folder, tmp_path / "tables", 1, False)
    table.save(tmp_path / "images" / "table.npz")
    line = error_of(open_dataset, folder, tmp_path / "tables", 1, False, choice=Choice(channels="rgb"))
    assert line.endswith("data.channels=rgb: its table has images of 4 channels of uint16; leave it out")


def test_a_table_keeps_the_format_of_its_images(tmp_path):
    table = open_dataset(write_tiles(tmp_path / "images", tiles(4)), tmp_path / "tables", 1, False)
    table.save(tmp_path / "saved.npz")
    assert SampleTable.load(tmp_path / "saved.npz").pixels == table.pixels


def test_a_file_that_changes_is_no_longer_the_image(tmp_path):
    folder = write_tiles(tmp_path / "images", tiles(2))
    table = open_dataset(folder, tmp_path / "tables", 1, False)
    other = npy(FOUR.reshape(24, 12, 8))  # as many bytes
    (folder / "dark" / "000.npy").write_bytes(other)
    with pytest.raises(ReadError, match=r"changed since the table was made \(12 x 24, 8 channels of uint16\)"):
        Reader(table).native(0)
    with pytest.raises(BadImage):
        decode_as(other, table.pixels, 24, 24)


def test_false_color_shows_the_range_of_each_channel():
    shown = false_color(np.stack([np.arange(4), 100 * np.arange(4), np.full(4, 7)], axis=-1)[None].astype(np.float32))
    assert shown.dtype == np.uint8 and shown.shape == (1, 4, 3)
    assert shown[0, :, 0].tolist() == shown[0, :, 1].tolist() == [0, 85, 170, 255] and not shown[0, :, 2].any()
    assert false_color(FOUR[..., :1]).shape == (24, 24, 3)


def test_a_hot_and_a_dead_pixel_do_not_change_how_the_others_are_shown():
    image = np.random.default_rng(0).integers(1000, 3000, (40, 40, 2)).astype(np.uint16)
    damaged = image.copy()
    damaged[3, 4], damaged[20, 30] = 65535, 0
    others = np.ones((40, 40), bool)
    others[3, 4] = others[20, 30] = False
    shown, expected = false_color(damaged), false_color(image)
    assert np.abs(shown[others].astype(int) - expected[others]).max() <= 1  # a percentile moves by one pixel of 1,600
    assert shown[3, 4].tolist() == [255] * 3 and not shown[20, 30].any()
    assert np.ptp(expected, axis=(0, 1)).tolist() == [255] * 3


def test_dicom_without_pydicom_names_the_package(tmp_path):
    if find_spec("pydicom"):
        pytest.skip("pydicom is installed")
    folder = write(tmp_path / "images", {f"{name}.dcm": bytes(128) + b"DICM" + bytes(64) for name in "ab"})
    line = error_of(open_dataset, folder, tmp_path / "tables", 1, False)
    assert "(2 a DICOM needs pydicom: .venv/bin/python -m pip install pydicom)" in line


def test_a_number_of_channels_takes_pictures_as_their_files_have_them(tmp_path):
    gray, turned = Image.fromarray(scene(20, 30)).convert("L"), Image.Exif()
    turned[0x0112] = 6
    folder = write(
        tmp_path / "images",
        {"a.png": encode(gray, "PNG"), "b.jpg": encode(gray, "JPEG", exif=turned.tobytes()), "rgb.png": PNG},
    )
    table = open_dataset(folder, tmp_path / "tables", 1, False, choice=Choice(channels=1))
    assert table.pixels == PixelFormat(1, "uint8", native=True)
    assert table.quarantine == {2: "of another kind: 3 channels of uint8"}
    reader = Reader(table)
    np.testing.assert_array_equal(reader.native(0)[..., 0], np.asarray(gray))
    assert reader.native(1).shape == (30, 20, 1)  # upright


def test_other_sources_refuse_a_number_of_channels(tmp_path):
    (tmp_path / "x.rec").write_bytes(b"")
    line = error_of(open_dataset, tmp_path / "x.rec", tmp_path / "tables", 1, False, choice=Choice(channels=4))
    assert "data.channels=4: images keep their own channels in folders, tars, .beton and HDF5 files only" in line


def test_training_and_test_images_are_of_one_kind(tmp_path):
    write_tiles(tmp_path / "train", tiles(4))
    write_tiles(tmp_path / "val", tiles(4, channels=2))
    data = OmegaConf.create({"path": str(tmp_path), "test": None, "cache": str(tmp_path / "tables"), "workers": 1})
    line = error_of(open_splits, data, False)
    assert "holds images of 2 channels of uint16, and data.path of 4 channels of uint16" in line


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_end_with_a_reason(name):
    """Whatever bytes a file has, its decode gives an array or a BadImage: nothing else ends a scan."""
    noise = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(FILES[name])
        for place in noise.integers(0, len(data) if noise.random() < 0.5 else 200, 1 + noise.integers(4)):
            data[place] = noise.integers(256)
        if noise.random() < 0.3:
            data = data[: noise.integers(1, len(data))]
        is_deep(bytes(data))
        try:
            array = decode_native(bytes(data))
        except BadImage as error:
            assert error.reason and "\n" not in error.reason
        else:
            assert array.ndim == 3 and str(array.dtype) in ("uint8", "uint16", "float32")
