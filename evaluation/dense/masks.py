"""Images with a class for each pixel, in the folders of Pascal VOC and of ADE20K.

    VOC      JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/{train,val}.txt with a NAME a line
    ADE20K   images/{training,validation}/NAME.jpg, annotations/{training,validation}/NAME.png

VOC's masks have palettes: 0 is the background, 255 the border of objects, which does not count. In ADE20K's (those of
the scene-parsing challenge) 0 is "other" and does not count, and classes begin at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from evaluation.dense.confusion import IGNORED
from pipeline.dataset.table import DatasetError

VOC_CLASSES, ADE_CLASSES = 21, 150
IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Masked:
    """Pairs of image and mask, to learn from and to score. from_one: whether masks count from 1, and 0 is ignored."""

    train: Sequence[tuple[Path, Path]]
    test: Sequence[tuple[Path, Path]]
    classes: int
    from_one: bool

    def counts(self) -> dict[str, Any]:
        """Entries of a result file."""
        return {"train_images": len(self.train), "test_images": len(self.test), "classes": self.classes}

    def read(self, pair: tuple[Path, Path]) -> tuple[Image.Image, UInt8[np.ndarray, "height width"]]:
        """The image in RGB, and its mask: classes from 0, or IGNORED. Raises DatasetError."""
        image, mask = (_opened(path) for path in pair)
        values = np.array(mask)
        if values.ndim != 2 or mask.size != image.size:
            what = f"{mask.size[0]} x {mask.size[1]} pixels, mode {mask.mode}"
            raise DatasetError(f"{pair[1]}: {what}; expected one class number for each pixel of {pair[0].name}")
        values = values.astype(np.int64)
        if self.from_one:
            values = np.where(values == 0, IGNORED, values - 1)
        wrong = values[(values != IGNORED) & (values >= self.classes)]
        if len(wrong):
            raise DatasetError(f"{pair[1]}: class {int(wrong[0])} of {self.classes}; give --classes")
        return image.convert("RGB"), values.astype(np.uint8)


def open_masked(path: Path, classes: int | None = None) -> Masked:
    """The pairs of a folder. classes: in place of the data set's own number. Raises DatasetError."""
    if (path / "SegmentationClass").is_dir() and (path / "JPEGImages").is_dir():
        train, test = (_voc_pairs(path, split) for split in ("train", "val"))
        return Masked(train, test, classes or VOC_CLASSES, from_one=False)
    if (path / "annotations").is_dir() and (path / "images").is_dir():
        train, test = (_ade_pairs(path, split) for split in ("training", "validation"))
        return Masked(train, test, classes or ADE_CLASSES, from_one=True)
    raise DatasetError(
        f"DATA={path}: no folders SegmentationClass and JPEGImages (Pascal VOC), nor annotations and images (ADE20K)"
    )


def _voc_pairs(path: Path, split: str) -> list[tuple[Path, Path]]:
    names = path / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        listed = names.read_text("utf-8").split()
    except (OSError, ValueError):
        raise DatasetError(f"DATA={path}: no list ImageSets/Segmentation/{split}.txt") from None
    return _existing(path, split, [(path / "JPEGImages" / name, path / "SegmentationClass" / name) for name in listed])


def _ade_pairs(path: Path, split: str) -> list[tuple[Path, Path]]:
    folder = path / "images" / split
    found = sorted(file.stem for file in folder.iterdir() if file.suffix.lower() in IMAGES) if folder.is_dir() else []
    return _existing(path, split, [(folder / name, path / "annotations" / split / name) for name in found])


def _existing(path: Path, split: str, stems: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """The files of stems without extension. Raises DatasetError for a missing one."""
    if not stems:
        raise DatasetError(f"DATA={path}: no image in the split {split}")
    pairs = []
    for image, mask in stems:
        files = [image.with_name(image.name + end) for end in IMAGES]
        file = next((one for one in files if one.is_file()), None)
        if file is None or not mask.with_name(mask.name + ".png").is_file():
            missing = f"{image}.jpg" if file is None else f"{mask}.png"
            raise DatasetError(f"DATA={path}: {missing} is missing, which the split {split} names")
        pairs.append((file, mask.with_name(mask.name + ".png")))
    return pairs


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: unreadable ({' '.join(str(error).split())[:150]})") from None
    return image
