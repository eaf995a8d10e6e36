"""The record of a device: measured case by case, written after each, and continued by the next start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically
from perf.gpu_check.plan import PART_SECONDS, Case, Part
from perf.gpu_check.setup import Setup

LONGEST = 3.0  # times its estimate: then a case counts as hung


def opened(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The record at `path` if it is about the same device, batch and versions; else a new one. Raises ValueError for a
    file that is no such record."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {**about, "parts": {}}
    except ValueError as error:
        raise ValueError(f"--json={path}: not a record of gpu-check ({error}); give another file") from None
    same = isinstance(record, dict) and all(record.get(name) == value for name, value in about.items())
    return record if same else {**about, "parts": {}}


def write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def measure(
    record: dict[str, Any],
    parts: Sequence[Part],
    setup: Setup,
    save: Callable[[], None],
    seconds: float = float("inf"),
) -> list[str]:
    """Measure the cases that the record lacks, and save it after each. Returns the names of those left.

    No case begins that would probably end later than in `seconds`, or than PART_SECONDS after its part began. A case
    that failed is measured again by the next start.
    """
    left, end = [], time.monotonic() + seconds
    for part in parts:
        part_end = min(end, time.monotonic() + PART_SECONDS)
        for case in part.cases(setup):
            rows = record["parts"].setdefault(part.name, [])
            if any(row["case"] == case.name and "error" not in row for row in rows):
                continue
            available = part_end - time.monotonic()
            if available < case.seconds:
                left.append(f"{part.name}: {case.name}")
                continue
            print(f"{part.name}: {case.name} ...", flush=True)
            record["parts"][part.name] = [row for row in rows if row["case"] != case.name]
            for row in rows_of(case, min(available, LONGEST * case.seconds)):
                record["parts"][part.name].append(row)
                print("  " + line_of(row), flush=True)
            save()
    return left


def rows_of(case: Case, limit: float) -> list[dict[str, Any]]:
    """What a case measures; if it fails, a row with "error", so that it does not hide the others."""
    begun = time.monotonic()
    try:
        rows = case.measure(limit=limit)
    except Exception as error:
        rows = [{"error": " ".join(f"{type(error).__name__}: {error}".split())[-300:], "holds": False}]
    seconds = round((time.monotonic() - begun) / len(rows), 1)
    return [{"case": case.name, **row, "seconds": seconds} for row in rows]


def line_of(row: Mapping[str, Any]) -> str:
    """A row as `name value, name value, ...`, without what is empty."""
    cells = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v not in (None, [], ())]
    return ", ".join(cells)
