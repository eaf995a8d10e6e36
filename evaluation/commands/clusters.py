"""The cluster of every image, that is its nearest prototype, as a table and as pictures. Needs no labels.

Writes to --out: clusters.parquet (or .csv with --csv), one row per image: row, name, class, nearest prototype, score
(their cosine), probability and entropy (nats) of softmax(scores / temperature); prototypes.csv, one row per prototype:
number of images, their mean score, the entropy of their classes; cluster-00012.png, the images of a cluster with the
highest scores. CKPT is a run or a published file: a backbone alone has no prototypes. With several heads of prototypes
the first is used.

    evaluate.py clusters runs/demo /my/images --out clusters
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from common.cli import EXIT_MISTAKE, exit_on_mistake, print_error
from evaluation.arguments import check_arguments, command_parser
from evaluation.command import report
from training.distributed import Cluster, cluster_from_environment


def main(arguments: list[str]) -> int:
    parser = command_parser("clusters", __doc__, several=False)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; created if missing")
    parser.add_argument("--csv", action="store_true", help="clusters.csv instead of clusters.parquet")
    parser.add_argument(
        "--sheets", type=int, default=50, help="number of sheets, for the largest clusters (default 50)"
    )
    parser.add_argument("--images", type=int, default=32, help="largest number of images on a sheet (default 32)")
    options = parser.parse_args(arguments)
    cluster = Cluster()
    with exit_on_mistake(lambda: cluster.main):
        cluster = cluster_from_environment()
        check_arguments(options)
        check(options)
        from evaluation.backbones import open_backbone
        from evaluation.command import UnsuitableArgument
        from evaluation.session import open_session, open_tables, print_note, process_group
        from pipeline.dataset.accounting import accounting
        from pipeline.dataset.table import DatasetError

        session = open_session(options, cluster)
        backbone = open_backbone(options.backbone, options.seed, partial(print_note, session))
        if backbone.swav is None:
            raise ValueError(
                f"CKPT={options.backbone} has no prototypes; give a run or a published file with its heads"
            )
        tables = open_tables(options, backbone, session)
    try:
        with process_group(session):
            figures = cluster_images(options, backbone, tables[0], session)
    except (DatasetError, UnsuitableArgument) as error:
        print_error(error, cluster.main)
        return EXIT_MISTAKE
    if cluster.main:
        counted = {"accounting": {"train": accounting(tables[0])}}
        data = {"path": tables[2], "images": figures.pop("images")} | counted
        report("clusters", options, data, [{**backbone.described(), **figures}])
        print(f"{options.out}: {'clusters.csv' if options.csv else 'clusters.parquet'}, prototypes.csv, sheets")
    return 0


def check(options: argparse.Namespace) -> None:
    for name, low in (("sheets", 0), ("images", 1)):
        if getattr(options, name) < low:
            raise ValueError(f"--{name}={getattr(options, name)}: expected an integer of at least {low}")
    if options.stage or options.pool:
        raise ValueError("--stage and --pool do not apply: prototypes belong to the last features")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out={options.out} is a file; give a folder")


def cluster_images(options: argparse.Namespace, backbone, table, session) -> dict:
    """Assign all images; rank 0 writes the files. Returns the figures of the clustering."""
    import numpy as np

    from common.progress import progress_bar
    from evaluation.clusters import (
        assigned,
        class_entropy,
        contact_sheet,
        prototype_scores,
        summary,
        top_images,
        write_table,
    )
    from evaluation.frozen_features import table_features
    from evaluation.subsets import listed_rows

    rows = table.usable()
    if options.train_list is not None:
        rows = listed_rows(table, options.train_list, "--train-list")
    scores = prototype_scores(backbone.swav.cpu().eval(), table_features(backbone, table, rows, session, options))
    assignment, label = assigned(scores, backbone.temperature), table.label[rows]
    count = scores.shape[1]
    figures = {"images": len(rows), **summary(assignment["prototype"], label, count)}
    if not session.cluster.main:
        return figures
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    named = [*table.classes, ""] if table.classes else []
    classes = [named[value] for value in label] if named else [str(value) if value >= 0 else "" for value in label]
    columns = {"row": rows, "name": [table.name(int(row)) for row in rows], "class": classes, **assignment}
    write_table(columns, out / ("clusters.csv" if options.csv else "clusters.parquet"))
    sizes = np.bincount(assignment["prototype"], minlength=count)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(assignment["prototype"], assignment["score"], count) / sizes
    entropy = class_entropy(assignment["prototype"], label, count)
    per = {"prototype": np.arange(count), "images": sizes, "mean_score": mean, "class_entropy": entropy}
    write_table(per, out / "prototypes.csv")
    largest = [int(number) for number in np.argsort(-sizes, kind="stable")[: options.sheets] if sizes[number]]
    with progress_bar(len(largest), "contact sheets", "sheet", True) as bar:
        for number in largest:
            chosen = top_images(assignment["prototype"], assignment["score"], number, options.images)
            notes = [f"{assignment['score'][index]:.2f} {classes[index]}"[:14] for index in chosen]
            classes_note = "" if np.isnan(entropy[number]) else f", class entropy {entropy[number]:.2f}"
            title = f"prototype {number}: {sizes[number]} images{classes_note}"
            sheet = contact_sheet(table, [int(row) for row in rows[chosen]], title, notes=notes)
            sheet.save(out / f"cluster-{number:05d}.png")
            bar.update()
    return figures
