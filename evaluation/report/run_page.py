"""report.html of a run, or of several runs side by side: one self-contained page, without a script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.files import write_atomically
from evaluation.report.lines import Line, key, line_plot
from evaluation.report.page import heading, page, rows_table, side_by_side
from evaluation.report.run_files import FixedImages, RunFiles, Seen, read_run

GAP, TIMES = 3, 6  # pixels between small images; epochs whose neighbors are shown, at most
FRAMES = ((60, 180, 75), (230, 25, 75))  # of a neighbor of the query's class, and of another class
# Title, unit, and the names in metrics.jsonl with the words for each; the first is a full line, others are dashed.
CURVES: list[tuple[str, str, dict[str, str]]] = [
    ("Loss, nats", "", {"loss": "loss", "mean_loss": "mean of the epoch"}),
    (
        "k-NN accuracy",
        "%",
        {"knn": "k-NN", "knn_teacher": "k-NN of the teacher", "nearest_same_class": "nearest image"},
    ),
    ("Accuracy of the online probe", "%", {"probe": "test", "probe_train": "training"}),
    ("Entropy of the codes, nats", "", {"code_entropy": "a crop's code", "mean_code_entropy": "mean code"}),
    ("Prototypes in use", "%", {"prototypes_in_use": "strongest for some crop"}),
    ("Effective rank of the embeddings", "", {"embedding_rank": "1 / mean squared cosine", "rankme": "RankMe"}),
    ("LiDAR", "", {"lidar": "of the embeddings"}),
    ("RankMe of the backbone's features", "", {"rankme_features": "RankMe"}),
    ("alpha-ReQ of the backbone's features", "", {"alpha_req": "exponent"}),
    ("Learning rate", "", {"lr": "of the prototypes and the head"}),
]
RESOURCES: list[tuple[str, str, dict[str, str]]] = [
    ("Images a second, since the start", "", {"images_per_second": "all processes"}),
    ("Wait for the loader", "%", {"loader_wait": "share of a step, mean of the processes"}),
    ("Memory of rank 0, GiB", "", {"memory_gib": "process", "gpu_memory_gib": "GPU, highest"}),
    ("Time for this report, seconds an epoch", "", {"watch_seconds": "images and figures"}),
]


def write_page(runs: Sequence[Path], out: Path) -> None:
    """Write the page of these runs' directories. Raises OSError."""
    write_atomically(out, run_page([read_run(run) for run in runs]), durable=False)


