"""The fused kernel of images with their own channels: its crops against those of the torchvision backend."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.backends.native import native_view
from pipeline.crops import Blur, Crops, Jitter, Posterize, Solarize, View
from pipeline.dataset.channels.format import PixelFormat
from pipeline.draw import center, draw, unchanged
from pipeline.kernel.channels.kernel import ChannelKernel

BOUND = 1e-5  # of the type's white: the largest difference of any value
VIEWS = (View(56, (0.14, 1.0)), View(37, (0.05, 0.14)), View(37, (0.05, 0.14)))
PLAIN = Crops(views=VIEWS, flip=0.0, jitter=Jitter(probability=0.0), grayscale=0.0, blur=Blur(probability=0.0))
WITHOUT_HUE = Jitter(probability=1.0, saturation=0.0, hue=0.0)
OPERATIONS = {
    "window and resampling": PLAIN,
    "flip": replace(PLAIN, flip=1.0),
    "brightness": replace(PLAIN, jitter=replace(WITHOUT_HUE, contrast=0.0)),
    "contrast": replace(PLAIN, jitter=replace(WITHOUT_HUE, brightness=0.0)),
    "saturation": replace(PLAIN, jitter=Jitter(probability=1.0, brightness=0.0, contrast=0.0, hue=0.0)),
    "hue": replace(PLAIN, jitter=Jitter(probability=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)),
    "gain": replace(PLAIN, jitter=Jitter(1.0, 0.0, 0.0, 0.0, 0.0, gain=0.7)),
    "grayscale": replace(PLAIN, grayscale=1.0),
    "blur": replace(PLAIN, blur=Blur(probability=1.0)),
    "wide blur": replace(PLAIN, blur=Blur(probability=1.0, sigma=(6.0, 9.0))),
    "turn": replace(PLAIN, vertical_flip=0.5, quarter_turn=0.75),
    "everything": Crops(
        views=VIEWS, vertical_flip=0.5, quarter_turn=0.5, jitter=Jitter(probability=1.0, gain=0.3), grayscale=0.3
    ),
}
KINDS = [
    ("uint8", 1, (40, 300), False),
    ("uint8", 3, (90, 130), False),
    ("uint16", 3, (200, 70), True),
    ("uint16", 4, (90, 130), False),
    ("uint16", 13, (61, 67), True),
    ("float32", 2, (17, 9), False),
    ("float32", 5, (64, 64), True),
]


def images_of(dtype, channels, size, planar=False, count=3):
    """Images of noise and gradients up to the type's white (float32: from -1 to 2); planar: channels first in
    memory."""
    noise = np.random.default_rng(7)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    images = []
    for _ in range(count):
        slope = noise.random((2, channels))
        image = (y[..., None] * slope[0] + x[..., None] * slope[1] + noise.random((*size, channels))) / 3
        image = 3 * image - 1 if dtype == "float32" else image * PixelFormat(1, dtype).white
        image = image.astype(dtype)
        images.append(np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0) if planar else image)
    return images


def of_channels(crops, channels):
    return replace(crops, mean=tuple(np.linspace(0.2, 0.6, channels)), std=tuple(np.linspace(0.2, 0.4, channels)))


def crops_by_kernel(crops, pixels, images, drawn, threads=1, dtype="float32"):
    """The crops of each view, (B, size, size, C) normalized."""
    kernel = ChannelKernel(crops, pixels, threads, dtype)
    buffers = kernel.buffers(len(images))
    for buffer in buffers:
        buffer[:] = 77
    kernel.run(images, drawn, buffers)
    kernel.close()
    views = {}
    for (_, members), group in zip(crops.groups, buffers, strict=True):
        views |= dict(zip(members, group, strict=True))
    return [views[view] for view in range(len(crops.views))]


def drawn_for(crops, images, epoch=0):
    height, width = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    return draw(crops, 3, epoch, np.arange(len(images)), height, width)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("dtype", "channels", "size", "planar"), KINDS)
def test_crops_are_those_of_the_torchvision_backend(dtype, channels, size, planar, operation):
    pixels = PixelFormat(channels, dtype, native=True)
    crops = of_channels(OPERATIONS[operation], channels)
    images = images_of(dtype, channels, size, planar)
    drawn = drawn_for(crops, images)
    for view, given in enumerate(crops_by_kernel(crops, pixels, images, drawn)):
        for index, image in enumerate(images):
            expected = native_view(image, pixels, crops, drawn, index, view).numpy()
            found = given[index] * np.array(crops.std, np.float32) + np.array(crops.mean, np.float32)
            np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


@pytest.mark.parametrize(("dtype", "channels", "size", "planar"), KINDS)
@pytest.mark.parametrize("tone", [{"solarize": Solarize(0.7, 0.4)}, {"posterize": Posterize(0.7, 3)}])
def test_tones_are_those_of_the_torchvision_backend(dtype, channels, size, planar, tone):
    """Values next to a threshold may fall on its other side: one in a thousand."""
    pixels = PixelFormat(channels, dtype, native=True)
    crops = of_channels(replace(PLAIN, **tone), channels)
    images = images_of(dtype, channels, size, planar)
    drawn, far, values, changed = drawn_for(crops, images), 0, 0, False
    for view, given in enumerate(crops_by_kernel(crops, pixels, images, drawn)):
        for index, image in enumerate(images):
            expected = native_view(image, pixels, crops, drawn, index, view).numpy()
            found = given[index] * np.array(crops.std, np.float32) + np.array(crops.mean, np.float32)
            far, values = far + (np.abs(found - expected) > BOUND).sum(), values + found.size
            plain = native_view(image, pixels, crops, unchanged(drawn.rows, drawn.window), index, view).numpy()
            changed = changed or np.abs(expected - plain).max() > 0.1
    assert changed and far <= values / 1000


def test_a_crop_of_the_whole_image_is_the_image_at_full_depth():
    (image,) = images_of("uint16", 4, (40, 40), count=1)
    crops = of_channels(PLAIN, 4).for_evaluation(40, 1.0)
    drawn = center(crops, np.arange(1), np.array([40]), np.array([40]))
    (crop,) = crops_by_kernel(crops, PixelFormat(4, "uint16", native=True), [image], drawn)
    np.testing.assert_allclose(crop[0] * np.array(crops.std) + np.array(crops.mean), image / 65535, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_types_of_crops_are_rounded_once(dtype):
    pixels, crops = PixelFormat(5, "uint16", native=True), of_channels(OPERATIONS["everything"], 5)
    images = images_of("uint16", 5, (50, 60))
    drawn = drawn_for(crops, images)
    exact = crops_by_kernel(crops, pixels, images, drawn)
    for whole, rounded in zip(exact, crops_by_kernel(crops, pixels, images, drawn, dtype=dtype), strict=True):
        expected = torch.from_numpy(whole).to(getattr(torch, dtype))
        torch.testing.assert_close(torch.from_numpy(rounded).view(expected.dtype), expected, rtol=0, atol=0)


def test_threads_and_other_images_of_the_batch_make_no_difference():
    pixels, crops = PixelFormat(4, "uint16", native=True), of_channels(OPERATIONS["everything"], 4)
    images = [*images_of("uint16", 4, (50, 60), count=4), *images_of("uint16", 4, (200, 20), planar=True)]
    drawn = drawn_for(crops, images)
    one, three = (crops_by_kernel(crops, pixels, images, drawn, threads) for threads in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
    last = crops_by_kernel(crops, pixels, images[-1:], _row(drawn, -1))
    for a, b in zip(one, last, strict=True):
        np.testing.assert_array_equal(a[-1:], b)


def _row(drawn, row):
    return type(drawn)(**{name: getattr(drawn, name)[[row]] for name in vars(drawn)})


@pytest.mark.parametrize("planar", [False, True])
def test_nothing_beyond_an_image_is_read(planar):
    pixels, crops = PixelFormat(5, "float32", native=True), of_channels(OPERATIONS["everything"], 5)
    images = images_of("float32", 5, (19, 23), planar)
    drawn = drawn_for(crops, images)
    expected = crops_by_kernel(crops, pixels, images, drawn)
    shape, axes = ((5, 19, 23), (1, 2, 0)) if planar else ((19, 23, 5), (0, 1, 2))
    inside = []
    for image in images:
        room = np.full(image.size + 64, np.nan, np.float32)
        view = room[32 : 32 + image.size].reshape(shape).transpose(axes)
        view[:] = image
        inside.append(view)
    for a, b in zip(crops_by_kernel(crops, pixels, inside, drawn), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("dtype", "channels", "size", "planar"), KINDS)
def test_a_gain_multiplies_a_channel_of_the_jittered_crop_and_without_strength_changes_no_bit(
    dtype, channels, size, planar
):
    pixels, images = PixelFormat(channels, dtype, native=True), images_of(dtype, channels, size, planar)
    plain = replace(PLAIN, jitter=Jitter(0.6, hue=0.0), mean=(0.0,) * channels, std=(1.0,) * channels)
    gained = replace(plain, jitter=replace(plain.jitter, gain=0.5))
    drawn = drawn_for(gained, images)
    before = crops_by_kernel(plain, pixels, images, drawn_for(plain, images))
    neutral = crops_by_kernel(gained, pixels, images, replace(drawn, gains=np.ones((1, 1, 1), np.float32)))
    assert drawn.jitter.any() and not drawn.jitter.all()
    for view, given in enumerate(crops_by_kernel(gained, pixels, images, drawn)):
        gains = np.where(drawn.jitter[:, view, None], drawn.gains[:, view], np.float32(1))
        expected = before[view] * gains[:, None, None]
        np.testing.assert_array_equal(given, np.clip(expected, 0, 1) if pixels.has_range else expected)
        np.testing.assert_array_equal(neutral[view], before[view])


def test_values_of_float32_are_not_clipped():
    pixels, crops = PixelFormat(2, "float32", native=True), of_channels(OPERATIONS["brightness"], 2)
    images = [1000 * image for image in images_of("float32", 2, (64, 64))]
    (crop, *_) = crops_by_kernel(crops, pixels, images, drawn_for(crops, images))
    assert crop.min() < -1000 and crop.max() > 2000


def test_arguments_that_do_not_fit_are_refused():
    pixels, crops = PixelFormat(4, "uint16", native=True), of_channels(PLAIN, 4)
    images = images_of("uint16", 4, (50, 60))
    drawn, kernel = drawn_for(crops, images), ChannelKernel(crops, pixels, 1)
    for bad in ([images[0][..., :3]] * 3, [image.astype(np.uint8) for image in images], images[:2]):
        with pytest.raises(ValueError, match=r"images must be of 4 channels of uint16|must be for 2 rows"):
            kernel.run(bad, drawn, kernel.buffers(len(bad)))
    with pytest.raises(ValueError, match="a window lies outside its image"):
        kernel.run([image[:20] for image in images], drawn, kernel.buffers(3))
    with pytest.raises(ValueError, match="writeable, C-contiguous"):
        kernel.run(images, drawn, [out[:, ::-1] for out in kernel.buffers(3)])
    kernel.close()
    with pytest.raises(ValueError, match="dtype='uint8'"):
        ChannelKernel(crops, pixels, 1, "uint8")
