"""The account of a conversion: what was written, what was changed on the way, what was left out and why."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import write_atomically
from pipeline.conversion.packing import Part
from pipeline.conversion.sources import Entries
from pipeline.dataset.sniff import in_words


@dataclass(frozen=True)
class Report:
    """What became of every image. kinds: changed on the way, by kind (an image can be of several); quarantined and
    refused: name in the source -> reason; left_out: files that are no images, by extension."""

    out: str
    source: str
    kind: str
    images: int
    written: int
    bytes: int
    kinds: dict[str, int]
    quarantined: dict[str, str]
    refused: dict[str, str]
    left_out: dict[str, int]


def make_report(source: Path, out: Path, entries: Entries, parts: list[Part]) -> Report:
    kinds: Counter[str] = Counter()
    bad: dict[int, str] = {}
    for part in parts:
        kinds.update(part.kinds)
        bad |= part.bad
    return Report(
        out=str(out),
        source=str(source),
        kind=entries.kind,
        images=len(entries),
        written=len(entries) - len(bad),
        bytes=sum(size for part in parts for size, _ in part.files.values()),
        kinds=dict(kinds.most_common()),
        quarantined={name_of(entries, row): bad[row] for row in sorted(bad)},
        refused=dict(entries.refused),
        left_out=dict(entries.left_out),
    )


def name_of(entries: Entries, row: int) -> str:
    """What to call an image of the source: its file, or file and key."""
    file = str(entries.files[entries.file[row]])
    return file if entries.length[row] < 0 else f"{file}:{entries.keys[row]}"


def save_report(report: Report, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(report), indent=1) + "\n")


def reasons(names: dict[str, str]) -> str:
    """'2 truncated, 1 zero bytes'"""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(names.values()).most_common())


def show(report: Report, path: str) -> None:
    """The report as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "images")
    table.columns[1].justify = "right"
    written = f"written ({report.bytes / 1e6:,.1f} MB)" if report.bytes else "readable"
    table.add_row(written, f"{report.written:,}")
    for what, counts in (
        ("changed", report.kinds),
        ("quarantined", dict(Counter(report.quarantined.values()).most_common())),
        ("refused", dict(Counter(report.refused.values()).most_common())),
    ):
        for name, count in counts.items():
            table.add_row(f"{what}: {name}", f"{count:,}", style=None if what == "changed" else "yellow")
    print(f"{report.out}: {report.images:,} images of {report.source} ({report.kind})")
    Console().print(table)
    if report.left_out:
        print(f"left out: {in_words(report.left_out)}")
    if report.quarantined or report.refused:
        print(f"their names are in {path}")