def run_page(runs: Sequence[RunFiles]) -> str:
    """The page. With several runs: their curves in common plots, their pictures below each other."""
    names = _names(runs)
    parts = [_facts(runs, names), heading("Learning"), _plots(runs, names, CURVES)]
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        pictures = _pictures(run)
        if pictures:
            mark = f'<i style="border-color:var(--c{number % 8})"></i>' if len(runs) > 1 else ""
            parts += [f"<h2>{mark}{html.escape(name)}</h2>"] if len(runs) > 1 else []
            parts += pictures
    parts += [heading("Resources"), _plots(runs, names, RESOURCES)]
    parts += [heading("Settings"), _settings(runs, names)]
    return page(" and ".join(names) if len(runs) < 3 else f"{len(runs)} runs", parts)


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """The directories' names, with as many of the folders above as tell them apart."""
    paths = [run.directory.resolve().parts for run in runs]
    for count in range(1, max(len(path) for path in paths) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return names


def _facts(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Where each run stands."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        done, total = max(run.epochs, default=0.0), run.settings.get("run.epochs", "?")
        measured = run.curve("knn")[1]
        knn = run.marks.get("knn") or (measured[-1] if measured else None)
        cells = [name, f"{done:.4g} of {total}", _last(run, "mean_loss", "{:.4f}"), _share(knn)]
        cells += [_share(run.marks.get("knn_random_init")), _share(run.marks.get("knn_raw_pixels"))]
        rows.append([*cells, _last(run, "embedding_rank", "{:.1f}"), _last(run, "images_per_second", "{:,.0f}")])
    head = ["run", "epochs", "loss", "k-NN", "random weights", "raw pixels", "effective rank", "images/s"]
    return rows_table(head, rows)


def _last(run: RunFiles, name: str, form: str) -> str:
    values = run.curve(name)[1]
    return form.format(values[-1]) if values else ""


def _share(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, int | float) else ""


def _plots(runs: Sequence[RunFiles], names: Sequence[str], curves: Sequence[tuple[str, str, dict[str, str]]]) -> str:
    figures = []
    for title, unit, wanted in curves:
        lines = []
        for number, (run, name) in enumerate(zip(runs, names, strict=True)):
            for place, (metric, words) in enumerate(wanted.items()):
                x, y = _waits(run) if metric == "loader_wait" else run.curve(metric)
                if x:
                    shown = f"{name}: {words}" if len(runs) > 1 else words
                    color = number if len(runs) > 1 else place
                    lines.append(Line(shown, x, y, color, dashed=len(runs) > 1 and place > 0))
        if title == "k-NN accuracy":
            lines += _baselines(runs, names)
        if (svg := line_plot(title, lines, unit)) is not None:
            figures.append(f"<figure><h3>{html.escape(title)}</h3>{svg}{key(lines, unit)}</figure>")
    return f'<div class="plots">{"".join(figures)}</div>'


def _baselines(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Line]:
    """The final k-NN, and that of random weights and of raw pixels, as lines over all epochs of a run."""
    lines = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        start = f"{name}: " if len(runs) > 1 else ""
        last = max(run.epochs, default=0.0)
        final = run.marks.get("knn")
        if isinstance(final, float) and not run.curve("knn")[0]:
            lines.append(Line(f"{start}k-NN at the end", [last], [final], number))
        for place, (mark, words) in enumerate(
            (("knn_random_init", "random weights"), ("knn_raw_pixels", "raw pixels"))
        ):
            value = run.marks.get(mark)
            if isinstance(value, float):
                color = number if len(runs) > 1 else 5 + place
                lines.append(Line(f"{start}{words}", [0.0, last], [value, value], color, dashed=True))
    return lines


def _waits(run: RunFiles) -> tuple[list[float], list[float]]:
    """Mean over the processes: the wait for a batch as a share of a step's wait and forward pass."""
    points = []
    for x, line in zip(run.epochs, run.metrics, strict=True):
        ranks = line.get("ranks")
        if isinstance(ranks, dict) and ranks.get("data_wait") and ranks.get("forward"):
            waits, own = ranks["data_wait"], [a + b for a, b in zip(ranks["data_wait"], ranks["forward"], strict=True)]
            points.append((x, sum(waits) / sum(own) if sum(own) else 0.0))
    return [x for x, _ in points], [y for _, y in points]


# ---------------------------------------------------------------------------------------------- pictures
def _pictures(run: RunFiles) -> list[str]:
    parts: list[str] = []
    if run.crops is not None:
        text = "Images with the windows of their crops in the first epoch, and the crops as the network sees them."
        parts += [heading("Crops"), _figure(run.crops, text)]
    if run.images is None or not run.seen:
        return parts
    count, labelled = len(run.images.pixels), bool((run.images.label >= 0).any())
    shown = [run.seen[i] for i in np.unique(np.linspace(0, len(run.seen) - 1, min(TIMES, len(run.seen))).astype(int))]
    note = f"The nearest of {count:,} watched training images, by the cosine of the backbone's features."
    note += " Green: the query's class; red: another one." if labelled else ""
    figures = [_neighbors(run.images, shown, place) for place in range(len(shown[-1].queries))]
    parts += [heading("Nearest images of fixed queries"), f'<p class="note">{note}</p>', side_by_side(figures)]
    note = f"The prototypes that are the nearest one of most of the {count:,} watched images, and the images nearest to"
    note += f" them, after epoch {shown[-1].epoch}."
    figures = [_prototype(run.images, one) for one in shown[-1].prototypes]
    return [*parts, heading("Prototypes"), f'<p class="note">{note}</p>', side_by_side(figures)]


def _neighbors(images: FixedImages, shown: Sequence[Seen], place: int) -> str:
    """A query, and a line for each epoch."""
    query = shown[-1].queries[place]
    lines = []
    for seen in shown:
        if place < len(seen.queries) and seen.queries[place] == query:
            when = "before training" if seen.epoch == 0 else f"epoch {seen.epoch}"
            strip = _strip(images, seen.neighbors[place], int(images.label[query]))
            lines.append(f"<tr><td>{when}</td><td>{_image(strip, when)}</td></tr>")
    first = f"<tr><td>query</td><td>{_image(_strip(images, [query]), 'query')}</td></tr>"
    return f'<figure class="wide"><table class="strips">{first}{"".join(lines)}</table></figure>'


def _prototype(images: FixedImages, prototype: dict[str, Any]) -> str:
    text = f"prototype {prototype['number']}: {prototype['size']} of {len(images.pixels):,}"
    labels = images.label[prototype["images"]]
    if (labels >= 0).any():
        text += f"; of the shown ones {np.bincount(labels[labels >= 0]).max()} of {len(labels)} have one class"
    return f"<figure>{_image(_strip(images, prototype['images']), text)}<figcaption>{text}</figcaption></figure>"


def _strip(images: FixedImages, numbers: Sequence[int], label: int = -1) -> Image.Image:
    """Images side by side; with a label >= 0 each has a frame that says whether it has this one."""
    side, edge = images.pixels.shape[1], 2
    step = side + 2 * edge + GAP
    strip = np.zeros((side + 2 * edge, max(len(numbers), 1) * step - GAP, 4), np.uint8)  # transparent
    for column, number in enumerate(numbers):
        left = column * step
        if label >= 0 and images.label[number] >= 0:
            strip[:, left : left + step - GAP, :3] = FRAMES[int(images.label[number] != label)]
            strip[:, left : left + step - GAP, 3] = 255
        strip[edge : edge + side, left + edge : left + edge + side, :3] = images.pixels[number]
        strip[edge : edge + side, left + edge : left + edge + side, 3] = 255
    return Image.fromarray(strip)


def sheets(images: FixedImages, seen: Seen) -> dict[str, bytes]:
    """PNGs for loggers. `neighbors`: a line for each query, with its nearest images; `prototypes`: a line each."""
    lines = {
        "neighbors": [
            _strip(images, [query, *others], int(images.label[query]))
            for query, others in zip(seen.queries, seen.neighbors, strict=True)
        ],
        "prototypes": [_strip(images, one["images"]) for one in seen.prototypes],
    }
    return {name: _png(_below_each_other(strips)) for name, strips in lines.items()}


def _below_each_other(strips: Sequence[Image.Image]) -> Image.Image:
    step = max(strip.height for strip in strips) + GAP
    sheet = Image.new("RGBA", (max(strip.width for strip in strips), step * len(strips) - GAP))
    for line, strip in enumerate(strips):
        sheet.paste(strip, (0, line * step))
    return sheet


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _image(image: Image.Image, text: str) -> str:
    return _tag(_png(image), text)


def _figure(png: bytes, text: str) -> str:
    return f"<figure>{_tag(png, text)}<figcaption>{html.escape(text)}</figcaption></figure>"


def _tag(png: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


# ---------------------------------------------------------------------------------------------- settings
def _settings(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """What `auto` chose; what differs between the runs; all settings."""
    parts = []
    for run, name in zip(runs, names, strict=True):
        if run.chosen:
            rows = [[key_, *why.partition("  ")[::2]] for key_, why in run.chosen.items()]
            rows = [[key_, value, why.strip("()")] for key_, value, why in rows]
            title = f"What auto chose: {name}" if len(runs) > 1 else "What auto chose"
            parts += [heading(title, 3), rows_table(["setting", "value", "why"], rows)]
    keys = list(dict.fromkeys(key_ for run in runs for key_ in run.settings))
    every = [[key_, *(_word(run.settings.get(key_, "")) for run in runs)] for key_ in keys]
    different = [row for row in every if len(set(row[1:])) > 1]
    if len(runs) > 1:
        parts += [heading("Settings that differ", 3), rows_table(["setting", *names], different)]
    table = rows_table(["setting", *(names if len(runs) > 1 else ["value"])], every)
    return "".join(parts) + f"<details><summary>All settings</summary>{table}</details>"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
