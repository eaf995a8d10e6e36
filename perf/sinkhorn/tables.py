"""The report of perf.sinkhorn as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIMIT = 0.25  # relative error that a held-out prediction may have


def show(report: Mapping[str, Any]) -> None:
    """Print it."""
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 110)
    where, settings = report["machine"], report["settings"]
    console.print(
        f"\n{where['cpu']}, {where['cores']} cores, GPUs: {', '.join(where['gpus']) or 'none'}; "
        f"{settings['crops']} crops; {settings['seconds']:.0f} s"
    )
    for title, head, rows in tables(report):
        console.print(_table(title, head, rows))
    for line in sentences(report):
        console.print(line)


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Titles, heads and rows."""
    found = [
        (
            "Codes of a step: ms, and ms in collectives (medians)",
            ["link", "ranks", "K", "batch", "it.", "ours", "in", "published", "in", "gather", "in"],
            _codes(report["measured"]),
        ),
        (
            "All-reduces by themselves, and the model fitted on the fastest rounds of 1 and 2 ranks",
            ["link", "ranks", "bytes", "median, us", "fastest, us", "model, us"],
            [
                [
                    row["link"],
                    f"{row['ranks']}{', one core' if row['one_core'] else ''}",
                    f"{row['bytes']:,}",
                    _us(row["us"]),
                    _us(row["min"]),
                    _us(row["predicted_us"]),
                ]
                for row in report["all_reduces"]
            ],
        ),
        (
            "The model on ranks that it was not fitted on: fastest rounds",
            ["link", "ranks", "what", "measured, us", "predicted, us", "error"],
            [
                [
                    row["link"],
                    str(row["ranks"]),
                    f"all-reduce, {row['bytes']:,} B" if row["what"] == "all-reduce" else codes_name(row),
                    f"{row['measured_us']:,.0f}",
                    f"{row['predicted_us']:,.0f}",
                    f"{row['error']:+.0%}",
                ]
                for row in report["held_out"]
            ],
        ),
        (
            f"Exposed ms a step at K = {report['settings']['prototypes']:,}, and share of {report['step_ms']:g} ms",
            ["link", "variant", *_columns(report), "over 1 % from", "over 5 % from"],
            _nodes(report),
        ),
    ]
    return [(title, head, rows) for title, head, rows in found if rows]


def codes_name(row: Mapping[str, Any]) -> str:
    """What codes a row is about."""
    return f"{row['variant']}, K {row['prototypes']:,}, batch {row['batch']}, {row['iterations']} it."


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What to know about the figures."""
    settings = report["settings"]
    error = report["error"]
    lines = [
        f"Step: {report['step_ms']:g} ms ({settings['step']}). Compute: {settings['compute']}. Between nodes "
        f"{settings['bandwidth_gb']:g} GB/s, {settings['ranks_per_node']} ranks each; within: "
        f"{settings['within_a_node']}.",
        "Waiting for ranks that come late is in what is measured, not in what is predicted for given links.",
    ]
    if error is None:
        lines.append("The model is not checked: nothing was measured on more than two ranks.")
    else:
        verdict = "within" if error <= LIMIT else "not within"
        lines.append(f"Largest error of a held-out prediction: {error:.0%}, {verdict} {LIMIT:.0%}.")
    cache = report["machine"]["cache"]
    if cache and error is not None:
        lines.append(
            f"Held out are codes for which all ranks together work on no more than the {cache >> 20} MB of this "
            "machine's last cache: beyond it the memory decides, which is no term of the model."
        )
    others = report["machine"]["taken_by_others"]
    if others > 0.05:
        told = f"Other programs took {others:.0%} of this machine's CPU time meanwhile: ranks that wait for each other"
        lines.append(
            f"{told} wait for those too, and the model does not know of them. Measure again on a quiet machine."
        )
    return lines + [f"Left out: {reason}." for reason in report["left_out"]]


def _codes(measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The variants side by side."""
    places: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in measured:
        place = tuple(row[key] for key in ("link", "ranks", "prototypes", "batch", "iterations"))
        places.setdefault(place, {})[row["variant"]] = row
    rows = []
    for (link, ranks, prototypes, batch, iterations), found in places.items():
        cells = [found.get(name) for name in ("ours", "published", "gather")]
        figures = [text for cell in cells for text in (_ms(cell, "ms"), _ms(cell, "all_reduce_ms"))]
        rows.append([link, str(ranks), f"{prototypes:,}", str(batch), str(iterations), *figures])
    return rows


def _ms(row: Mapping[str, Any] | None, key: str) -> str:
    return "" if row is None else f"{row[key]:,.2f}"


def _columns(report: Mapping[str, Any]) -> list[str]:
    return [f"{count} nodes" if count > 1 else "1 node" for count in (1, 8, 64, 512)]


def _nodes(report: Mapping[str, Any]) -> list[list[str]]:
    place = {
        (row["link"], row["variant"], row["nodes"]): row
        for row in report["predicted"]
        if row["prototypes"] == report["settings"]["prototypes"]
    }
    rows = []
    for at in report["nodes_at"]:
        cells = [place.get((at["link"], at["variant"], count)) for count in (1, 8, 64, 512)]
        rows.append(
            [
                at["link"],
                at["variant"],
                *("" if cell is None else f"{cell['exposed_ms']:,.2f} ({cell['share']:.1%})" for cell in cells),
                *(str(at[f"{percent}_percent"] or "-") for percent in (1, 5)),
            ]
        )
    return rows


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Column, Table

    words = ("link", "variant", "what")
    table = Table(*(Column(name, justify="left" if name in words else "right") for name in head), title=title)
    for row in rows:
        table.add_row(*row)
    return table
