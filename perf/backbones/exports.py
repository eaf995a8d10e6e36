"""Does each family of timm load elsewhere with the same features? Writes a table into docs/export.md.

    python -m perf.backbones.exports [FAMILY ...] [--minutes 60]

Takes the smallest model of each family that works by perf/results/backbones.json, with random weights, exports it in
each of `FORMATS`, loads the file by the lines that the export prints, and compares the features of two images. The
smallest families come first. After each the result is in perf/results/exports.json, and the same command goes on with
what is missing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from common.files import write_atomically
from common.progress import progress_bar
from perf.backbones.families import smallest_models
from perf.program import program

FORMATS = ("timm", "safetensors", "torchscript", "pt2", "onnx")
LIMIT = 1e-5  # of the difference between features, relative to the largest
MODELS, RESULTS, PAGE = Path("perf/results/backbones.json"), Path("perf/results/exports.json"), Path("docs/export.md")
MARK = "<!-- written by python -m perf.backbones.exports -->\n"


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.backbones.exports", __doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="modules of timm.models (default: all)")
    parser.add_argument("--minutes", type=at_least(1), default=600, help="stop after these (default %(default)s)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results (default %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the table (default %(default)s)")
    options = parser.parse_args(arguments)
    return program(lambda stopped: sweep(options, stopped), show, None)


def sweep(options: Any, stopped: Sequence[BaseException] = ()) -> dict[str, Any]:
    """Export what is missing, and write results and page after each family. Raises ValueError for a mistake."""
    from perf.machine import machine

    report = json.loads(options.json.read_text()) if options.json.exists() else {"families": {}}
    models = json.loads(MODELS.read_text())["models"]
    chosen = {family: name for (library, family), name in smallest_models(models).items() if not library}
    if unknown := [family for family in options.families if family not in chosen]:
        raise ValueError(f"no model of the family {unknown[0]} is in {MODELS}; it has {', '.join(sorted(chosen))}")
    report |= {"machine": machine()}
    names = options.families or chosen
    todo = [family for family in chosen if family in names and family not in report["families"]]
    end = time.monotonic() + 60 * options.minutes
    with progress_bar(len(todo), "exports", "families") as bar:
        for family in todo:
            if stopped:
                raise stopped[0]
            if time.monotonic() > end:
                break
            name = chosen[family]
            size = own_size(name) if models[name]["adapted"] else models[name]["sizes"][0]
            report["families"][family] = {"model": name, "size": size, **check(name, size)}
            write(report, options.json, options.page)
            bar.update(1)
    return report


def own_size(name: str) -> int:
    """The size in pixels for which timm builds a network that is made for one size: only there its network in timm's
    own code is the whole of ours."""
    import timm

    return timm.get_pretrained_cfg(name).input_size[-1]


def check(name: str, size: int) -> dict[str, Any]:
    """Format -> largest difference of features, relative to the largest feature, or the reason for a refusal."""
    found: dict[str, Any] = {}
    trained = untrained(name, size)
    for format in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[format] = difference(trained, format, Path(folder))
            except Exception as error:  # of any type: it is what is to be found out
                found[format] = " ".join(str(error).split())[:200] or type(error).__name__
    return found


def untrained(name: str, size: int) -> Any:
    """The network of a run with this backbone and size of global crops, before its first step."""
    import torch
    from omegaconf import OmegaConf

    from config.recipe import default_config
    from training.build import build_network
    from training.trained_network import Trained

    torch.manual_seed(0)
    head = {"hidden_dim": 8, "embedding_dim": 8, "prototypes": 8, "heads": 1}
    settings = {"model": {"backbone": name, **head}, "crops": {"global": {"size": size}}}
    config: Any = OmegaConf.to_container(OmegaConf.merge(default_config(), settings))
    network = build_network(config["model"], [size, 96]).eval()
    return Trained(Path("run/step-0"), {"step": 0, "images": 0, "loader": {"epoch": 0}, "config": config}, network)


def difference(trained: Any, format: str, folder: Path) -> float:
    """Export, load by the printed lines, and compare two images. Raises any exception."""
    import torch

    from export.formats import WRITERS
    from export.programs import images

    backbone = trained.network.backbone
    given = images(backbone, 2, *[int(trained.config["crops"]["global"]["size"])] * 2)
    file = folder / f"x.{format}"
    names: dict[str, Any] = {"images": given.numpy()}
    code = WRITERS[format](trained, file)
    with contextlib.chdir(file if file.is_dir() else folder), torch.no_grad():
        exec("\n".join(code), names)
        features = torch.as_tensor(names["features"]) if format == "onnx" else names["network"](given)
        expected = backbone(given)
    return float((features - expected).abs().max() / expected.abs().max())


# ---------------------------------------------------------------------------------------------- page
def write(report: dict[str, Any], results: Path, page: Path) -> None:
    """The results as JSON, and the part of the page below its mark."""
    write_atomically(results, json.dumps(report, indent=1) + "\n")
    above = page.read_text().partition(MARK)[0] if page.exists() else "# Export\n\n"
    write_atomically(page, above + MARK + table(report))


def table(report: dict[str, Any]) -> str:
    """A row for each family, and the reasons of what is refused or differs."""
    lines = ["", f"{len(report['families'])} families, until {report['machine']['date'][:10]}, on a CPU:", ""]
    lines += [f"| family | model | size | {' | '.join(FORMATS)} |", "| --- | --- | ---: |" + " ---: |" * len(FORMATS)]
    reasons = []
    for family, entry in sorted(report["families"].items()):
        cells = []
        for format in FORMATS:
            value = entry[format]
            cells.append("refused" if isinstance(value, str) else f"{value:.0e}" if value else "0")
            if isinstance(value, str):
                reasons.append(f"| `{entry['model']}` | {format} | {value.replace('|', ' ')} |")
        lines.append(f"| {family} | `{entry['model']}` | {entry['size']} | {' | '.join(cells)} |")
    if reasons:
        lines += ["", "| model | format | reason |", "| --- | --- | --- |", *reasons]
    return "\n".join(lines) + "\n"


def show(report: dict[str, Any]) -> None:
    """Print how many families each format holds."""
    for format in FORMATS:
        values = [entry[format] for entry in report["families"].values()]
        good = sum(not isinstance(value, str) and value <= LIMIT for value in values)
        print(f"{format}: {good} of {len(values)} families differ by at most {LIMIT:.0e}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
