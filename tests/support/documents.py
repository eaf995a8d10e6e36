"""Parts of the Markdown pages that tests check: pages, links, headings, code spans, command lines and messages."""

from __future__ import annotations

import re
from pathlib import Path

from config.recipe import ROOT

GENERATED_PAGES = {"science.md", "settings.md"}  # by `make science` and from the declaration of the settings
COMMANDS = (
    *("make ", ".venv/bin/", "python ", "train.py ", "evaluate.py "),
    *("sbatch ", "kubectl ", "docker ", "pre-commit "),
)


def pages() -> list[Path]:
    """Every page for people, the README first."""
    top = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "perf" / "NOTES.md"]
    return [*top, *sorted((ROOT / "docs").glob("*.md"))]


def links(text: str) -> list[str]:
    """Targets of Markdown links and pictures, references included; without those to the web."""
    text = without_fences(text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    return [target for target in targets if "://" not in target]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_fences(text), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def spans(text: str) -> list[str]:
    """The contents of `code spans` outside of blocks."""
    prose = "\n".join(line for line in without_fences(text).splitlines() if not line.startswith("    "))
    return re.findall(r"`([^`\n]+)`", prose)


def without_fences(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)


def fences(text: str) -> list[str]:
    """The contents of fenced blocks."""
    return [body for _, body in re.findall(r"^( *)```[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)]


def command_lines(text: str) -> list[str]:
    """Commands of blocks (indented or fenced) and of code spans that are whole commands, without comments."""
    indented = re.findall(r"^ {4,}(\S.*)$", without_fences(text), re.MULTILINE)
    fenced = [line.strip() for body in fences(text) for line in body.splitlines()]
    whole = [span for span in spans(text) if span.startswith(COMMANDS)]
    lines = [re.sub(r"\s+# .*$", "", line).strip() for line in [*indented, *fenced, *whole]]
    return list(dict.fromkeys(line for line in lines if line.startswith(COMMANDS)))
