"""The ffcv backend gives torchvision's crops for the same draw: compared pixel by pixel, in levels of 0 to 255."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from perf.parity import differences, operations
from pipeline.backends.torchvision import TorchvisionBackend
from pipeline.dataset.open import open_dataset
from pipeline.draw import draw
from support.kernel_runs import JITTER, PLAIN, SWAV, execute, levels, one_view, photos
from support.photos import photographs

# Measured mean absolute difference of the affine map from torchvision over the images and views below.
AFFINE = {
    "resize, flip": 0.498,
    "blur": 0.511,
    "brightness": 0.865,
    "contrast": 0.817,
    "saturation": 0.814,
    "hue": 6.67,
    "jitter without hue": 2.45,
    "jitter": 6.34,
    "gain": 0.898,
    "grayscale": 0.253,
    "turn": 0.500,
    "solarize": 0.498,
    "posterize": 0.466,
    "everything": 4.93,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """200 JPEGs of 150 to 300 pixels a side: parts of six photographs."""
    folder, sources, random = tmp_path_factory.mktemp("images"), photographs(), np.random.default_rng(0)
    for index in range(200):
        source = sources[index % len(sources)]
        size = random.integers(150, 301, 2)
        top, left = (random.integers(0, room + 1) for room in np.array(source.shape[:2]) - size)
        part = Image.fromarray(source[top : top + size[0], left : left + size[1]])
        part.save(folder / f"{index:03d}.jpg", quality=int(random.integers(80, 96)))
    return open_dataset(folder, tmp_path_factory.mktemp("tables"), workers=1, progress=False)


@pytest.mark.parametrize("name", AFFINE)
def test_crops_are_torchvisions_within_the_limits(table, name):
    """Exact decoding, default: within 1 level on average, 1.5 with blur. Affine: as measured, with a margin of 15 %."""
    operation = operations(SWAV)[name]
    measured = differences(table, table.usable(), operation, ["ffcv", "ffcv-exact", "ffcv-affine"], 2)
    assert measured["ffcv-exact"] < measured["ffcv"] < operation.limit
    assert measured["ffcv-affine"] < AFFINE[name] * 1.15


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """Twelve JPEGs of 2 megapixels, enlarged photographs with a camera's noise: decoded at 1/4 or 1/2."""
    folder, sources, random = tmp_path_factory.mktemp("camera"), photographs(), np.random.default_rng(0)
    for index in range(12):
        source = Image.fromarray(sources[index % len(sources)])
        large = np.asarray(source.resize((1632, 1224), Image.Resampling.LANCZOS)).astype(np.float32)
        noisy = np.clip(large + random.normal(0, 3, large.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:03d}.jpg", quality=90)
    return open_dataset(folder, tmp_path_factory.mktemp("tables"), workers=1, progress=False)


@pytest.mark.parametrize("name", AFFINE)
def test_scaled_decoding_is_within_a_level_of_exact(camera, name):
    measured = differences(camera, camera.usable(), operations(SWAV)[name], ["ffcv"], 2, reference="ffcv-exact")
    assert 0.05 < measured["ffcv"] < 1.0


def test_the_fast_decoder_is_within_a_level():
    images, height, width = photos()
    drawn = draw(PLAIN, 3, 0, np.arange(len(images)), height, width)
    outputs, _ = execute(PLAIN, images, drawn, (height, width), dct="fast")
    accurate, _ = execute(replace(PLAIN, decode="exact"), images, drawn, (height, width))
    for output, other in zip(outputs, accurate, strict=True):
        assert np.abs(levels(PLAIN, output) - levels(PLAIN, other)).mean() < 1.0


@pytest.mark.parametrize("gain", [0.0, 0.4])
def test_hsv_jitter_gives_torchvisions_very_bytes(gain):
    """A window of the crop's size is not resampled, so every byte must be the same."""
    image = np.random.default_rng(3).integers(0, 256, (48, 48 * 60, 3), dtype=np.uint8)
    image[:, : 48 * 20] = np.tile(photographs()[2][:48, :480], (1, 2, 1))
    images = [np.ascontiguousarray(image[:, 48 * i : 48 * i + 48]) for i in range(60)]
    shape = np.full(60, 48), np.full(60, 48)
    crops = one_view(48, jitter=replace(JITTER, gain=gain), grayscale=0.2)
    drawn = draw(crops, 7, 0, np.arange(60), *shape)
    drawn = replace(drawn, window=np.broadcast_to(np.array([0, 0, 48, 48]), drawn.window.shape))
    (output,), _ = execute(crops, images, drawn)
    reference = TorchvisionBackend(crops, 60, 1)
    for row, pixels in enumerate(images):
        expected = reference._view(Image.fromarray(pixels), drawn, row, 0)
        np.testing.assert_array_equal(np.rint(levels(crops, output[0, row])), np.rint(levels(crops, expected)))
    reference.close()
