"""Images with other channels and depth than 8-bit RGB: tiles of 4 channels of uint16, in formats that hold them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from pipeline.dataset.folder import list_folder


def tiles(count, side=24, channels=4, dtype=np.uint16, seed=0, high=4096):
    """`count` noisy images (side, side, channels) of 12 bits; the odd ones are a quarter brighter."""
    noise = np.random.default_rng(seed)
    images = noise.integers(0, 3 * high // 4, (count, side, side, channels)) + high // 4 * (
        np.arange(count) % 2
    ).reshape(-1, 1, 1, 1)
    return list(images.astype(dtype))


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def tiff(array, **settings):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **settings)
    return stream.getvalue()


def gray_png(array):
    """A PNG of 16 bits from (H, W) uint16."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write_tiles(root: Path, images, encode=npy, suffix="npy"):
    """Images in the folders of two classes, dark and light, by turns."""
    for index, image in enumerate(images):
        file = root / ("dark", "light")[index % 2] / f"{index:03d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(image))
    return root


def as_tar(folder: Path, path: Path):
    """The files of a folder as a tar, in the order of `list_folder`."""
    with tarfile.open(path, "w") as archive:
        for name in list_folder(folder).names:
            archive.add(folder / name, name)
    return path
