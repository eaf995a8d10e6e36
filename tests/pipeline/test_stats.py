"""Statistics of a dataset's channels: exact, in one pass, the same for any number of processes."""

import json
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from config.errors import ConfigError
from config.recipe import default_config
from pipeline.dataset.channels.moments import Moments
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_dataset
from pipeline.fitting import fit_to_pixels
from pipeline.stats import computed, main, rounded, statistics_of
from support.native.images import tiles, write_tiles
from support.odd_images import encode, scene
from support.small_datasets import error_of, write


@pytest.fixture
def four(tmp_path):
    return open_dataset(write_tiles(tmp_path / "images", tiles(6)), tmp_path / "tables", 1, False)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.sampled_from(["uint8", "uint16"]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=30, deadline=None)
def test_merged_moments_are_those_of_all_pixels(sizes, dtype, seed):
    noise = np.random.default_rng(seed)
    images = [noise.integers(0, np.iinfo(dtype).max + 1, (size, 7, 3)).astype(dtype) for size in sizes]
    whole = reduce(add, map(Moments.of, images))
    assert whole == reduce(add, map(Moments.of, images[::-1])) == Moments.of(np.concatenate(images))
    pixels = np.concatenate(images).reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(whole.mean, pixels.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.std, pixels.std(0), rtol=1e-12)
    assert whole.lowest == tuple(pixels.min(0)) and whole.highest == tuple(pixels.max(0))


def test_large_values_do_not_overflow():
    image = np.full((300, 300, 1), 65535, np.uint16)
    moments = reduce(add, [Moments.of(image)] * 1000)
    assert moments.mean == [65535.0] and moments.std == [0.0]


def test_the_statistics_are_those_of_all_images_of_the_table(tmp_path):
    images = tiles(6)
    table = open_dataset(write_tiles(tmp_path / "images", images), tmp_path / "tables", 1, False)
    found, file = statistics_of(table, tmp_path / "tables", progress=False)
    pixels = np.concatenate(images).reshape(-1, 4).astype(np.int64)
    np.testing.assert_allclose(found.mean, pixels.sum(0) / len(pixels) / 65535, rtol=1e-15)
    np.testing.assert_allclose(found.std, pixels.std(0) / 65535, rtol=1e-12)
    assert (found.images, found.pixels) == (6, "4 channels of uint16")
    assert found.highest == np.concatenate(images).reshape(-1, 4).max(0).tolist()
    assert json.loads(file.read_text())["mean"] == found.mean


def test_they_are_computed_once_and_again_when_the_images_change(tmp_path):
    folder = write_tiles(tmp_path / "images", tiles(4))
    table = open_dataset(folder, tmp_path / "tables", 1, False)
    _, file = statistics_of(table, tmp_path / "tables", progress=False)
    file.write_text(file.read_text().replace('"images": 4', '"images": 44'))
    assert statistics_of(table, tmp_path / "tables", progress=False)[0].images == 44  # read, not computed
    file.write_text("{")
    assert statistics_of(table, tmp_path / "tables", progress=False)[0].images == 4
    write_tiles(folder, tiles(4, seed=1))  # the same sizes
    changed = open_dataset(folder, tmp_path / "tables", 1, False)
    assert changed.digest() == table.digest()
    other, new = statistics_of(changed, tmp_path / "tables", progress=False)
    assert new != file and other.mean != computed(table, 1, False).highest


@pytest.mark.slow(seconds=2)  # starts two processes
def test_any_number_of_processes_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stats.CHUNK", 2)
    folder = write_tiles(tmp_path / "images", [image.astype(np.float32) for image in tiles(24)])
    table = open_dataset(folder, tmp_path / "tables", 1, False)
    assert computed(table, 1, False) == computed(table, 2, False)


def test_pictures_have_statistics_too(tmp_path, capsys):
    image = scene(20, 30)
    write(tmp_path / "images", {f"{index}.png": encode(Image.fromarray(image), "PNG") for index in range(2)})
    assert main([str(tmp_path / "images"), "--tables", str(tmp_path / "tables")]) == 0
    said = capsys.readouterr().out
    mean = rounded((image.reshape(-1, 3) / 255).mean(0).tolist())
    assert f"crops.mean={mean}" in said and "2 images, 8-bit RGB" in said


