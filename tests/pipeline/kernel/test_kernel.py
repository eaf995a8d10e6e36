"""The fused kernel: geometry, color, blur, failures, threads; see test_kernel_parity.py for torchvision."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.color import GRAY, color_matrices
from pipeline.crops import Blur, Jitter, View
from pipeline.draw import draw
from pipeline.kernel.kernel import Kernel, stage_times
from support.kernel_runs import (
    AFFINE,
    JITTER,
    PLAIN,
    SWAV,
    crop_of,
    execute,
    jpeg,
    levels,
    one_view,
    one_window,
    photos,
)
from support.photos import flat_colors, photographs


@pytest.mark.parametrize(
    ("shape", "window", "size"),
    [
        ((1, 1), (0, 0, 1, 1), 48),
        ((2, 3), (0, 0, 2, 3), 48),
        ((300, 400), (150, 200, 1, 1), 33),
        ((300, 400), (299, 0, 1, 400), 48),
        ((300, 400), (0, 399, 300, 1), 48),
        ((300, 400), (0, 0, 300, 400), 224),
        ((300, 400), (268, 371, 32, 29), 96),
        ((300, 400), (100, 100, 96, 96), 96),
        ((300, 400), (3, 5, 250, 333), 31),
        ((300, 400), (3, 5, 250, 333), 1),
        ((3000, 4000), (0, 0, 3000, 4000), 96),
        ((5, 9000), (0, 0, 5, 9000), 48),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_any_size_and_place_are_resized_as_by_pil(shape, window, size, flip):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[: shape[0] // 2] //= 2
    top, left, height, width = window
    expected = Image.fromarray(image[top : top + height, left : left + width]).resize((size, size), Image.BILINEAR)
    expected = np.asarray(expected)[:, ::-1] if flip else np.asarray(expected)
    difference = np.abs(crop_of(image, window, size, flip=flip).astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() <= 0.4


def test_a_window_of_the_crops_own_size_is_copied():
    image = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_of(image, (7, 11, 48, 48), 48), image[7:55, 11:59])


def test_flip_mirrors_every_crop():
    images, height, width = photos()
    drawn = draw(SWAV, 1, 0, np.arange(len(images)), height, width)
    plain, _ = execute(SWAV, images, replace(drawn, flip=np.zeros_like(drawn.flip)), (height, width))
    mirrored, _ = execute(SWAV, images, replace(drawn, flip=np.ones_like(drawn.flip)), (height, width))
    for one, other in zip(plain, mirrored, strict=True):
        np.testing.assert_allclose(levels(SWAV, one)[..., ::-1, :], levels(SWAV, other), atol=1.01)
        assert np.abs(one - one[..., ::-1, :]).max() > 1


@pytest.mark.parametrize("side", [1, 5, 40, 900])
def test_flat_images_give_flat_crops_of_their_color(side):
    images = [np.full((side, side + 1, 3), image[0, 0]) for image in flat_colors(20)]
    images += [np.full((side, side + 1, 3), value, np.uint8) for value in (0, 1, 254, 255)]
    shape = np.full(len(images), side), np.full(len(images), side + 1)
    crops = replace(SWAV, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=1.0))
    outputs, status = execute(crops, images, draw(crops, 2, 0, np.arange(len(images)), *shape))
    assert not status.any()
    for output in outputs:
        for row, image in enumerate(images):
            np.testing.assert_allclose(
                levels(crops, output[:, row]), np.broadcast_to(image[0, 0], output[:, row].shape), atol=0.01
            )


def test_contrast_of_zero_leaves_the_mean_gray():
    image = photographs()[2][:200, :300]
    drawn = one_window((0, 0, 200, 300))
    drawn = replace(drawn, jitter=~drawn.jitter, factors=np.array([[[1, 0, 1, 0]]], np.float32))
    crops = one_view(100, jitter=JITTER)
    (output,), _ = execute(crops, [image], drawn)
    gray = crop_of(image, (0, 0, 200, 300), 100).astype(np.float64).mean(axis=(0, 1)) @ GRAY
    np.testing.assert_allclose(levels(crops, output), gray, atol=0.7)


def test_color_is_the_affine_map_of_the_crop():
    crops = replace(SWAV, flip=0.0, jitter=AFFINE, blur=Blur(probability=0.0))
    images, height, width = photos()
    drawn = draw(crops, 5, 0, np.arange(len(images)), height, width)
    colored, _ = execute(crops, images, drawn, (height, width))
    plain, _ = execute(crops, images, drawn, (height, width), dtype="uint8")
    linear, offset = color_matrices(drawn)
    for (_, members), output, pixels in zip(crops.groups, colored, plain, strict=True):
        for position, view in enumerate(members):
            for row in range(len(images)):
                crop = pixels[position, row].astype(np.float64)
                expected = crop @ linear[row, view].T + offset[row, view] @ crop.mean(axis=(0, 1))
                difference = np.abs(levels(crops, output[position, row]) - np.clip(expected, 0, 255))
                assert difference.max() < 0.85
                assert difference.mean() < 0.3


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.3, 2.0])
@pytest.mark.parametrize("size", [1, 5, 48, 100])
def test_blur_is_the_gaussian_of_the_drawn_sigma(sigma, size):
    image = np.random.default_rng(4).integers(0, 256, (size, size, 3), dtype=np.uint8)
    drawn = one_window((0, 0, size, size))
    drawn = replace(drawn, blur=~drawn.blur, sigma=np.full((1, 1), sigma, np.float32))
    crops = one_view(size, blur=Blur(probability=1.0))
    (output,), _ = execute(crops, [image], drawn)
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / sigma) ** 2)
    padded = np.pad(image.astype(np.float64), ((12, 12), (12, 12), (0, 0)), mode="edge")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), mode="valid")
    difference = np.abs(levels(crops, output[0, 0]) - padded)
    assert difference.mean() < 0.45
    assert difference.max() < 1.5


def test_crops_do_not_depend_on_threads_or_batches():
    images, height, width = photos()
    drawn = draw(SWAV, 1, 0, np.arange(len(images)), height, width)
    reference, _ = execute(SWAV, images, drawn, (height, width), threads=1)
    for threads in (2, 5):
        outputs, _ = execute(SWAV, images, drawn, (height, width), threads=threads)
        assert all(map(np.array_equal, reference, outputs))
    for row in (0, 5, 11):
        single = draw(SWAV, 1, 0, np.array([row]), height[[row]], width[[row]])
        outputs, _ = execute(SWAV, [images[row]], single, (height[[row]], width[[row]]))
        assert all(map(np.array_equal, [output[:, [row]] for output in reference], outputs))


def test_two_callers_share_a_kernel():
    images, height, width = photos()
    draws = [draw(SWAV, seed, 0, np.arange(len(images)), height, width) for seed in range(8)]
    kernel = Kernel(SWAV, 2)

    def run(drawn):
        outputs = kernel.buffers(len(images))
        assert not kernel.run(images, np.ones(len(images), bool), height, width, drawn, outputs).any()
        return outputs

    with ThreadPoolExecutor(2) as callers:
        together = list(callers.map(run, draws))
    for drawn, outputs in zip(draws, together, strict=True):
        assert all(map(np.array_equal, run(drawn), outputs))
    kernel.close()


def test_pixels_and_jpegs_mix_row_by_row():
    images, height, width = photos()
    images = list(images[:6])
    exact = replace(SWAV, decode="exact")
    drawn = draw(exact, 1, 0, np.arange(6), height[:6], width[:6])
    reference, _ = execute(exact, images, drawn, (height[:6], width[:6]))
    pixels = np.asarray(Image.open(io.BytesIO(images[2].tobytes())))
    mixed, status = execute(exact, [*images[:2], pixels, *images[3:]], drawn, (height[:6], width[:6]))
    assert not status.any()
    for one, other in zip(reference, mixed, strict=True):
        np.testing.assert_array_equal(one, other)  # the accurate DCT gives exactly Pillow's pixels


@pytest.mark.parametrize("size", [48, 50])
def test_all_dtypes_hold_the_same_values(size):
    images, height, width = photos()
    crops = replace(SWAV, views=(View(size, (0.1, 1.0)),) * 2)
    drawn = draw(crops, 1, 0, np.arange(len(images)), height, width)
    outputs = {
        dtype: torch.from_numpy(execute(crops, images, drawn, (height, width), dtype=dtype)[0][0])
        for dtype in ("float32", "float16", "bfloat16")
    }
    full = outputs["float32"]
    assert torch.isfinite(full).all()
    exact = torch.arange(256)[:, None] / 255  # the 256 normalized values of each channel
    table = (exact - torch.tensor(crops.mean)) / torch.tensor(crops.std)
    nearest = torch.from_numpy(np.rint(levels(crops, full)).astype(np.int64))
    assert (full - table[nearest, torch.arange(3)]).abs().max() < 1e-6
    assert torch.equal(outputs["float16"], full.half())
    assert torch.equal(outputs["bfloat16"].view(torch.bfloat16), full.bfloat16())


def test_a_broken_jpeg_is_reported_and_harms_no_other():
    images, height, width = photos()
    good = list(images[:8])
    drawn = draw(SWAV, 1, 0, np.arange(8), height[:8], width[:8])
    reference, _ = execute(SWAV, good, drawn, (height[:8], width[:8]))
    bad = list(good)
    bad[1] = good[1][: len(good[1]) // 2]
    bad[3] = np.frombuffer(b"not an image at all", np.uint8)
    bad[4] = np.empty(0, np.uint8)
    bad[6] = good[6].copy()
    bad[6][700:] = np.random.default_rng(0).integers(0, 255, len(bad[6]) - 700, dtype=np.uint8)
    outputs, status = execute(SWAV, bad, drawn, (height[:8], width[:8]))
    assert status.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    for one, other in zip(reference, outputs, strict=True):
        np.testing.assert_array_equal(one[:, status == 0], other[:, status == 0])
        assert not other[:, status != 0].any()


def test_the_header_decides_the_status():
    image = photographs()[3]
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = [
        (jpeg(image), image.shape[:2], 0),
        (jpeg(image, progressive=True), image.shape[:2], 0),
        (jpeg(image[..., 0]), image.shape[:2], 0),
        (jpeg(image), image.shape[1::-1], 2),
        (jpeg(image), (image.shape[0] - 1, image.shape[1]), 2),
        (jpeg(image, exif=exif), image.shape[1::-1], 0),
        (jpeg(image, exif=exif), image.shape[:2], 2),
        (jpeg(image, exif=Image.Exif()), image.shape[:2], 0),
        (jpeg(image, comment=b"x" * 999), image.shape[:2], 0),
        (jpeg(np.dstack([image, image[..., :1]]), mode="CMYK"), image.shape[:2], 1),
    ]
    images, shapes, expected = zip(*rows, strict=True)
    height, width = np.array(shapes).T
    drawn = draw(PLAIN, 1, 0, np.arange(len(rows)), height, width)
    assert execute(PLAIN, images, drawn, (height, width))[1].tolist() == list(expected)


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        ((-1, 0, 5, 5), (20, 30)),
        ((0, 0, 21, 30), (20, 30)),
        ((0, 30, 5, 1), (20, 30)),
        ((0, 0, 0, 5), (20, 30)),
        ((0, 0, 1 << 62, 1 << 62), (20, 30)),
        ((1 << 62, 0, 1 << 62, 5), (20, 30)),
        ((0, 0, 5, 5), (0, 30)),
        ((0, 0, 5, 5), (30, 20)),
        ((0, 0, 5, 5), (1 << 40, 1 << 40)),
        ((0, 0, 5, 5), (-20, -30)),
        ((0, 0, 5, 5), (20, 31)),
    ],
)
def test_absurd_windows_and_sizes_are_refused_and_write_nowhere_else(window, shape):
    image = np.full((20, 30, 3), 200, np.uint8)
    kernel = Kernel(one_view(48), 1)
    around = np.full((3, 1, 1, 48, 48, 3), 7.0, np.float32)
    drawn = one_window(window)
    encoded = jpeg(image)
    for given in (image, encoded):
        status = kernel.run(
            [given], np.array([given.ndim == 1]), np.array(shape[:1]), np.array(shape[1:]), drawn, [around[1]]
        )
        assert status.tolist() == [2]
        assert (around[[0, 2]] == 7).all()
        assert not around[1].any()
    kernel.close()


def test_wrong_buffers_are_a_value_error():
    kernel = Kernel(one_view(48), 1)
    image, size = np.zeros((20, 30, 3), np.uint8), (np.array([20]), np.array([30]))
    drawn = one_window((0, 0, 20, 30))
    right = kernel.buffers(1)[0]
    for wrong in ([], kernel.buffers(2), [np.empty(right.shape, np.float64)], [right[..., ::-1]]):
        with pytest.raises(ValueError, match="outputs"):
            kernel.run([image], np.array([False]), *size, drawn, wrong)
    kernel.close()
    with pytest.raises(ValueError, match="int8"):
        Kernel(one_view(48), 1, "int8")


def test_scratch_grows_with_the_images():
    kernel = Kernel(one_view(48), 2, "uint8")
    for height, width in ((10, 10), (700, 40), (40, 900), (5, 5), (800, 800)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        outputs = kernel.buffers(1)
        drawn = one_window((0, 0, height, width))
        status = kernel.run([image], np.array([False]), np.array([height]), np.array([width]), drawn, outputs)
        assert status.tolist() == [0]
        expected = np.asarray(Image.fromarray(image).resize((48, 48), Image.BILINEAR)).astype(int)
        assert np.abs(outputs[0][0, 0] - expected).max() <= 1
    kernel.close()


def test_stage_times_cover_every_stage():
    images, height, width = photos()
    drawn = draw(SWAV, 1, 0, np.arange(len(images)), height, width)
    kernel = Kernel(SWAV, 1)
    times = stage_times(kernel, images, np.ones(len(images), bool), height, width, drawn, rounds=3)
    kernel.close()
    assert list(times) == ["decode", "resample", "color", "blur", "store", "total"]
    assert 0 < times["decode"] < times["total"]
    assert sum(times.values()) - times["total"] == pytest.approx(times["total"], rel=0.5)


def test_a_second_process_compiles_nothing():
    code = """
import numpy as np, time
from pipeline.crops import Crops, View
from pipeline.kernel.kernel import Kernel
start = time.perf_counter()
kernel = Kernel(Crops(views=(View(48, (0.1, 1.0)),)), 1)
kernel.close()
stats = kernel.process.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), time.perf_counter() - start)
"""
    Kernel(SWAV, 1).close()  # compiled or cached by now
    root = Path(__file__).parents[3]
    child = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    hits, misses, seconds = child.stdout.split()
    assert (int(hits), int(misses)) == (1, 0)
    assert float(seconds) < 15
