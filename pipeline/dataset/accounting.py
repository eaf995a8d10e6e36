"""What became of the files of a dataset: taken, labeled, quarantined, left out. Said beside whatever it affects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.dataset.columns import blocks
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.sniff import HAS_HEIF, HEIF, HEIF_PACKAGE
from pipeline.dataset.table import SampleTable, State

KINDS = 8  # in a message

Counted = dict[str, Any]


def accounting(table: SampleTable) -> Counted:
    """images: that are used; labeled: of these; classes: that occur among them; quarantined: reason -> number;
    left_out: kind -> number, None if it is not known."""
    labeled, classes = 0, np.empty(0, np.int32)
    for part in blocks(len(table)):
        labels = table.label[part][(table.state[part] != State.QUARANTINED) & (table.label[part] >= 0)]
        labeled, classes = labeled + len(labels), np.union1d(classes, labels)
    return {
        "images": table.images,
        "labeled": labeled,
        "classes": len(classes),
        "quarantined": dict(Counter(table.quarantine.values()).most_common()),
        "left_out": table.left_out,
    }


def of_splits(train: SampleTable, test: SampleTable | None, labelled: Labelled | None = None) -> dict[str, Counted]:
    """The accounting of each split; with `unseen`, the number of scored images of a class that no training image has,
    if there are any."""
    splits = {"train": accounting(train)} | ({} if test is None or test is train else {"test": accounting(test)})
    if labelled is not None and labelled.unseen:
        splits["test" if "test" in splits else "train"]["unseen"] = labelled.unseen
    return splits


def in_one_line(counted: Counted, manifest: str = "") -> str:
    """'53 images, 53 labeled (2 classes); left out: 5 (.heic 5); 1 of 54 images quarantined (1 truncated)'.

    manifest: the file with the names of quarantined images.
    """
    classes = f" ({counted['classes']} class{'es' * (counted['classes'] != 1)})" if counted["labeled"] else ""
    text = f"{counted['images']:,} images, {counted['labeled']:,} labeled{classes}; left out: {_left_out(counted)}"
    if bad := sum(counted["quarantined"].values()):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counted["quarantined"].items())
        text += f"; {bad:,} of {bad + counted['images']:,} images quarantined ({reasons})"
        text += f", their names are in {manifest}" if manifest else ""
    if unseen := counted.get("unseen"):
        text += f"; scored without a training image of their class, and so always wrong: {unseen:,}"
    return text


def losses(splits: Mapping[str, Counted]) -> list[str]:
    """A line for each split of which not every file is used, or not every class can be learned."""
    return [
        f"{name} images: {in_one_line(counted)}"
        for name, counted in splits.items()
        if counted["quarantined"]
        or counted["left_out"]
        or counted.get("unseen")
        or 0 < counted["labeled"] < counted["images"]
    ]


def _left_out(counted: Counted) -> str:
    """'5 (.heic 4, link 1)', or 'nothing'."""
    if counted["left_out"] is None:
        return "not known (a table of an older version)"
    kinds = sorted(counted["left_out"].items(), key=lambda item: (-item[1], item[0]))
    named = [f"{kind} {number:,}" for kind, number in kinds[:KINDS]] + ["..."] * (len(kinds) > KINDS)
    advice = (
        f", {HEIF[0]} needs pip install {HEIF_PACKAGE}" if not HAS_HEIF and {*HEIF} & {*counted["left_out"]} else ""
    )
    return f"{sum(counted['left_out'].values()):,} ({', '.join(named)}){advice}" if kinds else "nothing"
