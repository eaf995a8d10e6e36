"""Record files whose images have no byte range (compressed shards, pixels in another order), to be spooled."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pipeline.conversion.spool import Sample
from pipeline.dataset.finding.choice import Choice
from pipeline.dataset.finding.labels import numbering
from pipeline.dataset.records.images import LISTERS
from pipeline.dataset.records.listing import opened
from pipeline.dataset.records.pixels import to_png


def record_samples(path: str, kind: str, choice: Choice, classes: tuple[str, ...]) -> Iterator[Sample]:
    """The images of one file, in its order; raw pixels as PNGs. Raises DatasetError."""
    records, number_of = LISTERS[kind](path, choice), numbering(classes)
    rows = zip(records.offsets, records.lengths, records.keys, records.labels, records.pixels, strict=True)
    with opened(path) as descriptor:
        for offset, length, key, label, pixels in rows:
            data = os.pread(descriptor, length, offset)
            yield Sample(os.path.splitext(key)[0], to_png(data, pixels) if pixels.order else data, number_of(label))