def test_a_channel_that_never_changes_is_named(tmp_path):
    images = tiles(4)
    for image in images:
        image[..., 2] = 7
    table = open_dataset(write_tiles(tmp_path / "images", images), tmp_path / "tables", 1, False)
    assert "channel 2 is 7 in every pixel of every image" in error_of(statistics_of, table, tmp_path, progress=False)


@pytest.mark.parametrize("arguments", [["no-such-folder"], [".", "--channels", "x"], [".", "--workers", "-1"]])
def test_a_mistake_of_the_user_is_one_line(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_one_line(four):
    (four.root.parent / "file").write_text("")
    assert "cannot write statistics to" in error_of(statistics_of, four, four.root.parent / "file", progress=False)


# ---- settings that follow from the images


def fitted(table, *changes):
    config = default_config()
    config.data.cache = str(table.root.parent / "tables")
    config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(changes)))
    return config, fit_to_pixels(config, table, progress=False)


def test_auto_follows_from_the_images_and_says_so(four):
    config, lines = fitted(four)
    statistics, file = statistics_of(four, four.root.parent / "tables", progress=False)
    assert list(config.crops.mean) == rounded(statistics.mean) and list(config.crops.std) == rounded(statistics.std)
    assert (config.crops.jitter.saturation, config.crops.jitter.hue, config.crops.grayscale) == (0, 0, 0)
    assert config.pipeline.backend == "ffcv" and config.model.options == {"in_chans": 4}
    (line,) = [line for line in lines if line.startswith("crops.mean=")]
    assert str(file) in line and "crops.jitter.saturation=0, crops.jitter.hue=0, crops.grayscale=0" in line
    assert fit_to_pixels(config, four, progress=False) == []  # nothing is left to choose


def test_the_teacher_of_a_distillation_takes_the_channels_too(four):
    config, lines = fitted(four, "method=distill")
    assert config.model.options == config.distill.options == {"in_chans": 4}
    assert any(line.startswith("distill.options.in_chans=4") for line in lines)


def test_pictures_have_the_published_numbers():
    config = default_config()
    fit_to_pixels(config, None)
    assert list(config.crops.mean) == [0.485, 0.456, 0.406] and list(config.crops.std) == [0.228, 0.224, 0.225]
    assert (config.crops.jitter.saturation, config.crops.jitter.hue, config.crops.grayscale) == (0.8, 0.2, 0.2)
    assert config.pipeline.backend == "auto" and not config.model.options


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("crops.mean=[0.5]", "crops.mean=[0.5]: expected auto or 4 numbers, one a channel of data.path"),
        ("crops.grayscale=0.2", "crops.grayscale=0.2: expected auto or 0, 4 channels of uint16 are no color"),
        ("crops.jitter.hue=0.1", "crops.jitter.hue=0.1: expected auto or 0"),
        ("crops.groups=[{size: 32}, {jitter: {hue: 0.1}}]", "crops.groups[1].jitter.hue=0.1: expected auto or 0, 4"),
        ("model.options.in_chans=3", "model.options.in_chans=3: expected 4, the channels of data.path"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_in_one_line(four, change, line):
    with pytest.raises(ConfigError) as caught:
        fitted(four, change)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_dali_takes_arrays_that_do_not_count_as_color(four, tmp_path):
    config, _ = fitted(four, "pipeline.backend=dali")
    assert config.pipeline.backend == "dali"
    folder = write_tiles(tmp_path / "color", [image[..., :3] for image in tiles(6)])
    color = open_dataset(folder, tmp_path / "tables", 1, False, choice=Choice(layout="hwc"))
    with pytest.raises(ConfigError, match=r"^pipeline.backend=dali: expected ffcv or torchvision or auto for images"):
        fitted(color, "pipeline.backend=dali")


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18"])
def test_a_network_of_one_channel_does_not_fit_pictures(backbone):
    config = OmegaConf.merge(default_config(), {"model": {"backbone": backbone, "options": {"in_chans": 1}}})
    with pytest.raises(ConfigError, match=r"^model.options.in_chans=1: expected 3, the channels of data.path"):
        fit_to_pixels(config, None)


def test_mean_of_pictures_has_three_numbers():
    config = default_config()
    config.crops.mean = [0.5]
    with pytest.raises(ConfigError, match=r"^crops.mean=\[0.5\]: expected auto or 3 numbers"):
        fit_to_pixels(config, None)
