"""The report as Markdown: the same sections and tables as the page, without its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perf.report.sections import Table, headline, sections


def markdown(report: Mapping[str, Any]) -> str:
    """The whole text."""
    where = report["machine"]
    device = ", ".join(where["gpus"]) or where["cpu"]
    parts = ["# Throughput report", f"**{report['verdict']}**", f"{device}, {where['cores']} cores; {where['date']}"]
    if found := headline(report):
        parts.append(table(_figures(found)))
    for section in sections(report):
        parts += [f"## {section.title}", *section.lead]
        if section.key_figures:
            parts.append(table(_figures(section.key_figures)))
        for one in section.tables:
            parts += [f"**{one.title}**", table(one)]
    return "\n\n".join(parts) + "\n"


def table(one: Table) -> str:
    """A Markdown table; numbers to the right."""
    lines = [_row(one.head), _row(["---" if name in one.words else "---:" for name in one.head])]
    return "\n".join([*lines, *map(_row, one.rows)])


def _figures(found: Sequence[tuple[str, str]]) -> Table:
    return Table("", ("", "figure"), found, ("",))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
