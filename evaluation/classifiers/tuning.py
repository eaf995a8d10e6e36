"""Arguments of the sub-commands that fine-tune the whole network, and the function that starts fine-tuning."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from evaluation.arguments import add_scale, check_number, check_scale

PROTOCOL_STEPS = 1000  # 20 epochs of 12,811 images, 256 a step: 1 % of ImageNet
ENOUGH_STEPS = 400  # with fewer, the figure depends more on the number of steps than on the features
MEASURED = 256  # images whose features are measured
BATCH_NORM = 2  # images of each process that batch norm needs to train


def add_tuning(
    parser: argparse.ArgumentParser, epochs: int, rate: float | None = None, head: float | None = None
) -> None:
    """Add the options of fine-tuning. rate, head: default learning rates; None: the sub-command chooses them."""
    parser.add_argument("--lr", type=float, default=rate, help="of the backbone, for 256 images a step")
    parser.add_argument("--head-lr", type=float, default=head, help="of the new classifier, for 256 images a step")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"of fine-tuning (default {epochs})")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="in fine-tuning (default 0)")
    add_scale(parser)
    parser.add_argument("--curve", action="store_true", help="score after each epoch, not only the last")
    parser.add_argument("--best", action="store_true", help="also the best over epochs, chosen on the scored images")


def check_tuning(options: argparse.Namespace) -> None:
    """Raises ValueError (one line)."""
    if options.epochs < 1:
        raise ValueError(f"--epochs={options.epochs}: expected an integer of at least 1")
    for name in ("lr", "head_lr", "weight_decay"):
        check_number(options, name, zero=True)
    check_scale(options.scale)
    if options.stage or options.pool:
        raise ValueError("--stage and --pool do not apply: the whole network is trained")


def steady_rate(squared_length: float, classes: int, momentum: float = 0.9) -> float:
    """The largest learning rate at which a linear classifier is certain to be stable at the start.

    There all classes are equally probable, and the curvature of cross entropy in the weights is E[f f^T] / classes: at
    most the features' mean squared length / classes, with the bias as one more feature. Descent with momentum diverges
    at rates above 2 (1 + momentum) / curvature. Half of that is returned, since two competing classes have more
    curvature than equal classes.
    """
    return (1 + momentum) * classes / (squared_length + 1)


def short_training_note(steps: int, batch: int) -> str | None:
    """A note that training is too short to compare with the protocol; None if it is long enough."""
    if steps >= ENOUGH_STEPS:
        return None
    return (
        f"note: {steps} steps of {batch} images; the protocol has {PROTOCOL_STEPS:,} on 1 % of ImageNet; more --epochs "
        "or a smaller --batch may raise the accuracy"
    )


def tuner(
    options: argparse.Namespace, command: str, schedule: str, limited: bool = False
) -> Callable[..., dict[str, Any]]:
    """A function of (backbone, data, session, name of the figure) that fine-tunes and returns the figures.

    limited: lower options.head_lr to a rate at which the features are stable, and print a note.
    """
    import hashlib

    from evaluation.classifiers.finetune import Tuning, finetune
    from evaluation.feature_cache import cache_key
    from evaluation.frozen_features import feature_source, table_features
    from evaluation.session import batch_of, central_crops, print_note, training_crops

    def stable_head_rate(backbone: Any, data: Any, session: Any, rate: float) -> float:
        """The classifier's learning rate: `rate`, or a lower one if training would diverge."""
        rows = data.train_rows[:: max(1, len(data.train_rows) // MEASURED)]
        length = float(table_features(backbone, data.train, rows, session, options).square().sum(1).mean())
        classes = len(set(data.train.label[data.train_rows].tolist()))
        return min(rate, steady_rate(length, classes))

    def tune(backbone: Any, data: Any, session: Any, name: str) -> dict[str, Any]:
        central = central_crops(backbone, options)
        training = training_crops(central, tuple(options.scale))
        batch = batch_of(session, len(data.train_rows))
        published, every = options.head_lr * batch / 256, options.curve or options.best
        head = stable_head_rate(backbone, data, session, published) if limited else published
        if command == "semisup":
            print_note(session, short_training_note(len(data.train_rows) // batch * options.epochs, batch))
        if head < published:
            reason = f"a classifier on these features would diverge at the published {options.head_lr:g}"
            note = f"auto: --head-lr={256 / batch * head:.3g}  ({reason}; override with --head-lr=...)"
            print_note(session, note)
        tuning = Tuning(options.lr * batch / 256, head, options.epochs, options.weight_decay, schedule, every)
        progress = None
        if session.cache is not None:
            key = cache_key(feature_source(backbone, options), data.train, data.train_rows, central, session.backend)
            key += cache_key({}, data.test, data.test_rows, central, "")
            key += repr((tuning, training, options.batch, options.seed))
            session.cache.mkdir(parents=True, exist_ok=True)
            progress = session.cache / f"{command}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        what = f"{backbone.word}: {command}"
        curve = finetune(backbone, data, central, training, tuning, session, progress, what)
        best = {f"best epoch's {name}": max(curve)} if options.best else {}
        used = {"head lr": 256 / batch * head} if limited else {}
        return {name: curve[-1], **best, **used, **({"curves": {name: curve}} if every else {})}

    return tune
