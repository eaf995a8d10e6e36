"""Graphs, kernel launches, copies and waits of a step, counted on a machine without a GPU; also of an older checkout.

    python -m perf.step.launches [--backbone resnet50] [--width 8] [--base CHECKOUT]

Graphs: forward and backward of backbone and projection head at two resolutions, with batch norm synchronized over two
ranks; the other rank is not there (torch's "fake" process group). Two steps; a graph in the second is a recompile.

Launches, copies and waits: of an eager step in bf16 (without an update of the network) on torch's fake CUDA tensors.
An operation that computes something is a launch. A _foreach operation whose lists broadcast launches a kernel for each
tensor; any other launches a kernel for as many tensors as fit into its arguments (multi_tensor_apply of torch). A copy
between host and device is a wait if it is not asked for as asynchronous. Backward has launches only: torch's fake CUDA
tensors cannot do it without a GPU.

LARS: launches of an update at stage 0. Triton's kernels are counted, but not run.

Synchronizations: by DeepSpeed, in a step on one rank. Counts do not depend on the width of a ResNet; a small one is
faster.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.cli import Parser, exit_on_mistake, print_error
from config.recipe import ROOT
from perf.program import check_base

PHASES = ("forward", "codes", "loss", "monitor", "backward")


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.step.launches", __doc__)
    parser.add_argument("--backbone", default="resnet50", help="one of the paper's ResNets or a model of timm")
    parser.add_argument("--width", type=int, default=8, help="base width of a ResNet (default 8; 64 in the paper)")
    parser.add_argument("--checkpointing", action="store_true", help="graphs with engine.activation_checkpointing")
    parser.add_argument(
        "--base", type=Path, metavar="CHECKOUT", help="an older checkout (git worktree) to compare with"
    )
    options = parser.parse_args(arguments)
    with exit_on_mistake():
        check_base(options.base, "model/swav.py")
    checkouts = ({"base": options.base} if options.base else {}) | {"now": ROOT}
    try:
        counts = {name: rows_of(ask(path, options)) for name, path in checkouts.items()}
    except subprocess.CalledProcessError as error:
        print_error(f"the counting in {error.cmd[2]} failed with code {error.returncode}, see above")
        return 1
    print(table(counts))
    return 0


def ask(checkout: Path, options: Any) -> dict[str, Any]:
    """What perf/step/launches_worker.py counts in a checkout. Its messages go to stderr; raises CalledProcessError."""
    command = [sys.executable, str(Path(__file__).parent / "launches_worker.py"), str(checkout)]
    command += [options.backbone, str(options.width), *(["checkpointing"] if options.checkpointing else [])]
    done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(counts: dict[str, Any]) -> dict[str, float]:
    """The rows of the table, by their names."""
    graphs, step, lars = counts["graphs"], counts["step"], counts["lars"]
    update = sum(lars.get("with kernels", lars["without kernels"]).values())
    rows = {
        "compiled: graphs": graphs["graphs"],
        "compiled: of these for any shape": graphs["dynamic"],
        "compiled: operations in graphs": graphs["operations"],
        "compiled: graph breaks": graphs["breaks"],
        "compiled: recompiles in the second step": graphs["recompiles"],
    }
    rows |= {f"launches: {name}": step[name]["launches"] for name in PHASES}
    rows |= {"launches: LARS without Triton": sum(lars["without kernels"].values()), "launches: LARS": update}
    rows["launches: all"] = sum(step[name]["launches"] for name in PHASES) + update
    for what in ("copies", "waits"):
        rows[f"{what} between host and device"] = sum(step[name][what] for name in PHASES)
    return rows | {
        f"synchronizations by DeepSpeed, {name}": count for name, count in counts["synchronizations"].items()
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """Columns of counts by row, as Markdown."""
    lines = ["| in a step | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for row in next(iter(columns.values())):
        lines.append(f"| {row} | " + " | ".join(f"{column[row]:,g}" for column in columns.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
