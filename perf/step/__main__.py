"""Where a training step goes, on this machine and with these images: phases, collectives, memory, and what bounds it.

    python -m perf.step [--json FILE] [--config RECIPE] [--data PATH] [--peer] [--trace FILE] [key=value ...]

The steps are train.py's, with the real loader, on all ranks, with marks that wait for nothing: turns with and without
them alternate, and their difference is the overhead. Settings are those of train.py, and what they ask for is in the
step: method, heads, hard codes, queue, teacher, online probe (its labels are drawn at random where the images have
none). What one of them adds: measure with it and without (swav.teacher.momentum=0), and `python -m perf.compare`.

    --peer   also a plain PyTorch loop of the published algorithm, in turn with ours on the same batches in memory:
             peer_ratio is our step's time over the peer's. Left out, with the reason, where a recipe has more than
             that loop: another method, several heads, hard codes, a teacher, the probe
    --trace  phases and collectives of all ranks, for https://ui.perfetto.dev

Other precisions, ZeRO stages, compile and memory formats follow, each in fresh processes on crops of noise, as long as
the budget lasts. Without a recipe: the paper's ResNet-50 with 2x224 + 6x96 crops on photographs made here, 128 images
a step on GPUs and 8 on a CPU, where that takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from common.cli import Parser
from common.machine import visible_gpus
from common.progress import progress_bar
from config.recipe import ROOT, load_config
from perf.program import program
from pipeline.dataset.open import choice_of, find_split, open_dataset
from training.distributed import Cluster

if TYPE_CHECKING:  # heavy ones are imported once the arguments are known to be good
    from perf.step.ranks import Case

RECIPE = ROOT / "config" / "folder.yaml"
FOLDER = Path("data/bench")
PHOTOGRAPHS = 256  # made here where no images are given
IMAGENET = 1_281_167  # images that the recipe then fits itself to
PAPER = ("run.batch_size=128", "swav.queue.length=0")  # a GPU's share of a large batch, which needs no queue
SMALL = ("run.batch_size=8", "swav.queue.length=0")  # on two cores a step of so few takes three seconds
CPU_RANKS = 2
SHARE = 0.45  # of the budget for the turns of the main case; its start and the variants have the rest
VARIANTS: tuple[dict[str, Any], ...] = (
    {"precision": "bf16"},
    {"channels_last": False},
    {"stage": 1},
    {"stage": 0},
    {"compile": True},
    {"stage": 2},
    {"stage": 3},
    {"precision": "fp16"},
    {"precision": "fp32"},
)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)

    def show(report: dict[str, Any]) -> None:
        from perf.step.tables import show

        show(report)

    return program(lambda _stopped: run(options), show, options.json)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("python -m perf.step", __doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--budget", type=float, default=100.0, help="seconds that all may take, about (default 100)")
    parser.add_argument("--config", metavar="RECIPE", help="your own recipe, as for train.py")
    parser.add_argument("--data", metavar="PATH", help="your own images: anything that data.path takes")
    parser.add_argument("--ranks", type=int, default=0, help="processes (default: one a GPU, else 2)")
    parser.add_argument("--peer", action="store_true", help="against a plain PyTorch loop")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a trace for Perfetto here")
    parser.add_argument("--no-variants", dest="variants", action="store_false", help="the settings at hand alone")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, as for train.py")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement: check, get the images, measure, put the report together. Raises ValueError for a mistake,
    RuntimeError where a rank failed."""
    # ------------------------------------------------------------------ mistakes first
    begun, gpus = monotonic(), visible_gpus()
    check(options, gpus)
    arguments, where = recipe_of(options, gpus)
    config = load_config([*arguments, f"data.path={where or FOLDER}"])

    # ------------------------------------------------------------------ images
    from perf.images import choose, make_jpegs, require_pictures
    from perf.machine import machine

    ranks = options.ranks or gpus or CPU_RANKS
    source = where or make_jpegs(FOLDER / "photographs", PHOTOGRAPHS, len(os.sched_getaffinity(0)))
    choice = choice_of(config.data)
    table = open_dataset(find_split(source)[0], config.data.cache, config.data.workers or None, choice=choice)
    require_pictures(table, source)
    table = table if where else choose(table, PHOTOGRAPHS)
    images = len(table.usable()) if where else IMAGENET
    from perf.step.peer_loop import beyond_it
    from perf.step.ranks import Case
    from training.auto import fit
    from training.profiling.profile import summary

    fit(config, images, Cluster(0, ranks, 0, ranks))
    if config.run.batch_size > len(table.usable()):
        problem = f"run.batch_size={config.run.batch_size} is more than the {len(table.usable())} images of {source}"
        raise ValueError(f"{problem}; lower it")

    # ------------------------------------------------------------------ the step, and its variants
    with tempfile.TemporaryDirectory() as folder:
        table.save(Path(folder) / "table.npz", digests={name: "" for name in table.containers})
        path = Path(folder) / "table.npz"
        given = (*arguments, f"data.path={source}")
        classes = len(set(table.label[table.label >= 0].tolist()))
        case = Case(given, ranks, images, options.budget * SHARE, path, options.peer, on_gpu=gpus > 0, classes=classes)
        with progress_bar(1 + (len(VARIANTS) if options.variants else 0), "settings", "set", True) as bar:
            ranks_figures = measured(case)
            bar.update()
            taken = monotonic() - begun
            variants = [own_variant(ranks_figures, config)]
            for changes in VARIANTS if options.variants else ():
                left = options.budget - (monotonic() - begun)
                variants += variant(case, config, changes, left, taken - options.budget * SHARE)
                bar.update()
    profile = summary([rank["profile"] for rank in ranks_figures])
    left_out = beyond_it(config) if options.peer else ""
    report = figures(ranks_figures, profile) | {"variants": variants, "trace": None, "peer_left_out": left_out or None}
    if options.trace:
        from training.profiling.trace import trace

        options.trace.write_text(json.dumps(trace([rank["profile"] for rank in ranks_figures])) + "\n")
        report["trace"] = str(options.trace)
    return report | {"machine": machine(), "seconds": round(monotonic() - begun, 1)}


