"""Squares of a TIFF of any size by tifffile: the blocks (tiles or strips) that they touch are decoded, no others.

Channels are the samples of a page, interleaved or planar, or pages of one size. Of a pyramid the finest level is read.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.channels.tiff import PALETTE
from pipeline.dataset.images import BadImage
from pipeline.dataset.table import DatasetError

CACHE = 1 << 26  # bytes of decoded blocks that are kept for the next squares
LARGEST_BLOCK = 1 << 28  # bytes of one decoded block
UNCOMPRESSED, SEPARATE = 1, 2


class TiffPages:
    """The pages that are one image; raises BadImage for a TIFF whose blocks are no numbers or too large."""

    def __init__(self, pages: list[Any]) -> None:
        page = pages[0]
        self.file, self.pages = page.parent.filehandle, pages
        self.height, self.width = int(page.imagelength), int(page.imagewidth)
        self.samples, self.planar = int(page.samplesperpixel), page.planarconfig == SEPARATE
        self.channels, self.dtype = self.samples * len(pages), np.dtype(page.dtype)
        self.rows = int(page.tilelength if page.is_tiled else min(page.rowsperstrip, self.height))
        self.columns = int(page.tilewidth if page.is_tiled else self.width)
        self.across = -(-self.width // self.columns)
        self.down = -(-self.height // self.rows)
        self.blocks: OrderedDict[tuple[int, int], NDArray | None] = OrderedDict()
        self.kept = 0
        planes = 1 if self.planar else self.samples
        self.row_bytes = self.width * planes * self.dtype.itemsize
        whole_numbers = page.bitspersample == 8 * self.dtype.itemsize
        if not whole_numbers or page.photometric == PALETTE or page.imagedepth != 1:
            raise BadImage("a TIFF of palette colors, of packed bits or of volumes")
        self.bare = page.compression == UNCOMPRESSED and not page.is_tiled and page.predictor == 1
        if not self.bare and self.rows * self.columns * planes * self.dtype.itemsize > LARGEST_BLOCK:
            raise BadImage(f"compressed blocks of {self.columns} x {self.rows} pixels; store it in tiles")

    def read(self, top: int, left: int, side: int) -> NDArray:
        """The square (side, side, C). Raises BadImage for a damaged block."""
        out = np.zeros((side, side, self.channels), self.dtype)
        for number in range(len(self.pages)):
            first = number * self.samples
            for plane in range(self.samples if self.planar else 1):
                start, count = (first + plane, 1) if self.planar else (first, self.samples)
                self._plane(out[:, :, start : start + count], number, plane, top, left)
        return out

    def _plane(self, out: NDArray, number: int, plane: int, top: int, left: int) -> None:
        side = len(out)
        if self.bare:
            return self._bare_rows(out, number, plane, top, left)
        for down in range(top // self.rows, (top + side - 1) // self.rows + 1):
            for across in range(left // self.columns, (left + side - 1) // self.columns + 1):
                block = self._block(number, (plane * self.down + down) * self.across + across)
                if block is None:  # a block that was never written
                    continue
                y, x = down * self.rows, across * self.columns
                rows = slice(max(top, y), min(top + side, y + block.shape[0]))
                columns = slice(max(left, x), min(left + side, x + block.shape[1]))
                if rows.start < rows.stop and columns.start < columns.stop:
                    out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = block[
                        rows.start - y : rows.stop - y, columns.start - x : columns.stop - x
                    ]
        return None

    def _block(self, number: int, index: int) -> NDArray | None:
        """A decoded block (rows, columns, samples); None if the file has no bytes of it."""
        if (number, index) in self.blocks:
            self.blocks.move_to_end((number, index))
            return self.blocks[number, index]
        page = self.pages[number]
        try:
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            data = os.pread(self.file.fileno(), count, offset) if count else None
            tables = getattr(page, "jpegtables", None)
            block = page.decode(data, index, jpegtables=tables)[0] if data else None
        except Exception as error:  # tifffile raises anything on broken data
            raise _reason(error) from None
        if block is not None:
            block = block.reshape(block.shape[-3:])
            self.kept += block.nbytes
        self.blocks[number, index] = block
        while self.kept > CACHE and len(self.blocks) > 1:
            _, oldest = self.blocks.popitem(last=False)
            self.kept -= 0 if oldest is None else oldest.nbytes
        return block

    def _bare_rows(self, out: NDArray, number: int, plane: int, top: int, left: int) -> None:
        """Rows of uncompressed strips, which may be as large as the image: only the bytes of the square are read."""
        page, planes = self.pages[number], out.shape[2]
        size = out.shape[1] * planes * self.dtype.itemsize
        stored = self.dtype.newbyteorder(page.parent.byteorder)
        for row in range(len(out)):
            y = top + row
            start = page.dataoffsets[plane * self.down + y // self.rows] + y % self.rows * self.row_bytes
            data = os.pread(self.file.fileno(), size, start + left * planes * self.dtype.itemsize)
            if len(data) != size:
                raise BadImage("truncated")
            out[row] = np.frombuffer(data, stored).reshape(-1, planes)


def opened(path: Path, layout: str) -> TiffPages | None:
    """The image of a TIFF: the finest level of its first series. None for pages that are rows, not channels, as some
    writers store an array with channels last. layout: `data.layout`. Raises BadImage, and DatasetError where a package
    is missing."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it tolerates
    try:
        level = tifffile.TiffFile(path).series[0].levels[0]
        pages = [page.aspage() for page in level.pages if page is not None]
        channels_last = layout == "hwc" or (layout == "auto" and level.shape[0] >= level.shape[-1])
        if len(pages) > 1 and "Q" in level.axes and channels_last:
            return None
    except Exception as error:  # tifffile raises anything on broken data
        raise _reason(error) from None
    kinds = {(page.shape, page.dtype, page.compression, page.is_tiled) for page in pages}
    if len(kinds) != 1:
        raise BadImage("pages of different kinds")
    return TiffPages(pages)


def _reason(error: Exception) -> Exception:
    if "imagecodecs" in str(error):
        advice = ".venv/bin/python -m pip install imagecodecs"
        return DatasetError(f"a compressed TIFF that needs the package imagecodecs; install it: {advice}")
    return BadImage("unreadable")
