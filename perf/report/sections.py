"""The content of the report, part by part: a lead, key figures, tables. Page and Markdown show it.

The parts are mappings as in report.json: `step`, `loader` and `sinkhorn`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perf.sinkhorn import tables as codes_tables
from perf.step.tables import step_parts


@dataclass(frozen=True)
class Table:
    """A table of formatted cells; the columns named in `words` are text, all others numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A part of the report. plots: names in `perf.report.plots.PLOTS`. key_figures: (what, figure)."""

    name: str
    title: str
    lead: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[str] = ()
    key_figures: Sequence[tuple[str, str]] = field(default=())


def headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The main figures of all parts: (what, figure)."""
    figures = []
    if step := report.get("step"):
        roofline = step["roofline"]
        device = "GPU" if step["device"] != "cpu" else "network"
        figures = [
            ("images a second in training", number(step["images_per_second"])),
            (f"of a step the {device} waits for data", f"{step['shares']['data_wait']:.1%}"),
            (f"of the roofline ({roofline['bound']})", f"{roofline['share_of_roofline']:.0%}"),
            ("of a step goes to codes", f"{step['codes_share']:.1%}"),
        ]
    if loader := report.get("loader"):
        figures += _fastest(loader)
    if sinkhorn := report.get("sinkhorn"):
        figures.append(_nodes(sinkhorn, 1))
    return figures


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Loader, step and Sinkhorn, if measured; a part that failed becomes a section with its message."""
    makers = {"loader": loader, "step": step, "sinkhorn": sinkhorn}
    shown = []
    for name, make in makers.items():
        part = report.get(name)
        if part is not None:
            shown.append(make(part))
        elif name in report.get("failed", {}):
            shown.append(Section(name, name.capitalize(), [f"Not measured: {report['failed'][name]}"], []))
    return shown


# ---------------------------------------------------------------------------------------------- the step
def step(part: Mapping[str, Any]) -> Section:
    """The phases of a step, its ranks, collectives, roofline, peer and variants."""
    roofline, settings = part["roofline"], part["settings"]
    lead = [
        f"{part['ranks']} ranks, {settings['batch']} images a step, {settings['precision']}, ZeRO stage "
        f"{settings['stage']}. Timing marks divide the step without waiting and add {part['overhead']:+.1%} to it.",
        f"In the step: {step_parts(settings)}.",
        f"The network does {rate(roofline['flops_per_second'])}FLOP/s: {roofline['mfu']:.0%} of the fastest product "
        f"measured here ({roofline['peak_of']}, ± {roofline['peak_noise']:.0%}), "
        f"{roofline['share_of_roofline']:.0%} of the roofline, whose ceiling here is "
        f"{roofline['bound']}.",
    ]
    key = [
        ("ms a step", number(part["step_ms"])),
        ("of the fastest product measured (MFU)", f"{roofline['mfu']:.0%}"),
        ("collectives a step for codes", f"{part['codes_collectives']:g}"),
        ("GB in a rank, at most", f"{part['peak_gb']:.2f}"),
    ]
    if part["peer_ratio"]:
        peer = part["peer"]
        key.append(("our step over that of plain PyTorch", f"{part['peer_ratio']:.2f}"))
        lead.append(
            f"A plain PyTorch loop of the published algorithm, interleaved and on the same batches in memory, takes "
            f"{peer['step_ms']:,.1f} ms a step, our step {peer['ours_ms']:,.1f}: ratio {part['peer_ratio']:.3f} "
            f"({peer['ratio_min']:.3f} to {peer['ratio_max']:.3f})."
        )
    elif part["peer_left_out"]:
        lead.append(f"There is no comparison with plain PyTorch: that loop does not have {part['peer_left_out']}.")
    phases = [
        [name.replace("_", " "), f"{share:.1%}", *(f"{part['phases_ms'][name][key]:.2f}" for key in MMM)]
        for name, share in part["shares"].items()
    ]
    ranks = [
        [str(row["rank"]), row["host"], *(f"{row[key]:.2f}" for key in ("step_ms", "own_ms", "communication_ms"))]
        for row in part["per_rank"]
    ]
    calls = [
        [row["kind"].replace("_", " "), f"{row['count']:g}", f"{row['bytes'] / 1e3:,.1f}", f"{row['ms']:.2f}"]
        for row in part["collectives"]
    ]
    tables = [
        Table("A step by phase", ["phase", "share", "ms", "lowest", "highest"], phases, ["phase"]),
        Table("Ranks", ["rank", "host", "step, ms", "own time, ms", "collectives, ms"], ranks, ["host"]),
        Table("Collectives of a step, rank 0", ["kind", "count", "kB", "ms"], calls, ["kind"]),
        Table("Roofline", ["figure", "value"], _roofline(part), ["figure"]),
        Table("Other settings", VARIANT_HEAD, _variants(part["variants"]), ["precision", "skipped because"]),
    ]
    plots = ["phases", "ranks", "roofline", "variants"]
    return Section("step", "Step", lead, [one for one in tables if one.rows], plots, key)


MMM = ("median", "min", "max")
VARIANT_HEAD = ("precision", "stage", "compile", "channels-last", "images/s", "ms", "GB", "skipped because")


def _roofline(step: Mapping[str, Any]) -> list[list[str]]:
    roofline = step["roofline"]
    return [
        [f"fastest product measured on this device: {roofline['peak_of']}", f"{rate(roofline['peak_flops'])}FLOP/s"],
        ["its noise, median to best", f"{roofline['peak_noise']:.1%}"],
        ["memory bandwidth measured on this device", f"{roofline['bandwidth'] / 1e9:,.1f} GB/s"],
        ["operations a byte of this network", f"{roofline['intensity']:.1f}"],
        ["reached", f"{rate(roofline['flops_per_second'])}FLOP/s"],
        ["share of that product (MFU)", f"{roofline['mfu']:.1%}"],
        ["share of the roofline", f"{roofline['share_of_roofline']:.1%}"],
        ["peak memory of a rank", f"{step['peak_gb']:.2f} GB"],
    ]


def _variants(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    table = []
    for row in rows:
        speed = ["", "", ""]
        if not row["skipped"]:
            speed = [f"{row['images_per_second']:,.1f}", f"{row['step_ms']:,.1f}", f"{row['peak_gb']:.2f}"]
        choices = [str(row[key]).lower() for key in ("precision", "stage", "compile", "channels_last")]
        table.append([*choices, *speed, row["skipped"] or ""])
    return table


def number(value: float) -> str:
    """At least three digits: 2.84, 28.4, 2,841."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(value: float) -> str:
    """A number with the prefix of its unit: 1.5e12 -> "1.50 T"."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:,.2f} {letter}"
    return f"{value:,.0f} "


# ---------------------------------------------------------------------------------------------- the loader
def loader(part: Mapping[str, Any]) -> Section:
    """Rates with those of peers and ceilings, the sweep, stages, CPU time and memory, GPUs fed."""
    images, settings = part["images"], part["settings"]
    lead = [
        f"{images['count']:,} images of {images['mean_width']} x {images['mean_height']} pixels and "
        f"{images['mean_bytes'] / 1000:.0f} kB on average ({images['source']}), {settings['threads']} threads, batches "
        f"of {settings['batch']}; contenders take turns on the same cores."
    ]
    key = _fastest(part)
    ratio = part["ratios"].get("full_over_torchvision")
    if ratio:
        key.append(("times the rate of the torchvision recipe", f"{ratio:.1f}"))
    for backend, fed in part.get("gpus_fed", {}).items():
        if backend == "ffcv":
            key.append((f"GPUs fed at {fed['rate_needed']:,.0f} images/s each", f"{fed['gpus']:.2f}"))
    tables = [
        Table("Rates, medians of rounds", RATE_HEAD, _rates(part), ["backend", "mode"]),
        Table("Threads, batches and image sizes", SWEEP_HEAD, _sweep(part.get("sweep", [])), ["backend", "images"]),
        Table("CPU time of the ffcv backend by stage", ["stage", "ms an image"], _stages(part), ["stage"]),
        Table("Ceilings", ["what", "images/s", "MB/s"], _ceilings(part), ["what"]),
        Table("GPUs that this machine can feed", ["backend", "images/s a GPU", "GPUs"], _fed(part), ["backend"]),
    ]
    plots = ["rates", "threads", "stages", "batches", "sizes"]
    return Section("loader", "Loader", lead, [one for one in tables if one.rows], plots, key)


def _fastest(loader: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rate of the faster one of ffcv and dali: training gives the same result with either."""
    rows = [row for row in loader["results"] if row["mode"] == "full" and row["backend"] in ("ffcv", "dali")]
    if not rows:
        return []
    best = max(rows, key=lambda row: row["images_per_second"])
    return [(f"images a second from the loader, {best['backend']}", f"{best['images_per_second']:,.0f}")]


