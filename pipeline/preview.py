"""A sheet of images with their crops as the network sees them, for any recipe and backend.

    python -m pipeline.preview RECIPE.yaml [key=value ...] [--rows 6] [--epoch 0] [--out preview.png]

Each row shows the image with its windows, then its de-normalized crops, framed in the color of their window.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from PIL import Image, ImageDraw

from common.cli import EXIT_MISTAKE, Parser, note, print_error
from config.groups import groups_of
from config.recipe import load_config
from pipeline.crops import Crops, crops_from_config, usual_backend
from pipeline.custom import changed, custom_changes, unnormalized
from pipeline.dataset.channels.decode import false_color, shown_channels
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.open import open_splits
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable
from pipeline.draw import Draw, draw
from pipeline.fitting import fit_to_pixels
from pipeline.loader import execute, make_backend
from pipeline.order import order
from pipeline.requests import Feed

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#000075", "#f032e6")
SPREAD = 2.5  # standard deviations
TILE, GAP = 176, 8  # pixels: longest side of an image on the sheet, and the space between tiles


def main(arguments: list[str]) -> int:
    parser = Parser("python -m pipeline.preview", __doc__.splitlines()[0])
    parser.add_argument("recipe", help="a recipe, e.g. config/demo.yaml")
    parser.add_argument("settings", nargs="*", default=[], help="key=value settings that override the recipe's")
    parser.add_argument("--rows", type=int, default=6, help="images on the sheet (default 6)")
    parser.add_argument("--epoch", type=int, default=0, help="epoch whose draw is shown (default 0)")
    parser.add_argument(
        "--channels",
        default="",
        help="three channels, from 0 on, to show as red, green and blue, e.g. 3,2,1 (default 0,1,2)",
    )
    parser.add_argument("--out", type=Path, default=Path("preview.png"), help="PNG to write (default preview.png)")
    options = parser.parse_intermixed_args(arguments)
    try:
        if not 1 <= options.rows <= 1000 or options.epoch < 0:
            raise ValueError(
                f"--rows={options.rows} --epoch={options.epoch}: expected 1 to 1000 rows and an epoch from 0"
            )
        config = load_config([options.recipe, *options.settings])
        if options.channels and not re.fullmatch(r"\d{1,4},\d{1,4},\d{1,4}", options.channels):
            raise ValueError(f"--channels={options.channels}: expected three numbers from 0 on, e.g. 3,2,1")
        chosen = [int(number) for number in options.channels.split(",")] if options.channels else []
        sheet = preview(config, options.rows, options.epoch, chosen)
        sheet.save(options.out, format="PNG")
        print("\n".join(described(config)))
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_MISTAKE
    print(f"{options.out}: {sheet.width} x {sheet.height} pixels, backend {config.pipeline.backend}")
    return 0


def described(config: DictConfig) -> list[str]:
    """A line for each group of crops: their numbers, size and area, and which of them give codes."""
    lines, first = [], 0
    for group in groups_of(config.crops):
        numbers = range(first, first + group["count"])
        codes = [str(number) for number in numbers if number in config.swav.assigning]
        low, high = group["scale"]
        line = f"crops {first} to {numbers[-1]}" if len(numbers) > 1 else f"crop {first}"
        line += f": {group['size']} pixels from {low:g} to {high:g} of the area"
        lines.append(line + (f"; codes of {', '.join(codes)}" if codes else ""))
        first += group["count"]
    return lines


def preview(config: DictConfig, images: int, epoch: int, chosen: Sequence[int] = ()) -> Image.Image:
    """The sheet of the first `images` rows of an epoch's order. chosen: three channels to show. Raises DatasetError,
    and ValueError for a channel that the images do not have."""
    table, _ = open_splits(config.data, progress=True)
    if chosen and (not table.pixels.native or max(chosen) >= table.pixels.channels):
        raise ValueError(f"--channels={','.join(map(str, chosen))}: the images are {table.pixels}; leave it out")
    for line in fit_to_pixels(config, table) if table.pixels.native else ():
        note(f"auto: {line}")
    if config.pipeline.backend == "auto":
        config.pipeline.backend = usual_backend(on_gpu=False)
    crops = crops_from_config(config.crops, config.pipeline.backend)
    rows = order(config.run.seed, epoch, table.usable())[:images]
    drawn, tiles, sources = crops_of(table, crops, config.pipeline.backend, config.run.seed, epoch, rows, chosen)
    return sheet(sources, drawn, tiles)


def crops_of(
    table: SampleTable,
    crops: Crops,
    backend_name: str,
    seed: int,
    epoch: int,
    rows: np.ndarray,
    chosen: Sequence[int] = (),
) -> tuple[Draw, list[np.ndarray], list[np.ndarray]]:
    """The draw of some rows, made on the CPU: their crops by view (rows, size, size, 3) and the images (H, W, 3), in
    uint8. chosen: the channels that are shown. Raises DatasetError."""
    feed = Feed(table, Reader(table))
    device = torch.device("cpu")
    customs = custom_changes(crops, device)
    made = unnormalized(crops) if customs else crops
    backend = make_backend(backend_name, made, len(rows), 1, None, pixels=table.pixels)
    try:
        request = feed.request(epoch, 0, rows, partial(draw, crops, seed, epoch))
        batches = execute(backend, feed, iter([request]))
        request, groups = next(changed(batches, customs, crops, seed, 0, device, torch.float32) if customs else batches)
        if table.pixels.native:
            sources = [false_color(feed.reader.native(int(row)), chosen) for row in request.draw.rows]
        else:
            sources = [feed.reader.decode(int(row)) for row in request.draw.rows]
    finally:
        backend.close()
        feed.reader.close()
    levels = [denormalized(group.permute(0, 2, 3, 1).float().numpy(), crops, table.pixels, chosen) for group in groups]
    tiles: dict[int, np.ndarray] = {}
    for (_, members), pixels in zip(crops.groups, levels, strict=True):
        tiles |= dict(zip(members, np.split(pixels, len(members)), strict=True))
    return request.draw, [tiles[view] for view in range(len(crops.views))], sources


def denormalized(
    pixels: Float[np.ndarray, "N H W C"], crops: Crops, kind: PixelFormat = COLOR, chosen: Sequence[int] = ()
) -> UInt8[np.ndarray, "N H W 3"]:
    """Normalized crops as pixels in [0, 255]; those with their own channels in false color: their `shown_channels`,
    each from SPREAD standard deviations below its mean to as many above."""
    if kind.native:
        shown = pixels[..., shown_channels(pixels.shape[-1], chosen)]
        return np.clip(np.rint((shown / (2 * SPREAD) + 0.5) * 255), 0, 255).astype(np.uint8)
    return np.clip(np.rint((pixels * np.array(crops.std) + np.array(crops.mean)) * 255), 0, 255).astype(np.uint8)


def sheet(sources: list[np.ndarray], drawn: Draw, tiles: list[np.ndarray]) -> Image.Image:
    """The sheet of B images, `sources` (H, W, 3) uint8, and their crops, `tiles` (B, size, size, 3) uint8 per view.

    Crops keep their relative sizes; small images are enlarged without smoothing, so that their pixels stay visible.
    """
    largest = max(tile.shape[1] for tile in tiles)
    places, left, top = [], GAP + TILE + GAP, 0  # (left, top, side) of each view; small crops are stacked
    for tile, following in zip(tiles, [*tiles[1:], None], strict=True):
        side = max(24, round(TILE * tile.shape[1] / largest))
        places.append((left, top, side))
        below = top + side + GAP
        if following is not None and following.shape == tile.shape and below + side <= TILE:
            top = below
        else:
            left, top = left + side + GAP, 0
    canvas = Image.new("RGB", (left, GAP + len(sources) * (TILE + GAP)), "white")
    for index, source in enumerate(sources):
        line = GAP + index * (TILE + GAP)
        canvas.paste(_with_windows(source, drawn.window[index]), (GAP, line))
        for view, (left, top, side) in enumerate(places):
            pixels = Image.fromarray(tiles[view][index])
            resample = Image.Resampling.NEAREST if pixels.width < side else Image.Resampling.BILINEAR
            framed = Image.new("RGB", (side, side), COLORS[view % len(COLORS)])
            framed.paste(pixels.resize((side - 6, side - 6), resample), (3, 3))
            canvas.paste(framed, (left, line + top))
    return canvas


def _with_windows(source: np.ndarray, windows: np.ndarray) -> Image.Image:
    scale = TILE / max(source.shape[:2])
    size = max(1, round(source.shape[1] * scale)), max(1, round(source.shape[0] * scale))
    image = Image.fromarray(source).resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for view, (top, left, height, width) in enumerate(windows.tolist()):
        right, bottom = (left + width) * scale - 1, (top + height) * scale - 1
        corners = [left * scale, top * scale, max(left * scale, right), max(top * scale, bottom)]
        pen.rectangle(corners, outline=COLORS[view % len(COLORS)], width=2)
    return image


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
