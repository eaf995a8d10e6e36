"""A stretch: percentiles of all values become black and white, the same at every start and in evaluation."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from pipeline.dataset.channels.decode import curve
from pipeline.dataset.open import open_splits
from pipeline.dataset.reader import Reader
from pipeline.dataset.stretching import ranges_of
from pipeline.fitting import fit_to_pixels
from pipeline.stats import main as stats
from support.native.images import tiles, write_tiles
from support.small_datasets import error_of


def data_of(tmp_path, **settings):
    given = {"path": str(tmp_path / "images"), "test": None, "cache": str(tmp_path / "tables"), "workers": 1}
    return OmegaConf.create(given | settings)


@pytest.mark.parametrize("percentiles", [(0, 100), (1, 99), (0.5, 50)])
def test_the_range_is_numpys_percentile_of_all_pixels(tmp_path, percentiles):
    images = tiles(5)
    write_tiles(tmp_path / "images", images)
    table, _ = open_splits(data_of(tmp_path), False)
    found = ranges_of(table, percentiles, tmp_path / "tables", 1, False)
    values = np.stack(images).reshape(-1, 4)
    wanted = np.percentile(values, percentiles, axis=0, method="inverted_cdf").T
    np.testing.assert_array_equal(found, wanted)
    assert ranges_of(table, percentiles, tmp_path / "tables", 1, False) == found  # from its file


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_ends_become_black_and_white_and_the_rest_is_rounded(dtype):
    white = np.iinfo(dtype).max
    values = curve((10, 110), dtype)
    assert values.dtype == dtype and values[[0, 10, 110, white]].tolist() == [0, 0, white, white]
    np.testing.assert_array_equal(values[10:111], np.rint(np.arange(101) / 100 * white))
    assert (np.diff(values.astype(int)) >= 0).all()


def test_images_are_stretched_wherever_they_are_read(tmp_path):
    images = tiles(6)
    write_tiles(tmp_path / "images" / "train", images[:4])
    write_tiles(tmp_path / "images" / "val", images[4:])
    table, test = open_splits(data_of(tmp_path, stretch=[1, 99], range="auto"), False)
    assert table.pixels.range and test.pixels.range == table.pixels.range
    plain, _ = open_splits(data_of(tmp_path), False)
    assert table.digest() != plain.digest()  # a run does not go on with other values
    for row in range(4):
        values = Reader(plain).native(row)
        low, high = np.array(table.pixels.range).T
        wanted = np.rint(np.clip((values - low.astype(float)) / (high - low), 0, 1) * 65535)
        np.testing.assert_array_equal(Reader(table).native(row), wanted)
    given, _ = open_splits(data_of(tmp_path, stretch=[1, 99], range=[[0, 4095]] * 4), False)
    np.testing.assert_array_equal(
        Reader(given).native(0), np.rint(np.minimum(Reader(plain).native(0), 4095) / 4095 * 65535)
    )


def test_a_recipe_gets_the_range_and_the_statistics_of_what_it_trains_on(tmp_path):
    from config.recipe import load_config

    write_tiles(tmp_path / "images", tiles(8))
    config = load_config(
        ["config/demo.yaml", f"data.path={tmp_path / 'images'}", f"data.cache={tmp_path / 'tables'}",
         "data.stretch=[1,99]", "crops.mean=auto", "crops.std=auto", "pipeline.backend=ffcv", "data.workers=1"]
    )  # fmt: skip
    table, _ = open_splits(config.data, False)
    lines = fit_to_pixels(config, table, False)
    assert config.data.range == [list(ends) for ends in table.pixels.range]
    assert any(line.startswith("data.range=[[") and "percentiles [1, 99]" in line for line in lines)
    values = np.stack([Reader(table).native(row) for row in range(8)]) / 65535
    np.testing.assert_allclose(config.crops.mean, values.mean((0, 1, 2)), rtol=1e-5)


def test_the_command_says_the_range(tmp_path, capsys):
    write_tiles(tmp_path / "images", tiles(4, channels=2))
    places = [str(tmp_path / "images"), "--tables", str(tmp_path / "tables"), "--workers", "1"]
    assert stats([*places, "--stretch", "0", "100"]) == 0
    said = capsys.readouterr().out
    values = np.stack(tiles(4, channels=2)).reshape(-1, 2)
    wanted = [[int(low), int(high)] for low, high in zip(values.min(0), values.max(0), strict=True)]
    assert f"data.stretch=[0, 100] data.range={wanted}" in said and "highest [65535.0, 65535.0]" in said
    assert stats([*places, "--stretch", "5", "1"]) == 2
    assert "--stretch 5 1: expected 0 <= low < high <= 100" in capsys.readouterr().err


def test_what_cannot_be_stretched_is_one_line(tmp_path):
    write_tiles(tmp_path / "images", [image.astype(np.float32) for image in tiles(2)])
    line = error_of(open_splits, data_of(tmp_path, stretch=[1, 99]), False)
    assert "data.stretch=[1, 99]: the images are 4 channels of float32" in line
    write_tiles(tmp_path / "flat", [np.full((8, 8, 2), 7, np.uint16)] * 2)
    line = error_of(open_splits, data_of(tmp_path, path=str(tmp_path / "flat"), stretch=[1, 99]), False)
    assert "data.stretch=[1, 99]: both are 7 in channel 0; take others" in line
    write_tiles(tmp_path / "two", tiles(2))
    line = error_of(open_splits, data_of(tmp_path, path=str(tmp_path / "two"), stretch=[1, 99], range=[[0, 9]]), False)
    assert "data.range: 1 pairs" in line
