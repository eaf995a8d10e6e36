"""The report as one HTML page that needs nothing else: styles and plots are inside, and there is no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf.report.plots import plots
from perf.report.sections import headline, sections
from perf.report.verdict import sentences

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(report: Mapping[str, Any]) -> str:
    """The whole page. report: as in perf/report.json (perf.profile)."""
    from jinja2 import Environment

    where = report["machine"]
    shown = {name: value for name, value in where.items() if name != "versions"} | dict(where["versions"])
    machine = [
        (name, ", ".join(value) or "none" if isinstance(value, list) else value) for name, value in shown.items()
    ]
    first, *others = sentences(report)
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text())
    return template.render(
        report=report,
        device=", ".join(where["gpus"]) or where["cpu"],
        seconds=report.get("seconds"),
        first=first,
        others=others,
        headline=headline(report),
        failed=report.get("failed", {}),
        sections=sections(report),
        plots=plots(report),
        machine=machine,
    )
