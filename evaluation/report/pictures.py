"""Draws the pictures of sheets and of the report from datasets and features."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

from evaluation.clusters import GAP, TILE, thumbnail, top_images
from evaluation.curve import draw_curve
from pipeline.dataset.labelled import Labelled
from pipeline.dataset.reader import Reader
from pipeline.dataset.table import SampleTable


def neighbor_sheet(
    data: Labelled, queries: Int[np.ndarray, " queries"], neighbors: Int[np.ndarray, "queries shown"], tile: int = TILE
) -> Image.Image:
    """One row per query: the query, then its neighbors, framed in green if they have its class, or else in red.

    queries: indices into data.test_rows; neighbors: into data.train_rows.
    """
    step, edge = tile + GAP, 3
    sheet = Image.new("RGB", ((1 + neighbors.shape[1]) * step + 3 * GAP, len(queries) * step + GAP), "white")
    test, train = Reader(data.test), Reader(data.train)
    try:
        for line, (query, indices) in enumerate(zip(queries, neighbors, strict=True)):
            row = int(data.test_rows[query])
            sheet.paste(thumbnail(test.decode(row), tile), (GAP, GAP + line * step))
            for column, index in enumerate(indices):
                other = int(data.train_rows[index])
                same = data.train.label[other] == data.test.label[row]
                framed = Image.new("RGB", (tile, tile), "#3cb44b" if same else "#e6194b")
                framed.paste(thumbnail(train.decode(other), tile - 2 * edge), (edge, edge))
                sheet.paste(framed, ((column + 1) * step + 3 * GAP, GAP + line * step))
    finally:
        test.close()
        train.close()
    return sheet


def principal_plane(features: Float[np.ndarray, "rows features"]) -> tuple[Float[np.ndarray, "rows 2"], float]:
    """The rows projected on their first two principal components, and these components' share of the variance."""
    centered = features.astype(np.float64) - features.mean(0)
    variances, axes = np.linalg.eigh(centered.T @ centered)
    plane = centered @ axes[:, ::-1][:, :2]
    if plane.shape[1] < 2:
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    total = float(variances.sum())
    return plane, float(variances[-2:].sum() / total) if total > 0 else 1.0


def neighbor_plane(features: Float[np.ndarray, "rows features"], seed: int = 0) -> Float[np.ndarray, "rows 2"]:
    """The rows in two dimensions by t-SNE: neighbors stay neighbors, distances between groups mean nothing. One or two
    rows have no neighbors to keep: they are projected."""
    from sklearn.manifold import TSNE

    if len(features) < 3:
        return principal_plane(features)[0]

    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)


def projection(features: np.ndarray, label: np.ndarray, classes: Sequence[str], way: str = "pca") -> Image.Image:
    """Features (N, D) of images in two dimensions, a color for each class. way: "pca" or "tsne"."""
    pyplot = _pyplot()
    if way == "tsne":
        plane, title = neighbor_plane(features), "t-SNE"
    else:
        plane, share = principal_plane(features)
        title = f"two principal components, {share:.0%} of the variance"
    figure, axes = pyplot.subplots(figsize=(7.5, 5), layout="constrained")
    colors = pyplot.get_cmap("tab20" if len(np.unique(label)) > 10 else "tab10")
    for position, number in enumerate(np.unique(label)):
        inside = label == number
        name = classes[number] if classes else str(number)
        axes.scatter(*plane[inside].T, s=6, color=colors(position % 20), label=name, alpha=0.7, linewidths=0)
    axes.set(xticks=[], yticks=[], title=title)
    if len(np.unique(label)) <= 20:
        axes.legend(markerscale=2, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left", frameon=False)
    return _drawn(figure)


def curves(lines: Mapping[str, Sequence[float]], what: str) -> Image.Image:
    """A plot of figures after each epoch (in [0, 1]), one line per name."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
    for name, values in lines.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", ms=3, label=name)
    axes.set(xlabel="epoch", ylabel="top-1", title=what)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(fontsize=8, frameon=False)
    return _drawn(figure)


def atlas(
    table: SampleTable,
    rows: np.ndarray,
    assigned: Mapping[str, np.ndarray],
    entropy: np.ndarray,
    prototypes: int,
    shown: int = 24,
    images: int = 10,
) -> Image.Image:
    """One line for each of the `shown` largest prototypes: its number of images, the entropy (nats) of their classes,
    and the images with the highest scores. assigned: columns of `evaluation.clusters.assigned` for `rows`."""
    sizes = np.bincount(assigned["prototype"], minlength=prototypes)
    largest = [int(number) for number in np.argsort(-sizes, kind="stable")[:shown] if sizes[number]]
    tile, left, font = 64, 150, ImageFont.load_default(13)
    sheet = Image.new("RGB", (left + images * (tile + GAP), len(largest) * (tile + GAP) + GAP), "white")
    pen, reader = ImageDraw.Draw(sheet), Reader(table)
    try:
        for line, number in enumerate(largest):
            top = GAP + line * (tile + GAP)
            known = "" if np.isnan(entropy[number]) else f"\nclass entropy {entropy[number]:.2f}"
            pen.text((GAP, top + 8), f"prototype {number}\n{sizes[number]:,} images{known}", fill="black", font=font)
            chosen = top_images(assigned["prototype"], assigned["score"], number, images)
            for column, index in enumerate(chosen):
                sheet.paste(thumbnail(reader.decode(int(rows[index])), tile), (left + column * (tile + GAP), top))
    finally:
        reader.close()
    return sheet


def run_curve(run: Path) -> Image.Image | None:
    """The learning curve of a run or checkpoint directory; None without metrics, or without loss or k-NN in them."""
    folder = next((one for one in (run, *run.parents[:2]) if (one / "metrics.jsonl").is_file()), None)
    if folder is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            draw_curve(folder, Path(scratch) / "curve.png")
        except (ValueError, KeyError, TypeError):  # the run has no loss or no score yet
            return None
        return Image.open(Path(scratch) / "curve.png").convert("RGB")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    _pyplot().close(figure)
    return Image.open(buffer).convert("RGB")
