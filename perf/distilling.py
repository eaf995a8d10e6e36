"""Does a student of a trained teacher get ahead of the same network trained alone, after as many steps?

    python -m perf.distilling [--epochs 3] [--seeds 1,2,3] [--json perf/results/distilling.json]

The teacher is the demo's network (config/demo.yaml) after three epochs on 10,000 images of Fashion-MNIST. The student
has about an eighth of its parameters. It is trained on the same images with each seed, by method=distill and by
method=swav, with the same settings otherwise. The score is k-NN of the held-out tenth. An interrupted program goes on
from its folder (--work).
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common.cli import Parser, at_least
from evaluation.arguments import numbers
from perf.going_on import pretrained, train
from perf.program import program

STUDENT = "{block: basic, layers: [1, 1], base_width: 8, stem: small, stem_stride: 2}"
WAYS = {"distilled": "of the teacher", "alone": "trained alone"}


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.distilling", __doc__)
    parser.add_argument("--epochs", type=at_least(1), default=3, help="of the student (default %(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas (default %(default)s)")
    parser.add_argument("--teacher", type=Path, help="a run of the demo in place of the teacher's")
    parser.add_argument("--images", type=Path, help="images in place of Fashion-MNIST's")
    parser.add_argument("--work", type=Path, default=Path("runs/distilling"), help="folder (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    return program(lambda _stopped: measure(options), show, options.json)


def measure(options: Any) -> dict[str, Any]:
    """Train and return the report. Raises ValueError for a mistake, RuntimeError if a run fails."""
    from perf.machine import machine

    seeds = [int(seed) for seed in numbers("--seeds", options.seeds, low=-1, whole=True)]
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.teacher and not options.images:
        raise ValueError("--teacher needs --images, a folder of images for the students")
    teacher = options.teacher or pretrained(work)
    images, weights = options.images or work / "clothes", work / "teacher.pth"
    prototypes = export(teacher, weights)
    rows = []
    for seed in seeds:
        for way in WAYS:
            rows.append(
                {"way": way, "seed": seed, **student(work, images, way, seed, options.epochs, weights, prototypes)}
            )
    return {"epochs": options.epochs, "teacher": summary_of(teacher)["knn"], "machine": machine(), "rows": rows}


def export(run: Path, file: Path) -> int:
    """Write backbone, projection head and prototypes of a run to a file; returns the number of prototypes."""
    from export.formats import write_swav
    from training.trained_network import read_trained

    trained = read_trained(run)
    write_swav(trained, file)
    return int(trained.config["model"]["prototypes"])


def student(
    work: Path, images: Path, way: str, seed: int, epochs: int, weights: Path, prototypes: int
) -> dict[str, Any]:
    """One run, with as many prototypes as the teacher: "knn" at its end, "steps" and "cpu_seconds"."""
    run = work / f"{way}-{seed}"
    words = [f"data.path={images}", f"data.cache={work / 'tables'}", f"run.directory={run}", f"run.seed={seed}"]
    words += [
        f"model.options={STUDENT}",
        f"model.prototypes={prototypes}",
        f"run.epochs={epochs}",
        f"optimizer.warmup_epochs={min(1, epochs)}",
    ]
    words += ["evaluation.max_train=1000", "checkpoint.every=never", "swav.freeze_prototypes=0"]
    if way == "distilled":
        from config.recipe import load_config

        options = load_config(["config/demo.yaml"]).model.options
        shown = json.dumps(dict(options), default=list)  # JSON is YAML
        words += ["method=distill", f"distill.weights={weights}", "distill.backbone=resnet", f"distill.options={shown}"]
    seconds = train(words, work)
    summary = summary_of(run)
    return {"knn": summary["knn"], "steps": summary["steps"], "cpu_seconds": seconds}


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def show(report: dict[str, Any]) -> None:
    """Print mean and range over the seeds for both ways, and how often the distilled student is ahead."""
    print("| student | k-NN | lowest, highest | CPU seconds |")
    print("| --- | ---: | --- | ---: |")
    rows = {way: [row for row in report["rows"] if row["way"] == way] for way in WAYS}
    for way, title in WAYS.items():
        knn = [100 * row["knn"] for row in rows[way]]
        seconds = statistics.fmean(row["cpu_seconds"] or 0.0 for row in rows[way])
        print(f"| {title} | {statistics.fmean(knn):.1f} % | {min(knn):.1f}, {max(knn):.1f} % | {seconds:.0f} |")
    ahead = sum(one["knn"] > other["knn"] for one, other in zip(rows["distilled"], rows["alone"], strict=True))
    print(f"teacher: {100 * report['teacher']:.1f} %; {report['rows'][0]['steps']} steps of each student;")
    print(f"the distilled one is ahead with {ahead} of {len(rows['alone'])} seeds")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
