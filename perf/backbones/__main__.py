"""Which models of timm, torchvision and transformers work as backbones, at two sizes of crops? Writes
docs/backbones.md.

    python -m perf.backbones [PATTERN ...] [--shapes | --speed | --engine] [--again] [--minutes 60]

Takes a step of a run with each model, with crops of 224 and 96 pixels (`step`). Networks that are built for one size
are also compared with timm's own for each of the two. Where 96 or 224 are refused it tries other pairs (`PAIRS`). The
smallest model of each family comes first, then the second, and so on. After each model the result is in
perf/results/backbones.json, and the same command goes on with what is missing.

--shapes checks shapes alone, on torch's meta device, which takes neither memory nor time to compute; models above
--largest parameters are checked in this way only. Models of transformers are checked if it is installed. --engine
compares the gradients of the smallest model of each family with activation checkpointing and compiled (`compare`).
"""

from __future__ import annotations

import fnmatch
import importlib.util
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from common.files import write_atomically
from common.progress import progress_bar
from model.libraries.names import library_of
from perf.backbones.engine import LIMIT, compare
from perf.backbones.families import smallest_models
from perf.backbones.step import BATCH, take_step
from perf.program import program

PAIRS = ((224, 96), (224, 98), (256, 96), (256, 128))  # sizes of global and local crops
MOST = 60_000_000  # parameters up to which a model counts as small
RESULTS, PAGE = Path("perf/results/backbones.json"), Path("docs/backbones.md")
MARK = "<!-- written by python -m perf.backbones -->\n"


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.backbones", __doc__)
    parser.add_argument(
        "patterns", nargs="*", default=["*"], metavar="PATTERN", help="such as 'vit_*', 'torchvision:*'"
    )
    parser.add_argument(
        "--largest",
        type=at_least(1),
        default=MOST // 10**6,
        help="million parameters to train (default %(default)s)",
    )
    parser.add_argument("--shapes", action="store_true", help="check shapes alone, of models without a result")
    parser.add_argument("--again", action="store_true", help="repeat models that failed")
    parser.add_argument("--speed", action="store_true", help="measure images/s of models that work, on an idle machine")
    parser.add_argument("--engine", action="store_true", help="compare compiled and checkpointed with plain networks")
    parser.add_argument("--minutes", type=at_least(1), default=600, help="stop after these (default %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results (default %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the table (default %(default)s)")
    options = parser.parse_args(arguments)
    return program(lambda stopped: sweep(options, stopped), show, None)


def sweep(options: Any, stopped: Sequence[BaseException] = ()) -> dict[str, Any]:
    """Check what is missing, and write results and page after each model. Raises ValueError for a mistake."""
    from perf.machine import machine
    from training.distributed import Cluster, connected

    report = json.loads(options.json.read_text()) if options.json.exists() else {"models": {}, "libraries": {}}
    names, libraries = listed()
    names = [name for name in names if any(fnmatch.fnmatch(name, one) for one in options.patterns)]
    if not names:
        raise ValueError(f"no model of {', '.join(libraries)} is called {' or '.join(options.patterns)}")
    report |= {"machine": machine(), "libraries": report["libraries"] | libraries}
    sizes = known_sizes(names, report)
    largest = options.largest * 10**6
    order = in_turns(sizes, report["models"])
    if options.engine:
        smallest = smallest_models(report["models"]).values()
        order = [name for name in order if name in smallest and sizes[name] <= largest]
    todo = [name for name in order if missing(report["models"][name], options)]
    end = time.monotonic() + 60 * options.minutes
    group = nullcontext() if options.shapes or options.speed or options.engine else connected(Cluster())
    with group, progress_bar(len(todo), "backbones", "models") as bar:
        for name in todo:
            if stopped:
                raise stopped[0]
            if time.monotonic() > end:
                break
            entry = report["models"][name]
            if options.speed:
                entry["images_per_second"] = speed(name, entry["sizes"][0])
            elif options.engine:
                entry["engine"] = compare(name, entry["sizes"])
            else:
                found = check(name, shapes=options.shapes or sizes[name] > largest)
                kept = ("parameters", "family", "engine")
                report["models"][name] = {key: entry[key] for key in kept if key in entry} | found
            write(report, options.json, options.page)
            bar.update(1)
    write(report, options.json, options.page)
    return report


