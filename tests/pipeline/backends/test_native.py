"""Crops of images with their own channels and depth: the torchvision backend on tensors against PIL and formulas, and
the ffcv backend against that."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pipeline.backends.native import gaussian_blur
from pipeline.crops import Blur, Crops, Jitter, Posterize, Solarize, View
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.open import open_dataset
from pipeline.dataset.reader import Reader
from pipeline.draw import draw
from pipeline.loader import Loader, evaluation_batches, execute, make_backend
from pipeline.requests import Feed
from support.native.images import npy, tiles, write_tiles
from support.photos import photographs, write_folder

PLAIN = Crops(
    views=(View(96, (0.3, 1.0)),) * 2 + (View(48, (0.05, 0.3)),) * 2,
    flip=0.0,
    jitter=Jitter(probability=0.0),
    grayscale=0.0,
    blur=Blur(probability=0.0),
)
JITTER = Jitter(probability=1.0)
BOTH = pytest.mark.parametrize("backend", ["ffcv", "torchvision"])


def neutral(*steps):
    """A change of a draw after which the jitter does these steps only."""

    def change(drawn):
        factors = np.broadcast_to(np.array([1, 1, 1, 0], np.float32), drawn.factors.shape).copy()
        factors[..., list(steps)] = drawn.factors[..., list(steps)]
        return replace(drawn, factors=factors)

    return change


def crops_of(table, crops, change=lambda drawn: drawn, epochs=2, backend="torchvision"):
    """Crops of every row, where 1 is white, by view: [(N, H, W, C)]."""
    feed, rows = Feed(table, Reader(table)), table.usable()
    executor = make_backend(backend, crops, len(rows), 1, None, pixels=table.pixels)
    requests = [
        feed.request(epoch, 0, rows, lambda *given, epoch=epoch: change(draw(crops, 3, epoch, *given)))
        for epoch in range(epochs)
    ]
    views: dict[int, list] = {view: [] for view in range(len(crops.views))}
    for _, groups in execute(executor, feed, iter(requests)):
        for (_, members), group in zip(crops.groups, groups, strict=True):
            pixels = group.permute(0, 2, 3, 1) * torch.tensor(crops.std) + torch.tensor(crops.mean)
            for view, part in zip(members, pixels.chunk(len(members)), strict=True):
                views[view].append(part.numpy())
    executor.close()
    return [np.concatenate(views[view]) for view in views]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photographs as pictures, and as arrays of the three types with the same values."""
    root, tables = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("tables")
    images = photographs()
    opened = {"rgb": open_dataset(write_folder(root / "rgb", images), tables, workers=1, progress=False)}
    reader = Reader(opened["rgb"])
    decoded = [reader.decode(row) for row in range(len(images))]
    for dtype, white in (("uint8", 1), ("uint16", 257), ("float32", 1 / 255)):
        (root / dtype).mkdir()
        for row, pixels in enumerate(decoded):
            (root / dtype / f"{row:05d}.npy").write_bytes(npy((pixels.astype(np.float64) * white).astype(dtype)))
        choice = Choice(layout="hwc")
        opened[dtype] = open_dataset(root / dtype, tables, workers=1, progress=False, choice=choice)
        assert opened[dtype].pixels.dtype == dtype and opened[dtype].pixels.native
    return opened


# Mean absolute difference from PIL's 8-bit crops, which round after each step, in levels of 255, over six photographs,
# two epochs and four crops each: as measured; the limit is 15 % more. PIL's Gaussian blur is three box filters.
ERRORS = {
    "resize": (PLAIN, lambda d: d, 0.264),
    "flip": (replace(PLAIN, flip=1.0), lambda d: d, 0.264),
    "brightness": (replace(PLAIN, jitter=JITTER), neutral(0), 0.505),
    "contrast": (replace(PLAIN, jitter=JITTER), neutral(1), 0.510),
    "saturation": (replace(PLAIN, jitter=JITTER), neutral(2), 0.537),
    "hue": (replace(PLAIN, jitter=JITTER), neutral(3), 0.680),
    "grayscale": (replace(PLAIN, grayscale=1.0), lambda d: d, 0.292),
    "blur": (replace(PLAIN, blur=Blur(probability=1.0)), lambda d: d, 0.546),
}


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("operation", ERRORS)
def test_crops_of_arrays_are_those_of_pictures_with_the_same_pixels(photos, operation):
    crops, change, measured = ERRORS[operation]
    expected = crops_of(photos["rgb"], crops, change)
    for dtype in ("uint8", "uint16"):
        given = crops_of(photos[dtype], crops, change)
        error = np.mean([255 * np.abs(one - other).mean() for one, other in zip(expected, given, strict=True)])
        assert error < measured * 1.15, dtype


