"""The fused kernel gives torchvision's crops for the same draw: compared pixel by pixel, in levels of 0 to 255."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runs import JITTER, PLAIN, SWAV, execute, levels, one_view, photos
from photos import photographs
from PIL import Image

from pipeline.batch import Request
from pipeline.crops import Blur
from pipeline.draw import draw
from pipeline.reference import TorchvisionBackend


def only(step):
    """A draw in which every crop takes one step of the jitter, with the others neutral."""

    def change(drawn):
        factors = np.broadcast_to(np.array([1, 1, 1, 0], np.float32), drawn.factors.shape).copy()
        factors[..., step] = drawn.factors[..., step]
        return replace(drawn, factors=factors)

    return change


# Mean absolute difference to torchvision over twelve JPEGs of six photographs and the four views of SWAV, as measured:
# with the affine colour and ffcv's fast DCT, and with the steps one by one and the accurate one. Held: a third more.
ERRORS = {
    "resize": (PLAIN, lambda d: d, 0.892, 0.130),
    "flip": (replace(PLAIN, flip=1.0), lambda d: d, 0.892, 0.130),
    "brightness": (replace(PLAIN, jitter=JITTER), only(0), 0.929, 0.161),
    "contrast": (replace(PLAIN, jitter=JITTER), only(1), 0.813, 0.143),
    "saturation": (replace(PLAIN, jitter=JITTER), only(2), 0.959, 0.190),
    "hue": (replace(PLAIN, jitter=JITTER), only(3), 8.38, 0.191),
    "jitter without hue": (replace(PLAIN, jitter=replace(JITTER, hue=0.0)), lambda d: d, 2.65, 0.161),
    "jitter": (replace(PLAIN, jitter=JITTER), lambda d: d, 8.58, 0.179),
    "grayscale": (replace(PLAIN, grayscale=1.0), lambda d: d, 0.425, 0.121),
    "blur": (replace(PLAIN, blur=Blur(probability=1.0)), lambda d: d, 1.01, 0.437),
    "everything": (SWAV, lambda d: d, 7.28, 0.300),
}


@pytest.mark.parametrize("operation", ERRORS)
def test_kernel_and_torchvision_give_the_same_crops(operation):
    crops, change, *measured = ERRORS[operation]
    images, height, width = photos()
    rows = np.arange(len(images))
    drawn = change(draw(crops, 3, 0, rows, height, width))
    reference = TorchvisionBackend(crops, len(images), 1)
    _, expected = next(reference.stream(iter([Request(0, 0, rows, height, width, drawn, images, lambda *_: drawn)])))
    reference.close()
    affine = replace(crops, jitter=replace(crops.jitter, exact=False))
    for (chosen, dct), bound in zip(((affine, "fast"), (crops, "accurate")), measured, strict=True):
        outputs, status = execute(chosen, images, drawn, (height, width), dct=dct)
        assert not status.any()
        errors = [
            np.abs(levels(crops, output).reshape(-1, *output.shape[2:]) - levels(crops, other.permute(0, 2, 3, 1)))
            for output, other in zip(outputs, expected, strict=True)
        ]
        assert np.mean([error.mean() for error in errors]) < bound * 4 / 3


def test_hsv_jitter_gives_torchvisions_very_bytes():
    """With windows of the crop's own size nothing is resampled, so every byte must be the same."""
    image = np.random.default_rng(3).integers(0, 256, (48, 48 * 60, 3), dtype=np.uint8)
    image[:, : 48 * 20] = np.tile(photographs()[2][:48, :480], (1, 2, 1))
    images = [np.ascontiguousarray(image[:, 48 * i : 48 * i + 48]) for i in range(60)]
    shape = np.full(60, 48), np.full(60, 48)
    crops = one_view(48, jitter=JITTER, grayscale=0.2)
    drawn = draw(crops, 7, 0, np.arange(60), *shape)
    drawn = replace(drawn, window=np.broadcast_to(np.array([0, 0, 48, 48]), drawn.window.shape))
    (output,), _ = execute(crops, images, drawn)
    reference = TorchvisionBackend(crops, 60, 1)
    for row, pixels in enumerate(images):
        expected = reference._view(Image.fromarray(pixels), drawn, row, 0)
        np.testing.assert_array_equal(np.rint(levels(crops, output[0, row])), np.rint(levels(crops, expected)))
    reference.close()
