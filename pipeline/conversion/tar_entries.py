"""Entries of tars: plain ones, WebDataset shards, and tars that hold a tar per class (ILSVRC2012)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.conversion.entries import Entries
from pipeline.conversion.keys import unique_keys
from pipeline.dataset.shards import list_shards
from pipeline.dataset.tars import Members, Range, list_tar, split_key

SYNSET = re.compile(r"n\d{8}\.tar")  # a class of ILSVRC2012's train tar, unpacked one level


@dataclass
class _Tar:
    """A listed tar: the index of its file, its members, and for a tar in a tar its name without suffix."""

    file: int
    members: Members
    stem: str = ""


def tar_entries(paths: Sequence[Path], workers: int, progress: bool) -> Entries:
    """The images of plain, nested and WebDataset tars. Raises DatasetError."""
    root, listing = list_shards(paths)
    refused: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    tars = []
    outer = [Range(str(root / name)) for name in listing.names]
    for index, members in enumerate(_listed(outer, workers, progress)):
        inner = [Range(outer[index].path, offset, length) for _, offset, length in members.inner]
        stems = [name.rpartition(".")[0] for name, _, _ in members.inner]
        synset = SYNSET.fullmatch(listing.names[index])
        tars.append(_Tar(index, members, listing.names[index][:-4] if synset else ""))
        refused |= {f"{listing.names[index]}:{name}": why for name, why in members.refused.items()}
        for stem, nested in zip(stems, _listed(inner, workers, progress), strict=True):
            tars.append(_Tar(index, nested, stem))
            refused |= {f"{listing.names[index]}:{stem}.tar:{name}": why for name, why in nested.refused.items()}
            refused |= {f"{listing.names[index]}:{stem}.tar:{name}": "tar too deep" for name, _, _ in nested.inner}
    for tar in tars:
        left_out.update(tar.members.left_out)
    numbers = _numbers(tars)
    webdataset = bool((numbers >= 0).any())
    label, classes = (numbers, ()) if webdataset else _named_classes(tars)
    lengths = [len(tar.members.names) for tar in tars]
    stems_and_names = ((tar.stem, name) for tar in tars for name in tar.members.names)
    keys = ((stem + "/" if stem else "") + _stem(name, webdataset) for stem, name in stems_and_names)
    return Entries(
        root, listing.names, np.repeat(np.array([tar.file for tar in tars], np.int32), lengths),
        _column(tar.members.offsets for tar in tars), _column(tar.members.lengths for tar in tars), label,
        unique_keys(keys), np.zeros((sum(lengths), 2), np.int32), classes,
        "webdataset" if webdataset else "tar", listing.fingerprint(), refused, dict(left_out.most_common()),
    )  # fmt: skip


def _listed(ranges: list[Range], workers: int, progress: bool) -> Iterator[Members]:
    """Members of each tar, in order."""
    with progress_bar(len(ranges), "listing tars", "tar", progress and len(ranges) > 1) as bar:
        workers = min(workers, len(ranges))
        for members in in_processes(partial(list_tar, sniff=True), iter(ranges), workers, "--workers"):
            bar.update()
            yield members


def _numbers(tars: Sequence[_Tar]) -> Int32[np.ndarray, " n"]:
    """Labels from the .cls and .json members; -1 for an image without."""
    labels = [tar.members.labels.get(split_key(name)[0], -1) for tar in tars for name in tar.members.names]
    return np.array(labels, np.int32)


def _named_classes(tars: Sequence[_Tar]) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Labels and class names. The class is the tar in the tar or, without such tars, the first-level folder; a single
    folder that holds all images does not count."""
    if any(tar.stem for tar in tars):
        names = [tar.stem.rpartition("/")[2] for tar in tars for _ in tar.members.names]
    else:
        members = [name for tar in tars for name in tar.members.names]
        tops = {name.partition("/")[0] for name in members}
        if len(tops) == 1 and all(name.count("/") > 1 for name in members):  # tar -cf train.tar train/
            members = [name.partition("/")[2] for name in members]
        names = [name.partition("/")[0] if "/" in name else "" for name in members]
    classes = tuple(sorted(set(names) - {""}))
    number = {name: index for index, name in enumerate(classes)} | {"": -1}
    return np.array([number[name] for name in names], np.int32), classes


def _column(parts: Iterable[list[int]]) -> Int64[np.ndarray, " n"]:
    return np.concatenate([np.array(part, np.int64) for part in parts])


def _stem(name: str, webdataset: bool) -> str:
    return split_key(name)[0] if webdataset else os.path.splitext(name)[0]
