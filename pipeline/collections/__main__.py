"""Fetch, verify, split and pack a collection of pictures into data/NAME; the same command goes on after a kill.

    make data NAME=openclipart
    python -m pipeline.collections NAME [--out data/NAME]

    fashion-mnist   60,000 + 10,000 gray pictures of clothes, 28 x 28, 10 classes (the demo fetches it by itself)
    openclipart     6,900 color drawings by subject, 16 classes; from Debian's package openclipart-png
    emoji           5,700 color drawings: 1,900 symbols by three hands, 9 categories; from three packages of npm

Drawings are put on white, with a longer side of at most 128 pixels. A fifth is the test; near-duplicates stay on one
side. Nothing is installed, and root is not needed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from common.cli import EXIT_MISTAKE, Parser, UserError, print_error
from pipeline.collections.drawings import ABOUT, SPLITS, complete
from pipeline.collections.prepare import NAMES, prepare
from pipeline.dataset.table import DatasetError


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("python -m pipeline.collections", __doc__)
    parser.add_argument("name", nargs="?", default=NAMES[0], help=f"{', '.join(NAMES)} (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="(default: data/NAME)")
    options = parser.parse_args(arguments)
    if options.name not in NAMES:
        parser.error(f"NAME={options.name}: there are {', '.join(NAMES)}")
    out = options.out or Path("data") / options.name
    there = complete(out)
    try:
        tables = prepare(options.name, out, len(os.sched_getaffinity(0)))
    except (DatasetError, OSError, UserError) as error:
        print_error(f"--out={out}: {error}")
        return EXIT_MISTAKE
    counts = ", ".join(f"{len(tables[split]):,} {split}" for split in SPLITS)
    print(f"{out}: {'exists already' if there else 'ready'} ({counts} images)")
    if (out / ABOUT).exists():
        about = json.loads((out / ABOUT).read_text())
        print(
            f"{about['with_near_duplicates']:,} images have near-duplicates, which stay on one side with them: "
            f"{about['groups']:,} groups; left out: {about['left_out']} (too large or damaged)"
        )
        print(f"license: {about['license']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
