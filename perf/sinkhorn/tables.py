"""Tables and sentences for the report of perf.sinkhorn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIMIT = 0.25  # largest accepted relative error of a held-out prediction


def show(report: Mapping[str, Any]) -> None:
    """Print the report."""
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 110)
    machine, settings = report["machine"], report["settings"]
    console.print(
        f"\n{machine['cpu']}, {machine['cores']} cores, GPUs: {', '.join(machine['gpus']) or 'none'}; "
        f"{settings['crops']} crops; {settings['seconds']:.0f} s"
    )
    for title, head, rows in tables(report):
        console.print(_table(title, head, rows))
    for line in sentences(report):
        console.print(line)


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables that have rows: title, head, and rows of text."""
    all_tables = [
        (
            "Codes of a step: ms, and ms in collectives (medians)",
            ["link", "ranks", "K", "batch", "it.", "ours", "in", "published", "in", "gather", "in"],
            _codes(report["measured"]),
        ),
        (
            "All-reduces without codes, and the model fitted on the fastest rounds of 1 and 2 ranks",
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
            "The model on ranks on which it was not fitted: fastest rounds",
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
    return [(title, head, rows) for title, head, rows in all_tables if rows]


def codes_name(row: Mapping[str, Any]) -> str:
    """The variant and sizes of the codes in a row, as text."""
    return f"{row['variant']}, K {row['prototypes']:,}, batch {row['batch']}, {row['iterations']} it."


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Sentences about the conditions and the limits of the figures."""
    settings = report["settings"]
    error = report["error"]
    lines = [
        f"Step: {report['step_ms']:g} ms ({settings['step']}). Compute: {settings['compute']}. Between nodes "
        f"{settings['bandwidth_gb']:g} GB/s, {settings['ranks_per_node']} ranks each; within: "
        f"{settings['within_a_node']}.",
        "Measured times include waits for late ranks; predictions for given links do not.",
    ]
    if error is None:
        lines.append("The model is not checked: there are no measurements on more than two ranks.")
    else:
        verdict = "within" if error <= LIMIT else "not within"
        lines.append(f"Largest error of a held-out prediction: {error:.0%}, {verdict} {LIMIT:.0%}.")
    cache = report["machine"]["cache"]
    if cache and error is not None:
        lines.append(
            f"The model is checked only with codes for which all ranks together work on at most {cache >> 20} MB, this "
            "machine's last cache: beyond it memory bandwidth decides, which the model lacks."
        )
    others = report["machine"]["taken_by_others"]
    if others > 0.05:
        lines.append(
            f"Other programs took {others:.0%} of this machine's CPU time. Ranks also waited for these programs, which "
            "the model does not include; measure again on a quiet machine."
        )
    return lines + [f"Left out: {reason}." for reason in report["left_out"]]


def _codes(measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row for each link and size, with the variants next to each other."""
    by_size: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in measured:
        size = tuple(row[key] for key in ("link", "ranks", "prototypes", "batch", "iterations"))
        by_size.setdefault(size, {})[row["variant"]] = row
    rows = []
    for (link, ranks, prototypes, batch, iterations), variants in by_size.items():
        cells = [variants.get(name) for name in ("ours", "published", "gather")]
        figures = [text for cell in cells for text in (_ms(cell, "ms"), _ms(cell, "all_reduce_ms"))]
        rows.append([link, str(ranks), f"{prototypes:,}", str(batch), str(iterations), *figures])
    return rows


def _ms(row: Mapping[str, Any] | None, key: str) -> str:
    return "" if row is None else f"{row[key]:,.2f}"


def _columns(report: Mapping[str, Any]) -> list[str]:
    return [f"{count} nodes" if count > 1 else "1 node" for count in (1, 8, 64, 512)]


def _nodes(report: Mapping[str, Any]) -> list[list[str]]:
    by_nodes = {
        (row["link"], row["variant"], row["nodes"]): row
        for row in report["predicted"]
        if row["prototypes"] == report["settings"]["prototypes"]
    }
    rows = []
    for thresholds in report["nodes_at"]:
        cells = [by_nodes.get((thresholds["link"], thresholds["variant"], count)) for count in (1, 8, 64, 512)]
        rows.append(
            [
                thresholds["link"],
                thresholds["variant"],
                *("" if cell is None else f"{cell['exposed_ms']:,.2f} ({cell['share']:.1%})" for cell in cells),
                *(str(thresholds[f"{percent}_percent"] or "-") for percent in (1, 5)),
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