def check(options: argparse.Namespace, gpus: int) -> None:
    """Raises ValueError, one line, for arguments that cannot work."""
    if options.ranks < 0:
        raise ValueError(f"--ranks={options.ranks}: expected at least 1")
    if 0 < gpus < options.ranks:
        raise ValueError(f"--ranks={options.ranks}: there are {gpus} GPUs; give as many ranks at most")
    if not 2 <= options.budget <= 86400:
        raise ValueError(f"--budget={options.budget:g}: expected 2 to 86400 seconds")
    for name in ("json", "trace"):
        path = getattr(options, name)
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"--{name}={path}: there is no folder {path.absolute().parent}")
    for setting in options.settings:
        if "=" not in setting:
            raise ValueError(f"{setting}: expected key=value, or --config={setting} for a recipe")


def recipe_of(options: argparse.Namespace, gpus: int) -> tuple[list[str], str | None]:
    """Recipe and settings without data.path, and the images: the given ones, or None for those made here."""
    given = [s for s in options.settings if not s.startswith("data.path=")]
    paths = [s.partition("=")[2] for s in options.settings if s.startswith("data.path=")]
    where = options.data or (paths[-1] if paths else None)
    if options.config:
        if where is None:
            where = str(load_config([options.config, *given]).data.path)
        return [options.config, *given], where
    return [str(RECIPE), *(PAPER if gpus else SMALL), *given], where


def measured(case: Case) -> list[dict[str, Any]]:
    """The figures of each rank (perf/step/ranks.py), in new processes. Raises RuntimeError if one fails."""
    from perf.ranks import run_ranks
    from perf.step.ranks import run_rank

    with tempfile.TemporaryDirectory() as folder:
        run_ranks(run_rank, case.ranks, case, Path(folder), on_gpu=case.on_gpu)
        return [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(case.ranks)]


