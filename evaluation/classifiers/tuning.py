"""What the sub-commands that fine-tune the whole network are asked with, and how they begin it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from evaluation.arguments import add_scale, check_scale

PROTOCOL_STEPS = 1000  # 20 epochs of 12,811 images, 256 a step: 1 % of ImageNet
ENOUGH_STEPS = 400  # fewer than that, and the figure says more of the number of steps than of the features
MEASURED = 256  # images whose features' length is taken


def add_tuning(
    parser: argparse.ArgumentParser, epochs: int, rate: float | None = None, head: float | None = None
) -> None:
    """The options of fine-tuning. rate, head: default learning rates, None: to be chosen by the sub-command."""
    parser.add_argument("--lr", type=float, default=rate, help="of the backbone, for 256 images a step")
    parser.add_argument("--head-lr", type=float, default=head, help="of the new classifier, for 256 images a step")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"of fine-tuning (default {epochs})")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="in fine-tuning (default 0)")
    add_scale(parser)
    parser.add_argument("--curve", action="store_true", help="score after each epoch of it, not only the last")
    parser.add_argument("--best", action="store_true", help="also the best over epochs, chosen on the scored images")


def check_tuning(options: argparse.Namespace) -> None:
    """Raises ValueError, one line."""
    if options.epochs < 1:
        raise ValueError(f"--epochs={options.epochs}: expected an integer from 1 on")
    for name in ("lr", "head_lr", "weight_decay"):
        if getattr(options, name) is not None and getattr(options, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected 0 or more")
    check_scale(options.scale)
    if options.stage or options.pool:
        raise ValueError("--stage and --pool have no meaning here: the whole network is trained")


def steady_rate(squared_length: float, classes: int, momentum: float = 0.9) -> float:
    """The largest learning rate of a linear classifier that is certain to be steady where it begins.

    There all classes are as probable, and cross entropy has the curvature E[f f^T] / classes in the weights: at most
    the features' mean squared length / classes, the bias being one feature more. Descent with momentum grows without
    bound from 2 (1 + momentum) / curvature on; half of that, as two classes that compete have more curvature than all
    alike.
    """
    return (1 + momentum) * classes / (squared_length + 1)


def told_of_steps(steps: int, batch: int) -> str | None:
    """What to say where a training is too short to compare with the protocol, None where it is not."""
    if steps >= ENOUGH_STEPS:
        return None
    return (
        f"note: {steps} steps of {batch} images; the protocol has {PROTOCOL_STEPS:,} on 1 % of ImageNet: more --epochs "
        "or a smaller --batch may be worth much"
    )


def tuner(
    options: argparse.Namespace, command: str, schedule: str, limited: bool = False
) -> Callable[..., dict[str, Any]]:
    """A function of (backbone, data, place, name of the figure) that fine-tunes and gives the figures.

    limited: lower options.head_lr to what the features bear, and say so.
    """
    import hashlib

    from evaluation.classifiers.finetune import Tuning, finetune
    from evaluation.feature_cache import cache_key
    from evaluation.frozen_features import about, table_features
    from evaluation.session import batch_of, central_crops, tell, training_crops

    def borne(backbone: Any, data: Any, place: Any, wanted: float) -> float:
        """The classifier's learning rate, `wanted` if the features bear that."""
        rows = data.train_rows[:: max(1, len(data.train_rows) // MEASURED)]
        length = float(table_features(backbone, data.train, rows, place, options).square().sum(1).mean())
        classes = len(set(data.train.label[data.train_rows].tolist()))
        return min(wanted, steady_rate(length, classes))

    def tune(backbone: Any, data: Any, place: Any, name: str) -> dict[str, Any]:
        central = central_crops(backbone, options)
        training = training_crops(central, tuple(options.scale))
        batch = batch_of(place, len(data.train_rows))
        wanted, every = options.head_lr * batch / 256, options.curve or options.best
        head = borne(backbone, data, place, wanted) if limited else wanted
        if command == "semisup":
            tell(place, told_of_steps(len(data.train_rows) // batch * options.epochs, batch))
        if head < wanted:
            tell(place, f"auto: --head-lr={256 / batch * head:.3g}  (the published {options.head_lr:g} is more than a "
                        "classifier on these features bears; override with --head-lr=...)")  # fmt: skip
        tuning = Tuning(options.lr * batch / 256, head, options.epochs, options.weight_decay, schedule, every)
        progress = None
        if place.cache is not None:
            key = cache_key(about(backbone, options), data.train, data.train_rows, central, place.backend)
            key += cache_key({}, data.test, data.test_rows, central, "")
            key += repr((tuning, training, options.batch, options.seed))
            place.cache.mkdir(parents=True, exist_ok=True)
            progress = place.cache / f"{command}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        what = f"{backbone.word}: {command}"
        curve = finetune(backbone, data, central, training, tuning, place, progress, what)
        best = {f"best epoch's {name}": max(curve)} if options.best else {}
        used = {"head lr": 256 / batch * head} if limited else {}
        return {name: curve[-1], **best, **used, **({"curves": {name: curve}} if every else {})}

    return tune
