"""Further tables of the loader's report: ceilings, GPUs fed, the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def more_tables(report: Mapping[str, Any]) -> list[Any]:
    """rich tables, or lines of text if there are no figures. report: as perf.loader writes it."""
    return [ceilings(report["ceilings"]), *gpus(report), *sweep(report)]


def ceilings(figures: Mapping[str, Any]) -> Any:
    """Rates of bare decoding and of reading, which no loader can exceed."""
    from rich.table import Column, Table

    table = Table("ceiling", *(Column(text, justify="right") for text in ("images/s", "MB/s")), title="Ceilings")
    if figures["decode"]:
        table.add_row("bare decode", f"{figures['decode']:,.0f}", "")
    for name, text in (("read_warm", "reading, page cache"), ("read_cold", "reading, from the disk")):
        rates = figures[name]
        if rates["images_per_second"] is None:
            table.add_row(f"{text}: not measured; {rates['why']}", "", "")
        else:
            table.add_row(text, f"{rates['images_per_second']:,.0f}", f"{rates['mb_per_second']:,.0f}")
    return table


def gpus(report: Mapping[str, Any]) -> list[Any]:
    """How many GPUs each backend feeds, or why this is unknown."""
    from rich.table import Column, Table

    if not report["gpus_fed"]:
        return [f"GPUs that this machine can feed: {report['gpu_rate']['why']}"]
    rate = report["gpu_rate"]
    title = f"GPUs fed, at {rate['images_per_second']:,.0f} images/s each ({rate['from']})"
    table = Table("backend", Column("GPUs", justify="right"), title=title)
    for name, fed in report["gpus_fed"].items():
        table.add_row(name, f"{fed['gpus']:.2f}")
    return [table]


def sweep(report: Mapping[str, Any]) -> list[Any]:
    """Rates against threads, batch and image size, and the number of points left out."""
    from rich.table import Column, Table

    if not report["sweep"]:
        return []
    right = [Column(text, justify="right") for text in ("threads", "batch", "images/s", "lowest", "highest")]
    table = Table("backend", "images", *right, title="Threads, batch and image size, medians of short turns")
    for point in sorted(report["sweep"], key=lambda p: (p["backend"], p["source"], p["threads"], p["batch"])):
        rates = (f"{point[key]:,.0f}" for key in ("images_per_second", "min", "max"))
        table.add_row(point["backend"], point["source"], str(point["threads"]), str(point["batch"]), *rates)
    left_out = len(report["sweep_left_out"])
    return [table] + (
        [f"{left_out} points of the sweep were left out (sweep_left_out in the JSON)"] if left_out else []
    )
