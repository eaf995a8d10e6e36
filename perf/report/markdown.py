"""The report as Markdown: the sections and tables of the page, without its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perf.report.sections import Table, headline, sections


def markdown(report: Mapping[str, Any]) -> str:
    """The text of report.md. report: as perf.profile writes it."""
    machine = report["machine"]
    device = ", ".join(machine["gpus"]) or machine["cpu"]
    parts = [
        "# Throughput report",
        f"**{report['verdict']}**",
        f"{device}, {machine['cores']} cores; {machine['date']}",
    ]
    if figures := headline(report):
        parts.append(table(_figures(figures)))
    for section in sections(report):
        parts += [f"## {section.title}", *section.lead]
        if section.key_figures:
            parts.append(table(_figures(section.key_figures)))
        for content in section.tables:
            parts += [f"**{content.title}**", table(content)]
    return "\n\n".join(parts) + "\n"


def table(content: Table) -> str:
    """A Markdown table, with numbers aligned to the right."""
    lines = [_row(content.head), _row(["---" if name in content.words else "---:" for name in content.head])]
    return "\n".join([*lines, *map(_row, content.rows)])


def _figures(figures: Sequence[tuple[str, str]]) -> Table:
    return Table("", ("", "figure"), figures, ("",))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
