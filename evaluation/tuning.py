"""What the sub-commands that fine-tune the whole network are asked with, and how they begin it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_tuning(
    parser: argparse.ArgumentParser, epochs: int, rate: float | None = None, head: float | None = None
) -> None:
    """The options of fine-tuning. rate, head: default learning rates, None: to be chosen by the sub-command."""
    parser.add_argument("--lr", type=float, default=rate, help="of the backbone, for 256 images a step")
    parser.add_argument("--head-lr", type=float, default=head, help="of the new classifier, for 256 images a step")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"of fine-tuning (default {epochs})")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="in fine-tuning (default 0)")
    parser.add_argument("--curve", action="store_true", help="score after each epoch of it, not only the last")
    parser.add_argument("--best", action="store_true", help="also the best over epochs, chosen on the scored images")


def check_tuning(options: argparse.Namespace) -> None:
    """Raises ValueError, one line."""
    if options.epochs < 1:
        raise ValueError(f"--epochs={options.epochs}: expected an integer from 1 on")
    for name in ("lr", "head_lr", "weight_decay"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected 0 or more")
    if options.stage or options.pool:
        raise ValueError("--stage and --pool have no meaning here: the whole network is trained")


def tuner(options: argparse.Namespace, command: str, schedule: str) -> Callable[..., dict[str, Any]]:
    """A function of (backbone, data, place, name of the figure) that fine-tunes and gives the figures."""
    import hashlib

    from evaluation.cache import cache_key
    from evaluation.finetune import Tuning, finetune
    from evaluation.frozen import about
    from evaluation.place import central_crops, training_crops

    def tune(backbone: Any, data: Any, place: Any, name: str) -> dict[str, Any]:
        central = central_crops(backbone, options)
        share = options.batch / 256
        rates, every = (options.lr * share, options.head_lr * share), options.curve or options.best
        tuning = Tuning(*rates, options.epochs, options.weight_decay, schedule, every)
        progress = None
        if place.cache is not None:
            key = cache_key(about(backbone, options), data.train, data.train_rows, central, place.backend)
            key += cache_key({}, data.test, data.test_rows, central, "") + repr((tuning, options.batch, options.seed))
            place.cache.mkdir(parents=True, exist_ok=True)
            progress = place.cache / f"{command}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        what = f"{backbone.word}: {command}"
        curve = finetune(backbone, data, central, training_crops(central), tuning, place, progress, what)
        best = {f"best epoch's {name}": max(curve)} if options.best else {}
        return {name: curve[-1], **best, **({"curves": {name: curve}} if every else {})}

    return tune
