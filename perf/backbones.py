"""Which models of timm work as backbones, at two sizes of crops? Writes docs/backbones.md.

    python -m perf.backbones [PATTERN ...] [--shapes] [--again] [--speed] [--minutes 60]

Builds each model as a run does, for crops of 224 and 96 pixels, and takes the features of two images of each size
forward and their gradient backward. Where 96 or 224 are refused it tries other pairs (`PAIRS`). The smallest models
come first. After each model the result is in perf/results/backbones.json, and the same command goes on with what is
missing.

--shapes checks shapes alone, on torch's meta device, which takes neither memory nor time to compute; models above
`MOST` parameters are checked in this way only.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from common.files import write_atomically
from common.progress import progress_bar
from perf.program import program

PAIRS = ((224, 96), (224, 98), (256, 96), (256, 128))  # sizes of global and local crops
MOST = 60_000_000  # parameters of models that are trained, not only built
BATCH = 2
RESULTS, PAGE = Path("perf/results/backbones.json"), Path("docs/backbones.md")
MARK = "<!-- written by python -m perf.backbones -->\n"


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.backbones", __doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="names, such as 'vit_*'")
    parser.add_argument("--shapes", action="store_true", help="check shapes alone, of models without a result")
    parser.add_argument("--again", action="store_true", help="repeat models that failed")
    parser.add_argument("--speed", action="store_true", help="measure images/s of models that work, on an idle machine")
    parser.add_argument("--minutes", type=at_least(1), default=600, help="stop after these (default %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results (default %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the table (default %(default)s)")
    options = parser.parse_args(arguments)
    return program(lambda stopped: sweep(options, stopped), show, None)


def sweep(options: Any, stopped: Sequence[BaseException] = ()) -> dict[str, Any]:
    """Check what is missing, and write results and page after each model. Raises ValueError for a mistake."""
    import timm

    from perf.machine import machine

    report = json.loads(options.json.read_text()) if options.json.exists() else {"models": {}}
    names = [name for name in timm.list_models() if any(fnmatch.fnmatch(name, one) for one in options.patterns)]
    if not names:
        raise ValueError(f"no model of timm is called {' or '.join(options.patterns)}")
    report |= {"machine": machine(), "timm": timm.__version__, "in_timm": len(timm.list_models())}
    sizes = known_sizes(names, report)
    todo = [name for name in sorted(names, key=lambda name: (sizes[name], name)) if missing(report, name, options)]
    end = time.monotonic() + 60 * options.minutes
    with progress_bar(len(todo), "backbones", "models") as bar:
        for name in todo:
            if stopped:
                raise stopped[0]
            if time.monotonic() > end:
                break
            entry = report["models"][name]
            if options.speed:
                entry["images_per_second"] = speed(name, entry["sizes"][0])
            else:
                entry |= check(name, shapes=options.shapes or sizes[name] > MOST)
            write(report, options.json, options.page)
            bar.update(1)
    write(report, options.json, options.page)
    return report


def known_sizes(names: Sequence[str], report: dict[str, Any]) -> dict[str, int]:
    """Parameters of each model, from the report, else by building it without memory."""
    import torch

    from model.backbone import timm_network

    for name in names:
        entry = report["models"].setdefault(name, {})
        if "parameters" not in entry:
            with torch.device("meta"):
                network = timm_network(name, {})
            entry |= {
                "parameters": sum(value.numel() for value in network.parameters()),
                "family": type(network).__module__.rpartition(".")[2],
            }
    return {name: report["models"][name]["parameters"] for name in names}


def missing(report: dict[str, Any], name: str, options: Any) -> bool:
    """Whether the model is still to be checked or measured."""
    entry = report["models"][name]
    if options.speed:
        return entry.get("checked") == "trained" and "sizes" in entry and "images_per_second" not in entry
    if "checked" not in entry or (options.again and "sizes" not in entry):
        return True
    return not options.shapes and entry["checked"] == "shapes" and entry["parameters"] <= MOST


def check(name: str, shapes: bool) -> dict[str, Any]:
    """A model's entries: "checked", and "sizes", "feature_dim", "adapted", else "reason" and, if only other sizes are
    taken, all of them."""
    found: dict[str, Any] = {"checked": "shapes" if shapes else "trained"}
    for pair in PAIRS:
        try:
            return found | {"sizes": list(pair), **train_once(name, pair, shapes)}
        except Exception as error:  # of any type: it is what is to be found out
            found.setdefault("reason", (str(error).strip().splitlines() or [type(error).__name__])[0][:300])
    return found


def train_once(name: str, sizes: Sequence[int], shapes: bool) -> dict[str, Any]:
    """Forward and backward with images of each size. Raises any exception."""
    import torch

    from model.backbone import build_backbone

    with torch.device("meta" if shapes else "cpu"):
        network = build_backbone(name, sizes)
        if shapes:
            return {"feature_dim": network.feature_dim, "adapted": bool(network._forward_pre_hooks)}
        features = torch.cat([network(torch.randn(BATCH, 3, size, size)) for size in sizes])
        features.square().mean().backward()
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    if not gradients or not all(bool(value.isfinite().all()) for value in gradients):
        raise ValueError("its gradient is infinite or NaN")
    return {"feature_dim": network.feature_dim, "adapted": bool(network._forward_pre_hooks)}


def speed(name: str, size: int) -> float:
    """Images per second, forward and backward, the best of three batches."""
    import torch

    from model.backbone import build_backbone

    network, images = build_backbone(name, [size]), torch.randn(BATCH, 3, size, size)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        network(images).square().mean().backward()
        best = min(best, time.perf_counter() - start)
    return round(BATCH / best, 2)


# ---------------------------------------------------------------------------------------------- page
def write(report: dict[str, Any], results: Path, page: Path) -> None:
    """The results as JSON, and the part of the page below its mark."""
    results.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(results, json.dumps(report, indent=1) + "\n")
    above = page.read_text().partition(MARK)[0] if page.exists() else "# Backbones\n\n"
    write_atomically(page, above + MARK + table(report))


def table(report: dict[str, Any]) -> str:
    """Counts, the models that work, and the refused ones with their reasons."""
    checked = sum("checked" in entry for entry in report["models"].values())
    words = f"{checked} of the {report['in_timm']} models of timm {report['timm']} were checked"
    lines = ["", f"{words}, on {report['machine']['date'][:10]}.", "", *counts(report), ""]
    lines += ["| model | parameters | features | sizes | tables resampled | checked | images/s |"]
    lines += ["| --- | ---: | ---: | --- | --- | --- | ---: |"]
    models = sorted(report["models"].items(), key=lambda item: (item[1].get("family", ""), item[0]))
    for name, entry in models:
        if "sizes" in entry:
            row = [f"`{name}`", f"{entry['parameters'] / 1e6:.1f} M", entry["feature_dim"]]
            row += [", ".join(map(str, entry["sizes"])), "yes" if entry["adapted"] else "", entry["checked"]]
            lines.append("| " + " | ".join(map(str, [*row, entry.get("images_per_second", "")])) + " |")
    lines += ["", "## Refused", "", "| model | reason |", "| --- | --- |"]
    lines += [
        f"| `{name}` | {entry['reason'].replace('|', ' ')} |"
        for name, entry in models
        if "checked" in entry and "sizes" not in entry
    ]
    return "\n".join(lines) + "\n"


def counts(report: dict[str, Any]) -> list[str]:
    """How many models work, of those up to `MOST` parameters and of the larger ones."""
    lines = ["| models | checked | at 224 and 96 | at other sizes | refused | trained a step |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for title, small in ((f"up to {MOST // 10**6} million parameters", True), ("larger", False)):
        entries = [entry for entry in report["models"].values() if (entry["parameters"] <= MOST) == small]
        checked = [entry for entry in entries if "checked" in entry]
        first = sum(entry.get("sizes") == list(PAIRS[0]) for entry in checked)
        works = sum("sizes" in entry for entry in checked)
        trained = sum(entry["checked"] == "trained" and "sizes" in entry for entry in checked)
        row = [title, len(checked), first, works - first, len(checked) - works, trained]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return lines


def show(report: dict[str, Any]) -> None:
    print("\n".join(counts(report)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
