"""Knows the layouts in which people keep the splits of a dataset: training and test, in folders or in file names.

train/ val/   Training/ Testing/   digits-train/ digits-test/   train2017/ val2017/
train-000.tar val-000.tar   x_train.parquet x_test.parquet   train-00000-of-00042.parquet   imagesTr/ imagesTs/
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.dataset.sniff import is_hidden
from pipeline.dataset.table import DatasetError

TRAIN = ("train", "training", "trainval")
UNLABELED = ("unlabeled", "unlabelled", "pretrain", "pretraining")  # a training set where there is no other
# In the order in which one of several is taken as the test.
TEST = ("val", "test", "validation", "valid", "testing", "dev", "eval", "evaluation", "holdout")
# Behind one of PICTURES only: tr and te are languages too.
SHORT = {"tr": "train", "va": "val", "te": "test", "ts": "test"}
PICTURES = ("images", "image", "imgs", "img", "data")
COMPOUND = re.compile(
    r"(?:mini)?((?:pre)?train|training|val|test|validation|valid|testing|dev|eval)(?:sets?|data|images?|imgs?)?"
)
SUFFIX = re.compile(r"\.(beton|tar|tfrecords?|rec|lmdb|h5|hdf5|parquet|arrow|npz|idx|gz|tgz)$", re.IGNORECASE)
SPLIT_FILES = (".beton", ".tar", ".tfrecord", ".rec", ".lmdb", ".h5", ".hdf5")
HELD_OUT = re.compile(r"(?<![a-z])h[eo]ld[-_. ]?out(?![a-z])", re.IGNORECASE)
PART = re.compile(r"\d+-of-\d+")
PART_SUFFIX = re.compile(r"-\d+-of-\d+$")  # of x.tfrecord-00000-of-00042
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


Name = TypeVar("Name")


class Split(NamedTuple):
    """What a name says. word: one of TRAIN, UNLABELED or TEST, '' for no split; rest: its other words, but numbers."""

    word: str
    rest: str = ""


def split_of(name: str) -> Split:
    """The split that the name of a file or folder says: 'digits-train-00000-of-00042.parquet' is 'train' of 'digits'.

    A split is a whole word, with 'set', 'data' or 'images' behind it or not: signs, digits and capital letters end
    words. 'imagesTr' is 'train' of 'images'. 'train_val' is a training set; a name with two other splits says none.
    """
    stem = HELD_OUT.sub("holdout", PART.sub("", SUFFIX.sub("", SUFFIX.sub("", name))))
    words = [word.lower() for word in WORD.findall(stem)]
    words = [match[1] if (match := COMPOUND.fullmatch(word)) else word for word in words]
    words = [SHORT.get(word, word) if before in PICTURES else word for before, word in pairwise(["", *words])]
    found = [word for word in words if word in (*TRAIN, *UNLABELED, *TEST)]
    rest = "-".join(word for word in words if word not in found and not word.isdigit())
    if found == ["train", "val"]:
        return Split("trainval", rest)
    return Split(found[0] if len(set(found)) == 1 else "", rest)


def find_split(path: str | Path) -> tuple[Path, Path | None]:
    """Training and test path of a dataset: its two splits, or (path, None) if it has none.

    The two differ in no other word: `train/` and `val/`, or `x-train-0.tar` and `x-test-0.tar` (the paths are then
    patterns). A training .beton counts without a test, a folder of that name only if it is the only folder. Of several
    tests the first of TEST is taken. Raises DatasetError if the names leave open which is the training set.
    """
    path = Path(path)
    if not path.is_dir():
        return path, None
    folders: list[str] = []
    files: dict[str, list[Path]] = {suffix: [] for suffix in SPLIT_FILES}
    for entry in _entries(path):
        suffix = PART_SUFFIX.sub("", os.path.splitext(entry.name)[1].lower())
        if entry.is_dir():
            folders.append(entry.name)
        elif suffix in files:
            files[suffix].append(path / entry.name)
    return (
        _pair_of_files(files[".beton"], alone=True)
        or _pair_of_folders(path, folders)
        or next((pair for suffix in files if suffix != ".beton" and (pair := _pair_of_files(files[suffix]))), None)
        or (path, None)
    )


def unused(path: str | Path, train: Path, test: Path | None) -> list[str]:
    """Folders in `path`, or files of the same kind, that belong to neither of its splits."""
    path = Path(path)
    if train == path or not path.is_dir():
        return []
    entries = [entry for entry in _entries(path) if entry.is_dir() or entry.name.endswith(train.suffix)]
    others = [entry for entry in entries if entry.is_dir() == train.is_dir()]
    splits = [split for split in (train, test) if split is not None]
    return [
        entry.name + "/" * entry.is_dir()
        for entry in others
        if not any(_selects(split, [path / entry.name], [path / entry.name]) for split in splits)
    ]


def are_splits(names: Sequence[str]) -> bool:
    """Whether folders with these names are training and test sets, and not classes."""
    try:
        pair = _pair_of_folders(Path(), sorted(names))
    except DatasetError:
        return True
    return pair is not None and pair[1] is not None


def splits_of_files(files: Sequence[Path]) -> dict[Path, list[Path]]:
    """The files of each split, by a pattern that names it. Files in another folder are another split.

    In a folder without a test split all files are one split.
    """
    groups: dict[tuple[Path, Split], list[Path]] = defaultdict(list)
    for file in files:
        split = split_of(file.name)
        groups[file.parent, split if split.word else Split("")].append(file)
    tested = {folder for folder, split in groups if split.word in TEST}
    merged: dict[tuple[Path, Split], list[Path]] = defaultdict(list)
    for (folder, split), members in groups.items():
        merged[folder, split if folder in tested else Split("")] += members
    return {_pattern(folder, split, files): sorted(members) for (folder, split), members in sorted(merged.items())}


def _entries(path: Path) -> list[os.DirEntry[str]]:
    """The visible entries of a folder, by name. (Looking at each of a million files would take seconds.)"""
    try:
        return sorted((entry for entry in os.scandir(path) if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"cannot list the folder {path} ({error.strerror}); make it readable") from None


# ---------------------------------------------------------------------------------------------- pairs


def _pair_of_folders(path: Path, folders: Sequence[str]) -> tuple[Path, Path | None] | None:
    splits = {name: split_of(name) for name in folders}
    pairs = []
    for rest in sorted({split.rest for split in splits.values() if split.word}):
        train = _training({name: split for name, split in splits.items() if split.rest == rest})
        test = [name for name, split in splits.items() if split.rest == rest and split.word in TEST]
        if train and test:
            first = min(TEST.index(splits[name].word) for name in test)
            pairs.append((train, [name for name in test if splits[name].word == TEST[first]]))
    if len(folders) == 1 and splits[folders[0]].word in TRAIN and not splits[folders[0]].rest:
        return path / folders[0], None
    if len(pairs) == 1 and len(pairs[0][0]) == len(pairs[0][1]) == 1:
        return path / pairs[0][0][0], path / pairs[0][1][0]
    every = len(folders) > 1 and all(split.word for split in splits.values())
    if pairs or (every and any(not split.rest for split in splits.values())):
        named = ", ".join(f"{name}/" for name, split in splits.items() if split.word)
        first_name = next((name for name, split in splits.items() if split.word in TRAIN), folders[0])
        problem = f"holds several splits ({named}), and it is not clear which two belong together"
        raise DatasetError(f"{problem}; name them, e.g. data.path={path / first_name} data.test=...")
    return None


def _pair_of_files(files: Sequence[Path], alone: bool = False) -> tuple[Path, Path | None] | None:
    """alone: whether a training file without a test file counts."""
    splits = {file: split_of(file.name) for file in files}
    train = _training(splits)
    test = [file for file in files if splits[file].word in TEST]
    if alone and len(train) == 1 and not test:
        return train[0], None
    if not test or (not train and len(test) == len(files) and len({splits[file] for file in test}) == 1):
        return None
    first = min((TEST.index(splits[file].word) for file in test), default=0)
    test = [file for file in test if splits[file].word == TEST[first]]
    if train and len({splits[file].rest for file in (*train, *test)}) == 1 == len({splits[file] for file in train}):
        one, other = (_path_of(group, splits[group[0]], files) for group in (train, test))
        if _selects(one, files, train) and _selects(other, files, test):
            return one, other
    named = ", ".join(file.name for file in files[:6]) + (", ..." if len(files) > 6 else "")
    problem = f"holds several splits ({named}), and their names leave open which files are the training set"
    meant = splits[(train or files)[0]]
    example = _path_of([file for file in files if splits[file] == meant], meant, files)
    raise DatasetError(f"{problem}; put each into a folder of its own, or name them, e.g. data.path='{example}'")


def _training(splits: Mapping[Name, Split]) -> list[Name]:
    """The names of training sets; those of unlabeled images where there is no other."""
    named = [name for name, split in splits.items() if split.word in TRAIN]
    return named or [name for name, split in splits.items() if split.word in UNLABELED]


def _path_of(group: Sequence[Path], split: Split, files: Sequence[Path]) -> Path:
    return group[0] if len(group) == 1 else _pattern(group[0].parent, split, files)


def _selects(pattern: Path, files: Sequence[Path], wanted: Sequence[Path]) -> bool:
    name = pattern.name.replace("[", "[[]")  # as in `find_source`
    return [file for file in files if file == pattern or fnmatchcase(file.name, name)] == list(wanted)


def _pattern(folder: Path, split: Split, files: Sequence[Path]) -> Path:
    """A pattern of the files of a split: 'train*.tar', or '*train*.tar' if their names begin in several ways."""
    suffix = PART_SUFFIX.sub("*", next(file.suffix for file in files if file.parent == folder))
    if not split.word:
        return folder / f"*{suffix}"
    names = [file.name for file in files if file.parent == folder and split_of(file.name) == split]
    word = "train" if split.word == "trainval" else split.word
    forms = [HELD_OUT.pattern if word == "holdout" else word]
    forms += [short for short, full in SHORT.items() if full == word]
    found = (next(filter(None, (re.search(form, name, re.IGNORECASE) for form in forms))) for name in names)
    heads = {match.string[: match.end()] for match in found}
    return folder / f"{heads.pop() if len(heads) == 1 else '*' + word}*{suffix}"
