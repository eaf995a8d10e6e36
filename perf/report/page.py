"""The report as one self-contained HTML page: styles and plots are inside, and there is no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf.report.plots import plots
from perf.report.sections import headline, sections
from perf.report.verdict import sentences

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def page(report: Mapping[str, Any]) -> str:
    """The text of report.html. report: as perf.profile writes it."""
    from jinja2 import Environment

    facts = report["machine"]
    all_facts = {name: value for name, value in facts.items() if name != "versions"} | dict(facts["versions"])
    machine = [
        (name, ", ".join(value) or "none" if isinstance(value, list) else value) for name, value in all_facts.items()
    ]
    first, *others = sentences(report)
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text())
    return template.render(
        report=report,
        device=", ".join(facts["gpus"]) or facts["cpu"],
        seconds=report.get("seconds"),
        first=first,
        others=others,
        headline=headline(report),
        failed=report.get("failed", {}),
        sections=sections(report),
        plots=plots(report),
        machine=machine,
    )
