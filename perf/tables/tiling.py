"""Peak memory and rate of `make convert ... ARGS="--tile 512"` on a large tiled TIFF, which this program makes.

    python -m perf.tables.tiling [--side 40000] [--tile 512] [--overlap 64] [--json tiling.json]

The TIFF is gray of 16 bits in deflated blocks of 512 pixels. One process converts it; its peak is that of the system
(ru_maxrss), imports included, which a conversion of one tile gives for comparison.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cli import Parser, at_least
from perf.program import program
from pipeline.dataset.table import SampleTable

BLOCK = 512  # pixels a side of the TIFF's blocks
CONVERT = (
    "import resource, sys; from pipeline.convert import main; code = main(sys.argv[1:]); "
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.tables.tiling", __doc__.splitlines()[0])
    parser.add_argument("--side", type=at_least(16), default=40_000, help="pixels of the TIFF (default %(default)s)")
    parser.add_argument("--tile", type=at_least(8), default=512, help="pixels of a tile (default %(default)s)")
    parser.add_argument("--overlap", type=at_least(0), default=64, help="pixels that tiles share (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return program(lambda _: measure(options, Path(folder)), show, options.json)


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """The report: for the TIFF and for one of a single tile, tiles, seconds and peak memory of the conversion."""
    from perf.machine import machine

    rows = [converted(folder, side, options.tile, options.overlap) for side in (options.tile, options.side)]
    return {"machine": machine(), "tile": options.tile, "overlap": options.overlap, "rows": rows}


def converted(folder: Path, side: int, tile: int, overlap: int) -> dict[str, Any]:
    """The figures of one TIFF."""
    source, out = write_tiff(folder / f"{side}.tif", side), folder / f"{side}"
    tiling = ["--tile", str(tile), "--overlap", str(overlap)]
    command = [sys.executable, "-c", CONVERT, str(source), str(out), "--format", "wds", "--workers", "1", *tiling]
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = time.perf_counter() - begun, int(done.stdout.split()[-1]) << 10
    table = SampleTable.load(out / "table.npz")
    pixels = {"image_bytes": 2 * side**2, "file_bytes": source.stat().st_size}
    return {"side": side, **pixels, "tiles": len(table), "seconds": seconds, "peak_bytes": peak}


def write_tiff(path: Path, side: int) -> Path:
    """A gray TIFF of 16 bits, written block by block."""
    import tifffile

    layout: dict[str, Any] = {"tile": (BLOCK, BLOCK), "compression": "zlib", "compressionargs": {"level": 1}}
    tifffile.imwrite(path, blocks(side), shape=(side, side), dtype=np.uint16, bigtiff=True, **layout)
    return path


def blocks(side: int) -> Iterator[NDArray[np.uint16]]:
    """The blocks of the TIFF: every pixel is its row plus its column, in steps of 8, so that a tile tells its place."""
    steps = np.arange(BLOCK) // 8
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            yield (top // 8 + left // 8 + steps[:, None] + steps).astype(np.uint16)


def show(report: dict[str, Any]) -> None:
    """Print a row for each TIFF."""
    print("| TIFF, pixels | its pixels, MB | its file, MB | tiles | seconds | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in report["rows"]:
        sizes = (row[name] / 1e6 for name in ("image_bytes", "file_bytes"))
        sizes_text = " | ".join(f"{size:,.1f}" for size in sizes)
        side, peak = f"{row['side']:,} x {row['side']:,}", row["peak_bytes"] / 1e6
        print(f"| {side} | {sizes_text} | {row['tiles']:,} | {row['seconds']:,.1f} | {peak:,.0f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
