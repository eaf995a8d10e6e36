"""The cluster of every image: its prototype, as a table and as pictures. No labels are needed.

Writes to --out: clusters.parquet (or .csv with --csv), a row an image: row, name, class, prototype (the nearest), score
(their cosine), probability and entropy (nats) of softmax(scores / temperature); prototypes.csv, a row a prototype: how
many images, their mean score, the entropy of their classes; cluster-00012.png, the images of a cluster with the highest
scores. CKPT is a run or a published file: a backbone alone has no prototypes. Of several heads of prototypes the first
counts.

    evaluate.py clusters runs/demo /my/images --out clusters
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import EXIT_MISTAKE, exit_on_mistake, print_error
from evaluation.arguments import check_arguments, command_parser
from evaluation.command import report
from training.distributed import Cluster, cluster_from_environment


def main(arguments: list[str]) -> int:
    parser = command_parser("clusters", __doc__, several=False)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if absent")
    parser.add_argument("--csv", action="store_true", help="clusters.csv in place of clusters.parquet")
    parser.add_argument("--sheets", type=int, default=50, help="of the largest clusters (default 50)")
    parser.add_argument("--images", type=int, default=32, help="on a sheet at most (default 32)")
    options = parser.parse_args(arguments)
    cluster = Cluster()
    with exit_on_mistake(cluster.main):
        cluster = cluster_from_environment()
        check_arguments(options)
        check(options)
        from evaluation.backbones import open_backbone
        from evaluation.command import AskedTooMuch
        from evaluation.session import open_tables, place_for, together
        from pipeline.dataset.table import DatasetError

        place = place_for(options, cluster)
        backbone = open_backbone(options.backbone, options.seed)
        if backbone.swav is None:
            raise ValueError(
                f"CKPT={options.backbone} has no prototypes; give a run or a published file with its heads"
            )
        tables = open_tables(options, backbone, place)
    try:
        with together(place):
            figures = cluster_images(options, backbone, tables[0], place)
    except (DatasetError, AskedTooMuch) as error:
        print_error(error, cluster.main)
        return EXIT_MISTAKE
    if cluster.main:
        data = {"path": tables[2], "images": figures.pop("images")}
        report("clusters", options, data, [{**backbone.described(), **figures}])
        print(f"{options.out}: {'clusters.csv' if options.csv else 'clusters.parquet'}, prototypes.csv, sheets")
    return 0


def check(options: argparse.Namespace) -> None:
    for name in ("sheets", "images"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name}={getattr(options, name)}: expected an integer from 0 on")
    if options.stage or options.pool:
        raise ValueError("--stage and --pool have no meaning here: prototypes belong to the last features")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out={options.out} is a file; give a folder")


def cluster_images(options: argparse.Namespace, backbone, table, place) -> dict:
    """Figures of the clustering; rank 0 writes the files."""
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
    scores = prototype_scores(backbone.swav.cpu().eval(), table_features(backbone, table, rows, place, options))
    found, label = assigned(scores, backbone.temperature), table.label[rows]
    count = scores.shape[1]
    figures = {"images": len(rows), **summary(found["prototype"], label, count)}
    if not place.cluster.main:
        return figures
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    named = [*table.classes, ""] if table.classes else []
    classes = [named[value] for value in label] if named else [str(value) if value >= 0 else "" for value in label]
    columns = {"row": rows, "name": [table.name(int(row)) for row in rows], "class": classes, **found}
    write_table(columns, out / ("clusters.csv" if options.csv else "clusters.parquet"))
    sizes = np.bincount(found["prototype"], minlength=count)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(found["prototype"], found["score"], count) / sizes
    entropy = class_entropy(found["prototype"], label, count)
    per = {"prototype": np.arange(count), "images": sizes, "mean_score": mean, "class_entropy": entropy}
    write_table(per, out / "prototypes.csv")
    largest = [int(number) for number in np.argsort(-sizes, kind="stable")[: options.sheets] if sizes[number]]
    with progress_bar(len(largest), "contact sheets", "sheet", True) as bar:
        for number in largest:
            chosen = top_images(found["prototype"], found["score"], number, max(1, options.images))
            notes = [f"{found['score'][index]:.2f} {classes[index]}"[:14] for index in chosen]
            told = "" if np.isnan(entropy[number]) else f", class entropy {entropy[number]:.2f}"
            title = f"prototype {number}: {sizes[number]} images{told}"
            sheet = contact_sheet(table, [int(row) for row in rows[chosen]], title, notes=notes)
            sheet.save(out / f"cluster-{number:05d}.png")
            bar.update()
    return figures
