"""Entries of tars: plain ones, WebDataset shards, and tars that hold a tar per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.conversion.entries import Entries
from pipeline.conversion.keys import unique_keys
from pipeline.dataset.finding.choice import NOT_CHOSEN, Choice, split_key
from pipeline.dataset.tar_images import list_shards, tar_images


def tar_entries(paths: Sequence[Path], workers: int, progress: bool, choice: Choice = NOT_CHOSEN) -> Entries:
    """The images of plain, nested and WebDataset tars. Raises DatasetError."""
    root, listing = list_shards(paths)
    images = tar_images(root, listing.names, choice, workers, progress, "--workers")
    keys = (
        (stem + "/" if stem else "") + (split_key(name)[0] if images.webdataset else os.path.splitext(name)[0])
        for stem, name in zip(images.stems, images.names, strict=True)
    )
    return Entries(
        root, listing.names, images.file, images.offset, images.length, images.label, unique_keys(keys),
        np.zeros((len(images.file), 2), np.int32), images.classes, "webdataset" if images.webdataset else "tar",
        listing.fingerprint(), images.refused, images.left_out, bands=images.bands,
    )  # fmt: skip
