"""All checks of swave that need a GPU, in one command: are the results correct, and how fast is it?

    python -m perf.gpu_check [--only numerics decode codes step tests] [--json F]        make gpu-check

    numerics  every ZeRO stage against stage 0 in float32, from the same 20 states and over the first steps of a run;
              fp16 and bf16 against float32 over 50 steps; on several GPUs also overlap_comm on and off, and batch norm
              synchronized over all GPUs against one GPU with the whole batch
    decode    crops of DALI's mixed decoder and of the ffcv backend's GPU half against crops made on the CPU
    codes     which is fastest: eager, compiled, as a CUDA graph or by Triton kernels; and whether the codes in training
              take at most 1.5 % of a ResNet-50 step and 3 all-reduces
    step      images a second, memory and share of the roofline of ResNet-50 with 2x224 + 6x96 crops: bf16 and fp16,
              per stage, compiled or not. Targets: 1,300 images/s on an H200, 1,100 on an H100
    tests     pytest -m gpu

Writes perf/results/gpu-DEVICE.json. Exit codes: 0, or 1 if a check fails, or 2 without a GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import EXIT_MISTAKE, Parser, at_least, print_error
from config.recipe import ROOT

PARTS = ("numerics", "decode", "codes", "step", "tests")
TARGETS = {"H200": 1300.0, "H100": 1100.0}  # images a second; the next target on an H200 is 2,000
BATCH = 128  # images a GPU
MAX_CODES_SHARE = 0.015  # of a step, at most
MAX_LEVELS = 2.0  # mean absolute difference of crops, in levels of 255, at most


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.gpu_check", __doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--batch", type=at_least(2), default=BATCH, help=f"images a GPU in `step` (default {BATCH})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: perf/results/gpu-DEVICE.json")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print_error("gpu-check needs a GPU, and no GPU is visible")
        return EXIT_MISTAKE
    name, gpus = torch.cuda.get_device_name(), torch.cuda.device_count()
    path = options.json or ROOT / "perf" / "results" / f"gpu-{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.json"
    from common.versions import versions

    report: dict[str, Any] = {"device": name, "gpus": gpus, "cuda": torch.version.cuda, "versions": versions()}
    checks: dict[str, Any] = {
        "numerics": lambda: numerics(gpus),
        "decode": decode,
        "codes": lambda: codes(gpus, options.batch),
        "step": lambda: steps(gpus, name, options.batch),
        "tests": tests,
    }
    for part in options.only:
        begun = time.monotonic()
        print(f"{part} ...", flush=True)
        report[part] = checks[part]()
        report[part]["seconds"] = time.monotonic() - begun
        path.write_text(json.dumps(report, indent=1) + "\n")  # so that an interrupted check keeps its first parts
        show(part, report[part])
    print(f"{path}: written")
    return int(any(not report[part]["holds"] for part in options.only))


# ---------------------------------------------------------------------------------------------- correctness
def numerics(gpus: int, on_gpu: bool = True, states: int = 20, halves: Sequence[str] = ("bf16", "fp16")) -> Any:
    """{"rows": as in perf.zero_check, "holds"} on all GPUs; on several also overlap and synchronized batch norm."""
    from perf.zero_check import HALF_STEPS, STEPS, row_of, run_case
    from perf.zero_ranks import Case

    def case(stage: int, precision: str = "fp32", **options: Any) -> Case:
        return Case(stage, gpus, precision, on_gpu=on_gpu, **options)

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reference = run_case(case(0), folder / "base", states, STEPS)
        for stage in (1, 2, 3):
            result = run_case(case(stage), folder / f"stage{stage}", states, STEPS, reference=folder / "base")
            rows.append(row_of(case(stage), result, reference["losses"]))
        full_precision = run_case(case(0, tiny=True), folder / "exact", 0, HALF_STEPS)
        for precision in halves:
            for stage in range(4):
                half = case(stage, precision, tiny=True)
                rows.append(row_of(half, run_case(half, folder / f"{half}", 0, HALF_STEPS), full_precision["losses"]))
        if gpus > 1:
            for overlap in (False, True):
                changed = case(1, overlap=overlap)
                result = run_case(changed, folder / f"{changed}", states, STEPS, reference=folder / "base")
                rows.append(row_of(changed, result, reference["losses"]) | {"overlap_comm": overlap})
            synchronized = run_case(case(0, sync=0), folder / "synchronized", 5, STEPS)
            single = Case(0, 1, on_gpu=on_gpu)
            result = run_case(single, folder / "one", 5, STEPS, reference=folder / "synchronized")
            deviation = max(abs(a - b) / abs(b) for a, b in zip(result["losses"], synchronized["losses"], strict=True))
            rows.append({"batch_norm_over": gpus, "loss_deviation": deviation, "holds": deviation <= 1e-4})
    return {"rows": rows, "holds": all(row["holds"] for row in rows)}


def decode() -> dict[str, Any]:
    """Crops made on the GPU against crops made on the CPU: mean absolute difference, in levels of 255."""
    from config.recipe import default_config
    from perf.images import make_jpegs
    from pipeline.crops import crops_from_config
    from pipeline.dataset.open import open_dataset
    from pipeline.loader import Loader

    table = open_dataset(make_jpegs(Path("data/bench/photographs"), 200, 2), "data/bench/tables")
    rows = []
    for backend in ("dali", "ffcv"):
        crops = crops_from_config(default_config().crops, backend)
        batches = []
        for device in (None, 0):
            loader = Loader(table, crops, backend=backend, seed=1, global_batch=64, threads=2, device_id=device)
            batches.append([group.float().cpu() for group in next(iter(loader)).crops])
            loader.close()
        scale = 255 * sum(crops.std) / 3
        levels = [float((a - b).abs().mean()) * scale for a, b in zip(*batches, strict=True)]
        rows.append({"backend": backend, "levels": max(levels), "holds": max(levels) <= MAX_LEVELS})
    return {"rows": rows, "holds": all(row["holds"] for row in rows)}


def tests() -> dict[str, Any]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"rows": [{"pytest": (process.stdout.strip().splitlines() or [""])[-1]}], "holds": process.returncode == 0}


# ---------------------------------------------------------------------------------------------- speed
def steps(gpus: int, device: str, batch: int) -> dict[str, Any]:
    """The step of config/folder.yaml in several settings; "best", the fastest, must reach the target of this device."""
    from perf.step.device_step import StepCase

    recipe = str(ROOT / "config" / "folder.yaml")
    settings = [("bf16", 0 if gpus == 1 else 1, False), ("bf16", 0 if gpus == 1 else 1, True), ("fp16", 1, False)]
    settings += [("bf16", 2, False), ("bf16", 3, False), ("fp32", 0, False)]
    rows = [
        run_step(StepCase(recipe, batch, gpus, precision, stage, compiled)) for precision, stage, compiled in settings
    ]
    best = max(row.get("images_per_second", 0.0) for row in rows)
    target = next((rate for name, rate in TARGETS.items() if name in device), None)
    failed = any("error" in row for row in rows)
    return {"rows": rows, "best": best, "mark": target, "holds": not failed and (target is None or best >= target)}


def codes(gpus: int, batch: int) -> dict[str, Any]:
    """The codes in several implementations on one GPU; their share of a bf16 step of config/folder.yaml on all GPUs."""
    import torch

    from perf.sinkhorn.device import compare
    from perf.step.device_step import StepCase

    rows = compare(batch, torch.device("cuda"))
    step = run_step(StepCase(str(ROOT / "config" / "folder.yaml"), batch, gpus, "bf16", 0 if gpus == 1 else 1))
    timed = [row for row in rows if "ms" in row]
    best = min(timed, key=lambda row: row["ms"])["way"] if timed else None
    share, collectives = step.get("codes_share"), step.get("codes_collectives")
    holds = share is not None and share <= MAX_CODES_SHARE and collectives == 3 and all(row["holds"] for row in rows)
    rows.append({"codes_share": share, "codes_collectives": collectives, "error": step.get("error")})
    return {"rows": rows, "best": best, "codes_share": share, "mark": MAX_CODES_SHARE, "holds": holds}


def run_step(case: Any) -> dict[str, Any]:
    """What rank 0 of a case measures, with a new process for each rank; the case with "error" if they fail."""
    from dataclasses import asdict

    from perf.ranks import run_ranks
    from perf.step.device_step import run_rank

    with tempfile.TemporaryDirectory() as scratch:
        try:
            run_ranks(run_rank, case.ranks, case, Path(scratch), on_gpu=case.on_gpu)
        except RuntimeError as error:
            return asdict(case) | {"error": str(error)}
        return json.loads((Path(scratch) / "step.json").read_text())


def show(part: str, result: dict[str, Any]) -> None:
    """Print the rows of a part, each as `name value, name value, ...`, and whether the part holds."""
    for row in result["rows"]:
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v not in (None, []))
        print("  " + ", ".join(cells))
    print(f"{part}: {'holds' if result['holds'] else 'DOES NOT HOLD'} ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
