"""Reads Pascal VOC's images and labels: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*.jpg."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from evaluation.subsets import listed_rows
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.open import open_dataset
from pipeline.dataset.table import DatasetError, SampleTable

LEARN, SCORE = "trainval", "test"  # VOC 2007's


def is_voc(path: Path) -> bool:
    """Whether `path` is a folder like VOCdevkit/VOC2007."""
    return all((path / name).is_dir() for name in ("Annotations", "ImageSets", "JPEGImages"))


def open_voc(path: Path, cache: str, progress: bool = True) -> tuple[Labelled, np.ndarray, np.ndarray]:
    """The images, and the targets (images, classes) of both splits: 1 if an object of the class is in the image, 0 if
    only difficult ones are (they do not count), -1 otherwise. Raises DatasetError."""
    table = open_dataset(path / "JPEGImages", cache, progress=progress, setting="DATA")
    lists = path / "ImageSets" / "Main"
    for split in (LEARN, SCORE):
        if not (lists / f"{split}.txt").is_file():
            raise DatasetError(f"DATA={path}: no ImageSets/Main/{split}.txt; give a folder like VOCdevkit/VOC2007")
    train, test = (listed_rows(table, lists / f"{split}.txt", "DATA") for split in (LEARN, SCORE))
    objects = {int(row): read_objects(_annotation(path, table, int(row))) for row in np.concatenate([train, test])}
    classes = tuple(sorted({name for listed in objects.values() for name, _ in listed}))
    if not classes:
        raise DatasetError(f"DATA={path}: no annotation names an object")
    table = replace(table, classes=classes)
    data = Labelled(table, train, table, test)
    train_targets, test_targets = (
        np.stack([targets(objects[int(row)], classes) for row in rows]) for rows in (train, test)
    )
    return data, train_targets, test_targets


def read_objects(file: Path) -> list[tuple[str, bool]]:
    """(class, difficult) of each object in an annotation file. Raises DatasetError."""
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DatasetError(f"{file}: unreadable annotation ({' '.join(str(error).split())})") from None
    return [
        ((one.findtext("name") or "").strip(), (one.findtext("difficult") or "0").strip() == "1")
        for one in root.iter("object")
    ]


def targets(objects: list[tuple[str, bool]], classes: tuple[str, ...]) -> np.ndarray:
    """1, 0 or -1 for each class; see `open_voc`."""
    values = np.full(len(classes), -1, np.int64)
    for name, difficult in objects:
        index = classes.index(name)
        values[index] = max(values[index], 0 if difficult else 1)
    return values


def _annotation(path: Path, table: SampleTable, row: int) -> Path:
    return path / "Annotations" / Path(table.name(row)).with_suffix(".xml").name
