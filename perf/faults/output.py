"""The table of faults as JSON, as a page, and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically
from perf.faults.fault import Fault
from perf.machine import machine

Report = dict[str, dict[str, Any]]  # the rows by `kind: fault`

HEAD = """# Faults, and what they cost

`make faults` breaks the real programs on purpose: a tiny network on 72 images, one to three processes. A row holds if
the exit code and the message are as expected, no output has a stack trace, nothing that was saved is lost, and either
the program itself or the same command given again has the losses, files or figures of an undisturbed one, bit for bit.
"lost" counts the steps that were logged and had to be taken again, those since the last checkpoint: these runs save
after every second step. The program writes this page; [its rows](../perf/results/faults.json) have the details.

{summary}
"""


def read(path: Path) -> Report:
    """The rows that were written before."""
    try:
        return {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def write(report: Report, faults: Sequence[Fault], file: Path, page: Path) -> None:
    """Write both files; rows of faults that no longer exist are dropped."""
    rows = [{"name": fault.name, **report[fault.name]} for fault in faults if fault.name in report]
    write_atomically(file, json.dumps({"rows": rows, "machine": machine()}, indent=1) + "\n", durable=False)
    write_atomically(page, markdown(report, faults), durable=False)


def markdown(report: Report, faults: Sequence[Fault]) -> str:
    """The page: a table for each kind of fault."""
    done = [report[fault.name] for fault in faults if fault.name in report]
    holding, skipped = sum(row["holds"] for row in done), sum("skipped" in row for row in done)
    left = len(faults) - len(done)
    summary = f"**{holding} of {len(done) - skipped} faults hold; {skipped} were skipped, {left} not tried yet.**"
    parts = [HEAD.format(summary=summary)]
    for kind in dict.fromkeys(fault.kind for fault in faults):
        parts.append(f"## {kind[0].upper()}{kind[1:]}\n")
        parts.append("| fault | program | code | what a user sees | lost | the same command | holds |")
        parts.append("| --- | --- | --- | --- | --- | --- | --- |")
        parts += [line(fault, report[fault.name]) for fault in faults if fault.kind == kind and fault.name in report]
        parts.append("")
    return "\n".join(parts)


def line(fault: Fault, row: dict[str, Any]) -> str:
    """A row of the page."""
    program = fault.program.name + (f", {fault.ranks} processes" if fault.ranks > 1 else "")
    if "skipped" in row:
        return f"| {cell(fault.what)} | {program} | | skipped: {cell(row['skipped'])} | | | |"
    sees = f"`{cell(row['sees'])}`" if row["sees"] else "nothing: it cannot say anything"
    holds = "yes" if row["holds"] else "NO: " + cell("; ".join(row["wrong"]))[:200]
    cells = [cell(fault.what), program, str(row["code"]), sees, row.get("lost", ""), row.get("restart", ""), holds]
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Text for a cell of a table: no line breaks and bars, at most 150 characters."""
    plain = " ".join(text.replace("|", "/").replace("`", "'").replace("│", "").split())
    return plain if len(plain) <= 150 else f"{plain[:147]}..."


def show(report: Report, faults: Sequence[Fault]) -> None:
    """Print the rows that did not hold, and the sum."""
    done = [fault for fault in faults if fault.name in report]
    for fault in done:
        for problem in report[fault.name]["wrong"]:
            print(f"{fault.name}: {problem[:400]}")
    held = sum(report[fault.name]["holds"] for fault in done)
    print(f"{held} of {len(done)} faults hold, {len(faults) - len(done)} are left")
