"""Does a run from the weights of other images get ahead of one from random weights, after as many steps?

    python -m perf.going_on [--epochs 10] [--seeds 1,2,3] [--json perf/results/going_on.json]

Three epochs on 10,000 images of Fashion-MNIST (config/demo.yaml) give the weights. Then scikit-learn's 1,797
handwritten digits, which have other classes and another look, are trained with each seed from these weights and from
random ones: the same recipe, and what `auto` adds for weights. The score is k-NN (k = 5) of the test digits among 100
labeled ones, because with all labels raw pixels do as well. The program runs on one core, and also tells the CPU
seconds of each run. An interrupted one goes on from its folder (--work).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from evaluation.arguments import numbers
from perf.program import program

CLOTHES = 10_000  # images of Fashion-MNIST
LABELS, NEIGHBORS, TEST_EVERY = 100, 5, 5  # every fifth digit is a test image
STARTS = {"weights": "weights of Fashion-MNIST", "random": "random weights"}


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.going_on", __doc__)
    parser.add_argument("--epochs", type=at_least(2), default=10, help="of the digits (default %(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas (default %(default)s)")
    parser.add_argument("--weights", type=Path, help="a file in place of Fashion-MNIST's")
    parser.add_argument("--work", type=Path, default=Path("runs/going_on"), help="folder (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    return program(lambda _stopped: measure(options), show, options.json)


def measure(options: Any) -> dict[str, Any]:
    """Train and return the report. Raises ValueError for a mistake, RuntimeError if a run fails."""
    from perf.machine import machine

    seeds = [int(seed) for seed in numbers("--seeds", options.seeds, low=-1, whole=True)]
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    write_digits(work / "digits")
    weights = options.weights or export(pretrained(work), work / "fashion_mnist.safetensors")
    rows = []
    for seed in seeds:  # seed by seed, so that changes of the machine over time affect both starts equally
        for start in STARTS:
            rows.append({"start": start, "seed": seed, **digits_run(work, start, seed, options.epochs, weights)})
    return {"epochs": options.epochs, "labels": LABELS, "machine": machine(), "rows": rows}


def pretrained(work: Path) -> Path:
    """The run on a part of Fashion-MNIST."""
    from pipeline.dataset.idx import parse_idx
    from pipeline.dataset.shards import pack
    from pipeline.fashion_mnist import CLASSES, fetch, records

    images, run = work / "clothes" / "train", work / "fashion_mnist"
    if not (images / "table.npz").exists():
        idx = fetch()
        arrays = [parse_idx(idx[f"train-{name}"])[:CLOTHES] for name in ("images-idx3-ubyte", "labels-idx1-ubyte")]
        pack(records(*arrays), images, "train", CLASSES)
    words = ["run.epochs=3", "optimizer.warmup_epochs=1", "evaluation.max_train=1000"]
    train([f"data.path={images.parent}", f"run.directory={run}", f"data.cache={work / 'tables'}", *words], work)
    return run


def export(run: Path, file: Path) -> Path:
    """The backbone of a run in a file, as one would get it from elsewhere."""
    from safetensors.torch import save_file

    from training.trained_network import read_trained

    save_file(read_trained(run).network.get_submodule("backbone").state_dict(), file)
    return file


def digits_run(work: Path, start: str, seed: int, epochs: int, weights: Path) -> dict[str, Any]:
    """One run on the digits: "knn" at its end, "knn_start" before its first step, "steps" and "cpu_seconds"."""
    run = work / f"{start}-{seed}"
    words = [f"data.path={work / 'digits'}", f"data.cache={work / 'tables'}", f"run.directory={run}"]
    words += [f"run.seed={seed}", f"run.epochs={epochs}", "run.batch_size=64", "crops.flip=0", "model.prototypes=30"]
    words += ["swav.freeze_prototypes=auto", "optimizer.base_lr=1.0", "optimizer.final_lr=0.001"]
    words += [f"evaluation.max_train={LABELS}", f"evaluation.k={NEIGHBORS}", "checkpoint.every=never"]
    words += [f"model.weights={weights}"] if start == "weights" else []
    seconds = train(words, work)
    summary = json.loads((run / "summary.json").read_text())
    return {
        "knn": summary["knn"],
        "knn_start": summary["knn_random_init"],
        "steps": summary["steps"],
        "cpu_seconds": seconds,
    }


def train(settings: Sequence[str], work: Path) -> float | None:
    """Run train.py with the demo's recipe, but LARS; returns its CPU seconds, None if it was done before."""
    from perf.forked import fork

    run = Path(next(word for word in settings if word.startswith("run.directory=")).partition("=")[2])
    if (run / "summary.json").exists():
        kept = run / "cpu_seconds"
        return float(kept.read_text()) if kept.exists() else None
    arguments = [
        "train.py",
        "config/demo.yaml",
        *("optimizer.name=lars", "optimizer.base_lr=2", "optimizer.final_lr=0.02"),
        *settings,
        "pipeline.threads=1",
        "pipeline.backend=dali",
        "evaluation.watched=0",
        "data.workers=1",
    ]
    (process,) = fork(arguments, work / f"{run.name}.log")
    seconds = 0.0
    while process.exitcode is None:
        process.join(0.2)
        seconds = max(seconds, cpu_seconds(process.pid or 0))
    if process.exitcode:
        raise RuntimeError(f"{run}: exit code {process.exitcode}; see {work / run.name}.log")
    (run / "cpu_seconds").write_text(f"{seconds:.2f}")
    return seconds


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far, 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_digits(folder: Path) -> None:
    """scikit-learn's digits, enlarged from 8 to 28 pixels, as PNG files in `folder`/train/5, `folder`/test/5, ..."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    if (folder / "done").exists():
        return
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "train" if number % TEST_EVERY else "test"
        path = folder / split / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = Image.fromarray((image * (255 / 16)).astype(np.uint8))
        gray.resize((28, 28), Image.Resampling.BICUBIC).convert("RGB").save(path)
    (folder / "done").touch()


def show(report: dict[str, Any]) -> None:
    """Print mean and range over the seeds for both starts, and how often the weights are ahead."""
    print("| start | k-NN before | k-NN after | lowest, highest | CPU seconds |")
    print("| --- | ---: | ---: | --- | ---: |")
    rows = {start: [row for row in report["rows"] if row["start"] == start] for start in STARTS}
    for start, title in STARTS.items():
        knn = [100 * row["knn"] for row in rows[start]]
        before = statistics.fmean(100 * row["knn_start"] for row in rows[start])
        seconds = statistics.fmean(row["cpu_seconds"] or 0.0 for row in rows[start])
        spread = f"{min(knn):.1f}, {max(knn):.1f} %"
        print(f"| {title} | {before:.1f} % | {statistics.fmean(knn):.1f} % | {spread} | {seconds:.0f} |")
    pairs = zip(rows["weights"], rows["random"], strict=True)
    ahead = sum(one["knn"] > other["knn"] for one, other in pairs)
    print(f"{report['rows'][0]['steps']} steps each; the weights are ahead with {ahead} of {len(rows['random'])} seeds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
