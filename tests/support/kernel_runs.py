"""Runs of the fused kernel on photographs and on single windows."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image

from pipeline.crops import Blur, Crops, Jitter, View
from pipeline.draw import unchanged
from pipeline.kernel.kernel import Kernel
from support.photos import photographs

SWAV = Crops(views=(View(96, (0.14, 1.0)),) * 2 + (View(48, (0.05, 0.14)),) * 2)
PLAIN = replace(SWAV, flip=0.0, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=0.0))
JITTER = Jitter(probability=1.0)
AFFINE = Jitter(probability=1.0, exact=False)


def jpeg(image, mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(image, mode).save(file, "JPEG", quality=90, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


@cache
def photos():
    """JPEG bytes of six photographs, twice each, with their heights and widths."""
    images = photographs() * 2
    return [jpeg(image) for image in images], *np.array([image.shape[:2] for image in images]).T


def execute(crops, images, drawn, size=None, threads=2, **options):
    """Outputs and status. 1-d images are JPEG bytes, others pixels; `size`: (heights, widths) instead of theirs."""
    encoded = np.array([image.ndim == 1 for image in images])
    height, width = size or np.array([image.shape[:2] for image in images]).T
    kernel = Kernel(crops, threads, **options)
    outputs = kernel.buffers(len(images))
    status = kernel.run(images, encoded, height, width, drawn, outputs)
    kernel.close()
    return outputs, status


def levels(crops, output):
    """Normalized crops as levels in [0, 255]."""
    return (np.asarray(output, np.float32) * crops.std + crops.mean) * 255


def one_window(window, flip=False, views=1):
    """A draw of one row and equal views with this window, without any other change."""
    drawn = unchanged(np.zeros(1), np.broadcast_to(np.array(window), (1, views, 4)))
    return replace(drawn, flip=np.full((1, views), flip))


def one_view(size, **changes):
    return replace(PLAIN, views=(View(size, (1.0, 1.0)),), **changes)


def crop_of(image, window, size, **options):
    """One uint8 crop (size, size, 3) of pixels."""
    outputs, status = execute(one_view(size), [image], one_window(window, **options), dtype="uint8")
    assert status.tolist() == [0]
    return outputs[0][0, 0]
