"""What the online probe and a teacher add to a step: turns with and without them, one after another.

    python -m perf.beside [RECIPE] [key=value ...] [--rounds 15] [--json FILE]

RECIPE (config/demo.yaml by default) gives the network, the crops (noise here, no loader) and the batch, on this
process alone. Ratios are medians over rounds of two turns of the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from common.cli import exit_on_mistake
from config.recipe import ROOT, load_config
from export.__main__ import Parser
from training.distributed import Cluster

CLASSES, IMAGES = 10, 60_000  # whose labels the probe learns: chance decides them
TURN = 1.0  # seconds, about


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.beside", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="RECIPE key=value", help="as for train.py")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    recipe = [] if any("=" not in setting for setting in options.settings) else [str(ROOT / "config" / "demo.yaml")]
    with exit_on_mistake():
        if options.rounds < 1:
            raise ValueError(f"--rounds={options.rounds}: expected 1 or more")
        settings = (*recipe, *options.settings, "data.path=none")
        config = load_config(settings)
        if config.method != "swav" or config.engine.stage == 3:
            raise ValueError("perf.beside measures method=swav, at ZeRO's stages 0 to 2")
        found = measure(settings, options.rounds)
    print(f"step                 {found['step_seconds'] * 1e3:9.2f} ms")
    print(f"with the probe       {found['with_probe']:9.4f} times as long")
    print(f"with a teacher       {found['with_teacher']:9.4f} times as long")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def measure(settings: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """step_seconds: median of the plain turns' seconds a step; with_probe, with_teacher: times as long; all turns'
    seconds a step in `turns`; the machine."""
    import numpy as np

    from model.probe import Probe
    from model.teacher import Teacher
    from perf.interleaved import take_turns, within_rounds
    from perf.machine import machine
    from perf.roofline import finish
    from perf.step.ranks import Case, Steps
    from training.distributed import connected

    cluster = Cluster()
    with connected(cluster, timeout=300.0):
        steps = Steps(Case(settings, 1, IMAGES, 0.0), cluster)
        network, batch = steps.engine.module, steps.noise(channels_last=True)
        seen: list[Any] = []
        network.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs[3]))
        labels = np.random.default_rng(0).integers(0, CLASSES, IMAGES)
        probe = Probe(labels, CLASSES, int(network.backbone.feature_dim), steps.device)
        teacher = Teacher(network, steps.assigning, steps.dtype)
        rows = np.arange(steps.here)

        def with_probe() -> None:
            probe.update(seen[-1], rows)

        def with_teacher() -> None:
            teacher(batch, steps.here, None if steps.queue is None else steps.queue.queued())
            teacher.follow(network, 0.996)

        def turn(more: Callable[[], object] | None, counts: bool) -> float:
            done, begun = 0, perf_counter()
            while not done or perf_counter() - begun < TURN * counts:
                steps.step(iter([batch]))
                if more is not None:
                    more()
                seen.clear()
                done += 1
            finish(steps.device)
            return (perf_counter() - begun) / done

        works = [partial(turn, more) for more in (None, with_probe, with_teacher)]
        plain, probed, taught = take_turns(works, rounds, warm_up=2)
    return {
        "step_seconds": median(plain),
        "with_probe": within_rounds(probed, plain),
        "with_teacher": within_rounds(taught, plain),
        "images": steps.here,
        "turns": {"plain": plain, "probe": probed, "teacher": taught},
        "settings": list(settings),
        "machine": machine(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
