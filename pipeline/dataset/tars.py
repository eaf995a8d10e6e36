"""What lies in a tar, as byte ranges: images, WebDataset labels, and tars in the tar. Nothing is unpacked.

A tar from the net is not trusted: links, devices and names that lead out of a folder are listed by name and
reason, never followed.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from typing import NamedTuple

from pipeline.dataset.sniff import HEAD, extension, has_extension, looks_like_image
from pipeline.dataset.table import DatasetError

BLOCK = 512
LABEL_BYTES = 1 << 20  # a label file that is larger is none


class Range(NamedTuple):
    """A tar to list: the file, and where in it (length -1: to its end)."""

    path: str
    offset: int = 0
    length: int = -1


class Members(NamedTuple):
    """What one tar holds, in its own order.

    names, offsets, lengths: of the images; offsets count from the start of the file.
    labels: WebDataset key -> class number, from `key.cls` or the "label" of `key.json`.
    inner: name, offset and length of each tar in the tar; refused: member -> reason.
    left_out: how many members are neither, by extension.
    """

    names: list[str]
    offsets: list[int]
    lengths: list[int]
    labels: dict[str, int]
    inner: list[tuple[str, int, int]]
    refused: dict[str, str]
    left_out: Counter[str]


def list_tar(tar: Range, sniff: bool = False) -> Members:
    """Members of an uncompressed tar. `sniff`: look into those whose extension is no image's. Raises DatasetError where
    it is compressed, cut short or damaged, or a label is no number."""
    shard = os.path.basename(tar.path)
    found = Members([], [], [], {}, [], {}, Counter())
    try:
        with open(tar.path, "rb") as file:
            end = tar.offset + tar.length if tar.length >= 0 else os.fstat(file.fileno()).st_size
            file.seek(tar.offset)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                held: list[tarfile.TarInfo] = vars(archive)["members"]
                while (member := archive.next()) is not None and member.offset < end:
                    held.clear()  # else it keeps 2 KB for each
                    if member.offset_data + member.size > end:
                        raise DatasetError(f"{shard}: {member.name} goes on past the end; copy the tar anew")
                    _enter(found, file.fileno(), shard, member, sniff)
                # tarfile takes a header that is no header for the end of the tar; that is a block of zeros.
                if archive.offset < end and os.pread(file.fileno(), BLOCK, archive.offset).strip(b"\0"):
                    raise DatasetError(f"{shard}: damaged at byte {archive.offset}; copy the tar anew")
    except tarfile.TarError as error:
        raise DatasetError(f"{shard}: no sound uncompressed tar ({error}); unpack or copy it anew") from None
    except OSError as error:
        raise DatasetError(f"{shard}: cannot be read ({error.strerror}); copy it anew") from None
    return found


def split_key(name: str) -> tuple[str, str]:
    """`folder/key.suffix` -> key with folder, suffix from the first dot on (as WebDataset has it)."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :])


def _enter(found: Members, descriptor: int, shard: str, member: tarfile.TarInfo, sniff: bool) -> None:
    """Put one member where it belongs."""
    if member.isdir():
        return
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        found.refused[member.name] = "path outside"
        return
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or any(part.startswith(".") for part in parts):  # hidden, as in a folder
        return
    if not member.isreg() or member.issparse():
        link, sparse = member.issym() or member.islnk(), member.issparse()
        found.refused[member.name] = "link" if link else "sparse" if sparse else "device"
        return
    name = "/".join(parts)
    key, suffix = split_key(name)
    if has_extension(name):
        _enter_image(found, name, member)
    elif name.lower().endswith(".tar"):
        found.inner.append((name, member.offset_data, member.size))
    elif name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        found.refused[member.name] = "compressed tar"
    elif suffix.lower() == "cls" and member.size <= LABEL_BYTES:
        text = os.pread(descriptor, member.size, member.offset_data).strip()
        if not text.isdigit() or len(text) > 9:
            told = f"{shard}: {member.name} holds {text[:20]!r}, not a class number"
            raise DatasetError(f"{told}; write numbers from 0 on, or leave the .cls files out")
        found.labels[key] = int(text)
    elif suffix.lower() == "json" and member.size <= LABEL_BYTES:
        label = _json_label(os.pread(descriptor, member.size, member.offset_data))
        if label is None:
            found.left_out[extension(name)] += 1
        else:
            found.labels.setdefault(key, label)
    elif sniff and looks_like_image(name, os.pread(descriptor, min(member.size, HEAD), member.offset_data)):
        _enter_image(found, name, member)
    else:
        found.left_out[extension(name)] += 1


def _enter_image(found: Members, name: str, member: tarfile.TarInfo) -> None:
    found.names.append(name)
    found.offsets.append(member.offset_data)
    found.lengths.append(member.size)


def _json_label(text: bytes) -> int | None:
    """The class number in a sample's JSON, None where it has none."""
    try:
        label = json.loads(text).get("label")
    except (ValueError, AttributeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < 2**31 else None
