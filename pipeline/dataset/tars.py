"""Lists a tar as byte ranges, without unpacking it: images, WebDataset labels, and tars in the tar.

A tar from the net is not trusted: links, devices and names that lead out of the folder are refused and reported.
Several tars joined in one file (`cat a.tar b.tar`) are read to the end.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from typing import Any, NamedTuple

from common.holes import open_file, pread
from pipeline.dataset.finding.choice import NONE, split_key
from pipeline.dataset.finding.labels import Label, label_of
from pipeline.dataset.finding.mixed import split_values
from pipeline.dataset.sniff import HEAD, extension, has_array_extension, has_extension, is_hidden, looks_like_image
from pipeline.dataset.table import DatasetError

BLOCK = 512  # bytes of a tar block
LABEL_BYTES = 1 << 20  # a larger file is not read as a label
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MISSING = object()


class Range(NamedTuple):
    """A tar to list: its file and byte range there (length -1: to the end)."""

    path: str
    offset: int = 0
    length: int = -1


class Members(NamedTuple):
    """The members of one tar, in its order.

    names, offsets, lengths: of the images; offsets count from the start of the file.
    labels: WebDataset key, or name without suffix -> label, from `key.cls` or the "label" of `key.json`.
    inner: name, offset and length of each tar in the tar; refused: member -> reason.
    left_out: number of other members, by extension. splits: what fields called `split` in `key.json` say.
    arrays: name, offset and length of each .npy and .npz.
    """

    names: list[str]
    offsets: list[int]
    lengths: list[int]
    labels: dict[str, Label]
    inner: list[tuple[str, int, int]]
    refused: dict[str, str]
    left_out: Counter[str]
    splits: set[object]
    arrays: list[tuple[str, int, int]]


def list_tar(tar: Range, label: str | None = None) -> Members:
    """Members of an uncompressed tar. Members without an image extension are known as images by their first bytes.

    label: suffix of the members, or name in the JSON, that holds the label; None: 'cls' and 'label'; 'none': no labels.
    Raises DatasetError if the tar is compressed, cut short or damaged, if two members have the same name, or if a label
    is not one.
    """
    shard = os.path.basename(tar.path)
    members = Members([], [], [], {}, [], {}, Counter(), set(), [])
    seen: set[str] = set()
    try:
        with open_file(tar.path) as file:
            end = tar.offset + tar.length if tar.length >= 0 else os.fstat(file.fileno()).st_size
            start, ended = tar.offset, False
            while not ended:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    cached: list[tarfile.TarInfo] = vars(archive)["members"]
                    while (member := archive.next()) is not None and member.offset < end:
                        cached.clear()  # else tarfile keeps 2 KB per member
                        if member.offset_data + member.size > end:
                            raise DatasetError(f"{shard}: {member.name} goes on past the end; copy the tar again")
                        _add(members, seen, file.fileno(), shard, member, label)
                    # tarfile takes an invalid header for the end of the tar, which is a block of zeros.
                    if archive.offset < end and pread(file.fileno(), BLOCK, archive.offset).strip(b"\0"):
                        raise DatasetError(f"{shard}: damaged at byte {archive.offset}; copy the tar again")
                    start = _after_zeros(file.fileno(), archive.offset, end)
                ended = start >= end
    except tarfile.TarError as error:
        raise DatasetError(f"{shard}: not an uncompressed tar, or damaged ({error}); unpack or copy it again") from None
    except OSError as error:
        raise DatasetError(f"{shard}: cannot be read ({error.strerror}); copy it again") from None
    return members


def _after_zeros(descriptor: int, start: int, end: int) -> int:
    """The first block from `start` on that is not zeros, where the next of several joined tars begins; else `end`."""
    while start < end:
        data = pread(descriptor, min(1 << 20, end - start), start)
        rest = data.lstrip(b"\0")
        if not data:
            break
        if rest:
            return start + (len(data) - len(rest)) // BLOCK * BLOCK
        start += len(data)
    return end


def _add(
    members: Members, seen: set[str], descriptor: int, shard: str, member: tarfile.TarInfo, label: str | None
) -> None:
    """Add one member to the list that it belongs to."""
    if member.isdir():
        return
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        members.refused[member.name] = "path outside"
        return
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or any(map(is_hidden, parts)):  # hidden files are skipped, as in a folder
        return
    if not member.isreg() or member.issparse():
        link, sparse = member.issym() or member.islnk(), member.issparse()
        members.refused[member.name] = "link" if link else "sparse" if sparse else "device"
        return
    name = "/".join(parts)
    if name in seen:
        problem = f"{shard}: it holds two files called {name}, and unpacking would keep the last"
        raise DatasetError(f"{problem}; unpack it and give the folder as data.path")
    seen.add(name)
    key, suffix = split_key(name)
    lower, wanted = suffix.lower(), (label or "cls").lower()
    if ending := next((each for each in (wanted, "json") if lower.endswith(f".{each}")), ""):
        key, lower = name[: -len(ending) - 1], ending  # a.b.cls is of a.b.jpg
    if lower == wanted and lower != "json" and member.size <= LABEL_BYTES:
        value = label_of(pread(descriptor, member.size, member.offset_data), f"{shard}: {member.name}")
        _add_label(members, shard, key, value)
    elif has_extension(name):
        _add_image(members, name, member)
    elif has_array_extension(name):
        members.arrays.append((name, member.offset_data, member.size))
    elif name.lower().endswith(".tar"):
        members.inner.append((name, member.offset_data, member.size))
    elif name.lower().endswith(PACKED):
        members.refused[member.name] = "compressed tar"
    elif lower == "json" and member.size <= LABEL_BYTES:
        sample = _sample(pread(descriptor, member.size, member.offset_data))
        members.splits.update(split_values(sample))
        value = sample.get(label or "label", MISSING)
        if value is MISSING or label == NONE:
            members.left_out[extension(name)] += 1
        else:
            _add_label(members, shard, key, label_of(value, f"{shard}: {member.name}"))
    elif looks_like_image(name, pread(descriptor, min(member.size, HEAD), member.offset_data)):
        _add_image(members, name, member)
    else:
        members.left_out[extension(name)] += 1


def _add_image(members: Members, name: str, member: tarfile.TarInfo) -> None:
    members.names.append(name)
    members.offsets.append(member.offset_data)
    members.lengths.append(member.size)


def _add_label(members: Members, shard: str, key: str, label: Label) -> None:
    """A sample's label; `key.cls` and `key.json` must agree."""
    before = members.labels.setdefault(key, label)
    if None not in (before, label) and str(before) != str(label):
        problem = f"{shard}: {key} has two labels, {before} and {label}"
        raise DatasetError(f"{problem}; choose with data.label=cls, or with a name in the .json")
    members.labels[key] = label if before is None else before


def _sample(text: bytes) -> dict[str, Any]:
    """A sample's JSON; empty if it is none."""
    try:
        sample = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return sample if isinstance(sample, dict) else {}
