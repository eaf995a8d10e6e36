"""Files that an index.json lists: shards of MDS, chunks of LitData."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.dataset.table import DatasetError


def listed_in_index(index: Path) -> tuple[str, list[Path]] | None:
    """Kind ('mds' or 'litdata') and files, sorted; None if the file is another one that happens to have this name.

    A shard may be there as it is or compressed, and in a sub-folder. Raises DatasetError if one is missing or no MDS.
    """
    try:
        content = json.loads(index.read_bytes())
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    try:
        if "shards" in content and "version" in content:
            return "mds", sorted(_shard(index, shard) for shard in content["shards"])
        if "chunks" in content and "config" in content:
            return "litdata", sorted(_present(index, [chunk["filename"]]) for chunk in content["chunks"])
    except (LookupError, TypeError, AttributeError):
        raise DatasetError(f"{index.name}: damaged; copy it again") from None
    return None


def _shard(index: Path, shard: dict[str, Any]) -> Path:
    if shard["format"] != "mds":
        raise DatasetError(f"{index.name}: its shards are {shard['format']}, which hold no images; write them as MDS")
    files = [shard[key]["basename"] for key in ("raw_data", "zip_data") if shard.get(key)]
    return _present(index, files)


def _present(index: Path, names: list[str]) -> Path:
    """The first of these files that exists."""
    for name in names:
        path = (index.parent / name).resolve()
        if not path.is_relative_to(index.parent.resolve()):
            raise DatasetError(f"{index.name}: names {name}, which is outside its folder; write it with names inside")
        if path.is_file():
            return index.parent / name
    raise DatasetError(f"{index.name}: lists {names[0]}, which is missing; copy it again")
