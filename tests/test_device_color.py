"""The colour half that runs on a GPU, on CPU tensors: the same values as the fused kernel's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from photos import photographs

from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.device_color import arguments_of, finish
from pipeline.draw import draw
from pipeline.kernel import Kernel

SWAV = Crops(views=(View(64, (0.14, 1.0)),) * 2 + (View(32, (0.05, 0.14)),) * 3)
PLAIN = replace(SWAV, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=0.0))


@pytest.mark.parametrize(
    "crops",
    [PLAIN, replace(PLAIN, jitter=Jitter(probability=1.0)), replace(PLAIN, blur=Blur(probability=1.0)), SWAV],
    ids=["normalised", "jitter", "blur", "everything"],
)
def test_finishing_on_the_device_gives_the_crops_of_the_kernel(crops):
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
    for pixels, wanted, given in zip(results["uint8"], results["float32"], arguments, strict=True):
        found = finish(torch.from_numpy(pixels), *given)
        levels = (found - torch.from_numpy(wanted)).abs() * 255 * torch.tensor(crops.std)
        assert levels.max() < 2.5  # a value at a half may go either way in each of the steps
        assert levels.mean() < 0.15  # measured: 0.09; the kernel computes in fixed point and rounds to levels
