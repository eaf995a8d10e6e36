"""The color part that runs on a GPU, here on CPU tensors, gives the values of the fused kernel."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipeline.backends.device_color import arguments_of, finish, finish_groups
from pipeline.backends.device_hsv import HUE, NOTHING, Steps, stepwise
from pipeline.backends.device_native import finish_native
from pipeline.crops import Blur, Changes, Crops, Jitter, Posterize, Solarize, View
from pipeline.dataset.channels.format import PixelFormat
from pipeline.draw import center, draw, uncolored
from pipeline.kernel.channels.kernel import ChannelKernel
from pipeline.kernel.hsv import _rotate_hue
from pipeline.kernel.kernel import Kernel
from support.photos import photographs

SWAV = Crops(views=(View(64, (0.14, 1.0)),) * 2 + (View(32, (0.05, 0.14)),) * 3)
PLAIN = replace(SWAV, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=0.0))
STEPS = replace(PLAIN, jitter=Jitter(probability=0.9), grayscale=0.3)
SOFT, BRIGHT = Changes(blur=Blur(1.0)), Changes(blur=Blur(0.1), solarize=Solarize(0.2), posterize=Posterize(0.1))
DIFFERENT = (View(64, (0.14, 1.0), SOFT), View(64, (0.14, 1.0), BRIGHT), View(32, (0.05, 0.14)))
CASES = {  # crops, and the limits of the largest and the mean difference from the kernel, in levels
    "normalized": (PLAIN, 0.001, 0.001),
    "steps": (STEPS, 0.001, 0.001),  # the same bytes
    "steps without hue": (replace(STEPS, jitter=Jitter(hue=0.0)), 0.001, 0.001),
    "gain": (replace(STEPS, jitter=Jitter(0.9, gain=0.5)), 0.001, 0.001),
    "blur": (replace(PLAIN, blur=Blur(probability=1.0)), 1.01, 0.13),  # 0.10: the kernel computes in fixed point
    "tones": (replace(STEPS, solarize=Solarize(0.5, 0.3), posterize=Posterize(0.5, 3)), 0.001, 0.001),
    "turns": (replace(PLAIN, vertical_flip=0.5, quarter_turn=0.5), 0.001, 0.001),
    "views that differ": (replace(PLAIN, views=DIFFERENT), 1.01, 0.13),
    "everything": (SWAV, 1.01, 0.06),  # 0.04
    "affine map": (replace(STEPS, jitter=Jitter(exact=False)), 1.01, 0.1),  # 0.07
    "affine map with gain": (replace(STEPS, jitter=Jitter(gain=0.2, exact=False)), 1.01, 0.1),
    "everything, affine": (replace(SWAV, jitter=Jitter(exact=False)), 2.5, 0.12),  # 0.09
}

NATIVE = {name: CASES[name][0] for name in ("normalized", "steps", "gain", "blur", "tones", "turns", "everything")}
FORMATS = [
    PixelFormat(*kind, native=True) for kind in ((5, "uint16", "hwc"), (1, "float32", "hwc"), (3, "uint8", "hwc"))
]


def channels_of(crops, pixels, mean=0.4, std=0.3):
    return replace(crops, mean=(mean,) * pixels.channels, std=(std,) * pixels.channels)


@pytest.mark.parametrize("case", CASES)
def test_finishing_on_the_device_gives_the_crops_of_the_kernel(case):
    crops, largest, mean = CASES[case]
    images = photographs() * 4
    height, width = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    drawn = draw(crops, 7, 1, np.arange(len(images)), height, width)
    results = {}
    for dtype in ("uint8", "float32"):
        kernel = Kernel(crops, 1, dtype)
        results[dtype] = kernel.buffers(len(images))
        status = kernel.run(images, np.zeros(len(images), bool), height, width, drawn, results[dtype])
        kernel.close()
        assert not status.any()
    arguments = arguments_of(drawn, crops, torch.device("cpu"))
    for pixels, expected, given in zip(results["uint8"], results["float32"], arguments, strict=True):
        result = finish(torch.from_numpy(pixels), *given)
        levels = (result - torch.from_numpy(expected)).abs() * 255 * torch.tensor(crops.std)
        assert levels.max() < largest
        assert levels.mean() < mean


@pytest.mark.parametrize("case", NATIVE)
@pytest.mark.parametrize("pixels", FORMATS, ids=str)
def test_finishing_images_of_any_channels_on_the_device_gives_the_crops_of_their_kernel(pixels, case):
    crops = channels_of(NATIVE[case], pixels)
    generator, white = np.random.default_rng(1), pixels.white
    images = [(generator.random((50, 60, pixels.channels)) ** 2 * white).astype(pixels.dtype) for _ in range(16)]
    drawn = draw(crops, 7, 1, np.arange(16), np.full(16, 50), np.full(16, 60))
    whole = ChannelKernel(crops, pixels, 1)
    plain = ChannelKernel(channels_of(crops, pixels, mean=0.0, std=1.0), pixels, 1)
    expected, resampled = whole.buffers(16), plain.buffers(16)
    whole.run(images, drawn, expected)
    plain.run(images, uncolored(drawn), resampled)
    finishing = partial(finish_native, is_color=pixels.is_color, clips=pixels.has_range)
    given = [torch.from_numpy(group) for group in resampled]
    results = finish_groups(given, drawn, crops, torch.device("cpu"), torch.float32, 16, finishing, pixels)
    for result, group in zip(results, expected, strict=True):
        difference = (result - torch.from_numpy(group)).abs() * torch.tensor(crops.std)
        jumps = difference > 2e-5  # a value at an edge of a sector of hue, of solarizing or of posterizing
        assert jumps.float().mean() < 2e-4
        assert difference[~jumps].max() < 2e-5


def test_hue_on_the_device_is_the_kernels_for_every_kind_of_color():
    """Colors, including gray and pure ones, rotated by every shift up to half the circle."""
    levels = np.array([0, 1, 2, 50, 51, 102, 127, 128, 200, 203, 254, 255], np.uint8)
    colors = np.random.default_rng(0).choice(levels, (48, 48, 3))
    for shift in range(-127, 128):
        steps = Steps(
            torch.tensor([[[HUE, NOTHING, NOTHING, NOTHING]]]),
            torch.tensor([[[shift, 0, 0, 0]]]),
            torch.zeros(1, 1),
            torch.ones(1, 1, 3),
        )
        result = torch.stack(stepwise(list(torch.from_numpy(colors[None, None]).unbind(-1)), steps), dim=-1)
        planes = np.ascontiguousarray(colors.transpose(0, 2, 1))
        _rotate_hue(planes.reshape(-1), 0, 48, 48, np.float32((shift + 0.5 * np.sign(shift)) / 255))
        np.testing.assert_array_equal(result[0, 0].numpy(), planes.transpose(0, 2, 1))


@pytest.mark.slow(seconds=3)
def test_short_batches_and_evaluation_use_the_graphs_of_whole_batches_without_color():
    """Training at two resolutions, evaluation at two sizes, each with shorter last batches."""
    counter, device = CompileCounter(), torch.device("cpu")
    compiled = torch.compile(finish, dynamic=False, backend=counter)
    rows, generator = 8, np.random.default_rng(0)
    for crops in (SWAV, SWAV.for_evaluation(32, 0.875), SWAV.for_evaluation(48, 0.875)):
        for count in (rows, 5, 3, 7, rows):
            sides = np.full(count, 300)
            draw_rows = center if len(crops.views) == 1 else partial(draw, seed=1, epoch=0)
            drawn = draw_rows(crops, rows=np.arange(count), height=sides, width=sides)
            pixels = [
                torch.from_numpy(generator.integers(0, 256, (len(views), count, size, size, 3), np.uint8))
                for size, views in crops.groups
            ]
            graphs = finish_groups(pixels, drawn, crops, device, torch.float32, rows, compiled)
            eager = finish_groups(pixels, drawn, crops, device, torch.float32, 0, finish)
            for one, other, given in zip(graphs, eager, pixels, strict=True):
                assert one.shape == given.shape
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert counter.frame_count == 2 + 1 + 1


def test_crops_without_color_and_blur_take_no_steps():
    drawn = center(PLAIN, np.arange(2), np.full(2, 300), np.full(2, 300))
    given = arguments_of(drawn, PLAIN, torch.device("cpu"))
    assert [(color, weights, tones) for color, weights, *_, tones in given] == [(None, None, None)] * 2
