"""The report of a conversion: images written, changed, and left out with the reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import write_atomically
from pipeline.conversion.entries import Entries
from pipeline.conversion.packing import Part
from pipeline.dataset.inside.names import numbered
from pipeline.dataset.sniff import in_words


@dataclass(frozen=True)
class Report:
    """The fate of every image. images, labeled: of the source; kinds: kind of change -> number of images (an image can
    have several); quarantined and refused: name in the source -> reason; left_out: number of files that are no images,
    by extension."""

    out: str
    source: str
    kind: str
    images: int
    labeled: int
    written: int
    bytes: int
    kinds: dict[str, int]
    quarantined: dict[str, str]
    refused: dict[str, str]
    left_out: dict[str, int]


def make_report(source: str, out: Path, entries: Entries, parts: list[Part]) -> Report:
    kinds: Counter[str] = Counter()
    bad: dict[int, str] = {}
    for part in parts:
        kinds.update(part.kinds)
        bad |= part.bad
    return Report(
        out=str(out),
        source=source,
        kind=entries.kind,
        images=len(entries),
        labeled=int((entries.label >= 0).sum()),
        written=len(entries) - len(bad),
        bytes=sum(size for part in parts for size, _ in part.files.values()),
        kinds=dict(kinds.most_common()),
        quarantined={name_of(entries, row): bad[row] for row in sorted(bad)},
        refused=dict(entries.refused),
        left_out=dict(entries.left_out),
    )


def name_of(entries: Entries, row: int) -> str:
    """Name of an image of the source for messages: its file, or file and key."""
    file = numbered(str(entries.files[entries.file[row]]), int(entries.offset[row]))
    return file if entries.length[row] < 0 else f"{file}:{entries.keys[row]}"


def save_report(report: Report, path: Path) -> None:
    write_atomically(path, json.dumps(asdict(report), indent=1) + "\n")


def show(report: Report, path: str) -> None:
    """Print the report as a table on stdout; path: of the JSON report."""
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
    print(f"{report.out}: {report.images:,} images of {report.source} ({report.kind}), {report.labeled:,} labeled")
    Console().print(table)
    if report.left_out:
        print(f"left out: {in_words(report.left_out)}")
    if report.quarantined or report.refused:
        print(f"names of quarantined and refused images: {path}")
