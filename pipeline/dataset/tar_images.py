"""The images of any number of tars: plain ones, WebDataset shards, and tars that hold a tar per class (ILSVRC2012)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from common.processes import in_processes
from common.progress import progress_bar
from pipeline.dataset.finding.ambiguous import check_masks, no_classes
from pipeline.dataset.finding.banded import banded
from pipeline.dataset.finding.choice import ALL, NONE, Choice, several_images, split_key, takes_arrays, wanted_suffixes
from pipeline.dataset.finding.labels import class_names, numbered
from pipeline.dataset.finding.mixed import splits_of_images, splits_of_values
from pipeline.dataset.folder import Listing
from pipeline.dataset.sniff import extension
from pipeline.dataset.table import DatasetError, Names
from pipeline.dataset.tars import Members, Range, list_tar

SYNSET = re.compile(r"n\d{8}\.tar")  # a class of ILSVRC2012's train tar, unpacked one level
SHOWN = 6  # names in a message


@dataclass(frozen=True, eq=False)
class TarImages:
    """The N images of tars.

    file: (N,) int32, the number of the tar; offset, length: (N,) int64; label: (N,) int32, -1 without.
    stems: of the tar in the tar that holds the image, without suffix, '' without; names: of the members.
    webdataset: whether labels come from members (`key.cls`), not from folders or inner tars.
    refused: member -> reason; left_out: number of other members, by extension. bands: see `SampleTable`.
    """

    file: Int32[np.ndarray, " n"]
    offset: Int64[np.ndarray, " n"]
    length: Int64[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]
    stems: list[str]
    names: list[str]
    webdataset: bool
    refused: dict[str, str]
    left_out: dict[str, int]
    bands: Int64[np.ndarray, "n bands 3"] | None = None


@dataclass
class _Tar:
    """A listed tar: the index of its file, its members, and for a tar in a tar its name without suffix."""

    file: int
    members: Members
    stem: str = ""


def list_shards(paths: Sequence[Path]) -> tuple[Path, Listing]:
    """The common folder of the shards, and their listing: a name per shard, sorted; labels all -1."""
    paths = sorted(Path(path).absolute() for path in paths)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    stats = [path.stat() for path in paths]
    return root, Listing(
        names=Names.of(str(path.relative_to(root)) for path in paths),
        bytes=np.array([info.st_size for info in stats], np.int64),
        mtime_ns=np.array([info.st_mtime_ns for info in stats], np.int64),
        label=np.full(len(paths), -1, np.int32),
        classes=(),
    )


def tar_images(
    root: Path, shards: Sequence[str], choice: Choice, workers: int, progress: bool, setting: str = "data.workers"
) -> TarImages:
    """The images of the tars `shards`, names below `root`. setting: the user's name for `workers`.

    Raises DatasetError for a tar that is damaged or compressed, and if it is not clear which of the images of a sample
    are meant.
    """
    refused: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    tars = []
    outer = [Range(str(root / name)) for name in shards]
    listing = partial(_listed, label=choice.label, workers=workers, progress=progress, setting=setting)
    for index, members in enumerate(listing(outer)):
        inner = [Range(outer[index].path, offset, length) for _, offset, length in members.inner]
        stems = [name.rpartition(".")[0] for name, _, _ in members.inner]
        synset = SYNSET.fullmatch(shards[index])
        tars.append(_Tar(index, members, shards[index][:-4] if synset else ""))
        refused |= {f"{shards[index]}:{name}": why for name, why in members.refused.items()}
        for stem, nested in zip(stems, listing(inner), strict=True):
            tars.append(_Tar(index, nested, stem))
            refused |= {f"{shards[index]}:{stem}.tar:{name}": why for name, why in nested.refused.items()}
            refused |= {f"{shards[index]}:{stem}.tar:{name}": "tar too deep" for name, _, _ in nested.inner}
    left_out.update(_with_arrays(tars, choice))
    left_out.update(_choose(tars, choice))
    if choice.image != ALL:
        paths = ["/".join([tar.stem, name] if tar.stem else [name]) for tar in tars for name in tar.members.names]
        if choice.image is None and choice.bands is None:
            check_masks(paths)
        if mixed := splits_of_images(paths) or splits_of_values(set().union(*(tar.members.splits for tar in tars))):
            problem = f"holds several splits ({mixed})"
            raise DatasetError(f"{problem}; make a tar of each, or take every image with data.image=all")
    for tar in tars:
        left_out.update(tar.members.left_out)
        lost = tar.members.labels.keys() - {key for name in tar.members.names for key in _keys(name)}
        left_out.update({"label without an image": len(lost)} if lost else {})
    labels = [
        next((tar.members.labels[key] for key in _keys(name) if key in tar.members.labels), None)
        for tar in tars
        for name in tar.members.names
    ]
    webdataset = any(label is not None for label in labels)
    if webdataset:
        classes = class_names(labels)
        label = numbered(labels, classes)
    else:
        label, classes = _named_classes(tars)
        problem, meant = no_classes(classes) if choice.image is None and choice.label != NONE else ("", "")
        if problem:
            raise DatasetError(f"{problem}; make a tar of {meant}/ alone")
    lengths = [len(tar.members.names) for tar in tars]
    images = TarImages(
        np.repeat(np.array([tar.file for tar in tars], np.int32), lengths),
        _column(tar.members.offsets for tar in tars), _column(tar.members.lengths for tar in tars), label, classes,
        [tar.stem for tar in tars for _ in tar.members.names], [name for tar in tars for name in tar.members.names],
        webdataset, refused, dict(left_out.most_common()),
    )  # fmt: skip
    return _of_bands(images, choice) if choice.bands else images


def _of_bands(images: TarImages, choice: Choice) -> TarImages:
    """The images whose files are members, one for each band; their files are in one tar."""
    names = [f"{file}/{stem}/{name}" for file, stem, name in zip(images.file, images.stems, images.names, strict=True)]
    places, _, _, alone = banded(names, choice)
    columns = np.stack([images.file.astype(np.int64), images.offset, images.length], axis=-1)
    first = places[:, 0]
    return replace(
        images, file=images.file[first], offset=images.offset[first], length=images.length[first],
        label=images.label[first], stems=[images.stems[index] for index in first],
        names=[images.names[index] for index in first], bands=columns[places[:, 1:]],
        left_out=images.left_out | alone,
    )  # fmt: skip


def _listed(ranges: list[Range], label: str | None, workers: int, progress: bool, setting: str) -> Iterator[Members]:
    """Members of each tar, in order."""
    with progress_bar(len(ranges), "listing tars", "tar", progress and len(ranges) > 1) as bar:
        workers = min(workers, len(ranges))
        for members in in_processes(partial(list_tar, label=label), iter(ranges), workers, setting):
            bar.update()
            yield members


# ---------------------------------------------------------------------------------------------- samples


def _with_arrays(tars: Sequence[_Tar], choice: Choice) -> Counter[str]:
    """Take the .npy and .npz members in as images, where these are images; returns how many others there are."""
    if not takes_arrays(choice, any(tar.members.names for tar in tars)):
        return Counter(extension(name) for tar in tars for name, _, _ in tar.members.arrays)
    for tar in tars:
        for name, offset, length in tar.members.arrays:
            tar.members.names.append(name)
            tar.members.offsets.append(offset)
            tar.members.lengths.append(length)
    return Counter()


def _choose(tars: Sequence[_Tar], choice: Choice) -> Counter[str]:
    """Keep only the chosen images of each sample in `tars`; returns how many others there are, by suffix.

    A sample is a key, as in WebDataset: `k.jpg`, `k.seg.png`. Raises DatasetError if samples have several images and
    none is chosen.
    """
    dropped: Counter[str] = Counter()
    suffixes = Counter(split_key(name)[1].lower() for tar in tars for name in tar.members.names)
    if choice.image == ALL or choice.bands or not suffixes:
        return dropped
    if choice.image is None:
        doubled = several_images([tar.members.names for tar in tars])
        if doubled:
            counted = ", ".join(f"{suffix} {suffixes[suffix]:,}" for suffix in doubled[:SHOWN])
            first = min(doubled, key=lambda suffix: ("." in suffix, suffix))
            problem = f"its samples have several images ({counted}{', ...' if len(doubled) > SHOWN else ''})"
            raise DatasetError(f"{problem}; choose with data.image={first}, or data.image=all for every one")
        return dropped
    wanted = wanted_suffixes(choice, suffixes)
    for tar in tars:
        members = tar.members
        keep = [split_key(name)[1].lower() in wanted for name in members.names]
        dropped.update(extension(name) for name, kept in zip(members.names, keep, strict=True) if not kept)
        tar.members = members._replace(
            names=list(compress(members.names, keep)),
            offsets=list(compress(members.offsets, keep)),
            lengths=list(compress(members.lengths, keep)),
        )
    return dropped


# ---------------------------------------------------------------------------------------------- classes


def _named_classes(tars: Sequence[_Tar]) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Labels and class names. The class is the tar in the tar or, without such tars, the first-level folder; a single
    folder that holds all images does not count."""
    if any(tar.stem for tar in tars):
        names = [tar.stem.rpartition("/")[2] for tar in tars for _ in tar.members.names]
    else:
        members = [name for tar in tars for name in tar.members.names]
        while len({name.partition("/")[0] for name in members}) == 1 and all(name.count("/") > 1 for name in members):
            members = [name.partition("/")[2] for name in members]  # tar -cf train.tar train/
        names = [name.partition("/")[0] if "/" in name else "" for name in members]
    classes = tuple(sorted(set(names) - {""}))
    number = {name: index for index, name in enumerate(classes)} | {"": -1}
    return np.array([number[name] for name in names], np.int32), classes


def _keys(name: str) -> tuple[str, str]:
    """Under which an image's label may be: `a.b` of `a.b.jpg`, and its key `a`."""
    return os.path.splitext(name)[0], split_key(name)[0]


def _column(parts: Iterable[list[int]]) -> Int64[np.ndarray, " n"]:
    return np.concatenate([np.array(part, np.int64) for part in parts])
