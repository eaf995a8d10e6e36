"""Photographs from scikit-image and scikit-learn, and folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photographs() -> list[np.ndarray]:
    """Six color photographs (H, W, 3) uint8."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    return [
        *load_sample_images().images,
        skimage.data.astronaut(),
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.rocket()[..., :3],
    ]


def write_folder(root: Path, images: list[np.ndarray], classes: int = 2, suffix: str = ".png") -> Path:
    """Write images as root/class{i}/{n}.png, with class numbers in turn."""
    for index, image in enumerate(images):
        folder = root / f"class{index % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:05d}{suffix}", quality=90)
    return root


def flat_colors(count: int, side: int = 40) -> list[np.ndarray]:
    """`count` images, each of a single, different color."""
    colors = np.random.default_rng(0).integers(20, 236, (count, 3), dtype=np.uint8)
    return [np.full((side, side + index % 5, 3), color, np.uint8) for index, color in enumerate(colors)]
