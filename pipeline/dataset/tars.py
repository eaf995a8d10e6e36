"""Lists a tar as byte ranges, without unpacking it: images, WebDataset labels, and tars in the tar.

A tar from the net is not trusted: links, devices and names that lead out of the folder are refused and reported.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from typing import NamedTuple

from pipeline.dataset.sniff import HEAD, extension, has_extension, looks_like_image
from pipeline.dataset.table import DatasetError

BLOCK = 512  # bytes of a tar block
LABEL_BYTES = 1 << 20  # a larger file is not read as a label


class Range(NamedTuple):
    """A tar to list: its file and byte range there (length -1: to the end)."""

    path: str
    offset: int = 0
    length: int = -1


class Members(NamedTuple):
    """The members of one tar, in its order.

    names, offsets, lengths: of the images; offsets count from the start of the file.
    labels: WebDataset key -> class number, from `key.cls` or the "label" of `key.json`.
    inner: name, offset and length of each tar in the tar; refused: member -> reason.
    left_out: number of other members, by extension.
    """

    names: list[str]
    offsets: list[int]
    lengths: list[int]
    labels: dict[str, int]
    inner: list[tuple[str, int, int]]
    refused: dict[str, str]
    left_out: Counter[str]


def list_tar(tar: Range, sniff: bool = False) -> Members:
    """Members of an uncompressed tar. sniff: also read the first bytes of members without an image extension.

    Raises DatasetError if the tar is compressed, cut short or damaged, or a label is not a number.
    """
    shard = os.path.basename(tar.path)
    members = Members([], [], [], {}, [], {}, Counter())
    try:
        with open(tar.path, "rb") as file:
            end = tar.offset + tar.length if tar.length >= 0 else os.fstat(file.fileno()).st_size
            file.seek(tar.offset)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                cached: list[tarfile.TarInfo] = vars(archive)["members"]
                while (member := archive.next()) is not None and member.offset < end:
                    cached.clear()  # else tarfile keeps 2 KB per member
                    if member.offset_data + member.size > end:
                        raise DatasetError(f"{shard}: {member.name} goes on past the end; copy the tar again")
                    _add(members, file.fileno(), shard, member, sniff)
                # tarfile takes an invalid header for the end of the tar, which is a block of zeros.
                if archive.offset < end and os.pread(file.fileno(), BLOCK, archive.offset).strip(b"\0"):
                    raise DatasetError(f"{shard}: damaged at byte {archive.offset}; copy the tar again")
    except tarfile.TarError as error:
        raise DatasetError(f"{shard}: not an uncompressed tar, or damaged ({error}); unpack or copy it again") from None
    except OSError as error:
        raise DatasetError(f"{shard}: cannot be read ({error.strerror}); copy it again") from None
    return members


def split_key(name: str) -> tuple[str, str]:
    """`folder/key.suffix` -> (`folder/key`, `suffix`); as in WebDataset, the suffix starts at the first dot."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :])


def _add(members: Members, descriptor: int, shard: str, member: tarfile.TarInfo, sniff: bool) -> None:
    """Add one member to the list that it belongs to."""
    if member.isdir():
        return
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        members.refused[member.name] = "path outside"
        return
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or any(part.startswith(".") for part in parts):  # hidden files are skipped, as in a folder
        return
    if not member.isreg() or member.issparse():
        link, sparse = member.issym() or member.islnk(), member.issparse()
        members.refused[member.name] = "link" if link else "sparse" if sparse else "device"
        return
    name = "/".join(parts)
    key, suffix = split_key(name)
    if has_extension(name):
        _add_image(members, name, member)
    elif name.lower().endswith(".tar"):
        members.inner.append((name, member.offset_data, member.size))
    elif name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        members.refused[member.name] = "compressed tar"
    elif suffix.lower() == "cls" and member.size <= LABEL_BYTES:
        text = os.pread(descriptor, member.size, member.offset_data).strip()
        if not text.isdigit() or len(text) > 9:
            problem = f"{shard}: {member.name} holds {text[:20]!r}, not a class number"
            raise DatasetError(f"{problem}; write numbers from 0 on, or leave the .cls files out")
        members.labels[key] = int(text)
    elif suffix.lower() == "json" and member.size <= LABEL_BYTES:
        label = _json_label(os.pread(descriptor, member.size, member.offset_data))
        if label is None:
            members.left_out[extension(name)] += 1
        else:
            members.labels.setdefault(key, label)
    elif sniff and looks_like_image(name, os.pread(descriptor, min(member.size, HEAD), member.offset_data)):
        _add_image(members, name, member)
    else:
        members.left_out[extension(name)] += 1


def _add_image(members: Members, name: str, member: tarfile.TarInfo) -> None:
    members.names.append(name)
    members.offsets.append(member.offset_data)
    members.lengths.append(member.size)


def _json_label(text: bytes) -> int | None:
    """The class number in a sample's JSON; None if it has no valid one."""
    try:
        label = json.loads(text).get("label")
    except (ValueError, AttributeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < 2**31 else None
