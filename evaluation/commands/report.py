"""One HTML page with result files side by side, and pictures of what backbones have learned.

For CKPT and each of --peers, side by side: the run's learning curve, the images of its prototypes with the entropy of
their classes, nearest neighbors of queries, and the features in two dimensions. For --results: a table for each
sub-command and dataset, and curves if there are any. CKPT none: only tables and curves.

    evaluate.py knn runs/demo --peers random --json knn.json
    evaluate.py report runs/demo --peers random --results knn.json --out report.html
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

from common.cli import EXIT_MISTAKE, exit_on_mistake, print_error
from evaluation.arguments import check_arguments, check_out, command_parser
from training.distributed import Cluster

NOTHING = "none"
PROJECTIONS = ("pca", "tsne")


def main(arguments: list[str]) -> int:
    parser = command_parser("report", __doc__)
    parser.add_argument("--results", metavar="FILE", type=Path, nargs="+", default=[], help="files written by --json")
    parser.add_argument("--out", metavar="HTML", type=Path, default=Path("report.html"), help="default report.html")
    parser.add_argument(
        "--images", type=int, default=2000, help="largest number of images in the plot of features (default 2000)"
    )
    parser.add_argument(
        "--projection", default="pca", help="pca: two principal components (default), or tsne (needs scikit-learn)"
    )
    parser.add_argument(
        "--queries", type=int, default=10, help="number of queries shown with their neighbors (default 10)"
    )
    options = parser.parse_args(arguments)
    cluster, parts = Cluster(), []
    with exit_on_mistake(cluster.main):
        check_arguments(options)
        check_out("--out", options.out)
        for name in ("images", "queries"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name}={getattr(options, name)}: expected an integer of at least 1")
        if options.projection not in PROJECTIONS:
            raise ValueError(f"--projection={options.projection}: expected {' or '.join(PROJECTIONS)}")
        if options.projection == "tsne" and importlib.util.find_spec("sklearn") is None:
            raise ValueError("--projection=tsne needs scikit-learn: .venv/bin/python -m pip install scikit-learn")
        wholes = [read_result(file) for file in options.results]
        if options.backbone == NOTHING and not wholes:
            raise ValueError("CKPT is none and --results is missing: there is nothing to report")
        from evaluation.report.page import page, result_tables
        from pipeline.dataset.table import DatasetError

        opened = None if options.backbone == NOTHING else open_all(options, cluster)
    parts += [*result_tables(wholes), *result_curves(wholes)]
    try:
        if opened is not None:
            backbones, data, session = opened
            parts += kinds([backbone_pictures(backbone, data, session, options) for backbone in backbones])
    except (DatasetError, ValueError) as error:
        print_error(error, cluster.main)
        return EXIT_MISTAKE
    from common.files import write_atomically

    write_atomically(options.out, page("Backbones, evaluated", parts))
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")
    if options.json is not None:
        made = {"command": "report", "page": str(options.out), "results": wholes}
        write_atomically(options.json, json.dumps(made, indent=1) + "\n")
    return 0


def read_result(file: Path) -> dict[str, Any]:
    """A result file of another sub-command. Raises ValueError (one line)."""
    try:
        whole = json.loads(file.read_text())
        _ = [result["backbone"] for result in whole["results"]], whole["command"], whole["data"]["path"]
    except OSError as error:
        raise ValueError(f"--results={file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--results={file} is not a result file; give a file that a sub-command wrote with --json"
        ) from None
    return whole


def open_all(options: argparse.Namespace, cluster: Cluster) -> tuple[Any, Any, Any]:
    from evaluation.backbones import open_backbones
    from evaluation.session import open_labelled, open_session, print_note, require_channels

    session = open_session(options, cluster)
    words, say = [options.backbone, *options.peers], partial(print_note, session)
    backbones = open_backbones(words, options.seed, say)
    data, path = open_labelled(options, backbones[0], session)
    require_channels(backbones, data.train.pixels, path)
    return backbones, data, session


def result_curves(wholes: list[dict[str, Any]]) -> list[str]:
    """Figures over epochs: a picture for each sub-command and dataset that has any."""
    from evaluation.report.page import heading, picture, side_by_side
    from evaluation.report.pictures import curves

    groups: dict[str, dict[str, list[float]]] = {}
    for whole in wholes:
        for result in whole["results"]:
            for name, curve in result.get("curves", {}).items():
                lines = groups.setdefault(f"{whole['command']} on {whole['data']['path']}", {})
                lines[f"{result['backbone']}, {name}"] = curve
    made = [picture(curves(lines, title), f"Top-1 after each epoch, {title}") for title, lines in groups.items()]
    return [heading("Curves"), side_by_side(made)] if made else []


def kinds(pictures: list[dict[str, str]]) -> list[str]:
    """One part of the page for each kind of picture, with the backbones side by side."""
    from evaluation.report.page import heading, side_by_side

    parts = []
    for kind in dict.fromkeys(kind for of_one in pictures for kind in of_one):
        parts += [heading(kind), side_by_side([of_one[kind] for of_one in pictures if kind in of_one])]
    return parts


def backbone_pictures(backbone: Any, data: Any, session: Any, options: argparse.Namespace) -> dict[str, str]:
    """The pictures of one backbone, by their headings."""
    import numpy as np
    from torch.nn.functional import normalize

    from evaluation.clusters import assigned, class_entropy, prototype_scores
    from evaluation.frozen_features import split_features
    from evaluation.report.page import picture
    from evaluation.report.pictures import atlas, neighbor_sheet, projection, run_curve
    from evaluation.retrieval import nearest

    train, test = split_features(backbone, data, session, options)
    made = {}
    if (curve := run_curve(Path(backbone.word))) is not None:
        made["Pre-training"] = picture(curve, f"{backbone.word}: loss, and k-NN accuracy")
    if backbone.swav is not None and not (options.stage or options.pool):
        scores = prototype_scores(backbone.swav.cpu().eval(), train)
        assignment, label = assigned(scores, backbone.temperature), data.train.label[data.train_rows]
        entropy = class_entropy(assignment["prototype"], label, scores.shape[1])
        sheet = atlas(data.train, data.train_rows, assignment, entropy, scores.shape[1])
        caption = "the largest prototypes: their images with the highest scores, the entropy (nats) of their classes"
        made["Prototypes"] = picture(sheet, f"{backbone.word}: {caption}")
    queries = np.linspace(0, len(test) - 1, min(options.queries, len(test))).astype(int)
    _, index = nearest(normalize(train), normalize(test)[queries.tolist()], 9)
    caption = "queries (left) and their nearest images by cosine; green: the query's class, red: another class"
    made["Nearest neighbors"] = picture(
        neighbor_sheet(data, queries, index.numpy(), tile=72), f"{backbone.word}: {caption}"
    )
    points = np.linspace(0, len(test) - 1, min(options.images, len(test))).astype(int)
    label = data.test.label[data.test_rows[points]]
    plane = projection(normalize(test)[points.tolist()].numpy(), label, data.test.classes, options.projection)
    caption = f"{backbone.word} ({backbone.architecture}): features of {len(points):,} test images, unit length"
    made["Features in two dimensions"] = picture(plane, caption)
    return made
