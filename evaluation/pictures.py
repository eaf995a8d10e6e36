"""Pictures for sheets and for the report, out of datasets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from PIL import Image

from evaluation.clusters import GAP, TILE, thumbnail
from evaluation.features import Labelled
from pipeline.reader import Reader


def neighbour_sheet(
    data: Labelled, queries: Int[np.ndarray, " queries"], neighbours: Int[np.ndarray, "queries shown"], tile: int = TILE
) -> Image.Image:
    """A row a query: the query, then its neighbours, in green where they are of its class and in red where not.

    queries: indices into data.test_rows; neighbours: into data.train_rows.
    """
    step, edge = tile + GAP, 3
    sheet = Image.new("RGB", ((1 + neighbours.shape[1]) * step + 3 * GAP, len(queries) * step + GAP), "white")
    test, train = Reader(data.test), Reader(data.train)
    try:
        for line, (query, found) in enumerate(zip(queries, neighbours, strict=True)):
            row = int(data.test_rows[query])
            sheet.paste(thumbnail(test.decode(row), tile), (GAP, GAP + line * step))
            for column, index in enumerate(found):
                other = int(data.train_rows[index])
                same = data.train.label[other] == data.test.label[row]
                framed = Image.new("RGB", (tile, tile), "#3cb44b" if same else "#e6194b")
                framed.paste(thumbnail(train.decode(other), tile - 2 * edge), (edge, edge))
                sheet.paste(framed, ((column + 1) * step + 3 * GAP, GAP + line * step))
    finally:
        test.close()
        train.close()
    return sheet
