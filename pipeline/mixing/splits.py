"""Tables of one run: no image in two of them, and the same classes."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from pipeline.dataset.table import DatasetError, SampleTable


def check_apart(train: SampleTable, test: SampleTable, given: object) -> None:
    """Raise DatasetError if an image is in both tables."""
    if shared := shared_file(train, test):
        problem = f"{shared} is in data.path too, so test images would be images to learn from"
        raise DatasetError(f"data.test={given}: {problem}; give another data.path, or leave data.test out")


def shared_file(one: SampleTable, other: SampleTable) -> str:
    """A file of which both tables have an image, relative to the root of `other`; '' if there is none."""
    roots = one.root.resolve(), other.root.resolve()
    if not (roots[0].is_relative_to(roots[1]) or roots[1].is_relative_to(roots[0])):
        return ""
    files = {os.path.join(roots[1], name): number for number, name in enumerate(other.containers)}
    for number, name in enumerate(one.containers):
        file = os.path.join(roots[0], name)
        if file in files and _share_rows(one, number, other, files[file]):
            return os.path.relpath(file, roots[1])
    return ""


def _share_rows(one: SampleTable, number: int, other: SampleTable, its_number: int) -> bool:
    """Whether an image of a file, which has a number in each table, is in both."""
    offsets = (table.offset[table.container == file] for table, file in ((one, number), (other, its_number)))
    return bool(np.intersect1d(*offsets).size)


def same_classes(train: SampleTable, test: SampleTable, name: object) -> SampleTable:
    """The test table with the class numbers of the training set, if both have class names.

    Raises DatasetError for a test class that the training set does not have, and if only one of them has names.
    """
    if bool(train.classes) != bool(test.classes) and (train.label >= 0).any() and (test.label >= 0).any():
        has, other = ("data.path", "data.test") if train.classes else ("data.test", "data.path")
        problem = f"{has} has names of classes and {other} only numbers, which need not be of the same classes"
        raise DatasetError(f"data.test={name}: {problem}; store both in the same way")
    if not train.classes or not test.classes or train.classes == test.classes:
        return test
    used = set(np.unique(test.label[test.label >= 0]).tolist())
    unknown = [test.classes[label] for label in sorted(used) if test.classes[label] not in train.classes]
    if unknown:
        raise DatasetError(f"data.test={name}: its class {unknown[0]!r} is not in the training set; remove the folder")
    number = {name: index for index, name in enumerate(train.classes)}
    numbers = np.array([number.get(name, -1) for name in test.classes] + [-1])  # the last is for label -1
    return replace(test, label=numbers[test.label].astype(np.int32), classes=train.classes)
