"""The preview of images with other channels than RGB: false color."""

import numpy as np
import pytest
from PIL import Image

from config.recipe import load_config
from pipeline.crops import Crops, View
from pipeline.dataset.channels.decode import false_color
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.preview import denormalized, described, main, preview
from support.native.images import npy, tiles, write_tiles
from support.small_datasets import write

CROPS = Crops(views=(View(8, (1.0, 1.0)),))


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 1, 1]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_the_first_channels_are_shown_about_their_mean(channels, shown):
    pixels = np.linspace(-3, 3, 2 * 4 * 4 * channels).reshape(2, 4, 4, channels)
    levels = denormalized(pixels, CROPS, PixelFormat(channels, "uint16", native=True))
    expected = np.clip(np.rint((pixels[..., shown] / 5 + 0.5) * 255), 0, 255)
    np.testing.assert_array_equal(levels, expected)
    assert levels.dtype == np.uint8 and levels.min() == 0 and levels.max() == 255


def test_chosen_channels_are_red_green_and_blue():
    pixels = np.linspace(-3, 3, 4 * 4 * 5).reshape(1, 4, 4, 5)
    kind = PixelFormat(5, "uint16", native=True)
    expected = denormalized(pixels[..., [4, 0, 2]], CROPS, kind)
    np.testing.assert_array_equal(denormalized(pixels, CROPS, kind, (4, 0, 2)), expected)
    np.testing.assert_array_equal(false_color(pixels[0], (4, 0, 2)), false_color(pixels[0][..., [4, 0, 2]]))


@pytest.mark.parametrize("channels", ["1,2", "a,b,c", "0,1,5"])
def test_channels_that_cannot_be_shown_are_one_line(tmp_path, channels, capsys):
    root = write_tiles(tmp_path / "images", tiles(4, 40, channels=5))
    places = [f"data.path={root}", f"data.cache={tmp_path}", "--out", str(tmp_path / "x.png")]
    assert main(["config/folder.yaml", "--channels", channels, *places]) == 2  # settings may follow an option
    assert f"--channels={channels}: " in capsys.readouterr().err.splitlines()[-1]


def test_pictures_are_shown_as_they_are():
    pixels = np.zeros((1, 2, 2, 3))
    np.testing.assert_array_equal(
        denormalized(pixels, CROPS, COLOR)[0, 0, 0], np.rint(255 * np.array([0.485, 0.456, 0.406]))
    )


@pytest.mark.slow
def test_a_sheet_of_tiles_shows_them_and_their_crops(tmp_path, capsys):
    root = write_tiles(tmp_path / "images", tiles(4, 40, channels=5))
    settings = [f"data.path={root}", f"data.cache={tmp_path}", "crops.global.size=32", "crops.local.size=16"]
    sheet = np.asarray(preview(load_config(["config/folder.yaml", *settings]), 3, 0))
    assert sheet.shape[0] > 3 * 150 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000
    assert "pipeline.backend=ffcv" in capsys.readouterr().err


@pytest.mark.slow
def test_bands_and_hdf5_are_shown_by_the_channels_that_one_chooses(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    images = np.stack(tiles(3, 40, channels=3))
    images[..., 2] = 0  # blue is black, or red where it is chosen for red
    images[:, ::2, :, 2] = 1
    files = {f"{row}_b{band}.npy": npy(images[row, ..., band]) for row in range(3) for band in range(3)}
    write(tmp_path / "bands", files)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=images, chunks=True, compression="gzip")
    sheets = {}
    for path, more in (("bands", ["data.bands=b0,b1,b2"]), ("x.h5", [])):
        for channels in ("0,1,2", "2,1,0"):
            out = tmp_path / f"{path}-{channels}.png"
            settings = [f"data.path={tmp_path / path}", f"data.cache={tmp_path}", *more]
            settings += ["crops.global.size=32", "crops.local.count=0"]
            arguments = ["--rows", "2", "--out", str(out), "--channels", channels]
            assert main(["config/folder.yaml", *settings, *arguments]) == 0
            sheets[path, channels] = np.asarray(Image.open(out).convert("RGB"))
    np.testing.assert_array_equal(sheets["bands", "0,1,2"], sheets["x.h5", "0,1,2"])
    np.testing.assert_array_equal(sheets["bands", "2,1,0"], sheets["x.h5", "2,1,0"])
    assert (sheets["x.h5", "0,1,2"] != sheets["x.h5", "2,1,0"]).any()


def test_the_preview_names_the_groups_and_those_that_give_codes():
    groups = "crops.groups=[{size: 24, scale: [0.4, 1]}, {size: 24}, {size: 12, count: 4, scale: [0.05, 0.4]}]"
    config = load_config(["config/demo.yaml", groups, "crops.global.scale=[0.2,1.0]", "swav.assigning=[0,2]"])
    assert described(config) == [
        "crop 0: 24 pixels from 0.4 to 1 of the area; codes of 0",
        "crop 1: 24 pixels from 0.2 to 1 of the area",
        "crops 2 to 5: 12 pixels from 0.05 to 0.4 of the area; codes of 2",
    ]
