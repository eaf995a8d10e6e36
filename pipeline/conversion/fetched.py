"""The local copy of a source in a bucket or on a web server."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.dataset.table import DatasetError
from pipeline.remote.mirror import UNBOUNDED, local_path

OPTIONS = {" or a lower data.cache_bytes": "", "data.cache": "--cache"}  # instead of the recipe's settings


def fetched(source: str, folder: Path, workers: int, progress: bool) -> Path:
    """The path of all objects of `source` below `folder`. Those that a killed run has fetched are used again.

    Raises DatasetError with one line; then `folder` does not exist if nothing was fetched.
    """
    try:
        return local_path(source, folder, UNBOUNDED, workers, progress, "SRC")
    except DatasetError as error:
        if not any(path.is_file() for path in folder.glob("remote/*/files/**/*")):
            shutil.rmtree(folder, ignore_errors=True)
        message = str(error)
        for setting, option in OPTIONS.items():
            message = message.replace(setting, option)
        raise DatasetError(message) from None
