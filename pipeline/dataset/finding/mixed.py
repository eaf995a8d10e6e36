"""Finds splits that are mixed in one source: by names of images, lists beside them, or a column of a table."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.dataset.finding.layout import TEST, TRAIN, are_splits, split_of

FIELD = re.compile(r"split|subset|partition|usage|is_?(train|training|val|valid|test)", re.IGNORECASE)
LIST = re.compile(r"\.(txt|csv|tsv|lst|jsonl?)$", re.IGNORECASE)
TABLES = {".csv": ",", ".tsv": "\t", ".jsonl": ""}
MOST_NAMED, LOOKED_AT = 0.9, 10_000  # images whose names must say a split; names that are looked at


def splits_of_images(names: Iterable[str]) -> str:
    """'a/train, a/test' if folders on one level are splits, 'train_1.jpg, test_1.jpg' if nearly all images say theirs
    by name, else ''. names: paths of the images."""
    names = list(names)
    for depth in range(max((name.count("/") for name in names), default=0)):
        folders: dict[str, str] = {}
        for name in names:
            parts = name.split("/", depth + 1)
            if len(parts) > depth + 1:
                folders.setdefault(parts[depth], "/".join(parts[: depth + 1]))
        if are_splits(sorted(folders)):
            return ", ".join([folders[name] for name in sorted(folders) if split_of(name).word][:2])
    looked_at = [name.rpartition("/")[2] for name in names[:: max(1, len(names) // LOOKED_AT)]]
    words = {name: split_of(name.rpartition(".")[0]).word for name in looked_at}
    return _both(words) if sum(map(bool, words.values())) >= MOST_NAMED * len(words) else ""


def splits_beside(root: Path) -> str:
    """'train.txt, test.txt' if a folder holds such lists, 'train, test in x.csv' if the column `split` of a table says
    so, else ''."""
    files = sorted(file for file in root.iterdir() if file.name[0] != "." and LIST.search(file.name) and file.is_file())
    splits = {file.name: split_of(LIST.sub("", file.name)) for file in files}
    if lists := _both({name: split.word for name, split in splits.items() if not split.rest}):
        return lists
    for file in files:
        if file.suffix.lower() in TABLES and (found := splits_of_rows(_rows(file))):
            return f"{found} in {file.name}"
    return ""


def splits_of_rows(rows: Iterable[Mapping[str, object]]) -> str:
    """'train, test' if a field of these rows says that they are of both, else ''."""
    return splits_of_values({value for row in rows for value in split_values(row)})


def split_values(row: Mapping[str, object]) -> list[object]:
    """What the fields that are called `split` or similar hold in a row."""
    fields = [name for name in row if isinstance(name, str) and FIELD.fullmatch(name)]
    return [row[name] for name in fields if isinstance(row[name], (str, int))]


def splits_of_values(values: Iterable[object]) -> str:
    """'train, test' if the values of a column such as `split` say both, else ''. Yes and no are two splits too."""
    texts = sorted({str(value).strip() for value in values})
    if [text.lower() for text in texts] in (["0", "1"], ["false", "true"]):
        return ", ".join(texts)
    return _both({text: split_of(text).word for text in texts})


def _rows(file: Path) -> Iterator[dict[str, object]]:
    """The rows of a table in text; none if it cannot be read."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as text:
            if delimiter := TABLES[file.suffix.lower()]:
                yield from csv.DictReader(text, delimiter=delimiter)
            else:
                yield from (row for line in text if isinstance(row := json.loads(line), dict))
    except (OSError, ValueError, RecursionError, csv.Error):
        return


def _both(words: Mapping[str, str]) -> str:
    """The first name with a word for a training set, and the first with one for a test set; '' if one is missing."""
    train = next((name for name, word in words.items() if word in TRAIN), "")
    test = next((name for name, word in words.items() if word in TEST), "")
    return f"{train}, {test}" if train and test else ""
