"""Draws the learning curve of a run: loss and k-NN accuracy over the epochs.

python -m evaluation.curve runs/fashion_mnist [--out curve.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common.cli import EXIT_MISTAKE, Parser, print_error


def main(arguments: list[str]) -> int:
    parser = Parser("python -m evaluation.curve", __doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run's directory")
    parser.add_argument("--out", type=Path, default=Path("curve.png"), help="PNG to write (default curve.png)")
    options = parser.parse_args(arguments)
    if not (options.run / "metrics.jsonl").exists():
        print_error(f"{options.run}: no metrics.jsonl there; give a run's directory")
        return EXIT_MISTAKE
    draw_curve(options.run, options.out)
    print(options.out)
    return 0


def draw_curve(run: Path, out: Path) -> None:
    """Read `run`'s metrics.jsonl, summary.json and untrained.json (if they exist) and write the plot to `out`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    scores = [(line["epoch"] + 1, line["knn"]) for line in lines if "knn" in line]
    marks: dict[str, float] = {}
    for name in ("untrained.json", "summary.json"):
        if (run / name).exists():
            marks |= json.loads((run / name).read_text())
    epochs = 1 + max(line["epoch"] for line in losses)
    steps_an_epoch = losses[-1]["step"] / epochs
    if marks.get("knn_random_init") is not None:
        scores = [(0, marks["knn_random_init"]), *scores]
    if marks.get("knn") is not None:
        scores = [point for point in scores if point[0] != epochs] + [(epochs, marks["knn"])]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot([line["step"] / steps_an_epoch for line in losses], [line["loss"] for line in losses], lw=0.8)
    left.set(xlabel="epoch", ylabel="loss", title="swapped prediction")
    right.plot(*zip(*scores, strict=True), marker="o", label="trained backbone")
    if marks.get("knn_raw_pixels") is not None:
        right.axhline(marks["knn_raw_pixels"], color="gray", ls="--", label=f"raw pixels {marks['knn_raw_pixels']:.2%}")
    last = scores[-1][0]
    for epoch, score in scores:
        if epoch != last and last - epoch < 0.1 * last:  # the two numbers would overlap
            continue
        right.annotate(f"{score:.1%}", (epoch, score), textcoords="offset points", xytext=(0, 6), ha="center")
    right.set(xlabel="epoch", ylabel="k-NN accuracy", title="weighted k-NN, k = 20")
    right.margins(x=0.09, y=0.15)
    right.legend(loc="lower right")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