def listed() -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The names of all models, as model.backbone has them, and for each library its version and their number."""
    import timm
    import torchvision

    names = {
        timm: timm.list_models(),
        torchvision: [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)],
    }
    if importlib.util.find_spec("transformers"):
        import transformers
        from transformers.models.auto import modeling_auto as auto

        from model.libraries.transformers_models import OF_TIMM

        for_images = {**auto.MODEL_FOR_IMAGE_MAPPING_NAMES, **auto.MODEL_FOR_BACKBONE_MAPPING_NAMES}
        names[transformers] = [f"transformers:{kind}" for kind in for_images if kind not in OF_TIMM]
    libraries = {library.__name__: {"version": library.__version__, "models": len(names[library])} for library in names}
    return list(itertools.chain(*names.values())), libraries


def known_sizes(names: Sequence[str], report: dict[str, Any]) -> dict[str, int]:
    """Parameters of each model, from the report, else by building it without memory; 0 if it cannot be built."""
    import torch

    from model.backbone import timm_network
    from model.libraries.torchvision_models import torchvision_network
    from model.libraries.transformers_models import transformers_network

    builders = {"": timm_network, "torchvision": torchvision_network, "transformers": transformers_network}
    entries = [(name, report["models"].setdefault(name, {})) for name in names]
    unknown = [(name, entry) for name, entry in entries if "parameters" not in entry]
    with progress_bar(len(unknown), "parameters", "models") as bar:
        for name, entry in unknown:
            library, inner = library_of(name)
            try:
                with torch.device("meta"):
                    network = builders[library](inner, {})
            except ValueError:
                entry |= {"parameters": 0, "family": ""}
            else:
                parameters = sum(value.numel() for value in network.parameters())
                entry |= {"parameters": parameters, "family": type(network).__module__.rpartition(".")[2]}
            bar.update(1)
    return {name: entry["parameters"] for name, entry in entries}


def in_turns(sizes: dict[str, int], models: dict[str, dict[str, Any]]) -> list[str]:
    """The names: first the smallest model of each family, then the second, and so on."""
    seen: Counter[tuple[str, str]] = Counter()
    places = []
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        family = library_of(name)[0], models[name]["family"]
        places.append((seen[family], name))
        seen[family] += 1
    return [name for _, name in sorted(places, key=lambda place: place[0])]


def missing(entry: dict[str, Any], options: Any) -> bool:
    """Whether the model is still to be checked or measured."""
    if options.engine:
        return "engine" not in entry
    if options.speed:
        return entry.get("checked") == "step" and "sizes" in entry and "images_per_second" not in entry
    if "checked" not in entry or (options.again and "sizes" not in entry):
        return True
    return not options.shapes and entry["checked"] != "step" and entry["parameters"] <= options.largest * 10**6


def check(name: str, shapes: bool) -> dict[str, Any]:
    """A model's entries: "checked", and "sizes", "feature_dim", "adapted", "difference", else "reason" and, if only
    other sizes are taken, all of them."""
    found: dict[str, Any] = {"checked": "shapes" if shapes else "step"}
    for pair in PAIRS:
        try:
            return found | {"sizes": list(pair), **(shapes_of if shapes else take_step)(name, pair)}
        except Exception as error:  # of any type: it is what is to be found out
            found.setdefault("reason", (str(error).strip().splitlines() or [type(error).__name__])[0][:300])
    return found


def shapes_of(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """ "feature_dim" and "adapted" of a model without values. Raises any exception."""
    import torch

    from model.backbone import build_backbone

    with torch.device("meta"):
        network = build_backbone(name, sizes)
    return {"feature_dim": network.feature_dim, "adapted": bool(network._forward_pre_hooks)}


def speed(name: str, size: int) -> float:
    """Images per second, forward and backward, the best of three batches."""
    import torch

    from model.backbone import build_backbone, stride_outside

    network, images = build_backbone(name, [size]), torch.randn(BATCH, 3, size, size)
    stride_outside(network)
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
    models = sorted(report["models"].items(), key=lambda item: (library_of(item[0])[0], item[1]["family"], item[0]))
    checked = [(name, entry) for name, entry in models if "checked" in entry]
    numbers = Counter(library_of(name)[0] or "timm" for name, _ in checked)
    words = [
        f"{numbers[name]} of the {library['models']} models of {name} {library['version']}"
        for name, library in report["libraries"].items()
    ]
    lines = ["", "Checked, up to " + report["machine"]["date"][:10] + ":", "", *(f"- {line}" for line in words)]
    lines += ["", *counts(report), ""]
    lines += ["| model | parameters | features | sizes | tables resampled | difference | checked | images/s |"]
    lines += ["| --- | ---: | ---: | --- | --- | ---: | --- | ---: |"]
    for name, entry in checked:
        if "sizes" in entry:
            row = [f"`{name}`", f"{entry['parameters'] / 1e6:.1f} M", entry["feature_dim"]]
            row += [", ".join(map(str, entry["sizes"])), "yes" if entry["adapted"] else ""]
            row += [f"{entry['difference']:.0e}" if "difference" in entry else "", entry["checked"]]
            lines.append("| " + " | ".join(map(str, [*row, entry.get("images_per_second", "")])) + " |")
    lines += engines(report["models"])
    lines += ["", "## Refused", "", "| model | reason |", "| --- | --- |"]
    lines += [f"| `{name}` | {entry['reason'].replace('|', ' ')} |" for name, entry in checked if "sizes" not in entry]
    return "\n".join(lines) + "\n"


def engines(models: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each model that `compare` has seen, below a count; none without such a model."""
    rows = []
    good: Counter[str] = Counter()
    for (_, family), name in sorted(smallest_models(models).items()):
        if found := models[name].get("engine"):
            cells = []
            for way in ("checkpointing", "compiled"):
                value = found[way]
                good[way] += not isinstance(value, str) and value <= LIMIT
                cells.append(value.replace("|", " ") if isinstance(value, str) else f"{value:.0e}" if value else "0")
            again = f"{found['recomputed']:.0%}" if "recomputed" in found else ""
            rows.append(
                f"| {family} | `{name}` | {cells[0]} | {again} | {cells[1]} | {found['graphs']} | {found['breaks']} |"
            )
    head = [
        *("", "## Compiled, and with activation checkpointing", ""),
        f"Distance of the gradients to the plain network's, relative to their length: at most {LIMIT:.0e} for "
        f"{good['checkpointing']} of {len(rows)} families with activation checkpointing and for {good['compiled']} "
        "compiled.",
        *("", "| family | model | checkpointing | layers computed again | compiled | graphs | breaks |"),
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return [*head, *rows] if rows else []


def counts(report: dict[str, Any]) -> list[str]:
    """How many models of each library work, of those up to `MOST` parameters and of the larger ones."""
    lines = ["| models | checked | at 224 and 96 | at other sizes | refused | took a step |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for library in report["libraries"]:
        for words, small in ((f"up to {MOST // 10**6} million parameters", True), ("larger", False)):
            checked = [
                entry
                for name, entry in report["models"].items()
                if (library_of(name)[0] or "timm") == library
                and (entry["parameters"] <= MOST) == small
                and "checked" in entry
            ]
            first = sum(entry.get("sizes") == list(PAIRS[0]) for entry in checked)
            works = sum("sizes" in entry for entry in checked)
            stepped = sum(entry["checked"] == "step" and "sizes" in entry for entry in checked)
            row = [f"{library}, {words}", len(checked), first, works - first, len(checked) - works, stepped]
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return lines


def show(report: dict[str, Any]) -> None:
    print("\n".join(counts(report)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
