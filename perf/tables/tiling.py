"""Peak memory and rate of `make convert ... ARGS="--tile 512"` on a large image, which this program makes.

    python -m perf.tables.tiling [--kind tif] [--side 40000] [--tile 512] [--overlap 64] [--json tiling.json]

    tif    gray of 16 bits in deflated blocks of 512 pixels
    jp2    the same as a JPEG 2000 without loss, in blocks of 1,024 pixels; needs rasterio
    svs    a whole slide in Aperio's layout, RGB, in deflated blocks of 256 pixels; needs openslide-python, -bin

One process converts it; its peak is that of the system (VmHWM; ru_maxrss begins with that of the process
that starts it), imports included, which a conversion of one tile gives for comparison.
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
SLIDE_BLOCK = 256
PIXEL = {"tif": 2, "jp2": 2, "svs": 3}  # bytes of a decoded pixel of each kind
APERIO = "Aperio Image Library v12.0.15|AppMag = 20|MPP = 0.5"  # by which OpenSlide knows its slides
CONVERT = (
    "import re, sys; from pathlib import Path; from pipeline.convert import main; code = main(sys.argv[1:]); "
    "print('peak', *re.findall(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())); sys.exit(code)"
)


def main(arguments: list[str]) -> int:
    parser = Parser("python -m perf.tables.tiling", __doc__.splitlines()[0])
    parser.add_argument("--kind", choices=PIXEL, default="tif", help="of the image (default %(default)s)")
    parser.add_argument("--side", type=at_least(16), default=40_000, help="pixels of the image (default %(default)s)")
    parser.add_argument("--tile", type=at_least(8), default=512, help="pixels of a tile (default %(default)s)")
    parser.add_argument("--overlap", type=at_least(0), default=64, help="pixels that tiles share (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return program(lambda _: measure(options, Path(folder)), show, options.json)


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """The report: for the image and for one of a single tile, tiles, seconds and peak memory of the conversion."""
    from perf.machine import machine

    sides, kind = (options.tile, options.side), options.kind
    rows = [converted(folder, side, options.tile, options.overlap, kind) for side in sides]
    return {"machine": machine(), "kind": kind, "tile": options.tile, "overlap": options.overlap, "rows": rows}


def converted(folder: Path, side: int, tile: int, overlap: int, kind: str = "tif") -> dict[str, Any]:
    """The figures of one image. Raises ValueError where a package is missing."""
    write = {"tif": write_tiff, "jp2": write_jpeg_2000, "svs": write_slide}[kind]
    source, out = write(folder / f"{side}.{kind}", side), folder / f"{side}"
    tiling = ["--tile", str(tile), "--overlap", str(overlap)]
    command = [sys.executable, "-c", CONVERT, str(source), str(out), "--format", "wds", "--workers", "1", *tiling]
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = time.perf_counter() - begun, int(done.stdout.split()[-1]) << 10
    table = SampleTable.load(out / "table.npz")
    pixels = {"image_bytes": PIXEL[kind] * side**2, "file_bytes": source.stat().st_size}
    return {"side": side, **pixels, "tiles": len(table), "seconds": seconds, "peak_bytes": peak}


def write_tiff(path: Path, side: int) -> Path:
    """A gray TIFF of 16 bits, written block by block."""
    import tifffile

    layout: dict[str, Any] = {"tile": (BLOCK, BLOCK), "compression": "zlib", "compressionargs": {"level": 1}}
    tifffile.imwrite(path, blocks(side), shape=(side, side), dtype=np.uint16, bigtiff=True, **layout)
    return path


def write_jpeg_2000(path: Path, side: int) -> Path:
    """The same as a JPEG 2000 without loss. Raises ValueError without rasterio."""
    try:
        from rasterio import shutil
    except ImportError:
        raise ValueError("--kind=jp2 needs the package rasterio: .venv/bin/python -m pip install rasterio") from None
    whole = write_tiff(path.with_suffix(".whole.tif"), side)
    shutil.copy(whole, path, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    whole.unlink()
    return path


def write_slide(path: Path, side: int) -> Path:
    """A whole slide in Aperio's layout, RGB, whose pixels are those of the TIFF modulo 256."""
    import tifffile

    layout: dict[str, Any] = {"tile": (SLIDE_BLOCK, SLIDE_BLOCK), "photometric": "rgb", "compression": "zlib"}
    layout |= {"compressionargs": {"level": 1}, "description": APERIO, "metadata": None}
    colors = (np.repeat(block.astype(np.uint8)[..., None], 3, 2) for block in blocks(side, SLIDE_BLOCK))
    tifffile.imwrite(path, colors, shape=(side, side, 3), dtype=np.uint8, **layout)
    return path


def blocks(side: int, block: int = BLOCK) -> Iterator[NDArray[np.uint16]]:
    """The blocks of the TIFF: every pixel is its row plus its column, in steps of 8, so that a tile tells its place."""
    steps = np.arange(block) // 8
    for top in range(0, side, block):
        for left in range(0, side, block):
            yield (top // 8 + left // 8 + steps[:, None] + steps).astype(np.uint16)


def show(report: dict[str, Any]) -> None:
    """Print a row for each image."""
    print(f"| {report['kind']}, pixels | its pixels, MB | its file, MB | tiles | seconds | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in report["rows"]:
        sizes = (row[name] / 1e6 for name in ("image_bytes", "file_bytes"))
        sizes_text = " | ".join(f"{size:,.1f}" for size in sizes)
        side, peak = f"{row['side']:,} x {row['side']:,}", row["peak_bytes"] / 1e6
        print(f"| {side} | {sizes_text} | {row['tiles']:,} | {row['seconds']:,.1f} | {peak:,.0f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
