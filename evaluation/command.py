"""Runs a sub-command: checks arguments, opens backbones and images, evaluates, and prints a table or writes JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from common.cli import EXIT_MISTAKE, exit_on_mistake, print_error
from evaluation.arguments import check_arguments
from training.distributed import Cluster, cluster_from_environment

if TYPE_CHECKING:  # torch is imported after the arguments are checked
    from evaluation.backbones import Backbone
    from evaluation.session import Session
    from pipeline.dataset.labelled import Labelled

Figures = dict[str, Any]
Evaluate = Callable[["Backbone", "Labelled", "Session"], Figures]


def compare(
    command: str,
    options: argparse.Namespace,
    check: Callable[[argparse.Namespace], None],
    prepare: Callable[[argparse.Namespace], Evaluate],
    labelled: Callable[..., Any] | None = None,
) -> int:
    """Evaluate each backbone on the same images; writes --json and prints a table. Returns the exit code.

    check: raises ValueError for wrong arguments. prepare: imports heavy libraries, and returns the function that
    evaluates a backbone. labelled: opens the images; default `evaluation.session.open_labelled`.
    """
    cluster = Cluster()
    with exit_on_mistake(lambda: cluster.main):
        cluster = cluster_from_environment()
        check_arguments(options)
        check(options)
        from evaluation.backbones import open_backbones
        from evaluation.repeats import merged
        from evaluation.session import open_labelled, open_session, print_note, process_group, require_channels
        from pipeline.dataset.channels.format import COLOR
        from pipeline.dataset.table import DatasetError

        session = open_session(options, cluster)
        words, say = [options.backbone, *options.peers], partial(print_note, session)
        backbones = open_backbones(words, options.seed, say)
        data, path = (labelled or open_labelled)(options, backbones[0], session)
        require_channels(backbones, getattr(data.train, "pixels", COLOR), path)  # images with masks are RGB
        evaluate = prepare(options)
    by_seed: list[list[Figures]] = [[] for _ in backbones]
    seconds, first = [0.0] * len(backbones), options.seed
    try:
        with process_group(session):
            for seed in range(first, first + getattr(options, "seeds", 1)):
                if seed > first:  # random weights, subsets and crops are those of the seed
                    options.seed, session = seed, replace(session, seed=seed)
                    backbones = open_backbones(words, seed)
                    data, path = (labelled or open_labelled)(options, backbones[0], session)
                for number, backbone in enumerate(backbones):
                    started = time.perf_counter()
                    by_seed[number].append(evaluate(backbone, data, session))
                    seconds[number] += time.perf_counter() - started
        options.seed = first
        results = [
            {**backbone.described(), **merged(figures), "seconds": spent}
            for backbone, figures, spent in zip(backbones, by_seed, seconds, strict=True)
        ]
        if cluster.main:
            report(
                command,
                options,
                {"path": path, **(data.counts() if hasattr(data, "counts") else counts(data))},
                results,
            )
    except (DatasetError, UnsuitableArgument) as error:
        print_error(error, cluster.main)
        return EXIT_MISTAKE
    except OSError as error:  # of a file that it writes; what it has computed is in the cache
        print_error(
            f"{error.filename or session.cache}: {error.strerror or error}; repair it, the same command continues"
        )
        return EXIT_MISTAKE
    return 0


class UnsuitableArgument(ValueError):
    """A mistake in the arguments that shows only with the network or its features."""


def counts(data: Labelled) -> dict[str, Any]:
    """Numbers of training images, test images and classes; accounting: what became of all files of each split."""
    from pipeline.dataset.accounting import of_splits

    classes = data.train.classes or sorted(set(data.train.label[data.train_rows].tolist()))
    return {"train_images": len(data.train_rows), "test_images": len(data.test_rows), "classes": len(classes)} | {
        "accounting": of_splits(data.train, data.test, data)
    }


def report(command: str, options: argparse.Namespace, data: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Print the table, and write the result file if --json asks for it."""
    from common.files import write_atomically
    from common.versions import versions

    settings = {
        name: str(value) if hasattr(value, "parts") else value
        for name, value in vars(options).items()
        if name not in ("backbone", "peers", "json", "data")
    }
    whole = {"command": command, "data": data, "settings": settings, "results": results, "versions": versions()}
    print(table(whole), flush=True)  # first: it must not be lost to a full disk
    if options.json is not None:
        write_atomically(options.json, json.dumps(whole, indent=1) + "\n")


def table(whole: dict[str, Any]) -> str:
    """A result file as a text table: a row for each backbone and a column for each figure, or, where these are many, a
    row for each figure."""
    import io

    from rich.console import Console
    from rich.table import Table

    from pipeline.dataset.accounting import losses

    data = whole["data"]
    counted = ", ".join(f"{data[name]:,} {name.replace('_', ' ')}" for name in data if isinstance(data[name], int))
    shown = Table(title=f"{whole['command']} on {data['path']}: {counted}", title_justify="left")
    names = [result["backbone"] for result in whole["results"]]
    rows = [figure_texts(result) for result in whole["results"]]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body = [[name, *(row.get(column, "") for column in columns)] for name, row in zip(names, rows, strict=True)]
    head = ["backbone", *columns]
    if len(columns) > MOST_COLUMNS:
        head, *body = ([str(cell) for cell in column] for column in zip(head, *body, strict=True))
    shown.add_column(head[0], overflow="fold")
    for name in head[1:]:
        shown.add_column(name, justify="right", overflow="fold")
    for cells in body:
        shown.add_row(*cells)
    text = io.StringIO()
    Console(file=text, width=max(100, 40 + 14 * len(head))).print(shown)
    return "\n".join([text.getvalue().rstrip(), *losses(data.get("accounting", {}))])


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of a result that fit into a table: numbers, and those one level below."""
    plain: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            plain |= {f"{name} {key}": one for key, one in value.items() if isinstance(one, (int, float, str))}
        elif isinstance(value, (int, float)):
            plain[name] = value
    return plain


def figure_texts(result: dict[str, Any]) -> dict[str, str]:
    """The figures of a result as texts, by name; half the width of an interval stands behind its figure."""
    plain = flat(result)
    widths = {name: f" ± {figure_text(name, plain[f'{name} ±'])}" for name in plain if f"{name} ±" in plain}
    texts = {name: figure_text(name, value) + widths.get(name, "") for name, value in plain.items()}
    return {name: text for name, text in texts.items() if not name.endswith(" ±")}


def figure_text(name: str, value: Any) -> str:
    """A figure as text; shares in percent."""
    if isinstance(value, float) and name == "seconds":
        return f"{value:.1f}"
    if isinstance(value, float) and 0 <= value <= 1 and any(word in name for word in SHARES):
        return f"{value:.2%}"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


MOST_COLUMNS = 7  # of figures; more of them become rows
SHARES = ("mIoU", "accuracy", "top1", "top5", "k-NN", "mAP", "recall", "purity", "precision")