RATE_HEAD = ("backend", "mode", "images/s", "lowest", "highest", "CPU ms an image", "memory, MB")
SWEEP_HEAD = ("backend", "images", "threads", "batch", "images/s", "lowest", "highest")


def _rates(loader: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for row in sorted(loader["results"], key=lambda row: (row["mode"] != "full", -row["images_per_second"])):
        figures = [f"{row[key]:,.0f}" for key in ("images_per_second", "min", "max")]
        cost = [_figure(row.get("cpu_ms_per_image"), "{:.2f}"), _figure(row.get("memory_mb"), "{:,.0f}")]
        rows.append([row["backend"], row["mode"], *figures, *cost])
    return rows


def _sweep(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [row["backend"], str(row["source"]), str(row["threads"]), str(row["batch"])]
        + [f"{row[key]:,.0f}" for key in ("images_per_second", "min", "max")]
        for row in rows
    ]


def _stages(loader: Mapping[str, Any]) -> list[list[str]]:
    return [[name.replace("_", " "), f"{value:.3f}"] for name, value in loader["stages_ms"].items()]


def _ceilings(loader: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    if loader["decode_images_per_second"]:
        rows.append(["decoding alone (libjpeg-turbo)", f"{loader['decode_images_per_second']:,.0f}", ""])
    ceilings = loader.get("ceilings") or {}
    for name, words in (("read_warm", "reading, page cache"), ("read_cold", "reading, storage")):
        read = ceilings.get(name)
        if read and read.get("images_per_second"):
            rows.append([words, f"{read['images_per_second']:,.0f}", f"{read['mb_per_second']:,.0f}"])
        elif read:
            rows.append([f"{words}: {read.get('why', 'not measured')}", "", ""])
    return rows


def _fed(loader: Mapping[str, Any]) -> list[list[str]]:
    return [
        [backend, f"{fed['rate_needed']:,.0f}", f"{fed['gpus']:.2f}"]
        for backend, fed in loader.get("gpus_fed", {}).items()
    ]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None or value != value else form.format(value)


# ---------------------------------------------------------------------------------------------- Sinkhorn
def sinkhorn(part: Mapping[str, Any]) -> Section:
    """The cost of codes on these ranks, the model against measurements, and predictions for N nodes."""
    error = part["error"]
    key = [("largest error of a held-out prediction", "-" if error is None else f"{error:.0%}")]
    key += [_nodes(part, percent) for percent in (1, 5)]
    words = ("link", "variant", "what")
    tables = [Table(title, head, rows, words) for title, head, rows in codes_tables.tables(part)]
    plots = ["nodes", "held_out", "prototypes"]
    return Section("sinkhorn", "Sinkhorn", codes_tables.sentences(part), tables, plots, key)


def _nodes(sinkhorn: Mapping[str, Any], percent: int) -> tuple[str, str]:
    nodes = sinkhorn[f"nodes_at_{percent}_percent"].get("ours")
    return f"nodes until codes take {percent} % of a step", str(nodes) if nodes else "over 512"