@pytest.mark.slow
def test_uint8_and_uint16_of_the_same_image_give_the_same_crops(photos):
    crops = Crops(views=PLAIN.views)
    for one, other in zip(crops_of(photos["uint8"], crops), crops_of(photos["uint16"], crops), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)  # hue has steps, which rounding can move across


@pytest.fixture
def four(tmp_path):
    """A function from an array type to the table of 8 tiles of 4 channels."""

    def opened(dtype="uint16", images=None):
        images = tiles(8, 40) if images is None else images
        folder = write_tiles(tmp_path / dtype, [image.astype(dtype) for image in images])
        return open_dataset(folder, tmp_path / "tables", workers=1, progress=False), images

    return opened


def channels(crops):
    return replace(crops, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7, 0.8))


def test_a_crop_of_the_whole_image_is_the_image_at_full_depth(four):
    table, images = four()
    crops = channels(PLAIN).for_evaluation(40, 1.0)
    (batch,) = evaluation_batches(table, table.usable(), crops, backend="torchvision", batch_size=8)
    assert batch.crops[0].shape == (8, 4, 40, 40) and batch.crops[0].dtype == torch.float32
    assert batch.crops[0].is_contiguous(memory_format=torch.channels_last)
    for crop, row in zip(batch.crops[0], batch.rows, strict=True):
        image = images[[*range(0, 8, 2), *range(1, 8, 2)][row]]
        expected = (image / 65535 - np.array(crops.mean)) / np.array(crops.std)
        np.testing.assert_allclose(crop.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_brightness_multiplies_and_contrast_moves_each_channel_from_its_own_mean(four, dtype):
    table, _ = four(dtype)
    whole = replace(channels(PLAIN), views=(View(40, (1.0, 1.0)),), ratio=(1.0, 1.0))
    (plain,) = crops_of(table, whole, epochs=1)
    drawn = draw(replace(whole, jitter=JITTER), 3, 0, table.usable(), table.height, table.width)
    factor = drawn.factors[:, 0, :, None, None, None]

    def clipped(values):
        return np.clip(values, 0, 1) if dtype == "uint16" else values

    (bright,) = crops_of(table, replace(whole, jitter=JITTER), neutral(0), epochs=1)
    np.testing.assert_allclose(bright, clipped(factor[:, 0] * plain), rtol=1e-4, atol=1e-5)
    (contrast,) = crops_of(table, replace(whole, jitter=JITTER), neutral(1), epochs=1)
    mean = plain.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(
        contrast, clipped(factor[:, 1] * plain + (1 - factor[:, 1]) * mean), rtol=1e-4, atol=1e-5
    )


def test_saturation_hue_and_gray_leave_other_channels_alone(four):
    table, _ = four()
    crops = replace(channels(PLAIN), jitter=JITTER, grayscale=1.0)
    for one, other in zip(crops_of(table, crops, neutral(2, 3)), crops_of(table, channels(PLAIN)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_of_float32_are_not_clipped(four):
    table, _ = four("float32", [image - 2000.0 for image in tiles(4, 40)])
    (crop, *_) = crops_of(table, channels(PLAIN))
    assert crop.min() < -500 and crop.max() > 500


def test_the_blur_is_a_gaussian_that_keeps_a_constant_image():
    point = torch.zeros(4, 31, 31)
    point[:, 15, 15] = 1.0
    spread = gaussian_blur(point, 2.0)
    reach = torch.arange(31.0) - 15
    expected = torch.exp(-(reach**2) / 8) * (reach.abs() <= 6)
    expected = expected / expected.sum()
    torch.testing.assert_close(spread[2], expected[:, None] * expected)
    torch.testing.assert_close(gaussian_blur(torch.ones(4, 9, 9), 1.7), torch.ones(4, 9, 9))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_both_backends_make_the_same_crops_of_the_same_draw(four, dtype):
    table, _ = four(dtype, tiles(8, 40, high=256 if dtype == "uint8" else 4096))
    crops = channels(Crops(views=PLAIN.views))
    one, other = (crops_of(table, crops, backend=backend) for backend in ("torchvision", "ffcv"))
    for given, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@BOTH
def test_crops_do_not_depend_on_threads_or_world_size(four, backend):
    table, _ = four()
    crops = channels(Crops(views=(View(16, (0.2, 1.0)),) * 2))

    def epoch(world_size, threads):
        found = {}
        for rank in range(world_size):
            loader = Loader(
                table, crops, backend=backend, seed=5, global_batch=4, rank=rank, world_size=world_size,
                threads=threads,
            )  # fmt: skip
            for batch in loader:
                for view, part in enumerate(batch.crops[0].chunk(2)):
                    found |= {(row, view): crop for crop, row in zip(part, batch.rows.tolist(), strict=True)}
            loader.close()
        return found

    one, other = epoch(1, 3), epoch(2, 1)
    assert len(one) == 16 and one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@BOTH
def test_an_image_that_is_damaged_meanwhile_is_replaced(four, backend):
    table, _ = four()
    file = table.root / table.containers[3]
    file.write_bytes(b"\0" * file.stat().st_size)
    crops = channels(Crops(views=(View(16, (0.2, 1.0)),) * 2))
    loader = Loader(table, crops, backend=backend, seed=5, global_batch=4, max_bad_fraction=0.2)
    assert len(list(loader)) == 2
    assert list(loader.bad) == [table.name(3)]
    loader.close()


def test_dali_refuses_arrays_that_count_as_color_in_one_line(photos):
    table = photos["uint16"]
    expected = "pipeline.backend=dali: the images have 3 channels of uint16; pipeline.backend=ffcv makes crops"
    with pytest.raises(ValueError, match=expected):
        Loader(table, PLAIN, backend="dali", seed=1, global_batch=4)
    with pytest.raises(ValueError, match=expected):
        next(evaluation_batches(table, table.usable(), PLAIN, backend="dali", batch_size=4))


GRAYLESS = Jitter(probability=0.8, saturation=0.0, hue=0.0)
# Crops, and the largest difference of DALI's from torchvision's, of white, away from the edges.
BY_DALI = {
    "resize": (PLAIN, 1e-6),
    "turns": (replace(PLAIN, flip=0.5, vertical_flip=0.5, quarter_turn=0.5), 1e-6),
    "brightness and contrast": (replace(PLAIN, jitter=GRAYLESS), 4e-4),  # the mean has the edges in it
    "gain": (replace(PLAIN, jitter=replace(GRAYLESS, brightness=0.0, contrast=0.0, gain=0.5)), 1e-6),
    "blur": (replace(PLAIN, blur=Blur(probability=1.0)), 1e-4),
    "solarize": (replace(PLAIN, solarize=Solarize(0.5, 0.3)), 1e-6),
    "posterize": (replace(PLAIN, posterize=Posterize(0.5, 3)), 1e-6),
}
EDGE = 6  # pixels: DALI resamples from what is around a window, and its blur mirrors the crop


@pytest.mark.parametrize("operation", BY_DALI)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_dali_makes_the_crops_of_arrays_that_are_no_color(four, dtype, operation):
    crops, limit = BY_DALI[operation]
    white = {"uint8": 257, "uint16": 1, "float32": 65535}[dtype]
    table, _ = four(dtype, [image / white for image in tiles(8, 40)])
    both = [crops_of(table, channels(crops), backend=backend) for backend in ("dali", "torchvision")]
    for given, expected in zip(*both, strict=True):
        difference = np.abs(given - expected)
        jumps = difference[:, EDGE:-EDGE, EDGE:-EDGE] > limit  # values at a threshold or a level
        assert jumps.mean() < (1e-3 if operation in ("solarize", "posterize") else 1e-9)
        assert difference.mean() < 6e-4  # 0.00052 was the most


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_crops_have_the_type_that_is_asked_for(four, backend, dtype):
    table, _ = four()
    loader = Loader(table, channels(PLAIN), backend=backend, seed=1, global_batch=8, dtype=dtype)
    (batch,) = loader
    assert [group.dtype for group in batch.crops] == [dtype] * 2
    assert all(group.is_contiguous(memory_format=torch.channels_last) for group in batch.crops)
    loader.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@BOTH
def test_crops_on_a_gpu_are_those_of_the_cpu(four, backend):
    table, _ = four()
    crops = channels(Crops(views=PLAIN.views))
    given, expected = [], []
    for device, found in ((0, given), (None, expected)):
        loader = Loader(table, crops, backend=backend, seed=1, global_batch=4, device_id=device, dtype=torch.float32)
        found += [group for _ in range(3) for batch in loader for group in batch.crops]
        loader.close()
    assert len(given) == len(expected) == 12
    for one, other in zip(given, expected, strict=True):
        assert one.is_cuda
        difference = (one.cpu() - other).abs()
        if backend == "torchvision":
            assert not difference.any()
        else:  # values at an edge of a sector of hue may jump
            assert (difference > 1e-4).float().mean() < 2e-4


def test_a_request_states_the_format(four):
    table, _ = four()
    request = Feed(table, Reader(table)).request(0, 0, table.usable(), partial(draw, channels(PLAIN), 1, 0))
    assert request.pixels == table.pixels


def test_a_backend_of_pictures_does_not_take_other_images(four):
    table, _ = four()
    feed, executor = Feed(table, Reader(table)), make_backend("ffcv", Crops(views=PLAIN.views), 8, 1, None)
    request = feed.request(0, 0, table.usable(), partial(draw, PLAIN, 1, 0))
    with pytest.raises(ValueError, match="images of 4 channels of uint16 for a backend of other images"):
        next(execute(executor, feed, iter([request])))
    executor.close()