def figures(ranks: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]) -> dict[str, Any]:
    """The report of the main case, all but its variants. Rank 0's times: all ranks take their turns together."""
    from perf.interleaved import within_rounds
    from perf.step.roofline import Ceilings, Work, roofline
    from training.profiling.bottleneck import verdict

    first = ranks[0]
    turns, batch = first["turns"], first["batch"]
    seconds = median(turns["plain"])
    limits = [Ceilings(**rank["ceilings"]) for rank in ranks]
    sums = sum(one.bandwidth for one in limits), sum(one.peak_flops for one in limits)
    together = Ceilings(*sums, max(one.noise for one in limits), limits[0].of)
    work, settings = Work(**first["work"]), first["settings"]
    computing = batch / median(turns["kept"]) if "kept" in turns else batch / seconds
    codes = [row["count"] for row in profile["collectives"] if row["kind"] == "codes"]
    lines = roofline(computing, work, first["itemsize"], together)
    report = dict(profile) | {
        "images_per_second": batch / seconds,
        "step_ms": 1e3 * seconds,
        "rounds_ms": [1e3 * one for one in turns["plain"]],
        "device": first["device"],
        "overhead": within_rounds(turns["watched"], turns["plain"]) - 1,
        "peer_ratio": None,
        "peer": None,
        "codes_share": profile["shares"]["codes"],
        "codes_collectives": codes[0] if codes else 0,
        "roofline": lines,
        "peak_gb": max(rank["peak_gb"] for rank in ranks),
        "verdict": verdict(profile, settings, lines),
        "settings": settings | {"arguments": list(first["case"]["arguments"]), "steps_a_turn": first["steps_a_turn"]},
    }
    if "peer" in turns:
        ratios = [ours / theirs for ours, theirs in zip(turns["kept"], turns["peer"], strict=True)]
        report["peer_ratio"] = within_rounds(turns["kept"], turns["peer"])
        report["peer"] = {
            "step_ms": 1e3 * median(turns["peer"]),
            "ours_ms": 1e3 * median(turns["kept"]),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "rounds": ratios,
        }
    return report


def own_variant(ranks: Sequence[Mapping[str, Any]], config: Any) -> dict[str, Any]:
    """The row of the settings at hand."""
    return _row(config, {}) | _speed(ranks)


def variant(case: Case, config: Any, changes: Mapping[str, Any], left: float, start: float) -> list[dict[str, Any]]:
    """The row of changed settings, if they differ from the case: measured, or with the reason why not.

    left: seconds of the budget; start: about how many the processes take before they measure.
    """
    from dataclasses import replace

    row = _row(config, changes)
    if row == _row(config, {}):
        return []
    if left < 1.2 * start:
        return [row | _skipped("no time was left of --budget")]
    if row["precision"] == "fp16" and not case.on_gpu:
        return [row | _skipped("engine.precision=fp16 needs a GPU")]
    settings = [f"engine.{name}={str(value).lower()}" for name, value in changes.items() if name != "channels_last"]
    arguments = (*case.arguments, *settings)
    try:
        load_config(list(arguments))
    except ValueError as error:  # a teacher needs the whole network, which stage 3 does not keep
        return [row | _skipped(str(error))]
    seconds = min(10.0, max(left - start, 1.0) / 2)
    other = replace(case, arguments=arguments, seconds=seconds, table=None, peer=False)
    try:
        return [row | _speed(measured(replace(other, channels_last=row["channels_last"])))]
    except RuntimeError as error:
        return [row | _skipped(str(error))]


def _row(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    own = {"precision": config.engine.precision, "stage": config.engine.stage, "compile": config.engine.compile}
    return {**own, "channels_last": True, **changes}


def _speed(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    turns = ranks[0]["turns"]
    seconds = median(turns.get("kept") or turns["plain"])
    speed = {"images_per_second": ranks[0]["batch"] / seconds, "step_ms": 1e3 * seconds}
    return {**speed, "peak_gb": max(rank["peak_gb"] for rank in ranks), "skipped": None}


def _skipped(reason: str) -> dict[str, Any]:
    return {"images_per_second": None, "step_ms": None, "peak_gb": None, "skipped": reason}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
